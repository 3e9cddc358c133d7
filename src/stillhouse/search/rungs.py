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
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stillhouse.search.job import TrialRecord
from stillhouse.search.pareto import promotion_order


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


def _octaves(trial: TrialRecord, name: str) -> float:
    """A cost in octaves, for costs span decades."""
    value = getattr(trial.cost, name)
    return 0.0 if value is None else math.log2(value)
