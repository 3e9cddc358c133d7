"""One suite for every ledger: what ``stillhouse.search.ports.Ledger`` promises, on memory, SQLite and PostgreSQL."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.search.domain import (
    Accuracy,
    Budget,
    Candidate,
    Cost,
    Deployment,
    Size,
    StageKind,
    StagePlan,
    StageResult,
)
from stillhouse.search.errors import ConflictError, NotFoundError
from stillhouse.search.job import JobSpec
from stillhouse.search.ports import Ledger

Race = Callable[..., list[Any]]
CANDIDATE = Candidate("resnet18", Size(32, 48), Size(64, 96), "stride1", (("gamma", 0.5),))
RESULT = StageResult({"weights": "ab" * 32}, {"val": {"correct": 3, "total": 4}, "history": [0.5, 0.25]})


def plan(name: str = "a", kind: StageKind = StageKind.STUDENT, **hints: str) -> StagePlan:
    return StagePlan(kind, {"name": name, "epochs": 2}, {"dataset": "0" * 64}, "code", hints)


def new_job(ledger: Ledger, name: str = "birds") -> str:
    dataset = ledger.add_dataset(name, plan(name, StageKind.INGEST))
    return ledger.add_job(JobSpec(dataset.id)).id


def deployment(job_id: str, name: str = "mdl_1", number: int = 0) -> Deployment:
    cost = Cost(macs=10, params=20, image_bytes=1.5, image_size=Size(32, 48))
    return Deployment(name, job_id, number, CANDIDATE, cost, "fp32", Accuracy(3, 4), "ab" * 32, {"fit": "squash"})


# --------------------------------------------------------------------------------------- data sets


def test_dataset_is_stored_once_by_key(ledger: Ledger) -> None:
    first = ledger.add_dataset("birds", plan(kind=StageKind.INGEST))
    again = ledger.add_dataset("other name", plan(kind=StageKind.INGEST))
    assert again == first == ledger.dataset(first.id)
    assert (first.state, first.name, first.stage_key) == ("pending", "birds", plan(kind=StageKind.INGEST).key)
    assert first.id.startswith("ds_")
    assert time.time() - 60 < first.created_at <= time.time()
    assert ledger.stages([first.stage_key])[first.stage_key].state == "pending"


def test_datasets_are_listed_by_state_oldest_first(ledger: Ledger) -> None:
    ids = [ledger.add_dataset(name, plan(name, StageKind.INGEST)).id for name in "abc"]
    assert ledger.end_dataset(ids[1], "ready", summary={"classes": ["x"]}, reason=None, faults=())
    assert [d.id for d in ledger.datasets()] == ids
    assert [d.id for d in ledger.datasets("pending")] == [ids[0], ids[2]]
    assert [d.id for d in ledger.datasets("ready", "failed")] == [ids[1]]


def test_dataset_ends_once(ledger: Ledger) -> None:
    dataset = ledger.add_dataset("birds", plan(kind=StageKind.INGEST))
    assert ledger.end_dataset(dataset.id, "ready", summary={"pictures": 3}, reason=None, faults=())
    assert not ledger.end_dataset(dataset.id, "failed", summary={}, reason="late", faults=())
    stored = ledger.dataset(dataset.id)
    assert (stored.state, stored.summary, stored.reason) == ("ready", {"pictures": 3}, None)
    assert not ledger.end_dataset("ds_none", "ready", summary={}, reason=None, faults=())
    with pytest.raises(ValueError, match="it goes on to failed, ready, but not to pending"):
        ledger.end_dataset(dataset.id, "pending", summary={}, reason=None, faults=())


def test_failed_dataset_is_tried_again_with_new_hints(ledger: Ledger) -> None:
    dataset = ledger.add_dataset("birds", plan(kind=StageKind.INGEST, source="/old"))
    attempt = ledger.open_attempt(dataset.stage_key, lease_s=9, threads=1)
    assert attempt is not None
    assert ledger.fail(attempt.id, attempt.token, "no pictures", faults=["a.jpg: empty"])
    ledger.end_dataset(dataset.id, "failed", summary={}, reason="no pictures", faults=["a.jpg: empty"])
    assert ledger.dataset(dataset.id).faults == ("a.jpg: empty",)

    again = ledger.add_dataset("birds", plan(kind=StageKind.INGEST, source="/new"))
    assert (again.id, again.state, again.reason, again.faults) == (dataset.id, "pending", None, ())
    stage = ledger.stages([dataset.stage_key])[dataset.stage_key]
    assert (stage.state, stage.attempts, stage.reason, stage.faults) == ("pending", 0, None, ())
    assert stage.plan.hints == {"source": "/new"}


# -------------------------------------------------------------------------------------------- jobs


def test_job_survives_storage(ledger: Ledger) -> None:
    dataset = ledger.add_dataset("birds", plan(kind=StageKind.INGEST))
    spec = JobSpec(dataset.id, Budget(max_macs=5, max_image_size=Size(48, 64)), knobs={"gamma": 1.5}, archs=("a",))
    job = ledger.add_job(spec)
    assert ledger.job(job.id) == job
    assert (job.spec, job.state, job.started_at, job.finished_at) == (spec, "queued", None, None)


def test_job_needs_its_dataset(ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match="ds_none"):
        ledger.add_job(JobSpec("ds_none"))
    assert ledger.jobs() == []


def test_idempotency_key(ledger: Ledger) -> None:
    dataset = ledger.add_dataset("birds", plan(kind=StageKind.INGEST))
    first = ledger.add_job(JobSpec(dataset.id), idempotency_key="k")
    assert ledger.add_job(JobSpec(dataset.id), idempotency_key="k") == first
    assert ledger.add_job(JobSpec(dataset.id), idempotency_key="l").id != first.id
    assert ledger.add_job(JobSpec(dataset.id)).id != ledger.add_job(JobSpec(dataset.id)).id
    with pytest.raises(ConflictError, match=first.id):
        ledger.add_job(JobSpec(dataset.id, seed=1), idempotency_key="k")
    assert len(ledger.jobs()) == 4


def test_idempotency_key_under_a_race(ledger: Ledger, race: Race) -> None:
    dataset = ledger.add_dataset("birds", plan(kind=StageKind.INGEST))
    made = race(lambda _: ledger.add_job(JobSpec(dataset.id), idempotency_key="k").id)
    assert len(set(made)) == len(ledger.jobs()) == 1


def test_job_moves_and_tells(ledger: Ledger) -> None:
    job_id = new_job(ledger)
    assert not ledger.move_job(job_id, expect=("running",), to="done")
    assert ledger.move_job(job_id, expect=("queued",), to="running")
    started = ledger.job(job_id)
    assert started.started_at is not None
    assert started.finished_at is None
    assert ledger.move_job(job_id, expect=("running",), to="failed", reason="no trial")
    ended = ledger.job(job_id)
    assert (ended.state, ended.reason, ended.started_at) == ("failed", "no trial", started.started_at)
    assert ended.finished_at is not None
    events = ledger.events(job_id)
    assert [(e.kind, e.data) for e in events] == [
        ("job", {"state": "running", "reason": None}),
        ("job", {"state": "failed", "reason": "no trial"}),
    ]
    assert ledger.jobs("queued") == []
    assert [job.id for job in ledger.jobs("failed", "done")] == [job_id]
    assert not ledger.move_job("job_none", expect=("queued",), to="running")
    with pytest.raises(ValueError, match="'ended'"):
        ledger.move_job(job_id, expect=("failed",), to="ended")


def test_job_is_moved_by_one(ledger: Ledger, race: Race) -> None:
    job_id = new_job(ledger)
    assert sum(race(lambda _: ledger.move_job(job_id, expect=("queued",), to="running"))) == 1
    assert len(ledger.events(job_id)) == 1


# ------------------------------------------------------------------------------------------ trials


def test_trial_survives_storage(ledger: Ledger) -> None:
    job_id = new_job(ledger)
    cost = Cost(macs=7, image_size=Size(32, 48), latency_ms=1.25)
    assert ledger.add_trial(job_id, 1, CANDIDATE, cost)
    assert ledger.add_trial(job_id, 0, CANDIDATE, Cost())
    assert not ledger.add_trial(job_id, 1, CANDIDATE, Cost())
    first, second = ledger.trials(job_id)
    assert (first.number, second.number) == (0, 1)
    assert (second.candidate, second.cost, second.state, second.stages) == (CANDIDATE, cost, "costing", ())
    assert ledger.trials("job_none") == []
    with pytest.raises(NotFoundError):
        ledger.add_trial("job_none", 0, CANDIDATE, Cost())


def test_trial_moves_and_keeps_what_is_not_given(ledger: Ledger) -> None:
    job_id = new_job(ledger)
    ledger.add_trial(job_id, 0, CANDIDATE, Cost(macs=7))
    assert not ledger.move_trial(job_id, 0, expect="training", to="done")
    assert not ledger.move_trial(job_id, 5, expect="costing", to="training")
    assert ledger.move_trial(job_id, 0, expect="costing", to="training", cost=Cost(macs=8), stages=["k1", "k2"])
    assert ledger.move_trial(job_id, 0, expect="training", to="training", reason="waits")
    assert ledger.move_trial(job_id, 0, expect="training", to="done", accuracy=0.5, epochs=9)
    assert ledger.trials(job_id)[0].epochs == 9
    (trial,) = ledger.trials(job_id)
    assert (trial.state, trial.cost, trial.stages) == ("done", Cost(macs=8), ("k1", "k2"))
    assert (trial.accuracy, trial.reason) == (0.5, "waits")
    events = ledger.events(job_id)
    assert [e.kind for e in events] == ["trial"] * 3
    assert [e.data["state"] for e in events] == ["training", "training", "done"]
    assert events[-1].data["candidate"] == CANDIDATE.to_json()
    assert events[-1].data["number"] == 0


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_job_that_has_ended_takes_no_trial_and_moves_none(ledger: Ledger, end: str) -> None:
    job_id = new_job(ledger)
    ledger.add_trial(job_id, 0, CANDIDATE, Cost())
    assert ledger.move_trial(job_id, 0, expect="costing", to="failed", reason="broken")
    assert ledger.move_job(job_id, expect=("queued",), to=end)
    told = ledger.events(job_id)
    assert not ledger.add_trial(job_id, 1, CANDIDATE, Cost())
    assert not ledger.move_trial(job_id, 0, expect="failed", to="costing")
    assert [trial.number for trial in ledger.trials(job_id)] == [0]
    assert ledger.events(job_id) == told
    assert ledger.move_job(job_id, expect=(end,), to="queued")
    assert ledger.add_trial(job_id, 1, CANDIDATE, Cost())
    assert ledger.move_trial(job_id, 0, expect="costing", to="training")


@pytest.mark.parametrize(("end", "why"), [("cancelled", None), ("failed", "out of luck")])
def test_trials_stop_with_their_job_and_go_on_with_it(ledger: Ledger, end: str, why: str | None) -> None:
    job_id = new_job(ledger)
    for number in range(4):
        ledger.add_trial(job_id, number, CANDIDATE, Cost())
    for number in (1, 2):
        ledger.move_trial(job_id, number, expect="costing", to="training", stages=["k"])
    ledger.move_trial(job_id, 2, expect="training", to="paused", epochs=1, accuracy=0.5)
    ledger.move_trial(job_id, 3, expect="costing", to="stopped", reason="stopped: it promised little")
    ended = ledger.trials(job_id)[3]
    before = len(ledger.events(job_id))

    assert ledger.move_job(job_id, expect=("queued",), to=end, reason=why)
    trials = ledger.trials(job_id)
    assert [trial.state for trial in trials] == ["stopped"] * 4
    said = f": that {'was ' * (end == 'cancelled')}{end}" + (f" ({why})" if why else "")
    assert [trial.reason for trial in trials[:3]] == [
        f"stopped with its job while {state}{said}" for state in ("costing", "training", "paused")
    ]
    events = ledger.events(job_id)[before:]
    assert [(event.kind, event.data["state"]) for event in events] == [("trial", "stopped")] * 3 + [("job", end)]

    assert ledger.move_job(job_id, expect=(end,), to="queued")
    again = ledger.trials(job_id)
    assert [trial.state for trial in again] == ["costing", "costing", "paused", "stopped"]
    assert [trial.reason for trial in again[:3]] == [None] * 3
    assert (again[1].stages, again[2].epochs, again[2].accuracy, again[3]) == (("k",), 1, 0.5, ended)


def test_a_trial_that_failed_is_tried_again_with_its_job(ledger: Ledger) -> None:
    job_id = new_job(ledger)
    for number, state in enumerate(("failed", "infeasible")):
        ledger.add_trial(job_id, number, CANDIDATE, Cost())
        ledger.move_trial(job_id, number, expect="costing", to=state, reason="for some reason")
    ledger.move_job(job_id, expect=("queued",), to="failed", reason="no model")
    ledger.move_job(job_id, expect=("failed",), to="queued")
    again, other = ledger.trials(job_id)
    assert (again.state, again.reason) == ("costing", None)
    assert (other.state, other.reason) == ("infeasible", "for some reason")
    moves = [(event.kind, event.data["state"]) for event in ledger.events(job_id)[-2:]]
    assert moves == [("trial", "costing"), ("job", "queued")], "who has seen the job's move has seen its trials'"


def test_a_cancel_and_the_moves_of_trials_come_one_after_the_other(ledger: Ledger, race: Race) -> None:
    """Whatever comes first: nothing of a job's trials is told after its end, and no deadlock."""
    for _ in range(5):
        job_id = new_job(ledger)
        for number in range(4):
            ledger.add_trial(job_id, number, CANDIDATE, Cost())

        def work(i: int, job_id: str = job_id) -> bool:
            if i == 0:
                return ledger.move_job(job_id, expect=("queued",), to="cancelled")
            if i % 2:
                return ledger.add_trial(job_id, 3 + i, CANDIDATE, Cost())
            return ledger.move_trial(job_id, i // 2, expect="costing", to="training")

        answers = race(work)
        assert answers[0]
        events = ledger.events(job_id)
        assert (events[-1].kind, events[-1].data["state"]) == ("job", "cancelled")
        assert len(ledger.trials(job_id)) == 4 + sum(answers[1::2])
        assert {trial.state for trial in ledger.trials(job_id)} == {"stopped"}


# ------------------------------------------------------------- deployments, events, the catalogue


def test_deployment_survives_storage(ledger: Ledger) -> None:
    job_id = new_job(ledger)
    one, two = deployment(job_id, "mdl_b", 1), deployment(job_id, "mdl_a", 0)
    assert all(map(ledger.add_deployment, (one, two)))
    assert not ledger.add_deployment(deployment(job_id, "mdl_b", 7))
    assert ledger.deployment("mdl_b") == one
    assert ledger.deployments(job_id) == [two, one]
    assert ledger.deployments("job_none") == []
    with pytest.raises(NotFoundError):
        ledger.add_deployment(deployment("job_none", "mdl_c"))


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_job_that_was_cut_short_takes_no_deployment(ledger: Ledger, end: str) -> None:
    one = deployment(new_job(ledger))
    assert ledger.move_job(one.job_id, expect=("queued",), to=end)
    assert (ledger.add_deployment(one), ledger.deployments(one.job_id)) == (False, [])


def test_variants_share_a_trial(ledger: Ledger) -> None:
    job_id = new_job(ledger)
    own, later = deployment(job_id, "mdl_b"), deployment(job_id, "mdl_c", 1)
    told = {"method": "logits", "variant": "plain_kd", "is_baseline": True}
    other = dataclasses.replace(own, id="mdl_a", validation=Accuracy(2, 4), details=told)
    assert [ledger.add_deployment(item) for item in (own, later, other)] == [True] * 3
    assert ledger.deployments(job_id) == [own, other, later], "by trial, then as they came"
    assert (ledger.deployment("mdl_a").variant, ledger.deployment("mdl_a").is_baseline) == ("plain_kd", True)
    assert (ledger.deployment("mdl_b").variant, ledger.deployment("mdl_b").is_baseline) == ("distilled", False)
    assert ledger.set_test("mdl_a", Accuracy(1, 4), {"coded": None})
    assert ledger.deployment("mdl_b").test is None


def test_test_accuracy_is_set_once(ledger: Ledger) -> None:
    job_id = new_job(ledger)
    ledger.add_deployment(deployment(job_id))
    assert ledger.set_test("mdl_1", Accuracy(0, 10), {"coded": {"correct": 8}})
    assert not ledger.set_test("mdl_1", Accuracy(10, 10), {"coded": None})
    stored = ledger.deployment("mdl_1")
    assert (stored.test, stored.details) == (Accuracy(0, 10), {"coded": {"correct": 8}})
    with pytest.raises(NotFoundError):
        ledger.set_test("mdl_none", Accuracy(1, 1), {})


def test_test_accuracy_is_set_by_one(ledger: Ledger, race: Race) -> None:
    job_id = new_job(ledger)
    ledger.add_deployment(deployment(job_id))
    answers = race(lambda i: ledger.set_test("mdl_1", Accuracy(i, 10), {"by": i}))
    assert sum(answers) == 1
    winner = answers.index(True)
    stored = ledger.deployment("mdl_1")
    assert (stored.test, stored.details) == (Accuracy(winner, 10), {"by": winner})


def test_events_in_order(ledger: Ledger) -> None:
    job_id, other = new_job(ledger), new_job(ledger, "flowers")
    for i in range(3):
        ledger.emit(job_id, "note", {"i": i})
        ledger.emit(other, "note", {"i": -i})
    events = ledger.events(job_id)
    assert [e.data["i"] for e in events] == [0, 1, 2]
    assert [e.id for e in events] == sorted({e.id for e in events})
    assert ledger.events(job_id, after=events[0].id) == events[1:]
    assert ledger.events(job_id, after=events[-1].id) == []
    with pytest.raises(NotFoundError):
        ledger.emit("job_none", "note", {})


def test_a_replay_skips_no_event(ledger: Ledger, race: Race) -> None:
    """A reader that goes on from the last id it saw meets every event, however many write at once."""
    job_id, writers, each = new_job(ledger), 5, 12
    seen: list[int] = []

    def work(index: int) -> None:
        if index < writers:
            for i in range(each):
                ledger.emit(job_id, "note", {"i": i})
            return
        deadline = time.monotonic() + 30
        while len(seen) < writers * each and time.monotonic() < deadline:
            seen.extend(e.id for e in ledger.events(job_id, after=seen[-1] if seen else 0))

    race(work, writers + 1)
    assert seen == [e.id for e in ledger.events(job_id)]
    assert len(seen) == writers * each


def test_trials_and_events_race_without_deadlock(ledger: Ledger, race: Race) -> None:
    job_id = new_job(ledger)

    def work(i: int) -> bool:
        ledger.add_trial(job_id, i, CANDIDATE, Cost())
        ledger.add_deployment(deployment(job_id, f"mdl_{i}", i))
        ledger.emit(job_id, "note", {})
        return ledger.move_trial(job_id, i, expect="costing", to="training")

    assert all(race(work))
    assert len(ledger.events(job_id)) == 16


def test_catalogue_is_replaced(ledger: Ledger, race: Race) -> None:
    assert ledger.catalogue() is None
    ledger.publish_catalogue({"names": ["a"]})
    ledger.publish_catalogue({"archs": {"b": {}}})
    assert ledger.catalogue() == {"archs": {"b": {}}}
    race(lambda i: ledger.publish_catalogue({"i": i}))
    assert set(ledger.catalogue() or {}) == {"i"}


@pytest.mark.parametrize("kind", ["dataset", "job", "attempt", "deployment"])
def test_unknown_ids(ledger: Ledger, kind: str) -> None:
    with pytest.raises(NotFoundError, match=r"no such .*'x_1'"):
        getattr(ledger, kind)("x_1")


def test_records_are_copies(ledger: Ledger) -> None:
    """Who changes what a record holds does not change what is stored."""
    given = {"done": [1]}
    key = ledger.ensure_stage(plan()).key
    attempt = ledger.open_attempt(key, lease_s=5, threads=1)
    assert attempt is not None
    ledger.renew(attempt.id, attempt.token, lease_s=5, progress=given)
    given["done"].append(2)
    ledger.stages([key])[key].progress["done"].append(3)
    assert ledger.stages([key])[key].progress == {"done": [1]}
