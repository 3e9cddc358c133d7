"""Rungs with any number of workers, whose stages end in any order."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from instant import honest, setup
from paced import PacedEngine
from stillhouse.search.controller import Controller
from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.job import Epochs, TrialRecord
from stillhouse.search.pareto import promotion_order
from stillhouse.search.rungs import Curves, hopeful, leading

ETA, LEVELS = 3, (1, 3, 9)
OBJECTIVES = ("macs", "image_bytes")
FIT = 18
"""Candidates of ``instant.catalogue``."""


def accurate(plan: StagePlan, seed: int) -> StageResult:
    """A student's accuracy rises from level to level, by a share of its own."""
    if plan.kind is not StageKind.STUDENT:
        return honest(plan)
    spec = {**plan.spec, "until": None}
    drawn = Random(f"{seed} {sorted(spec.items(), key=str)}")
    low, high = sorted((drawn.random(), drawn.random()))
    share = LEVELS.index(plan.spec.get("until", 9)) / 2
    return StageResult(
        {"weights": plan.key}, {"val": {"correct": round(1000 * (low + share * (high - low))), "total": 1000}}
    )


class Watched:
    """A job at work on an engine of so many workers, with each promotion looked at as it is made."""

    def __init__(self, sampler: str, workers: int, trials: int, seed: int) -> None:
        changes: dict[str, Any] = {"sampler": sampler, "eta": ETA, "trials": trials, "epochs": Epochs(1, 1, 9)}
        work = lambda plan: accurate(plan, seed)  # noqa: E731
        self.ledger, self.job, _, _ = setup(work, **changes, seed=seed)
        self.engine = PacedEngine(self.ledger, work, workers)
        self.controller = Controller(self.ledger, self.engine, lease_s=1e9, max_attempts=1)
        self.sampler, self.most, self.last = sampler, min(trials, FIT), 0
        self._move = self.ledger.move_trial
        self.ledger.move_trial = self.moved  # type: ignore[method-assign]

    def moved(self, job_id: str, number: int, *, expect: str, to: str, **rest: Any) -> bool:
        if (expect, to) == ("paused", "training"):
            self.promoted(number)
        return self._move(job_id, number, expect=expect, to=to, **rest)

    def promoted(self, number: int) -> None:
        """By rank before the last candidate has begun; later those too that are not given up."""
        trials = self.ledger.trials(self.job.id)
        trial = trials[number]
        if self.sampler == "auto" or number in allowed(trials, trial.epochs or 0):
            return
        assert len(trials) == self.most, "before the last has begun one in eta of a rung trains on"
        assert number in {other.number for other in hopeful(trials, self.curves(), LEVELS, OBJECTIVES)}
        self.last += 1

    def curves(self) -> Curves:
        """Read from the engine, not from the search's own books."""
        known = {trial.candidate: trial.number for trial in self.ledger.trials(self.job.id)}
        found: dict[int, dict[int, float]] = {}
        for plan in self.engine.done:
            if plan.kind is StageKind.STUDENT:
                val = self.engine.work(plan).metrics["val"]
                names = ("arch", "image_size", "network_size", "stem")
                of = next(n for c, n in known.items() if all(str(getattr(c, x)) == plan.spec[x] for x in names))
                found.setdefault(of, {})[plan.spec.get("until", 9)] = val["correct"] / val["total"]
        return found

    def run(self, chance: Random) -> str:
        for _ in range(3000):
            self.controller.step()
            assert len(self.engine.at_work) <= self.engine.workers
            if self.ledger.job(self.job.id).state not in ("queued", "running"):
                break
            assert self.engine.at_work, "a job that is not over has work"
            for one in chance.sample(self.engine.at_work, chance.randint(1, len(self.engine.at_work))):
                self.engine.finish(one)
        return self.ledger.job(self.job.id).state


def allowed(trials: Sequence[TrialRecord], level: int) -> set[int]:
    """The best of a rung, as many as may train on."""
    rung = [trial for trial in trials if trial.accuracy is not None and (trial.epochs or 0) >= level]
    costs = [[math.log2(getattr(trial.cost, name)) for name in OBJECTIVES] for trial in rung]
    order = promotion_order([[trial.accuracy or 0.0, *cost] for trial, cost in zip(rung, costs, strict=True)])
    return {rung[index].number for index in order[: math.ceil(len(rung) / ETA)]}


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["tpe", "random", "auto"]),
    st.integers(1, 16),
    st.integers(1, FIT),
    st.integers(0, 99),
    st.randoms(use_true_random=False),
)
def test_no_stage_is_lost_or_done_twice_and_each_promotion_is_due(
    sampler: str, workers: int, trials: int, seed: int, chance: Random
) -> None:
    watched = Watched(sampler, workers, trials, seed)
    assert watched.run(chance) == "done"
    engine, ledger = watched.engine, watched.ledger
    assert max(Counter(plan.key for plan in engine.done).values()) == 1
    assert not engine.cancelled
    assert all([a.state for a in ledger.attempts(plan.key)] == ["done"] for plan in engine.done)
    found, done = ledger.trials(watched.job.id), {plan.key for plan in engine.done}
    assert len({trial.candidate for trial in found}) == len(found) == watched.most
    assert {trial.state for trial in found} <= {"done", "stopped"}
    assert all(set(trial.stages) <= done for trial in found)
    assert all(trial.epochs == 9 for trial in found if trial.state == "done")
    rule = leading if sampler == "auto" else hopeful
    waits = [trial.number for trial in found if trial.state == "stopped"]
    left = rule([_paused(trial) for trial in found], watched.curves(), LEVELS, OBJECTIVES)
    assert not {trial.number for trial in left} & set(waits), (
        "whoever may yet come onto the front is trained to the end"
    )


def _paused(trial: TrialRecord) -> TrialRecord:
    return replace(trial, state="paused") if trial.state == "stopped" else trial
