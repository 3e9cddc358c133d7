"""``POST /estimates``: what a budget leaves, before a job is made."""

import io
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from sqlalchemy import insert

from served import SUMMARY, Served, problem
from speed import slowness, standard_seconds
from stillhouse.distill import catalogue as catalogue_file
from stillhouse.distill.data.codecs import measure_curve
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Budget, Candidate, Fit, Size, StageResult
from stillhouse.search.errors import UserError
from stillhouse.search.job import JobSpec
from stillhouse.search.plan import Planner
from stillhouse.search.space import Space
from stillhouse.service.app import create_app
from stillhouse.service.client import Client
from stillhouse.service.db.connect import WRITE, connect
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.db.tables import StageRow

Live = Callable[[FastAPI], str]


def test_an_estimate_counts_and_says_what_relaxing_opens(served: Served) -> None:
    dataset = served.ready()
    body = {"dataset": dataset, "budget": {"max_flops": 7.6e6, "max_image_size": 64}}
    began = time.process_time()
    answer = served.http.post("/estimates", json=body)
    assert (time.process_time() - began) / slowness() < 2.0
    assert answer.status_code == 200, answer.text
    found = answer.json()
    # 32 -> 32 fits; 32 -> 64 and 64 -> 64 have 4 M MACs, where 3.8 M are allowed.
    assert (found["candidates"], found["fits"]) == (3, 1)
    assert found["binds"] == "max_macs"
    assert found["ruled_out_alone"] == {"max_macs": 2, "max_image_size": 0}
    opened = {(each["limit"], each["by"]): each["opens"] for each in found["relax"]}
    assert opened["max_macs", 0.1] == 2
    assert opened["max_image_size", 0.5] == 0
    assert found["cheapest"]["macs"]["candidate"]["network_size"] == "32x32"
    assert (found["likely_best"]["candidate"], found["likely_best"]["measured"]) == (
        Candidate("lcnet_050", Size(32, 32), Size(32, 32)).to_json(),
        False,
    )
    assert "most MACs" in found["why"]
    assert served.ledger.jobs() == [], "nothing is stored"


FIGURES = {"model_bytes": 4000, "latency_ms": 9.0, "latency_p95_ms": 10.0, "memory_bytes": 100}


def measured_all(url: str, planner: Planner, candidates: Iterable[Candidate]) -> None:
    """Puts the device's figures of each candidate, at each precision, into the ledger."""
    plans = [planner.costing(each, name).last for each in candidates for name in planner.precisions(each)]
    plain = {"kind": "measure", "state": "done", "attempts": 1, "faults": [], "seconds": 1.0, "created_at": 0.0}
    result = StageResult({}, FIGURES).to_json()
    rows = [{**plain, "key": plan.key, "plan": plan.to_json(), "result": result} for plan in plans]
    engine = connect(url)
    with engine.execution_options(**WRITE).begin() as connection:
        connection.execute(insert(StageRow), rows)
    engine.dispose()


@pytest.mark.parametrize("limit", [None, "92x112"])
def test_the_whole_catalogue_is_answered_within_two_seconds(limit: str | None, sqlite_url: str, tmp_path: Path) -> None:
    upgrade(sqlite_url)
    served = Served(sqlite_url, tmp_path / "home")
    shipped = json.loads(catalogue_file.PATH.read_text(encoding="utf-8"))
    served.ledger.publish_catalogue({**(served.ledger.catalogue() or {}), **shipped})
    dataset = served.ready()
    body: dict[str, Any] = {"dataset": dataset, "budget": {"max_macs": 60e6, "max_latency_ms": 20}}
    body["budget"] |= {"max_image_size": limit} if limit else {}
    record, known = served.ledger.dataset(dataset), served.ledger.catalogue() or {}
    spec = JobSpec(dataset, Budget.from_json(body["budget"]))
    space = Space(Catalogue.from_json(known), record.summary, spec)
    assert len(space.candidates) > 2000
    measured_all(sqlite_url, Planner(spec, record.stage_key, space.classes, known), space.candidates)
    seconds, answer = standard_seconds(lambda: served.http.post("/estimates", json=body))
    assert answer.status_code == 200, answer.text
    assert (answer.json()["candidates"], answer.json()["unmeasured"]) == (len(space.candidates), 0)
    served.close()
    assert seconds < 2.0


def coloured(count: int) -> list[Image.Image]:
    """Pictures whose colours change as their brightness does not."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60)) for _ in range(count)]


def test_grey_costs_fewer_macs_and_bytes_than_colour(served: Served) -> None:
    shipped = json.loads(catalogue_file.PATH.read_text(encoding="utf-8"))["archs"]["lcnet_050"]
    published = served.ledger.catalogue() or {}
    served.ledger.publish_catalogue({**published, "archs": {"lcnet_050": shipped}})
    curve = measure_curve(coloured(5), [Fit.SQUASH], [Size(32, 32), Size(64, 64)], ["jpeg"], [90])
    dataset = served.http.post("/datasets", json={"builtin": "textures"}).json()["id"]
    served.ledger.end_dataset(dataset, "ready", summary={**SUMMARY, "curve": curve}, reason=None, faults=())
    costs = {}
    for colour in ("rgb", "grey"):
        search = {"colour": colour, "image_sizes": ["32x32"], "qualities": [], "precisions": ["fp32"]}
        answer = served.http.post("/estimates", json={"dataset": dataset, "search": search})
        assert answer.status_code == 200, answer.text
        costs[colour] = answer.json()["cheapest"]["macs"]["cost"]
    assert costs["rgb"]["macs"] - costs["grey"]["macs"] == 2 * 16 * 16 * 9 * 8, "of a 3x3 stem of 8 channels, stride 2"
    assert costs["rgb"]["params"] - costs["grey"]["params"] == 2 * 9 * 8
    grey = [image.resize((32, 32), Image.Resampling.BILINEAR).convert("L") for image in coloured(5)]
    assert costs["grey"]["image_bytes"] == pytest.approx(sum(map(jpeg_bytes, grey)) / 5)
    assert costs["grey"]["image_bytes"] < costs["rgb"]["image_bytes"]


def jpeg_bytes(image: Image.Image) -> int:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, optimize=True)
    return len(buffer.getvalue())


def test_a_data_set_that_was_ingested_before_grey_says_to_ingest_it_again(served: Served) -> None:
    body = {"dataset": served.ready(), "search": {"colour": "grey", "qualities": [], "precisions": ["fp32"]}}
    assert "ingest it again" in problem(served.http.post("/estimates", json=body), 422)
    body["search"] = {"colour": "gray"}
    assert "did you mean grey" in problem(served.http.post("/estimates", json=body), 422)


def test_measured_latencies_are_taken_from_earlier_searches(served: Served) -> None:
    dataset = served.ready()
    search: dict[str, Any] = {"precisions": ["fp32"]}
    body: dict[str, Any] = {"dataset": dataset, "budget": {"max_latency_ms": 5}, "search": search}
    assert served.http.post("/estimates", json=body).json()["unmeasured"] == 3
    record, catalogue = served.ledger.dataset(dataset), served.ledger.catalogue() or {}
    planner = Planner(JobSpec(dataset), record.stage_key, 3, catalogue)
    plan = planner.costing(Candidate("lcnet_050", Size(64, 64), Size(64, 64))).last
    served.ledger.ensure_stage(plan)
    attempt = served.ledger.open_attempt(plan.key, lease_s=60, threads=1)
    assert attempt is not None
    metrics = {"model_bytes": 4000, "latency_ms": 9.0, "latency_p95_ms": 10.0, "memory_bytes": 100}
    served.ledger.commit(attempt.id, attempt.token, StageResult({}, metrics), seconds=1.0)
    found = served.http.post("/estimates", json=body).json()
    assert (found["fits"], found["unmeasured"], found["ruled_out"]) == (2, 2, {"max_latency_ms": 1})
    assert found["is_upper_bound"] is True
    body["budget"]["max_latency_ms"] = 9
    found = served.http.post("/estimates", json=body).json()
    assert (found["fits"], found["measured"], found["unmeasured"]) == (3, 1, 2)
    search["latency_threads"] = 2
    assert served.http.post("/estimates", json=body).json()["measured"] == 0, "measured with one thread only"


def test_a_budget_that_nothing_meets_is_no_error(served: Served) -> None:
    found = served.http.post("/estimates", json={"dataset": served.ready(), "budget": {"max_macs": 1000}}).json()
    assert found["fits"] == 0
    assert "max_macs" in found["reason"]
    assert found["likely_best"] is None
    assert [each["opens"] for each in found["relax"]] == [0, 0, 0]


def test_the_client_asks_for_an_estimate(served: Served, live: Live) -> None:
    dataset = served.ready()
    with Client(live(create_app(served.ledger, served.store, served.settings))) as client:
        found = client.estimate(dataset, {"max_macs": 2e6}, {"objectives": ["params"]})
        assert (found["fits"], set(found["cheapest"])) == (1, {"macs", "params"})
        with pytest.raises(UserError, match="max_mac"):
            client.estimate(dataset, {"max_mac": 1})


def test_a_data_set_that_failed_says_why(served: Served) -> None:
    dataset = served.http.post("/datasets", json={"builtin": "textures"}).json()["id"]
    served.ledger.end_dataset(dataset, "failed", summary={}, reason="torn", faults=())
    assert "torn" in problem(served.http.post("/estimates", json={"dataset": dataset}), 409)


def test_mistakes_are_named(served: Served) -> None:
    dataset = served.http.post("/datasets", json={"builtin": "textures"}).json()["id"]
    assert "wait until it is ready" in problem(served.http.post("/estimates", json={"dataset": dataset}), 409)
    assert "no such data set" in problem(served.http.post("/estimates", json={"dataset": "ds_no"}), 404)
    body = {"dataset": dataset, "search": {"archs": ["lcnet_05"]}}
    assert "did you mean lcnet_050" in problem(served.http.post("/estimates", json=body), 422)
    assert "max_mac" in problem(
        served.http.post("/estimates", json={"dataset": dataset, "budget": {"max_mac": 1}}), 422
    )
