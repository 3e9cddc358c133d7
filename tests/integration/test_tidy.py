"""A job is deleted over the API, and what it alone has made is removed; what others have can still be had."""

from __future__ import annotations

import os
import time
from pathlib import Path

from served import SUMMARY, Served, pictures
from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Size, StageKind, StagePlan, StageResult
from stillhouse.service.unneeded import GRACE_S, Collector, Sum

CANDIDATE = Candidate("lcnet_050", Size(32, 32), Size(64, 64))


def grown_old(folder: Path) -> None:
    then = time.time() - 2 * GRACE_S
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def tidied(served: Served) -> Sum:
    grown_old(served.settings.home)
    found = Sum()
    for removed in Collector(served.settings, served.ledger, served.store).run(older_than_s=0, claim=True):
        found.add(removed)
    return found


def worked(served: Served, plan: StagePlan, *contents: bytes) -> None:
    served.ledger.ensure_stage(plan)
    attempt = served.ledger.open_attempt(plan.key, lease_s=9, threads=1)
    assert attempt is not None
    files = {}
    for number, content in enumerate(contents):
        (served.settings.home / "given").write_bytes(content)
        files[str(number)] = served.store.put(served.settings.home / "given")
    assert served.ledger.commit(attempt.id, attempt.token, StageResult(files), seconds=1)


def job(served: Served, dataset: str, seed: int, teacher: StagePlan) -> tuple[str, str]:
    """A job that is done, with a student of its own; returns it and its model."""
    made = served.http.post("/jobs", json={"dataset": dataset, "budget": {}, "search": {"seed": seed}})
    assert made.status_code == 202, made.text
    job_id = made.json()["id"]
    student = StagePlan(StageKind.STUDENT, {"seed": seed}, {"teacher": teacher.key})
    onnx = f"onnx {seed}".encode() * 1000
    worked(served, student, onnx)
    stage = served.ledger.stages([student.key])[student.key]
    assert stage.result is not None
    served.ledger.add_trial(job_id, 0, CANDIDATE, Cost(macs=10))
    keys = [teacher.key, student.key]
    served.ledger.move_trial(job_id, 0, expect="costing", to="training", stages=keys)
    cost = Cost(10, 20, 30, 40.0, Size(32, 32), 1.5, 2.5, 50)
    sha256 = stage.result.artifacts["0"]
    model = Deployment(f"mdl_{seed}", job_id, 0, CANDIDATE, cost, "fp32", Accuracy(9, 12), sha256, {"fit": "squash"})
    served.ledger.add_deployment(model)
    served.ledger.move_job(job_id, expect=("queued",), to="running")
    served.ledger.move_job(job_id, expect=("running",), to="done")
    return job_id, model.id


def test_a_deleted_job_frees_what_it_alone_has_made(served: Served) -> None:
    content = pictures()
    uploaded = served.http.post("/datasets", files={"file": ("birds.zip", content)})
    dataset = uploaded.json()["id"]
    ingest = served.ledger.stages([served.ledger.dataset(dataset).stage_key]).popitem()[1].plan
    worked(served, ingest, b"pictures")
    served.ledger.end_dataset(dataset, "ready", summary={**SUMMARY, "digest": "e" * 64}, reason=None, faults=())
    teacher = StagePlan(StageKind.TEACHER, {}, {"dataset": ingest.key})
    worked(served, teacher, b"teacher" * 100)
    (mine, my_model), (theirs, their_model) = (job(served, dataset, seed, teacher) for seed in (1, 2))
    assert not tidied(served)

    assert served.http.delete(f"/jobs/{mine}").status_code == 204
    found = tidied(served)
    assert (found.counts, found.size) == ({"stages": 1, "artifacts": 1}, 6000)
    assert served.http.get(f"/models/{my_model}/onnx").status_code == 404
    assert served.http.get(f"/models/{their_model}/onnx").content == b"onnx 2" * 1000

    assert served.http.delete(f"/jobs/{theirs}").status_code == 204
    assert tidied(served).counts == {"stages": 2, "artifacts": 2}, "the pictures are still the data set's"
    assert len(list(served.settings.uploads.glob("*.zip"))) == 1
    assert served.http.delete(f"/datasets/{dataset}").status_code == 204
    assert tidied(served).counts == {"stages": 1, "artifacts": 1, "uploads": 1}
    assert list(served.store.listed()) == list(served.settings.uploads.iterdir()) == []

    again = served.http.post("/datasets", files={"file": ("birds.zip", content)}).json()
    assert again["state"] == "pending", "it is read anew"
    assert ingest.code == ""  # the same plan, so the same key
    stage = served.ledger.stages([ingest.key])[ingest.key]
    assert (stage.state, Path(stage.plan.hints["source"]).is_file()) == ("pending", True)
