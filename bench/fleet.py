"""A simulated fleet: does the controller keep its workers busy, and what does one decision cost?

``python bench/fleet.py --json``. Discrete events with the product's own controller on the in-memory ledger; only the
engine and the clock are simulated, and the seconds that the controller itself computes are added to the clock: while it
thinks, whoever has finished waits.

- A job of ``--trials`` candidates (10,000) on ``--workers`` workers (1,000), by labels alone (no teacher that all would
  wait for), with rungs (``eta`` 3). A stage takes the seconds that the rule of ``search/effort.py`` gives on a network
  of its MACs and 50,000 pictures, times a lognormal factor (sigma 0.3).
- ``busy``: share of the workers' seconds that are worked, from the start until no candidate is left to begin.
- ``ask_tell_ms``: milliseconds of the controller for a decision (a trial begun or sent on), all of its reading and
  writing included; median over the steps.
- ``ask_tell_ms_at_1000``: the same in a job of 1,050 trials on 16 workers, over the decisions with 950 trials known or
  more; by ledger, in memory and as an SQLite file. ``ask_ms_at_1000``: of these the one ask of the sampler, when it may
  only begin a candidate, and when hundreds of trials wait at a rung too.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import tempfile
import time
from typing import Any

import numpy as np

from stillhouse.search.advance import Desk
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.controller import Controller
from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.effort import Effort
from stillhouse.search.job import AttemptRecord, Epochs, JobSpec, TrialRecord
from stillhouse.search.plan import ingest_plan
from stillhouse.search.ports import Engine
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.lists import Lists
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.db.migrate import upgrade

SIDES = (32, 48, 64, 80, 96, 112, 128)
PICTURES, CLASSES = 50_000, 10


def catalogue(archs: int) -> dict[str, Any]:
    """``archs`` made-up networks, each in every size of ``SIDES``."""
    rng = np.random.default_rng(0)
    entries = {}
    for index in range(archs):
        unit, params = math.exp(rng.normal(math.log(3000), 1.0)), int(math.exp(rng.normal(14.5, 0.7)))
        cells = {f"{side}x{side}|stock": {"macs": int(unit * side**2), "params": params} for side in SIDES}
        entries[f"net{index:04d}"] = {
            "family": "cnn",
            "stems": ["stock"],
            "macs_per_class": 100,
            "params_per_class": 101,
            "cells": cells,
        }
    return {
        "names": [*entries, "teacher"],
        "image_sizes": [str(side) for side in SIDES],
        "archs": entries,
        "methods": {"supervised": {"teacher": False, "assistant": False, "knobs": []}},
        "tasks": ["classification"],
        "code": {},
        "weights": {"package": [], "hub": []},
    }


SUMMARY = {
    "classes": [str(index) for index in range(CLASSES)],
    "splits": {"train": PICTURES, "val": 1000, "test": 1000},
    "curve": [
        {"fit": "squash", "codec": "jpeg", "quality": 90, "size": str(side), "mean_bytes": 20.0 * side**0.9}
        for side in SIDES
    ],
}


class Fleet(Engine):
    """An engine of many workers in simulated time, each on a machine of its own."""

    one_machine = False

    def __init__(self, ledger: Lists, data: dict[str, Any], workers: int) -> None:
        self.ledger, self.workers, self.now, self.worked = ledger, workers, 0.0, 0.0
        self._effort = Effort(Catalogue.from_json(data), PICTURES, CLASSES)
        self._rng, self._order = np.random.default_rng(1), itertools.count()
        self._queue: list[tuple[float, int, AttemptRecord, StagePlan]] = []
        self._alive: set[str] = set()

    def capacity(self) -> int:
        return self.workers - len(self._queue)

    def threads(self) -> int:
        return 1

    def submit(self, attempt: AttemptRecord) -> None:
        plan = self.ledger.stages([attempt.stage_key])[attempt.stage_key].plan
        read = plan.kind is StageKind.INGEST  # before the clock starts
        seconds = 0.0 if read else self._effort.seconds(plan) * math.exp(self._rng.normal(0, 0.3))
        self.worked += seconds
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), attempt, plan))
        self._alive.add(attempt.id)

    def running(self, attempt_id: str) -> bool:
        return attempt_id in self._alive

    def cancel(self, attempt_id: str) -> None:
        raise AssertionError(f"nothing is cancelled here, but {attempt_id} was")

    def close(self) -> None:
        pass

    def advance(self) -> None:
        """Lets the clock run to the next end of a stage, if that is not past, and takes in all that have ended."""
        self.now = max(self.now, self._queue[0][0])
        while self._queue and self._queue[0][0] <= self.now:
            _, _, attempt, plan = heapq.heappop(self._queue)
            self._alive.discard(attempt.id)
            self.ledger.commit(attempt.id, attempt.token, self._result(plan), seconds=1.0)

    @property
    def left(self) -> float:
        """Seconds of work that are still before the workers."""
        return sum(at - self.now for at, *_ in self._queue)

    def _result(self, plan: StagePlan) -> StageResult:
        if plan.kind is StageKind.INGEST:
            return StageResult({}, SUMMARY)
        if plan.kind is StageKind.EXPORT:
            return StageResult({"onnx": plan.key}, {"model_bytes": 1, "preprocess": {}})
        correct = int(self._rng.integers(300, 900))
        if plan.kind is StageKind.MEASURE:
            costs = {"model_bytes": 1, "latency_ms": 1.0, "latency_p95_ms": 1.0, "memory_bytes": 1}
            accuracy = {"correct": correct, "total": 1000}
            coded = {str(quality): {"accuracy": accuracy} for quality in plan.spec["qualities"]}
            return StageResult({}, {**costs, "accuracy": accuracy, "coded": coded})
        return StageResult({}, {"val": {"correct": correct, "total": 1000}})


def search(dataset: str, trials: int) -> JobSpec:
    """The job: by labels alone, with rungs, one file a trial."""
    one_file: dict[str, Any] = {"precisions": ("fp32",), "qualities": ()}
    by_labels: dict[str, Any] = {"teacher": "teacher", "method": "supervised", "epochs": Epochs(1, 1, 9)}
    return JobSpec(dataset, trials=trials, eta=3, **by_labels, **one_file)


def fleet(trials: int, workers: int, ledger: Lists, *, least: int = 0) -> dict[str, float]:
    """Runs the job until no candidate is left to begin.

    Args:
        trials: How many.
        workers: How many.
        ledger: An empty one.
        least: Decisions count with so many trials known.
    """
    data = catalogue(math.ceil(trials / 12))
    ledger.publish_catalogue(data)
    dataset = ledger.add_dataset("fleet", ingest_plan("fleet.zip", "fleet", False, {}))
    job = ledger.add_job(search(dataset.id, trials))
    engine = Fleet(ledger, data, workers)
    controller = Controller(ledger, engine, lease_s=1e9, max_attempts=1, clock=lambda: engine.now)
    moves = 0
    costs: list[float] = []
    while True:
        began = time.process_time()
        controller.step()
        took = time.process_time() - began
        engine.now += took
        known = ledger.trials(job.id)
        count = len(known) + sum((trial.epochs or 0) > 1 for trial in known)
        costs += [took / (count - moves)] if count > moves and len(known) >= least else []
        moves = count
        if len(known) >= trials or engine.capacity() == workers:
            break
        engine.advance()
    if len(known) < trials:
        raise SystemExit(f"only {len(known)} of {trials} trials began; the job is {ledger.job(job.id)}")
    busy = (engine.worked - engine.left) / (workers * engine.now)
    return {
        "busy": round(busy, 4),
        "ask_tell_ms": round(1e3 * float(np.median(costs)), 2),
        "simulated_s": round(engine.now),
    }


def at_1000() -> dict[str, float]:
    """Milliseconds of a decision, by ledger."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/fleet.db"
        upgrade(url)
        ledgers: dict[str, Lists] = {"memory": MemoryLedger(), "sqlite": SqlLedger(url)}
        return {name: fleet(1050, 16, ledger, least=950)["ask_tell_ms"] for name, ledger in ledgers.items()}


def ask_ms(count: int) -> dict[str, float]:
    """Milliseconds of one ask when ``count`` trials are known, with and without trials that wait; medians of 20."""
    data = catalogue(120)
    ledger = MemoryLedger()
    dataset = ledger.add_dataset("fleet", ingest_plan("fleet.zip", "fleet", False, {}))
    ledger.end_dataset(dataset.id, "ready", summary=SUMMARY, reason=None, faults=())
    spec = search(dataset.id, 10 * count)
    desk = Desk(ledger.add_job(spec), ledger.dataset(dataset.id), data)
    rng, levels = np.random.default_rng(0), desk.planner.levels
    order = rng.permutation(len(desk.space.feasible))[:count]
    trials = []
    for number, index in enumerate(order.tolist()):
        candidate, level = desk.space.feasible[index], levels[int(rng.choice(len(levels), p=[0.66, 0.22, 0.12]))]
        state = "done" if level == levels[-1] else "paused"
        cost, accuracy = desk.space.cost(candidate), float(rng.uniform(0.3, 0.9))
        trials.append(TrialRecord("job", number, candidate, state, cost, accuracy=accuracy, epochs=level))
    found = {}
    for name, ready in (("new", []), ("new or waiting", [trial for trial in trials if trial.state == "paused"])):
        times = []
        for _ in range(20):
            began = time.process_time()
            desk.chooser.next(trials, ready, new=True, left_out=(), paid=())
            times.append(time.process_time() - began)
        found[name] = round(1e3 * float(np.median(times)), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")
    options = parser.parse_args()
    found: dict[str, Any] = {"trials": options.trials, "workers": options.workers}
    found |= fleet(options.trials, options.workers, MemoryLedger())
    found |= {"ask_tell_ms_at_1000": at_1000(), "ask_ms_at_1000": ask_ms(1000)}
    print(
        json.dumps(found, indent=1) if options.json else "\n".join(f"{name}: {value}" for name, value in found.items())
    )


if __name__ == "__main__":
    main()
