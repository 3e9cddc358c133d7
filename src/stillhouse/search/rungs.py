"""Who trains on: asynchronous successive halving over several objectives (MO-ASHA).

============  ==========================================================================
level         a number of epochs after which a training may pause; the last is its end
rung          the trials that have reached a level, with their accuracy there
``eta``       about one in ``eta`` of a rung trains on to the next, ``eta`` times as long
============  ==========================================================================

Of a rung with n trials the best ``ceil(n / eta)`` may train on: by non-dominated rank over accuracy and costs, and
within a rank by an epsilon net, so that they lie spread along the front (Schmucker et al. 2021, "Multi-objective
Asynchronous Successive Halving"; the halving itself: Li et al. 2020, "A System for Massively Parallel Hyperparameter
Tuning"). Rounding up is ours: with a handful of trials at least one of each rung trains on.

Nothing here waits for a rung to fill, so any number of workers is kept busy; what is asked twice is answered twice the
same, since the answer is a function of the ledger's trials.

Halving lets trials go on because more come in below them. Once no new one can begin, those that wait would wait for
ever, and with them what learns slowly: at the first rung the smallest picture's best network may guess still. So then
(ours; docs/log.md, 2026-11-29) a trial is given up only when it could not catch up (``hopeful``) or, where a model says
what it promises, when it promises nothing and does not lead its rung (``leading``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from stillhouse.search.job import TrialRecord
from stillhouse.search.pareto import promotion_order, ranks

Curves = Mapping[int, Mapping[int, float]]
"""By a trial's number: the accuracy of its student at each level that it has reached."""


def levels(epochs: int, eta: int) -> tuple[int, ...]:
    """Epochs of each rung, ascending, ``epochs`` last.

    Args:
        epochs: Of a whole training.
        eta: Ratio of one level to the one below it; 1 for no rungs.
    """
    found = [epochs]
    while eta > 1 and found[0] >= eta:
        found.insert(0, round(found[0] / eta))
    return tuple(found)


def promotable(
    trials: Sequence[TrialRecord], levels: Sequence[int], eta: int, objectives: Sequence[str]
) -> list[TrialRecord]:
    """The paused trials that may train on now: those at higher rungs first, then by rank and spread.

    Args:
        trials: All of a job.
        levels: From ``levels``.
        eta: As there.
        objectives: Costs beside the error, by name in ``Cost``.
    """
    found: list[TrialRecord] = []
    for level in reversed(levels[:-1]):
        # A trial that went on counts in the rungs below by its latest accuracy: it is the better estimate.
        rung = [trial for trial in trials if trial.accuracy is not None and (trial.epochs or 0) >= level]
        paused = {trial.number for trial in rung if trial.state == "paused" and trial.epochs == level}
        if not paused:
            continue
        points = [[trial.accuracy or 0.0, *(_octaves(trial, name) for name in objectives)] for trial in rung]
        best = promotion_order(points)[: math.ceil(len(rung) / eta)]
        found += [rung[index] for index in best if rung[index].number in paused]
    return found


def hopeful(
    trials: Sequence[TrialRecord], curves: Curves, levels: Sequence[int], objectives: Sequence[str]
) -> list[TrialRecord]:
    """The paused trials that may yet come onto the front: those at higher rungs first, then by rank and spread.

    One could not if it would be no more accurate than a finished trial that costs no more in anything, even if from
    here to the end it gained as much as the trial that gained most.

    Args:
        trials: All of a job.
        curves: What is known of them.
        levels: From ``levels``.
        objectives: Costs beside the error, by name in ``Cost``.
    """
    found: list[TrialRecord] = []
    end = levels[-1]
    done = [trial for trial in trials if trial.state == "done"]
    for level, rung, points in _rungs(trials, curves, levels, objectives):
        gains = [_at(curves, trial, end) - _at(curves, trial, level) for trial in done]
        gain = max(0.0, *gains) if gains else math.inf
        for trial in (rung[index] for index in promotion_order(points)):
            hope = _at(curves, trial, level) + gain
            better = (rival for rival in done if _at(curves, rival, end) >= hope)
            if _waits(trial, level) and not any(_no_dearer(rival, trial, objectives) for rival in better):
                found.append(trial)
    return found


def leading(
    trials: Sequence[TrialRecord], curves: Curves, levels: Sequence[int], objectives: Sequence[str]
) -> list[TrialRecord]:
    """The paused trials on the front of their rung, all at the accuracy that they had there; in the same order.

    Args:
        trials: All of a job.
        curves: What is known of them.
        levels: From ``levels``.
        objectives: Costs beside the error, by name in ``Cost``.
    """
    found: list[TrialRecord] = []
    for level, rung, points in _rungs(trials, curves, levels, objectives):
        rank = ranks(points)
        found += [rung[i] for i in promotion_order(points) if rank[i] == 0 and _waits(rung[i], level)]
    return found


def _rungs(
    trials: Sequence[TrialRecord], curves: Curves, levels: Sequence[int], objectives: Sequence[str]
) -> Iterator[tuple[int, list[TrialRecord], list[list[float]]]]:
    """The rungs at which trials wait, the highest first: level, trials that have reached it, their points there."""
    for level in reversed(levels[:-1]):
        rung = [trial for trial in trials if trial.accuracy is not None and (trial.epochs or 0) >= level]
        if any(_waits(trial, level) for trial in rung):
            points = [[_at(curves, trial, level), *(_octaves(trial, name) for name in objectives)] for trial in rung]
            yield level, rung, points


def _waits(trial: TrialRecord, level: int) -> bool:
    return trial.state == "paused" and trial.epochs == level


def _at(curves: Curves, trial: TrialRecord, level: int) -> float:
    """Its accuracy there; its latest where none is known."""
    return curves.get(trial.number, {}).get(level, trial.accuracy or 0.0)


def _no_dearer(rival: TrialRecord, trial: TrialRecord, objectives: Sequence[str]) -> bool:
    """True when a trial is known to cost no less than its rival in any objective."""
    costs = [(getattr(rival.cost, name), getattr(trial.cost, name)) for name in objectives]
    return all(a is not None and b is not None and a <= b for a, b in costs)


def _octaves(trial: TrialRecord, name: str) -> float:
    """A cost in octaves, for costs span decades."""
    value = getattr(trial.cost, name)
    return 0.0 if value is None else math.log2(value)
