"""The reconcile loop on the in-memory ledger, with an engine that does each stage at once."""

import contextlib
import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.controller import Controller
from stillhouse.search.domain import Accuracy, Budget, Deployment, Json, Size, StageKind, StagePlan, StageResult
from stillhouse.search.job import UNMET, AttemptRecord, Epochs, JobRecord, JobSpec
from stillhouse.search.pareto import deployment_front
from stillhouse.search.plan import ingest_plan
from stillhouse.search.retry import retry
from stillhouse.service.db.memory import MemoryLedger

SIZES = ("32x32", "48x48", "64x64")


def catalogue() -> dict[str, Json]:
    cells = lambda unit: {  # noqa: E731
        f"{size}|{stem}": {"macs": unit * (i + 1) * (4 if stem == "stride1" else 1), "params": unit // 10}
        for i, size in enumerate(SIZES)
        for stem in ("stock", "stride1")
    }
    archs = {
        name: {
            "family": "cnn",
            "stems": ["stock", "stride1"],
            "head_features": 8,
            "head_bias": True,
            "cells": cells(unit),
        }
        for name, unit in (("small", 1_000_000), ("middle", 3_000_000), ("large", 9_000_000))
    }
    methods = {
        "tas": {"teacher": True, "assistant": True, "knobs": []},
        "logits": {"teacher": True, "assistant": False, "knobs": []},
        "supervised": {"teacher": False, "assistant": False, "knobs": []},
    }
    return {
        "names": ["small", "middle", "large", "huge"],
        "image_sizes": list(SIZES),
        "archs": archs,
        "methods": methods,
        "code": {kind.value: "1" for kind in StageKind},
        "weights": {"package": [], "hub": []},
    }


SUMMARY = {
    "classes": ["a", "b", "c"],
    "pictures": 90,
    "splits": {"train": 60, "val": 12, "test": 18},
    "notes": [],
    "faults": [],
    "curve": [
        {"fit": "squash", "size": size, "codec": "jpeg", "quality": quality, "mean_bytes": 30.0 * (i + 1) * quality}
        for i, size in enumerate(SIZES)
        for quality in (50, 90)
    ],
}


class InstantEngine:
    """Does the work inside ``submit``; ``work`` may raise to fail a stage or return None to die."""

    def __init__(self, ledger: MemoryLedger, work: Callable[[StagePlan], StageResult | None]) -> None:
        self.ledger, self.work, self.done = ledger, work, list[StagePlan]()
        self.cancelled: list[str] = []
        self.alive: set[str] = set()
        self.slots = 1
        self.keeps_running = False

    def capacity(self) -> int:
        return self.slots

    def threads(self) -> int:
        return 1

    def submit(self, attempt: AttemptRecord) -> None:
        plan = self.ledger.stages([attempt.stage_key])[attempt.stage_key].plan
        try:
            result = self.work(plan)
        except ValueError as error:
            self.ledger.fail(attempt.id, attempt.token, str(error))
            return
        if result is None:
            self.alive |= {attempt.id} if self.keeps_running else set()
        else:
            self.done.append(plan)
            self.ledger.commit(attempt.id, attempt.token, result, seconds=1.0)

    def running(self, attempt_id: str) -> bool:
        return attempt_id in self.alive

    def cancel(self, attempt_id: str) -> None:
        self.cancelled.append(attempt_id)

    def close(self) -> None:
        pass


def honest(plan: StagePlan, *, latency_ms: float = 1.0) -> StageResult:
    """Accuracy grows with nothing but the split; every figure a stage must give is there."""
    if plan.kind is StageKind.INGEST:
        return StageResult({"pictures": "p", "manifest": "m"}, SUMMARY)
    if plan.kind is StageKind.EXPORT:
        return StageResult({"onnx": plan.key}, {"model_bytes": 1000, "preprocess": {"fit": "squash"}})
    if plan.kind is not StageKind.MEASURE:
        return StageResult({"weights": plan.key}, {"val": {"correct": 10, "total": 12}})
    total = {"val": 12, "test": 18}.get(plan.spec["split"], 1)
    metrics: dict[str, Json] = {"model_bytes": 1000, "accuracy": {"correct": total - 1, "total": total}}
    if plan.spec["latency"]:
        metrics |= {"latency_ms": latency_ms, "latency_p95_ms": 2 * latency_ms, "memory_bytes": 5000}
    return StageResult({}, metrics)


def setup(work: Callable[[StagePlan], StageResult | None], **changes: object):  # type: ignore[no-untyped-def]
    ledger = MemoryLedger()
    ledger.publish_catalogue(catalogue())
    dataset = ledger.add_dataset("d", ingest_plan("d.zip", "d", False, {}))
    spec = JobSpec(dataset.id, teacher="huge", trials=3, epochs=Epochs(1, 1, 1), **changes)  # type: ignore[arg-type]
    job = ledger.add_job(spec)
    engine = InstantEngine(ledger, work)
    return ledger, job, engine, Controller(ledger, engine, lease_s=30, max_attempts=2)


def drive(controller: Controller, ledger: MemoryLedger, job_id: str, steps: int = 400) -> str:
    for _ in range(steps):
        controller.step()
        if ledger.job(job_id).state not in ("queued", "running"):
            break
    return ledger.job(job_id).state


def test_a_job_runs_to_its_end_and_no_stage_twice() -> None:
    ledger, job, engine, controller = setup(honest)
    assert drive(controller, ledger, job.id) == "done"
    assert [trial.state for trial in ledger.trials(job.id)] == ["done"] * 3
    assert max(Counter(plan.key for plan in engine.done).values()) == 1
    teachers = [plan for plan in engine.done if plan.kind is StageKind.TEACHER]
    assert len(teachers) == 1, "one teacher serves all trials"


def test_test_accuracy_is_read_for_front_members_only() -> None:
    ledger, job, engine, controller = setup(honest)
    drive(controller, ledger, job.id)
    tested = {d.id for d in ledger.deployments(job.id) if d.test is not None}
    read = [plan for plan in engine.done if plan.kind is StageKind.MEASURE and plan.spec["split"] == "test"]
    assert tested
    assert len(read) == len(tested)
    trials_end = max(i for i, p in enumerate(engine.done) if p.kind is StageKind.STUDENT)
    assert all(engine.done.index(plan) > trials_end for plan in read), "the test split waits for the last student"


def test_a_candidate_beyond_the_measured_limit_is_never_trained() -> None:
    def work(plan: StagePlan) -> StageResult:
        slow = "large" in str(engine_arch.get(plan.inputs.get("onnx", ""), ""))
        return honest(plan, latency_ms=50.0 if slow else 1.0)

    engine_arch: dict[str, str] = {}
    ledger, job, engine, controller = setup(
        lambda plan: engine_arch.update({plan.key: str(plan.spec.get("arch"))}) or work(plan),
        budget=Budget(max_latency_ms=10.0),
    )
    assert drive(controller, ledger, job.id) == "done"
    infeasible = [t for t in ledger.trials(job.id) if t.state == "infeasible"]
    assert infeasible, "the seeded design starts with the largest network"
    assert all("max_latency_ms" in (t.reason or "") for t in infeasible)
    assert not [p for p in engine.done if p.kind is StageKind.STUDENT and p.spec["arch"] == "large"]
    assert sum(t.state == "done" for t in ledger.trials(job.id)) == 3, "infeasible trials do not use up the number"


def test_a_latency_nothing_meets_is_said_after_one_look_at_each_architecture() -> None:
    ledger, job, engine, controller = setup(
        lambda plan: honest(plan, latency_ms=50.0), budget=Budget(max_latency_ms=10.0)
    )
    assert drive(controller, ledger, job.id) == "failed"
    reason = ledger.job(job.id).reason or ""
    assert reason.startswith(UNMET)
    assert "max_latency_ms" in reason
    assert "max_latency_ms >= 50" in reason
    assert {plan.kind for plan in engine.done} == {StageKind.INGEST, StageKind.EXPORT, StageKind.MEASURE}
    assert len(engine.done) <= 1 + 2 * (1 + len(Catalogue.from_json(catalogue()).archs))


def test_a_budget_nothing_meets_ends_before_any_stage_but_ingest() -> None:
    ledger, job, engine, controller = setup(honest, budget=Budget(max_macs=10))
    assert drive(controller, ledger, job.id) == "failed"
    assert (ledger.job(job.id).reason or "").startswith(UNMET)
    assert [plan.kind for plan in engine.done] == [StageKind.INGEST]


def test_least_accuracy_unmet_names_the_best() -> None:
    ledger, job, _, controller = setup(honest, budget=Budget(min_accuracy=0.99))
    assert drive(controller, ledger, job.id) == "failed"
    assert "91.7%" in (ledger.job(job.id).reason or "")


def test_a_failed_student_fails_its_trial_only() -> None:
    broken: list[str] = []

    def work(plan: StagePlan) -> StageResult:
        if plan.kind is StageKind.STUDENT and not broken:
            broken.append(plan.key)
            raise ValueError("the loss is not finite")
        return honest(plan)

    ledger, job, _, controller = setup(work)
    assert drive(controller, ledger, job.id) == "done"
    states = Counter(trial.state for trial in ledger.trials(job.id))
    assert states == {"done": 2, "failed": 1}


def test_retry_runs_only_what_failed() -> None:
    healthy = False

    def work(plan: StagePlan) -> StageResult:
        if plan.kind is StageKind.ASSISTANT and not healthy:
            raise ValueError("disk full")
        return honest(plan)

    ledger, job, engine, controller = setup(work)
    assert drive(controller, ledger, job.id) == "failed"
    assert "disk full" in (ledger.job(job.id).reason or "")
    before, healthy = len(engine.done), True
    assert retry(ledger, ledger.job(job.id)).state == "queued"
    assert drive(controller, ledger, job.id) == "done"
    assert StageKind.TEACHER not in {plan.kind for plan in engine.done[before:]}
    assert retry(ledger, ledger.job(job.id)).state == "done", "a finished job is left alone"


def test_a_stage_whose_process_keeps_dying_fails_after_its_tries() -> None:
    ledger, job, _, controller = setup(lambda plan: None if plan.kind is StageKind.TEACHER else honest(plan))
    assert drive(controller, ledger, job.id) == "failed"
    assert "teacher" in (ledger.job(job.id).reason or "")


def test_a_failed_data_set_fails_its_jobs_with_the_reason() -> None:
    def work(plan: StagePlan) -> StageResult:
        raise ValueError(f"no picture in {plan.hints['source']}")

    ledger, job, _, controller = setup(work)
    assert drive(controller, ledger, job.id) == "failed"
    assert "no picture in d.zip" in (ledger.job(job.id).reason or "")


def test_a_cancelled_job_gives_up_its_attempts() -> None:
    ledger, job, engine, controller = setup(honest)
    engine.keeps_running = True
    engine.work = lambda plan: None if plan.kind is StageKind.TEACHER else honest(plan)
    for _ in range(20):
        controller.step()
    assert len(ledger.open_attempts()) == 1
    ledger.move_job(job.id, expect=("running",), to="cancelled")
    controller.step()
    assert len(engine.cancelled) == 1
    assert not ledger.open_attempts()


def accuracies(by_method: dict[str, int], *, test: dict[str, int] | None = None) -> Callable[[StagePlan], StageResult]:
    """Stages whose accuracy on validation (of 12) and on test (of 18) depends on the student's method."""
    methods: dict[str, str] = {}

    def work(plan: StagePlan) -> StageResult:
        source = plan.inputs.get("model") or plan.inputs.get("onnx") or ""
        methods[plan.key] = str(plan.spec.get("method") or methods.get(source, ""))
        result = honest(plan, latency_ms=1.0 + len(methods) / 1000)
        if plan.kind is not StageKind.MEASURE or plan.spec["split"] is None:
            return result
        right = by_method if plan.spec["split"] == "val" else test or by_method
        accuracy = dict(result.metrics["accuracy"]) | {"correct": right[methods[plan.key]]}
        return StageResult({}, dict(result.metrics) | {"accuracy": accuracy})

    return work


def final_front(ledger: MemoryLedger, job: JobRecord) -> list[Deployment]:
    return deployment_front(ledger.deployments(job.id), job.spec.objectives, job.spec.budget)


def students(engine: InstantEngine, method: str) -> list[StagePlan]:
    return [plan for plan in engine.done if plan.kind is StageKind.STUDENT and plan.spec["method"] == method]


@pytest.mark.parametrize("ablate", ["best", "all"])
def test_baselines_are_trained_at_the_same_size_and_epochs(ablate: str) -> None:
    ledger, job, engine, controller = setup(accuracies({"tas": 10, "logits": 9, "supervised": 8}), ablate=ablate)
    assert drive(controller, ledger, job.id) == "done"
    front = final_front(ledger, job)
    compared = [member for member in front if member.details.get("baselines")]
    assert len(compared) == (1 if ablate == "best" else len(front))
    for method in ("supervised", "logits"):
        plans = students(engine, method)
        assert {plan.spec["epochs"] for plan in plans} == {1}
        assert {plan.spec["views"] for plan in plans} == {job.spec.views}
        assert [plan.spec["knobs"] for plan in plans] == [{}] * len(compared)
        assert {Size.parse(p.spec["image_size"]) for p in plans} == {d.candidate.image_size for d in compared}
    assert len(ledger.trials(job.id)) == 3, "a comparison is no trial"
    assert {trial.accuracy for trial in ledger.trials(job.id)} == {10 / 12}


def test_distilling_that_wins_is_shipped_with_all_figures() -> None:
    work = accuracies({"tas": 10, "logits": 9, "supervised": 8}, test={"tas": 15, "logits": 16, "supervised": 12})
    ledger, job, _, controller = setup(work, ablate="best")
    assert drive(controller, ledger, job.id) == "done"
    (member,) = [d for d in final_front(ledger, job) if d.details.get("baselines")]
    assert (member.variant, member.is_baseline, member.details["method"]) == ("distilled", False, "tas")
    assert (member.validation, member.test) == (Accuracy(10, 12), Accuracy(15, 18)), "the test split does not choose"
    assert member.details["baselines"] == {
        "no_teacher": {"correct": 12, "total": 18},
        "plain_kd": {"correct": 16, "total": 18},
    }


@pytest.mark.parametrize(
    ("validation", "winner"),
    [
        ({"tas": 8, "logits": 9, "supervised": 10}, "no_teacher"),
        ({"tas": 8, "logits": 10, "supervised": 9}, "plain_kd"),
        ({"tas": 8, "logits": 10, "supervised": 10}, "no_teacher"),
        ({"tas": 10, "logits": 10, "supervised": 10}, "distilled"),
    ],
)
@pytest.mark.parametrize("objectives", [("macs", "image_bytes"), ("latency_ms", "memory_bytes")])
def test_the_variant_best_on_validation_is_on_the_front(
    validation: dict[str, int], winner: str, objectives: tuple[str, ...]
) -> None:
    test = {"tas": 17, "logits": 16, "supervised": 15}
    ledger, job, engine, controller = setup(accuracies(validation, test=test), ablate=True, objectives=objectives)
    assert job.spec.ablate == "all"
    assert drive(controller, ledger, job.id) == "done"
    front = final_front(ledger, job)
    assert {member.variant for member in front} == {winner}
    assert len({member.trial_number for member in front}) == len(front), "one variant of each network is shipped"
    figures = {"distilled": 17, "plain_kd": 16, "no_teacher": 15}
    for member in front:
        assert member.test is not None
        assert member.test.correct == figures[member.variant]
        others = {name: figure["correct"] for name, figure in member.details["baselines"].items()}
        assert others | {winner: member.test.correct} == figures
    for item in ledger.deployments(job.id):
        own = next(d for d in ledger.deployments(job.id) if d.trial_number == item.trial_number and not d.is_baseline)
        assert item.cost == own.cost, "the same network costs the same, whatever the clock said"
    students_end = max(i for i, plan in enumerate(engine.done) if plan.kind is StageKind.STUDENT)
    read = [i for i, p in enumerate(engine.done) if p.kind is StageKind.MEASURE and p.spec["split"] == "test"]
    assert min(read) > students_end, "the test split is read after the last comparison"


@pytest.mark.parametrize("slots", [1, 3])
def test_an_ablated_job_survives_a_new_controller_at_each_step(slots: int) -> None:
    work = accuracies({"tas": 8, "logits": 9, "supervised": 10})
    ledger, job, engine, _ = setup(work, ablate="all")
    engine.slots = slots
    states = set()
    for _ in range(400):
        Controller(ledger, engine, lease_s=30, max_attempts=2).step()
        states.add(ledger.job(job.id).state)
    assert states in ({"queued", "running", "done"}, {"running", "done"})
    assert max(Counter(plan.key for plan in engine.done).values()) == 1
    front = final_front(ledger, job)
    assert {member.variant for member in front} == {"no_teacher"}
    per_trial = Counter((d.trial_number, d.variant) for d in ledger.deployments(job.id))
    assert set(per_trial.values()) == {1}
    compared = {d.trial_number for d in ledger.deployments(job.id) if d.is_baseline}
    assert all({(number, "plain_kd"), (number, "no_teacher")} <= set(per_trial) for number in compared)


@pytest.mark.parametrize("verb", ["add_deployment", "set_test"])
def test_an_ending_cut_off_between_two_writes_goes_on(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, job, engine, _ = setup(accuracies({"tas": 8, "logits": 9, "supervised": 10}), ablate="all")
    write, cut = getattr(ledger, verb), False

    def torn(*args: object) -> bool:
        nonlocal cut
        cut = not cut
        if cut:
            raise ConnectionError("the database is away")
        return bool(write(*args))

    monkeypatch.setattr(ledger, verb, torn)
    for _ in range(800):
        with contextlib.suppress(ConnectionError):
            Controller(ledger, engine, lease_s=30, max_attempts=2).step()
    assert ledger.job(job.id).state == "done"
    for member in final_front(ledger, job):
        assert set(member.details["baselines"]) == {"distilled", "plain_kd"}
    assert max(Counter(plan.key for plan in engine.done).values()) == 1


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("supervised", {"no_teacher": False, "plain_kd": True}),
        ("logits", {"plain_kd": False, "no_teacher": True}),
        ("tas", {"distilled": False, "plain_kd": True, "no_teacher": True}),
    ],
)
def test_a_method_is_not_compared_with_itself(method: str, expected: dict[str, bool]) -> None:
    work = accuracies({"tas": 9, "logits": 9, "supervised": 9})
    ledger, job, _, controller = setup(work, ablate="all", method=method)
    assert drive(controller, ledger, job.id) == "done"
    assert {d.variant: d.is_baseline for d in ledger.deployments(job.id)} == expected
    assert {d.is_baseline for d in final_front(ledger, job)} == {False}, "on a tie the job's own method stays"


def test_a_baseline_that_no_worker_offers_is_left_out() -> None:
    ledger, job, _, controller = setup(honest, ablate="all")
    known = catalogue()
    del known["methods"]["logits"]
    ledger.publish_catalogue(known)
    assert drive(controller, ledger, job.id) == "done"
    assert all(set(member.details["baselines"]) == {"no_teacher"} for member in final_front(ledger, job))


def test_no_comparison_without_ablate() -> None:
    ledger, job, engine, controller = setup(honest)
    assert drive(controller, ledger, job.id) == "done"
    assert {d.variant for d in ledger.deployments(job.id)} == {"distilled"}
    assert not students(engine, "supervised")
    assert not any("baselines" in d.details for d in ledger.deployments(job.id))


def test_retry_runs_a_failed_comparison_again() -> None:
    healthy = False

    def work(plan: StagePlan) -> StageResult:
        if plan.kind is StageKind.STUDENT and plan.spec["method"] == "logits" and not healthy:
            raise ValueError("disk full")
        return honest(plan)

    ledger, job, engine, controller = setup(work, ablate="best")
    assert drive(controller, ledger, job.id) == "failed"
    assert ledger.job(job.id).reason == "stage student by logits failed: disk full"
    before, healthy = len(engine.done), True
    assert retry(ledger, ledger.job(job.id)).state == "queued"
    assert drive(controller, ledger, job.id) == "done"
    assert not [p for p in engine.done[before:] if p.kind is StageKind.STUDENT and p.spec["method"] == "tas"]


def test_the_same_seed_gives_the_same_trials() -> None:
    runs = []
    for _ in range(2):
        ledger, job, _, controller = setup(honest, seed=7)
        drive(controller, ledger, job.id)
        runs.append([trial.candidate for trial in ledger.trials(job.id)])
    assert runs[0] == runs[1]


def test_a_new_controller_goes_on_from_the_ledger() -> None:
    ledger, job, engine, controller = setup(honest)
    for _ in range(12):
        controller.step()
    assert ledger.job(job.id).state == "running"
    fresh = Controller(ledger, engine, lease_s=30, max_attempts=2)
    assert drive(fresh, ledger, job.id) == "done"
    assert max(Counter(plan.key for plan in engine.done).values()) == 1


def test_a_job_that_cannot_be_planned_fails_alone() -> None:
    def work(plan: StagePlan) -> StageResult:
        result = honest(plan)
        broken_measure = plan.kind is StageKind.MEASURE and plan.spec["quality"] == 50
        return StageResult({}, {}) if broken_measure else result

    ledger, job, _, controller = setup(work)
    broken = ledger.add_job(dataclasses.replace(job.spec, quality=50))
    assert drive(controller, ledger, broken.id) == "failed"
    assert "unexpected KeyError while planning" in (ledger.job(broken.id).reason or "")
    assert drive(controller, ledger, job.id) == "done"


def test_a_step_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, job, _, controller = setup(honest)
    monkeypatch.setattr("stillhouse.search.controller.RETRY_S", 0.01)
    listed, failures = ledger.jobs, iter([ConnectionError("the database is away")])

    def jobs(*states: str) -> list[JobRecord]:
        for failure in failures:
            raise failure
        return listed(*states)

    monkeypatch.setattr(ledger, "jobs", jobs)
    stop = threading.Event()
    thread = threading.Thread(target=controller.run, args=(stop,), kwargs={"poll_s": 0.0})
    thread.start()
    deadline = time.monotonic() + 20
    while ledger.job(job.id).state != "done" and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert ledger.job(job.id).state == "done"


def test_a_stage_whose_controller_is_stopped_again_and_again_does_not_fail() -> None:
    ledger, job, engine, _ = setup(lambda plan: None if plan.kind is StageKind.TEACHER else honest(plan))
    for _ in range(5):
        fresh = Controller(ledger, engine, lease_s=30, max_attempts=2)
        while not any(ledger.stages([a.stage_key])[a.stage_key].plan.kind == "teacher" for a in ledger.open_attempts()):
            fresh.step()
    engine.work = honest
    assert drive(Controller(ledger, engine, lease_s=30, max_attempts=2), ledger, job.id) == "done"


def test_a_run_in_the_foreground_does_its_own_job_only() -> None:
    ledger, job, engine, controller = setup(honest)
    other = ledger.add_job(dataclasses.replace(job.spec, seed=9))
    for _ in range(3):
        controller.step(only=(job.spec.dataset,))
    assert {plan.kind for plan in engine.done} == {StageKind.INGEST}
    for _ in range(400):
        controller.step(only=(job.id,))
    assert (ledger.job(job.id).state, ledger.job(other.id).state) == ("done", "queued")
    assert ledger.trials(other.id) == []
