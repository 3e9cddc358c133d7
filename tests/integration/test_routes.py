"""The API's lists, logs, retries, deletions, fronts across jobs, bundles and devices, over a real ledger."""

import dataclasses
import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from served import SUMMARY, Served, problem
from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Size, StageKind, StagePlan, StageResult
from stillhouse.service.api.pulse import LISTED_S

CANDIDATE = Candidate("lcnet_050", Size(32, 32), Size(64, 64))


def new_job(served: Served, dataset: str, *states: str, **search: Any) -> str:
    job = str(served.http.post("/jobs", json={"dataset": dataset, "search": search}).json()["id"])
    for before, after in zip(("queued", *states), states, strict=False):
        served.ledger.move_job(job, expect=(before,), to=after)
    return job


def walk(served: Served, url: str) -> list[list[dict[str, Any]]]:
    """All pages of a list."""
    pages = []
    while url:
        answer = served.http.get(url)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        url = answer.links.get("next", {}).get("url", "")
    return pages


def test_jobs_are_listed_in_pages(served: Served) -> None:
    dataset = served.ready()
    ids = [new_job(served, dataset, seed=seed) for seed in range(5)]
    pages = walk(served, f"/jobs?limit=2&dataset={dataset}")
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [job["id"] for page in pages for job in page] == ids[::-1]
    served.http.post(f"/jobs/{ids[1]}/cancel")
    (found,) = served.http.get("/jobs?state=cancelled&state=done").json()
    assert (found["id"], found["state"]) == (ids[1], "cancelled")
    assert served.http.get("/jobs?dataset=ds_none").json() == []
    assert "cursor" in problem(served.http.get("/jobs?after=x"), 422)
    problem(served.http.get("/jobs?state=asleep"), 422)
    problem(served.http.get("/jobs?limit=0"), 422)


def test_what_was_changed_here_is_in_the_list_at_once_and_what_elsewhere_soon(served: Served) -> None:
    dataset = served.ready()
    assert served.http.get("/jobs").json() == []
    job = new_job(served, dataset)
    assert [each["state"] for each in served.http.get("/jobs").json()] == ["queued"]
    served.ledger.move_job(job, expect=("queued",), to="running")  # as the controller does
    time.sleep(LISTED_S)
    assert [each["state"] for each in served.http.get("/jobs").json()] == ["running"]
    served.http.post(f"/jobs/{job}/cancel")
    assert [each["state"] for each in served.http.get("/jobs").json()] == ["cancelled"]


def test_a_kept_answer_is_the_same_packed_or_not_and_made_anew_after_a_change(served: Served, tmp_path: Path) -> None:
    job, model, _ = served.finished(tmp_path)
    for url in (f"/jobs/{job}/pareto", f"/jobs/{job}", f"/jobs/{job}/trials"):
        packed, plain = (served.http.get(url, headers={"accept-encoding": how}) for how in ("gzip", "identity"))
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert packed.json() == plain.json()
    served.ledger.move_job(job, expect=("done",), to="queued")
    served.http.app.state.context.pulse.forget()  # type: ignore[attr-defined] # as after a request that changed it
    assert served.http.get(f"/jobs/{job}/pareto").json()["state"] == "queued"
    again = dataclasses.replace(served.ledger.deployment(model), id="mdl_2", trial_number=1, cost=Cost(5, 5, 5, 5.0))
    served.ledger.add_deployment(again)
    for before, after in (("queued", "running"), ("running", "done")):
        served.ledger.move_job(job, expect=(before,), to=after)
    assert {entry["model"] for entry in served.http.get(f"/jobs/{job}/pareto").json()["front"]} >= {"mdl_2"}


def test_trials_are_listed_in_pages(served: Served) -> None:
    job = new_job(served, served.ready(), "running")
    for number in range(5):
        served.ledger.add_trial(job, number, CANDIDATE, Cost(macs=number + 1))
    served.ledger.move_trial(job, 3, expect="costing", to="failed", reason="broken")
    pages = walk(served, f"/jobs/{job}/trials?limit=2")
    assert [[trial["number"] for trial in page] for page in pages] == [[0, 1], [2, 3], [4]]
    (failed,) = served.http.get(f"/jobs/{job}/trials?state=failed").json()
    assert (failed["number"], failed["reason"]) == (3, "broken")
    problem(served.http.get("/jobs/no/trials"), 404)


def test_the_log_of_a_trial(served: Served) -> None:
    job, plan = new_job(served, served.ready(), "running"), StagePlan(StageKind.STUDENT, {"n": 1})
    served.ledger.ensure_stage(plan)
    served.ledger.add_trial(job, 0, CANDIDATE, Cost())
    assert served.http.get(f"/jobs/{job}/trials/0/log").text == "nothing was tried yet\n"
    served.ledger.move_trial(job, 0, expect="costing", to="training", stages=[plan.key])
    tries = []
    for lines in (3, 500, None):
        attempt = served.ledger.open_attempt(plan.key, lease_s=9, threads=1)
        assert attempt is not None
        tries.append(attempt.id)
        served.settings.logs.mkdir(parents=True, exist_ok=True)
        if lines is not None:
            text = "".join(f"{attempt.id} line {line}\n" for line in range(lines))
            (served.settings.logs / f"{attempt.id}.log").write_text(text)
        served.ledger.lose(attempt.id, max_attempts=9)
    answer = served.http.get(f"/jobs/{job}/trials/0/log?tail=5")
    assert answer.headers["content-type"].startswith("text/plain")
    shown = answer.text.splitlines()
    assert [line for line in shown if line.startswith("==")] == [
        f"== student {plan.key[:12]}, attempt {each}: lost ==" for each in tries
    ]
    assert f"{tries[0]} line 0" in shown
    assert [line for line in shown if line.startswith(tries[1])] == [f"{tries[1]} line {n}" for n in range(495, 500)]
    assert "no log here" in answer.text
    one = served.http.get(f"/jobs/{job}/trials/0/log?attempt={tries[0]}").text
    assert tries[0] in one and tries[1] not in one
    problem(served.http.get(f"/jobs/{job}/trials/0/log?attempt=../../etc/passwd"), 404)
    assert "no such trial" in problem(served.http.get(f"/jobs/{job}/trials/7/log"), 404)
    problem(served.http.get("/jobs/no/trials/0/log"), 404)


def test_a_job_that_ended_badly_is_tried_again(served: Served) -> None:
    job = new_job(served, served.ready())
    assert "queued" in problem(served.http.post(f"/jobs/{job}/retry"), 409)
    served.http.post(f"/jobs/{job}/cancel")
    again = served.http.post(f"/jobs/{job}/retry")
    assert (again.status_code, again.json()["state"]) == (202, "queued")
    for before, after in (("queued", "running"), ("running", "done")):
        served.ledger.move_job(job, expect=(before,), to=after)
    assert "done" in problem(served.http.post(f"/jobs/{job}/retry"), 409)
    problem(served.http.post("/jobs/no/retry"), 404)


def test_jobs_and_data_sets_are_deleted_in_order(served: Served, tmp_path: Path) -> None:
    job, model, _ = served.finished(tmp_path)
    dataset = served.ledger.job(job).spec.dataset
    live = new_job(served, dataset)
    assert "cancel it first" in problem(served.http.delete(f"/jobs/{live}"), 409)
    assert "has jobs" in problem(served.http.delete(f"/datasets/{dataset}"), 409)
    served.http.post(f"/jobs/{live}/cancel")
    for each in (live, job):
        assert served.http.delete(f"/jobs/{each}").status_code == 204
        problem(served.http.get(f"/jobs/{each}"), 404)
        problem(served.http.delete(f"/jobs/{each}"), 404)
    problem(served.http.get(f"/models/{model}"), 404)
    assert served.http.get("/jobs").json() == served.http.get("/models").json() == []
    assert served.http.delete(f"/datasets/{dataset}").status_code == 204
    assert served.http.get("/datasets").json() == []
    assert served.ready() != dataset


def test_models_are_listed_in_pages_and_filtered(served: Served, tmp_path: Path) -> None:
    job, model, _ = served.finished(tmp_path)
    first = served.ledger.deployment(model)
    for number in range(1, 5):
        served.ledger.add_deployment(dataclasses.replace(first, id=f"mdl_{number + 1}", trial_number=number))
    served.ledger.add_deployment(dataclasses.replace(first, id="mdl_9", precision="int8"))
    pages = walk(served, "/models?limit=4")
    names = [entry["model"] for page in pages for entry in page]
    assert names == ["mdl_9", "mdl_5", "mdl_4", "mdl_3", "mdl_2", "mdl_1"]
    assert [entry["model"] for entry in served.http.get("/models?precision=int8").json()] == ["mdl_9"]
    assert len(served.http.get(f"/models?job={job}&arch=lcnet_050").json()) == 6
    assert served.http.get("/models?arch=vit").json() == []
    assert pages[0][0]["links"] == {"onnx": "/models/mdl_9/onnx", "bundle": "/models/mdl_9/bundle"}


def test_the_front_across_jobs(served: Served, tmp_path: Path) -> None:
    job, model, _ = served.finished(tmp_path)
    dataset, first = served.ledger.job(job).spec.dataset, served.ledger.deployment(model)
    other, of_two = new_job(served, dataset, seed=1), new_job(served, dataset, classes=2)
    served.ledger.add_trial(other, 0, CANDIDATE, Cost(macs=1))
    better = dataclasses.replace(first, id="mdl_2", job_id=other, validation=Accuracy(11, 12))
    unknown = dataclasses.replace(first, id="mdl_3", job_id=other, cost=Cost(macs=1))
    for item in (better, unknown):
        served.ledger.add_deployment(item)
    found = served.http.get("/pareto", params={"job": [job, other]}).json()
    assert [(entry["model"], entry["job"]) for entry in found["front"]] == [("mdl_2", other)]
    assert (found["models"], found["unmeasured"], found["jobs"]) == (2, 1, [job, other])
    assert found["objectives"] == ["macs", "image_bytes"]
    by_macs = served.http.get("/pareto", params={"job": [job, other], "objectives": ["macs"]}).json()
    assert {entry["model"] for entry in by_macs["front"]} == {"mdl_2", "mdl_3"}
    assert "classes" in problem(served.http.get(f"/pareto?dataset={dataset}"), 409)
    assert served.http.get(f"/pareto?job={of_two}").json()["front"] == []
    assert "either" in problem(served.http.get("/pareto"), 422)
    problem(served.http.get("/pareto?job=no"), 404)
    problem(served.http.get("/pareto?dataset=no"), 404)
    problem(served.http.get(f"/pareto?job={job}&objectives=beauty"), 422)


def real_model(path: Path) -> None:
    """Mean of each channel: (N, 8, 8, 3) uint8 -> (N, 3) float32."""
    nodes = [
        helper.make_node("Cast", ["pictures"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["logits"], axes=[1, 2], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["n", 8, 8, 3])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "means", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def ingested(served: Served, root: Path, dataset: str) -> None:
    """Stores six validation pictures as the ingest stage of a data set would."""
    rows, blob = [], b""
    for index in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 12), (40 * index, 10, 200)).save(buffer, "PNG")
        rows.append(
            {"split": "val", "label": index // 2, "name": f"{index}.png", "offset": len(blob), "length": buffer.tell()}
        )
        blob += buffer.getvalue()
    from stillhouse.distill.data.ingest import MANIFEST_VERSION

    manifest = {"version": MANIFEST_VERSION, "classes": SUMMARY["classes"], "digest": "d" * 64, "pictures": rows}
    (root / "pictures.bin").write_bytes(blob)
    (root / "manifest.json").write_text(json.dumps(manifest))
    files = {name.partition(".")[0]: served.store.put(root / name) for name in ("pictures.bin", "manifest.json")}
    attempt = served.ledger.open_attempt(served.ledger.dataset(dataset).stage_key, lease_s=9, threads=1)
    assert attempt is not None
    assert served.ledger.commit(attempt.id, attempt.token, StageResult(files), seconds=1.0)


def test_a_bundle_runs_by_itself(served: Served, tmp_path: Path) -> None:
    dataset = served.ready()
    ingested(served, tmp_path, dataset)
    job = new_job(served, dataset)
    real_model(tmp_path / "model.onnx")
    how = {"fit": "squash", "height": 8, "width": 8, "colour": "RGB", "fill": None, "steps": ["decode"]}
    sha256, candidate = served.store.put(tmp_path / "model.onnx"), Candidate("lcnet_050", Size(8, 8), Size(8, 8))
    served.ledger.add_trial(job, 0, candidate, Cost())
    served.ledger.add_deployment(Deployment("mdl_1", job, 0, candidate, Cost(9), "fp32", Accuracy(2, 4), sha256, how))

    whole = served.http.get("/models/mdl_1/bundle")
    assert whole.status_code == 200, whole.text
    assert whole.headers["content-type"] == "application/zip"
    etag = whole.headers["etag"]
    part = served.http.get("/models/mdl_1/bundle", headers={"Range": "bytes=10-19", "If-Range": etag})
    assert (part.status_code, part.content, part.headers["etag"]) == (206, whole.content[10:20], etag)
    assert served.http.head("/models/mdl_1/bundle").headers["content-length"] == str(len(whole.content))
    problem(served.http.get("/models/no/bundle"), 404)

    archive = zipfile.ZipFile(io.BytesIO(whole.content))
    assert archive.namelist() == [
        "README.md", "example.py", "golden_inputs.npy", "golden_outputs.npy", "labels.txt", "model.json", "model.onnx",
        "preprocess.json",
    ]  # fmt: skip
    archive.extractall(tmp_path / "bundle")
    folder = tmp_path / "bundle"
    assert (folder / "labels.txt").read_text().splitlines() == SUMMARY["classes"]
    assert json.loads((folder / "preprocess.json").read_text()) == how
    inputs, outputs = (np.load(folder / f"golden_{name}.npy") for name in ("inputs", "outputs"))
    assert (inputs.shape, inputs.dtype, outputs.shape) == ((4, 8, 8, 3), np.uint8, (4, 3))
    session = onnxruntime.InferenceSession((folder / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"pictures": inputs})[0], outputs, rtol=1e-6)
    card = (folder / "README.md").read_text()
    assert "Tells 3 classes apart" in card
    assert "those of the machine that measured them; measure again on yours" in card
    Image.new("RGB", (20, 20), (250, 5, 5)).save(tmp_path / "red.png")
    told = subprocess.run(
        [sys.executable, folder / "example.py", tmp_path / "red.png"], capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines()[0].split() == ["100.0%", "a"]

    for kept in (served.settings.cache / "bundles").iterdir():
        kept.unlink()
    assert served.http.get("/models/mdl_1/bundle").headers["etag"] == etag, "made again, it is the same bytes"


def test_a_bundle_without_pictures_has_none(served: Served, tmp_path: Path) -> None:
    _, model, _ = served.finished(tmp_path)
    archive = zipfile.ZipFile(io.BytesIO(served.http.get(f"/models/{model}/bundle").content))
    assert not [name for name in archive.namelist() if name.startswith("golden")]


@pytest.mark.parametrize("what", ["onnx", "bundle"])
def test_what_the_sender_has_is_not_sent_again(what: str, served: Served, tmp_path: Path) -> None:
    _, model, _ = served.finished(tmp_path)
    url = f"/models/{model}/{what}"
    etag = served.http.get(url).headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        for method in ("GET", "HEAD"):
            answer = served.http.request(method, url, headers={"If-None-Match": known, "Range": "bytes=0-3"})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag), known
    for known in ('"other"', etag.strip('"'), "", f'"{"0" * 64}"'):
        assert served.http.get(url, headers={"If-None-Match": known}).status_code == 200, known
    problem(served.http.get("/models/no/onnx", headers={"If-None-Match": "*"}), 404)


def test_devices_tell_the_host_as_last_measured(served: Served) -> None:
    assert served.http.get("/devices").json() == [
        {
            "name": "local",
            "measured_at": None,
            "host": None,
            "runtime": None,
            "threads": None,
            "seen_at": None,
            "at_hand": True,
        }
    ]
    stage = served.ledger.ensure_stage(StagePlan(StageKind.MEASURE, {"latency": True}))
    attempt = served.ledger.open_attempt(stage.key, lease_s=9, threads=1)
    assert attempt is not None
    metrics = {"host": {"cpu": "fast"}, "runtime": "onnxruntime 1", "threads": 2}
    served.ledger.commit(attempt.id, attempt.token, StageResult({}, metrics), seconds=1.0)
    (device,) = served.http.get("/devices").json()
    assert (device["host"], device["threads"]) == ({"cpu": "fast"}, 2)
    assert device["measured_at"] > 0


def test_live_and_ready_are_told_apart(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served.http.get("/health/live").json()["status"] == "ok"
    assert served.http.get("/health/ready").json()["status"] == "ready"

    def gone() -> None:
        raise OSError("no database")

    monkeypatch.setattr(served.ledger, "catalogue", gone)
    assert served.http.get("/health/live").status_code == 200
    assert "database" in problem(served.http.get("/health/ready"), 503)
    monkeypatch.setattr(served.ledger, "catalogue", lambda: None)
    assert "catalogue" in problem(served.http.get("/health/ready"), 503)


def test_every_route_shows_what_it_answers(served: Served) -> None:
    document = served.http.get("/openapi.json").json()
    kinds = {"application/json", "text/plain"}
    for path, methods in document["paths"].items():
        if path.startswith(("/attempts", "/audit")):
            continue
        for method, route in methods.items():
            assert route["description"], path
            good = [entry for status, entry in route["responses"].items() if int(status) < 300]
            shown = [content for entry in good for kind, content in entry.get("content", {}).items() if kind in kinds]
            assert all("example" in content for content in shown), f"{method} {path}"
            for each in route.get("parameters", ()):
                assert each["in"] in ("path", "header") or each["description"], f"{method} {path}: {each['name']}"


def test_the_openapi_document_names_every_limit_and_choice(served: Served) -> None:
    schemas = served.http.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["JobRequest"]["properties"]["budget"] == {"$ref": "#/components/schemas/Limits"}
    assert {"max_macs", "max_flops", "frames_per_s", "min_accuracy", "device"} <= set(schemas["Limits"]["properties"])
    assert schemas["Limits"]["additionalProperties"] is False
    search = schemas["Search"]["properties"]
    assert search["sampler"]["enum"][0] == "auto"
    assert search["objectives"]["items"]["enum"][0] == "macs"
    assert "Who proposes candidates" in search["sampler"]["description"]


@pytest.mark.parametrize("url", ["/jobs?dataset=%00", "/models?arch=a%00b", "/pareto?dataset=%00"])
def test_a_nul_in_a_query_is_told(served: Served, url: str) -> None:
    assert "NUL" in problem(served.http.get(url), 400)
