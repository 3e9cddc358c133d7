"""A job on the in-memory ledger, with an engine that does each stage at once."""

from collections.abc import Callable

from stillhouse.search.controller import Controller
from stillhouse.search.domain import Json, StageKind, StagePlan, StageResult
from stillhouse.search.errors import StillhouseError
from stillhouse.search.job import AttemptRecord, Epochs, JobSpec
from stillhouse.search.plan import ingest_plan
from stillhouse.search.ports import Engine
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
            "macs_per_class": 8,
            "params_per_class": 9,
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


ONE_FILE = {"qualities": (), "precisions": ("fp32",)}
"""One deployment a trial."""


class InstantEngine(Engine):
    """Does the work inside ``submit``; ``work`` may raise ValueError to fail a stage or return None to die.

    With ``keeps_running``, one that returned None takes a slot until it is cancelled.
    """

    def __init__(self, ledger: MemoryLedger, work: Callable[[StagePlan], StageResult | None]) -> None:
        self.ledger, self.work, self.done = ledger, work, list[StagePlan]()
        self.cancelled: list[str] = []
        self.alive: set[str] = set()
        self.faults: dict[str, str] = {}
        self.slots = 1
        self.one_machine = True
        self.keeps_running = False

    def capacity(self) -> int:
        return self.slots - len(self.alive)

    def threads(self) -> int:
        return 1

    def submit(self, attempt: AttemptRecord) -> None:
        if self.capacity() < 1:
            raise StillhouseError(f"capacity() >= 1 must hold before submit, but of {self.slots} slots none is free")
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

    def fault(self, attempt_id: str) -> str | None:
        return self.faults.pop(attempt_id, None)

    def cancel(self, attempt_id: str) -> None:
        self.cancelled.append(attempt_id)
        self.alive.discard(attempt_id)

    def close(self) -> None:
        self.slots = 0
        self.alive.clear()


def honest(plan: StagePlan, *, latency_ms: float = 1.0) -> StageResult:
    """Accuracy grows with nothing but the split; every figure a stage must give is there."""
    if plan.kind is StageKind.INGEST:
        return StageResult({"pictures": "p", "manifest": "m"}, SUMMARY)
    if plan.kind is StageKind.EXPORT:
        return StageResult({"onnx": plan.key}, {"model_bytes": 1000, "preprocess": {"fit": "squash"}})
    if plan.kind is not StageKind.MEASURE:
        return StageResult({"weights": plan.key}, {"val": {"correct": 10, "total": 12}})
    total = {"val": 12, "test": 18}.get(plan.spec["split"], 1)
    accuracy = {"correct": total - 1, "total": total}
    metrics: dict[str, Json] = {"model_bytes": 1000, "accuracy": accuracy}
    metrics["coded"] = {str(quality): {"accuracy": accuracy} for quality in plan.spec["qualities"]}
    if plan.spec["latency"]:
        metrics |= {"latency_ms": latency_ms, "latency_p95_ms": 2 * latency_ms, "memory_bytes": 5000}
    return StageResult({}, metrics)


def setup(work: Callable[[StagePlan], StageResult | None], **changes: object):  # type: ignore[no-untyped-def]
    ledger = MemoryLedger()
    ledger.publish_catalogue(catalogue())
    dataset = ledger.add_dataset("d", ingest_plan("d.zip", "d", False, {}))
    given = {"teacher": "huge", "trials": 3, "epochs": Epochs(1, 1, 1), **ONE_FILE, **changes}
    spec = JobSpec(dataset.id, **given)  # type: ignore[arg-type]
    job = ledger.add_job(spec)
    engine = InstantEngine(ledger, work)
    return ledger, job, engine, Controller(ledger, engine, lease_s=30, max_attempts=2)


def drive(controller: Controller, ledger: MemoryLedger, job_id: str, steps: int = 400) -> str:
    for _ in range(steps):
        controller.step()
        if ledger.job(job_id).state not in ("queued", "running"):
            break
    return ledger.job(job_id).state
