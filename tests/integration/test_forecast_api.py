"""The API tells what a job still needs and how its front grew."""

import time

from served import CATALOGUE, Served
from speed import slowness
from stillhouse.search.domain import Candidate, Cost, Size, StageKind, StagePlan

CANDIDATE = Candidate("lcnet_050", Size(32, 32), Size(64, 64))


def running(served: Served, dataset: str, seed: int) -> str:
    body = {"dataset": dataset, "search": {"seed": seed}}
    job = str(served.http.post("/jobs", json=body).json()["id"])
    served.ledger.move_job(job, expect=("queued",), to="running")
    plan = StagePlan(StageKind.EXPORT, {"classes": 3, "seed": seed})
    served.ledger.ensure_stage(plan)
    for number in range(4):
        served.ledger.add_trial(job, number, CANDIDATE, Cost(macs=100 >> number, image_bytes=10.0))
        served.ledger.move_trial(job, number, expect="costing", to="training", stages=[plan.key])
    return job


def test_a_running_job_tells_seconds_left_and_an_ended_one_none(served: Served) -> None:
    job = running(served, served.ready(), 0)
    left = served.http.get(f"/jobs/{job}").json()["eta_s"]
    assert left > 0
    (listed,) = served.http.get("/jobs").json()
    assert 0.5 * left < listed["eta_s"] < 2 * left
    served.ledger.move_job(job, expect=("running",), to="cancelled")
    assert served.http.get(f"/jobs/{job}").json()["eta_s"] is None


def test_the_front_tells_how_it_grew(served: Served) -> None:
    job = running(served, served.ready(), 0)
    assert served.http.get(f"/jobs/{job}/pareto").json()["progress"] == []
    for number, accuracy in enumerate((0.8, 0.9, 0.7)):
        served.ledger.move_trial(job, number, expect="training", to="done", accuracy=accuracy)
    progress = served.http.get(f"/jobs/{job}/pareto").json()["progress"]
    assert [entry["trials"] for entry in progress] == [1, 2, 3]
    shares = [entry["hypervolume"] for entry in progress]
    assert 0 < shares[0] < shares[1] < shares[2] == 1.0
    assert all(0 <= entry["at"] < 60 for entry in progress)


def test_fifty_running_jobs_are_listed_soon(served: Served) -> None:
    assert CATALOGUE["archs"]
    dataset = served.ready()
    for seed in range(50):
        running(served, dataset, seed)
    served.http.get("/jobs")
    began = time.process_time()
    listed = served.http.get("/jobs").json()
    assert (time.process_time() - began) / slowness() < 3
    assert sum(job["eta_s"] is not None for job in listed) == 50
