"""Stages that a named device must do: the controller opens them, the device fetches them, no engine sees them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest

from instant import honest, setup
from stillhouse.search import controller as controllers
from stillhouse.search import devices as known_devices
from stillhouse.search.controller import Controller
from stillhouse.search.devices import DeviceRecord
from stillhouse.search.domain import Budget, StageKind, StagePlan, StageResult
from stillhouse.search.job import UNMET, AttemptRecord
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.waiting import waiting

NAME = "gate-cam"
CAM = DeviceRecord(NAME, "onnxruntime 1.22.0", "d1", {"cpu": "Cortex-A53", "cores": 4, "machine": "aarch64"})
LATENCY_MS = 7.5


class Cam:
    """Does what an agent does, at once."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self.ledger, self.device = ledger, CAM
        self.latency_ms: Callable[[StagePlan], float] = lambda _: LATENCY_MS
        self.done: list[StagePlan] = []

    def announce(self) -> None:
        self.ledger.see_device(self.device)

    def opened(self) -> list[tuple[AttemptRecord, StagePlan]]:
        attempts = self.ledger.open_attempts()
        stages = self.ledger.stages(attempt.stage_key for attempt in attempts)
        found = [(attempt, stages[attempt.stage_key].plan) for attempt in attempts]
        return [(attempt, plan) for attempt, plan in found if plan.device == NAME]

    def work(self) -> None:
        self.announce()
        for attempt, plan in self.opened():
            metrics = honest(plan, latency_ms=self.latency_ms(plan)).metrics
            told = {name: metrics[name] for name in ("model_bytes", "latency_ms", "latency_p95_ms", "memory_bytes")}
            assert self.ledger.commit(attempt.id, attempt.token, StageResult({}, told), seconds=1.0)
            self.done.append(plan)


def started(**changes: Any):  # type: ignore[no-untyped-def]
    def work(plan: StagePlan) -> StageResult:
        """As a worker does: what the device told goes into the accuracy's figures."""
        result = honest(plan)
        timed = ledger.stages([plan.inputs["timed"]])[plan.inputs["timed"]].result if "timed" in plan.inputs else None
        return result if timed is None else StageResult(result.artifacts, {**timed.metrics, **result.metrics})

    given = {"budget": Budget(device=NAME, max_latency_ms=10.0), "trials": 2, **changes}
    ledger, job, engine, controller = setup(work, **given)
    cam = Cam(ledger)
    cam.announce()
    return ledger, job, engine, controller, cam


def drive(controller: Controller, cam: Cam, job_id: str, steps: int = 300) -> str:
    for _ in range(steps):
        controller.step()
        cam.work()
        if cam.ledger.job(job_id).state not in ("queued", "running"):
            break
    return cam.ledger.job(job_id).state


def test_costs_and_files_are_timed_by_the_device_and_by_nobody_else() -> None:
    ledger, job, engine, controller, cam = started()
    assert drive(controller, cam, job.id) == "done", ledger.job(job.id).reason
    assert all(plan.device is None for plan in engine.done)
    assert not [plan for plan in engine.done if plan.kind is StageKind.MEASURE and plan.spec["latency"]]
    assert {plan.code for plan in cam.done} == {CAM.code}
    untrained, trained = ([p for p in cam.done if p.inputs["onnx"] in keys] for keys in _exports(engine.done))
    assert untrained, "costs are asked for before training"
    assert len(trained) == 2, "and each trained file is timed"
    for model in ledger.deployments(job.id):
        assert model.cost.latency_ms == LATENCY_MS
        assert model.onnx_sha256 in {plan.key for plan in engine.done if plan.kind is StageKind.EXPORT}
        assert model.validation.total == 12
        assert model.details["measured"]["device"] == NAME


def _exports(done: list[StagePlan]) -> tuple[set[str], set[str]]:
    exports = [plan for plan in done if plan.kind is StageKind.EXPORT]
    return ({p.key for p in exports if "model" not in p.inputs}, {p.key for p in exports if "model" in p.inputs})


def test_what_is_too_slow_there_is_never_trained() -> None:
    ledger, job, engine, controller, cam = started()
    cam.latency_ms = lambda _: 50.0
    assert drive(controller, cam, job.id) == "failed"
    reason = ledger.job(job.id).reason or ""
    assert reason.startswith(UNMET)
    assert NAME in reason
    assert not [plan for plan in engine.done if plan.kind is StageKind.STUDENT]


def test_a_job_waits_for_a_device_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, job, _, controller, cam = started()
    monkeypatch.setattr(known_devices, "AT_HAND_S", -1.0)
    for _ in range(30):
        controller.step()
    assert cam.opened() == []
    assert ledger.job(job.id).state == "running"
    due = ledger.stages(ledger.trials(job.id)[0].stages).values()
    why = waiting(ledger.job(job.id), due, lack=None, now=time.time() + 60, devices=ledger.devices)
    assert (why or "").startswith("device gate-cam has not asked for work for ")
    monkeypatch.undo()
    assert drive(controller, cam, job.id) == "done"


def test_a_device_does_one_stage_at_a_time_and_holds_up_no_worker() -> None:
    ledger, _, engine, controller, cam = started(trials=6, sampler="random")
    engine.slots = 4
    for _ in range(20):
        controller.step()
    assert len(cam.opened()) == 1
    pending = [s.plan for s in ledger._stages.values() if s.state == "pending" and s.plan.device is None]
    assert pending == [], "the engine goes on meanwhile, though what it has is one machine"
    first = cam.opened()[0][0]
    cam.work()
    controller.step()
    assert [attempt.id for attempt, _ in cam.opened()] not in ([], [first.id])


def test_no_process_stands_for_its_attempt_but_its_lease_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "FIRST_PAUSE_S", 0.0)
    ledger, job, engine, controller, cam = started()
    clock = [time.time()]
    controller = Controller(ledger, engine, lease_s=30, max_attempts=2, clock=lambda: clock[0])
    while not cam.opened():
        controller.step()
    ((first, plan),) = cam.opened()
    for _ in range(5):
        controller.step()
    assert [attempt.id for attempt, _ in cam.opened()] == [first.id]
    clock[0] += 200.0
    controller.step()
    clock[0] += 20.0
    controller.step()
    assert ledger.attempt(first.id).state == "lost"
    assert ledger.stages([plan.key])[plan.key].reason == "its process gave no sign of life for 100 s"
    clock[0] = time.time() + 5.0
    assert drive(controller, cam, job.id) == "done"


def test_another_runtime_is_another_measurement() -> None:
    _, job, _, controller, cam = started()
    while not cam.done:
        controller.step()
        cam.work()
    cam.device = dataclasses.replace(CAM, runtime="onnxruntime 1.23.0")
    cam.announce()
    assert drive(controller, cam, job.id) == "done"
    assert {plan.code for plan in cam.done} == {CAM.code, cam.device.code}
    measured = {(plan.inputs["onnx"], plan.code) for plan in cam.done}
    assert len(measured) == len(cam.done)


def test_a_cancelled_job_takes_its_attempt_back() -> None:
    ledger, job, _, controller, cam = started()
    while not cam.opened():
        controller.step()
    ledger.move_job(job.id, expect=("running",), to="cancelled")
    controller.step()
    assert cam.opened() == []


def test_without_a_latency_limit_the_files_are_timed_there_too() -> None:
    ledger, job, _, controller, cam = started(budget=Budget(device=NAME))
    assert drive(controller, cam, job.id) == "done"
    assert len(cam.done) == 2
    assert {model.cost.latency_ms for model in ledger.deployments(job.id)} == {LATENCY_MS}
