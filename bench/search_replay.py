"""How soon a search has the front: ours and plain ones, replayed on the table of real trainings.

``python bench/search_replay.py --json``. ``docs/benchmarks/search_table.json`` (``bench/search_table.py``) holds the
learning curve, the costs and the seconds of every candidate, so a search can be run again in a simulated clock: a stage
takes the seconds that it took, and tells what it told. Ours is the product's own controller with its defaults on the
in-memory ledger; only the engine is simulated. A stage that it gives two slots, because others would stand idle, takes
the seconds that it took divided by the speed-up that was measured (``docs/benchmarks/wide.json``, ``bench/wide.py``);
what a mentor says takes as much longer in parts as was measured there.

- Plain ``random``, Optuna's TPE and NSGA-II: each trial makes its own teacher, targets, assistant and student, as a
  script around ``study.optimize`` does, and learns the costs by trying. A combination that is no candidate, and one
  tried before, costs them nothing. ``filter + random`` draws from the candidates that fit the budget;
  ``filter + random, shared`` also makes each teacher and assistant once.
- Figure: seconds until the models that are trained to the end and fit the budget have 95 % of the hypervolume of all
  of the table that do, over accuracy, MACs and bytes per picture (costs in octaves, scaled to what fits).
- And the hypervolume that a search has at so many seconds: the median over seeds. A search ends at the aim.
- A search is told validation accuracies, which each seed draws anew (binomial, as other validation pictures would);
  hypervolume is counted by the table's accuracies on the test pictures, which no search is told.
- A ratio is taken seed by seed; the interval is its 2.5 and 97.5 percentile over seeds.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna

from _table import MEASURE_S, Score, Table, candidate_of
from stillhouse.search.controller import Controller
from stillhouse.search.domain import Budget, Candidate, Json, StageKind, StagePlan, StageResult
from stillhouse.search.job import AttemptRecord
from stillhouse.search.plan import ingest_plan
from stillhouse.search.ports import Engine
from stillhouse.service.db.memory import MemoryLedger

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "benchmarks" / "search_table.json"
WIDE = ROOT / "docs" / "benchmarks" / "wide.json"
MOST_IN_VAIN = 50
"""Proposals in a row that are no news before a plain search is given a candidate drawn at random."""
TIMES = (300, 600, 900, 1200, 1800, 2700, 4000, 6000, 9000, 13500, 20000, 30000)
"""Seconds at which the hypervolume is given."""
BUDGETS = {"75 M MACs": Budget(max_macs=75_000_000), "no limit": Budget(), "25 M MACs": Budget(max_macs=25_000_000)}
"""The first is the one that is reported on; the others say how far that depends on it."""


# ------------------------------------------------------------------------------------------- ours


@dataclass
class Simulated(Engine):
    """An engine whose stages take the table's seconds."""

    ledger: MemoryLedger
    table: Table
    workers: int
    now: float = 0.0
    spent: float = 0.0
    one_machine: bool = False
    _order: Iterator[int] = field(default_factory=itertools.count)
    _queue: list[tuple[float, int, AttemptRecord, StagePlan]] = field(default_factory=list)
    _gone: set[str] = field(default_factory=set)

    def capacity(self) -> int:
        return self.workers - sum(attempt.slots for _, _, attempt, _ in self._queue)

    def threads(self) -> int:
        return 1

    def widest(self) -> int:
        slots: int = self.table.wide["threads"]
        return slots

    def submit(self, attempt: AttemptRecord) -> None:
        plan = self.ledger.stages([attempt.stage_key])[attempt.stage_key].plan
        seconds = self.seconds(plan, attempt.slots)
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), attempt, plan))

    def running(self, attempt_id: str) -> bool:
        return any(attempt.id == attempt_id for _, _, attempt, _ in self._queue)

    def cancel(self, attempt_id: str) -> None:
        self._queue = [entry for entry in self._queue if entry[2].id != attempt_id]
        heapq.heapify(self._queue)

    def close(self) -> None:
        pass

    def advance(self) -> list[Candidate]:
        """Lets the clock run to the next end of a stage; returns the candidates whose file was measured by it."""
        at, _, attempt, plan = heapq.heappop(self._queue)
        seconds, self.now = at - self.now, at
        self.ledger.commit(attempt.id, attempt.token, self.result(plan), seconds=seconds)
        done = plan.kind is StageKind.MEASURE and plan.spec["split"] == "val"
        return [self._candidate(plan)] if done else []

    def seconds(self, plan: StagePlan, slots: int) -> float:
        arch = plan.spec.get("arch", plan.hints.get("arch"))
        if plan.kind is StageKind.STUDENT:
            epochs: int = plan.spec.get("until", plan.spec["epochs"]) - plan.hints.get("resumed", 0)
            return self.table.rows[candidate_of(plan.spec)].epoch_s * epochs
        if plan.kind is StageKind.TARGETS:
            of = self.ledger.stages([plan.inputs["model"]])[plan.inputs["model"]].plan.kind
            first, end = plan.spec["part"]
            return self.table.mentor(f"{of}_targets", arch, slots, (end - first) / plan.spec["views"])
        if plan.kind in (StageKind.TEACHER, StageKind.ASSISTANT):
            return self.table.mentor(str(plan.kind), arch, slots, 1.0)
        if plan.kind is StageKind.EXPORT:
            return self.table.shared[arch]["export"] if arch in self.table.shared else 0.0
        return MEASURE_S if plan.kind is StageKind.MEASURE else 0.0

    def result(self, plan: StagePlan) -> StageResult:
        if plan.kind is StageKind.STUDENT:
            curve = self.table.told[candidate_of(plan.spec)]
            val = {"correct": int(curve[plan.spec.get("until", plan.spec["epochs"]) - 1]), "total": self.table.total}
            return StageResult({}, {"val": val})
        if plan.kind is StageKind.EXPORT:
            return StageResult({"onnx": plan.key}, {"model_bytes": 1, "preprocess": {}})
        if plan.kind is StageKind.MEASURE:
            accuracy = {"correct": int(self.table.told[self._candidate(plan)][-1]), "total": self.table.total}
            costs = {"model_bytes": 1, "latency_ms": 1.0, "latency_p95_ms": 1.0, "memory_bytes": 1}
            coded = {str(quality): {"accuracy": accuracy} for quality in plan.spec["qualities"]}
            return StageResult({}, {**costs, "accuracy": accuracy, "coded": coded})
        if plan.kind is StageKind.INGEST:
            return StageResult({}, {**self.table.data["summary"], "splits": self.table.data["pictures"]})
        return StageResult({}, {"val": {"correct": 0, "total": 1}})

    def _candidate(self, measure: StagePlan) -> Candidate:
        return candidate_of(self.ledger.stages([measure.inputs["onnx"]])[measure.inputs["onnx"]].plan.spec)


def ours(table: Table, budget: Budget, workers: int, seed: int, **changes: Any) -> Score:
    """A search to the aim by the product's controller; ``changes`` are fields of the job."""
    ledger, score = MemoryLedger(), Score(table, budget)
    ledger.publish_catalogue({**table.data["catalogue"], "code": {}})
    dataset = ledger.add_dataset("replay", ingest_plan("replay.zip", "replay", False, {}))
    one_file = {"precisions": ("fp32",), "qualities": ()}
    search = {"eta": 1, "trials": len(table.rows), **one_file, **changes}
    spec = replace(table.spec, dataset=dataset.id, budget=budget, seed=seed, **search)
    job = ledger.add_job(spec)
    engine = Simulated(ledger, table, workers)
    controller = Controller(ledger, engine, lease_s=1e9, max_attempts=1, clock=lambda: engine.now)
    while ledger.job(job.id).state in ("queued", "running"):
        controller.step()
        if engine.capacity() < workers:
            for candidate in engine.advance():
                if score.trained(candidate, engine.now):
                    return score
    return score


# ------------------------------------------------------------------------------------------ plain


Ask = Callable[[], tuple[Candidate | None, Callable[..., None]]]


def plain(table: Table, budget: Budget, workers: int, ask: Ask) -> Score:
    """A search to the aim in which each trial makes all of its own."""
    score, queue, order = Score(table, budget), list[tuple[float, int, Candidate, Any]](), itertools.count()
    now, seen, vain, rng = 0.0, set[Candidate](), 0, random.Random(0)
    while True:
        if len(queue) < workers and len(seen) < len(table.rows):
            candidate, tell = ask()
            vain += 1
            if candidate is None or candidate in seen:
                tell(None if candidate is None else _values(table, candidate))
                if vain < MOST_IN_VAIN:
                    continue
                candidate, tell = rng.choice(sorted(set(table.rows) - seen)), lambda _: None
            if candidate not in seen:
                seen.add(candidate)
                vain = 0
                heapq.heappush(queue, (now + table.alone(candidate), next(order), candidate, tell))
            if len(queue) < workers and len(seen) < len(table.rows):
                continue
        if not queue:
            return score
        now, _, candidate, tell = heapq.heappop(queue)
        tell(_values(table, candidate))
        if score.trained(candidate, now):
            return score


def by_optuna(table: Table, sampler: optuna.samplers.BaseSampler) -> Ask:
    """Asks Optuna for one value of each part of a candidate."""
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    parts = {
        "arch": sorted({c.arch for c in table.rows}),
        "image_size": sorted({str(c.image_size) for c in table.rows}),
        "network_size": sorted({str(c.network_size) for c in table.rows}),
        "stem": sorted({c.stem for c in table.rows}),
    }

    def ask() -> tuple[Candidate | None, Callable[..., None]]:
        trial = study.ask()
        candidate = Candidate.from_json({name: trial.suggest_categorical(name, of) for name, of in parts.items()})

        def tell(values: list[float] | None) -> None:
            if values is None:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, values)

        return (candidate if candidate in table.rows else None), tell

    return ask


def drawn(candidates: list[Candidate], seed: int) -> Ask:
    """Asks for one candidate after another in a random order."""
    order = sorted(candidates)
    random.Random(seed).shuffle(order)
    left = iter(order)
    return lambda: (next(left, None), lambda _: None)


def shared_random(table: Table, budget: Budget, workers: int, seed: int) -> Score:
    """``filter + random`` with each teacher and assistant made once: ours without its sampler and its rungs."""
    return ours(table, budget, workers, seed, sampler="random")


def _values(table: Table, candidate: Candidate) -> list[float]:
    row = table.rows[candidate]
    return [table.told[candidate][-1] / table.total, math.log2(row.macs), math.log2(row.image_bytes)]


def without_tpe(table: Table, budget: Budget, workers: int, seed: int) -> Score:
    """Ours by its surrogate alone, however many trials are told."""
    with patch("stillhouse.search.sampler.LEAST_TOLD", math.inf):
        return ours(table, budget, workers, seed)


# ------------------------------------------------------------------------------------------- runs

Search = Callable[[Table, Budget, int, int], Score]
PLAIN: dict[str, Search] = {
    "random": lambda t, b, w, s: plain(t, b, w, drawn(list(t.rows), s)),
    "tpe": lambda t, b, w, s: plain(t, b, w, by_optuna(t, optuna.samplers.TPESampler(seed=s))),
    "nsga2": lambda t, b, w, s: plain(t, b, w, by_optuna(t, optuna.samplers.NSGAIISampler(seed=s, population_size=20))),
    "filter_random": lambda t, b, w, s: plain(t, b, w, drawn(list(Score(t, b).fits), s)),
    "filter_random_shared": shared_random,
}
PARTS: dict[str, Search] = {
    "ours": ours,
    "ours, one slot a stage": lambda t, b, w, s: ours(Table(t.data, t.wide | {"threads": 1}, s), b, w, s),
    "ours without TPE": without_tpe,
    "ours with rungs": lambda t, b, w, s: ours(t, b, w, s, eta=3),
    "ours with TPE alone": lambda t, b, w, s: ours(t, b, w, s, sampler="tpe"),
    "ours with TPE alone and rungs (MO-ASHA)": lambda t, b, w, s: ours(t, b, w, s, sampler="tpe", eta=3),
}


def replay(
    data: dict[str, Any],
    wide: dict[str, Any],
    budget: Budget,
    workers: int,
    seeds: int,
    searches: dict[str, Search],
) -> dict[str, Json]:
    """Seconds of each search, how many times as long as ours it takes seed by seed, and its hypervolume over time."""
    tables = [Table(data, wide, seed) for seed in range(seeds)]
    runs = {name: [search(t, budget, workers, s) for s, t in enumerate(tables)] for name, search in searches.items()}
    took = {name: [score.seconds for score in scores] for name, scores in runs.items()}
    found: dict[str, Json] = {"seconds": {name: _spread(values) for name, values in took.items()}}
    found["hypervolume"] = {
        name: {str(at): round(float(np.median([score.share(at) for score in scores])), 3) for at in TIMES}
        for name, scores in runs.items()
    }
    for name in searches:
        if name != "ours":
            ratios = [other / mine for other, mine in zip(took[name], took["ours"], strict=True)]
            found[f"speedup_vs_{name.replace(' ', '_')}"] = _spread(ratios)
    return found


def _spread(values: list[float]) -> dict[str, float | None]:
    """Median and percentiles; None where the aim is never reached."""
    found = np.percentile(values, [50, 2.5, 97.5], method="nearest").tolist()
    names = ("median", "low", "high")
    return {name: round(value, 2) if math.isfinite(value) else None for name, value in zip(names, found, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--wide", type=Path, default=WIDE)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")
    parser.add_argument("--parts", action="store_true", help="also ours with parts of it left out, and other budgets")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    data, wide = (json.loads(path.read_text()) for path in (options.table, options.wide))
    found: dict[str, Json] = {}
    for name, budget in itertools.islice(BUDGETS.items(), None if options.parts else 1):
        for workers in (1, 8):
            searches = {**(PARTS if options.parts else {"ours": ours}), **PLAIN}
            case = replay(data, wide, budget, workers, options.seeds, searches)
            found[f"{name}, {workers} workers"] = case
            if not options.json:
                print(f"{name}, {workers} workers", *(f"  {k}: {v}" for k, v in case.items()), sep="\n", flush=True)
    first = next(iter(found.values()))
    if options.json:
        print(json.dumps({**{k: v for k, v in first.items() if k.startswith("speedup")}, "cases": found}, indent=1))


if __name__ == "__main__":
    main()
