"""The reconcile loop on the in-memory ledger, with an engine that does each stage at once."""

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Collection

import pytest

from instant import catalogue, drive, honest, setup
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.controller import Controller
from stillhouse.search.domain import Budget, StageKind, StagePlan, StageResult
from stillhouse.search.job import UNMET, Epochs, JobRecord
from stillhouse.search.ports import Observer
from stillhouse.search.retry import retry
from stillhouse.search.states import LIVE
from stillhouse.search.wanted import Wanted


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
        sampler="tpe",
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


def test_a_stage_whose_process_keeps_dying_fails_after_its_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.search.controller.FIRST_PAUSE_S", 0.0)
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
        broken_measure = plan.kind is StageKind.MEASURE and plan.spec["qualities"] == [50]
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


def test_retry_tries_a_failed_rung_again() -> None:
    healthy = False

    def work(plan: StagePlan) -> StageResult:
        if plan.kind is StageKind.STUDENT and not healthy:
            raise ValueError("disk full")
        return honest(plan)

    ledger, job, _, controller = setup(work, eta=3, epochs=Epochs(1, 1, 9))
    assert drive(controller, ledger, job.id) == "failed"
    healthy = True
    assert retry(ledger, ledger.job(job.id)).state == "queued"
    assert drive(controller, ledger, job.id) == "done"


def test_an_input_that_the_ledger_does_not_know_is_not_ready() -> None:
    ledger, _, engine, controller = setup(honest)
    before, after = StagePlan(StageKind.TEACHER, {}), StagePlan(StageKind.TARGETS, {}, {"teacher": "0" * 64})
    for plan in (before, after):
        ledger.ensure_stage(plan)
    wanted = Wanted()
    wanted.add([after, before])
    engine.slots = 2
    controller._submit(wanted)
    assert engine.done == [before]


def test_it_is_told_how_often_a_job_has_ended() -> None:
    told: list[tuple[str, int]] = []

    class Watch(Observer):
        def ended(self, job: JobRecord, *, times: int) -> None:
            told.append((job.state, times))

    ledger, job, engine, _ = setup(honest)
    for _ in range(2):
        controller = Controller(ledger, engine, lease_s=30, max_attempts=2, observer=Watch())
        controller.step()
        ledger.move_job(job.id, expect=LIVE, to="cancelled")
        controller.step()
        assert retry(ledger, ledger.job(job.id)).state == "queued"
    drive(controller, ledger, job.id)
    controller.step()
    assert told == [("cancelled", 1), ("cancelled", 2), ("done", 3)]


def test_nothing_is_kept_of_jobs_that_ended_elsewhere() -> None:
    ledger, job, _, controller = setup(honest)
    controller.step()
    controller.step()
    assert set(controller._desks) == {job.id}
    ledger.move_job(job.id, expect=("running",), to="cancelled")
    controller.step()
    controller.step()
    assert not controller._desks
    assert not controller._started


def test_seconds_of_workers_are_those_of_every_stage_that_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"budget": Budget(max_latency_ms=5), "eta": 3, "epochs": Epochs(1, 1, 9), "max_device_s": 1e9}
    ledger, job, engine, controller = setup(honest, **spec)
    asked: set[str] = set()

    def seconds(keys: Collection[str], **_: float) -> float:
        asked.update(keys)
        return 0.0

    monkeypatch.setattr(ledger, "device_seconds", seconds)
    assert drive(controller, ledger, job.id) == "done"
    searched = [plan for plan in engine.done if plan.kind is not StageKind.INGEST and plan.spec.get("split") != "test"]
    assert {plan.key for plan in searched} <= asked
