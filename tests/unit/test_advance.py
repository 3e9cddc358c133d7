"""Rungs, promotions and stops, on the in-memory ledger with an engine that does each stage at once."""

from collections import Counter

import pytest

from instant import drive, honest, setup
from stillhouse.search.controller import Controller
from stillhouse.search.domain import Json, StageKind, StagePlan, StageResult
from stillhouse.search.job import Epochs


def graded(plan: StagePlan) -> StageResult:
    """Accuracy grows with the picture, the network and the epochs."""
    if plan.kind is not StageKind.STUDENT:
        return honest(plan)
    side = int(plan.spec["image_size"].partition("x")[0])
    size = {"small": 0, "middle": 100, "large": 200}[plan.spec["arch"]]
    until = plan.spec.get("until", plan.spec["epochs"])
    correct = 20 * until + 4 * side + size
    return StageResult({"weights": plan.key}, {"val": {"correct": correct, "total": 1000}})


def laddered(**changes: Json):  # type: ignore[no-untyped-def]
    return setup(graded, **{"trials": 9, "epochs": Epochs(1, 1, 9), "eta": 3, **changes})


@pytest.mark.parametrize("sampler", ["auto", "tpe", "nsga2", "random"])
def test_each_rung_trains_on_from_the_one_below_it_and_not_all_reach_the_end(sampler: str) -> None:
    ledger, job, engine, controller = laddered(sampler=sampler)
    assert drive(controller, ledger, job.id) == "done"
    trials = ledger.trials(job.id)
    states = Counter(trial.state for trial in trials)
    assert states["done"] + states["stopped"] == 9
    assert states["done"] >= 1
    assert states["stopped"] >= 1
    students = [plan for plan in engine.done if plan.kind is StageKind.STUDENT]
    assert Counter(plan.key for plan in students).most_common(1)[0][1] == 1
    by_key = {plan.key: plan for plan in students}
    for plan in students:
        until, resume = plan.spec.get("until", 9), plan.hints.get("resume")
        assert (until == 1) == (resume is None)
        if resume is not None:
            earlier = by_key[resume]
            assert {**plan.spec, "until": 0} == {**earlier.spec, "until": 0}
            assert earlier.spec["until"] * 3 == until
            assert students.index(earlier) < students.index(plan)
    for trial in trials:
        if trial.state == "stopped":
            assert trial.epochs in (1, 3)
            assert trial.accuracy is not None
            assert "stopped" in (trial.reason or "")


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_what_learns_late_is_not_stranded_at_a_rung(sampler: str) -> None:
    """At each rung the middle networks are behind the small ones, at the end far ahead; the large show such a rise."""
    right = {"small": (200, 250, 400), "middle": (150, 200, 700), "large": (210, 300, 800)}

    def late(plan: StagePlan) -> StageResult:
        if plan.kind is not StageKind.STUDENT:
            return honest(plan)
        correct = right[plan.spec["arch"]][(1, 3, 9).index(plan.spec.get("until", 9))]
        return StageResult({"weights": plan.key}, {"val": {"correct": correct, "total": 1000}})

    ledger, job, _, controller = setup(late, trials=18, epochs=Epochs(1, 1, 9), eta=3, sampler=sampler)
    assert drive(controller, ledger, job.id) == "done"
    trials = ledger.trials(job.id)
    middle = [trial for trial in trials if trial.candidate.arch == "middle"]
    assert min(middle, key=lambda trial: trial.cost.macs or 0).state == "done"
    assert any(trial.state == "stopped" for trial in trials)


def test_without_rungs_each_trial_is_trained_to_the_end() -> None:
    ledger, job, engine, controller = laddered(eta=1)
    assert drive(controller, ledger, job.id) == "done"
    assert [trial.state for trial in ledger.trials(job.id)] == ["done"] * 9
    assert all("until" not in plan.spec for plan in engine.done)


def test_the_same_seed_makes_the_same_serial_run() -> None:
    runs = []
    for _ in range(2):
        ledger, job, engine, controller = laddered()
        drive(controller, ledger, job.id)
        runs.append([(plan.kind, dict(plan.spec)) for plan in engine.done])
    assert runs[0] == runs[1]


def test_a_controller_that_dies_between_steps_is_no_loss() -> None:
    ledger, job, engine, _ = laddered()
    for _ in range(400):
        Controller(ledger, engine, lease_s=30, max_attempts=2).step()
        if ledger.job(job.id).state == "done":
            break
    expected, again, other, controller = laddered()
    drive(controller, expected, again.id)
    assert [plan.spec for plan in engine.done] == [plan.spec for plan in other.done]
    ends = [[(t.candidate, t.state, t.epochs) for t in x.trials(y.id)] for x, y in ((ledger, job), (expected, again))]
    assert ends[0] == ends[1]


def test_several_workers_never_do_a_stage_twice_or_lose_a_trial() -> None:
    ledger, job, engine, controller = laddered()
    engine.slots = 5
    assert drive(controller, ledger, job.id) == "done"
    assert max(Counter(plan.key for plan in engine.done).values()) == 1
    assert all(trial.ended for trial in ledger.trials(job.id))


def test_wall_clock_stops_the_search_and_what_is_trained_is_still_tested() -> None:
    now = 1000.0
    ledger, job, engine, _ = laddered(max_wall_s=50.0, eta=1)
    controller = Controller(ledger, engine, lease_s=30, max_attempts=2, clock=lambda: now)
    started: float | None = None
    for _ in range(400):
        controller.step()
        record = ledger.job(job.id)
        started = record.started_at or started
        if sum(trial.state == "done" for trial in ledger.trials(job.id)) >= 2:
            now = (started or 0.0) + 51
        else:
            now = started or now
        if record.state == "done":
            break
    trials = ledger.trials(job.id)
    trained = [plan for plan in engine.done if plan.kind is StageKind.STUDENT]
    assert 2 <= len(trained) == Counter(trial.state for trial in trials)["done"] < 9
    assert all("max_wall_s" in (trial.reason or "") for trial in trials if trial.state == "stopped")
    assert any(deployment.test is not None for deployment in ledger.deployments(job.id))


def test_seconds_of_workers_stop_the_search_and_a_training_at_work_is_cancelled() -> None:
    def work(plan: StagePlan) -> StageResult | None:
        return None if plan.kind is StageKind.STUDENT else honest(plan)

    ledger, job, engine, controller = setup(work, max_device_s=1e-6, epochs=Epochs(1, 1, 9))
    engine.keeps_running = True
    assert drive(controller, ledger, job.id) == "failed"
    assert "max_device_s" in (ledger.job(job.id).reason or "")
    assert not ledger.open_attempts()


def test_a_search_that_promises_nothing_more_begins_no_candidate() -> None:
    ledger, job, _, controller = laddered(min_gain=0.9, eta=1)
    assert drive(controller, ledger, job.id) == "done"
    assert len(ledger.trials(job.id)) < 9
