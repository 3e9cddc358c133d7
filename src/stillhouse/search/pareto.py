"""Dominance, fronts, hypervolume and the knee.

A point is ``(accuracy, cost, cost, ...)``: the first coordinate is maximised, all others are minimised.

===========  ==========================================================
``points``   (n, m) finite numbers: n points, m objectives
``worse``    (n, m) the same with the accuracy negated: all minimised
===========  ==========================================================

Of points that are equal in every objective the first is kept: a second model that is no better in
anything is no second choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillhouse.search.domain import Budget, Deployment

Floats = NDArray[np.float64]


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """True when ``a`` is no worse than ``b`` in every objective and better in one (a strict partial order)."""
    first, second = _minimised([a, b])
    return bool(np.all(first <= second) and np.any(first < second))


def front(points: ArrayLike) -> list[int]:
    """Indices, ascending, of the points that no other dominates; of equal points the first.

    Sorts once; then O(n) for two objectives and O(n f) for more, f being the size of the front.

    Args:
        points: (n, m), accuracy first.

    Raises:
        ValueError: Not a table of finite numbers.
    """
    worse = _minimised(points)
    if len(worse) == 0:
        return []
    # In this order no point is dominated by a later one, and of equal points the first comes first.
    order = np.lexsort(worse.T[::-1])
    ranked = worse[order]
    if worse.shape[1] == 1:
        kept = order[:1]
    elif worse.shape[1] == 2:
        best_before = np.concatenate(([np.inf], np.minimum.accumulate(ranked[:-1, 1])))
        kept = order[ranked[:, 1] < best_before]
    else:
        kept = order[_sweep(ranked)]
    return [int(index) for index in np.sort(kept)]


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """Volume dominated by the points, up to the reference point; exact.

    Recursion over exclusive volumes (While, Bradstreet & Barone 2012), with a sweep once two objectives
    are left. Meant for fronts of up to some hundred points and few objectives.

    Args:
        points: (n, m), accuracy first.
        reference: (m,) the least accuracy and the greatest costs that count. A point that is not
            better than it in every objective adds nothing.

    Raises:
        ValueError: Not a table of finite numbers, or another number of objectives.
    """
    corner = _minimised([reference])[0]
    worse = _minimised(points)
    if len(worse) == 0:
        return 0.0
    if worse.shape[1] != len(corner):
        raise ValueError(
            f"points and reference need the same number of objectives, but got {worse.shape[1]} and {len(corner)}"
        )
    return _volume(worse[np.all(worse < corner, axis=1)], corner)


def knee(points: ArrayLike) -> int:
    """Index of the front's member nearest to the ideal point, each objective scaled to the front's range.

    It is the member to look at first: leaving it costs much in one objective to win little in another.

    Args:
        points: (n, m), n >= 1, accuracy first.

    Raises:
        ValueError: No points, or not a table of finite numbers.
    """
    members = front(points)
    if not members:
        raise ValueError("the knee needs at least one point, but got none")
    worse = _minimised(points)[members]
    low, high = worse.min(axis=0), worse.max(axis=0)
    scaled = (worse - low) / np.where(high > low, high - low, 1.0)
    return members[int(np.argmin(np.sum(scaled**2, axis=1)))]


def deployment_front(deployments: Sequence[Deployment], objectives: Sequence[str], budget: Budget) -> list[Deployment]:
    """The deployments that meet the budget and that no other such beats; in order of trial number.

    Costs are the measured ones, and accuracy is that of the validation split: the test split takes no
    part in choosing. Equal deployments: the one of the earlier trial stays; of one trial's variants, that of the job's
    own method, then the baselines by name.

    Args:
        deployments: Those of one job.
        objectives: Costs to draw the front over, by name in ``Cost``.
        budget: Limits, ``min_accuracy`` included.

    Raises:
        ValueError: A deployment was not measured in one of the objectives.
    """
    least = budget.min_accuracy or 0.0
    fitting = [item for item in deployments if item.validation.value >= least and not budget.excess(item.cost)]
    fitting.sort(key=lambda item: (item.trial_number, item.is_baseline, item.variant, item.id))
    points = [[item.validation.value, *(item.objective(name) for name in objectives)] for item in fitting]
    return [fitting[index] for index in front(points)]


# ---------------------------------------------------------------------------------------- helpers


def _minimised(points: ArrayLike) -> Floats:
    table = np.array(points, dtype=np.float64)
    if table.size == 0:
        return np.empty((0, 1))
    if table.ndim != 2 or not np.all(np.isfinite(table)):
        raise ValueError(f"points must be a table (n, objectives) of finite numbers, but got {points!r:.200}")
    table[:, 0] *= -1
    return table


def _sweep(ranked: Floats) -> list[int]:
    kept: list[int] = []
    members = np.empty_like(ranked)
    for index, point in enumerate(ranked):
        if not np.any(np.all(members[: len(kept)] <= point, axis=1)):
            members[len(kept)] = point
            kept.append(index)
    return kept


def _volume(worse: Floats, corner: Floats) -> float:
    """Volume between points (n, m), all minimised and below the corner, and the corner (m,)."""
    if len(worse) == 0:
        return 0.0
    if worse.shape[1] == 1:
        return float(corner[0] - worse.min())
    ranked = worse[np.lexsort(worse.T[::-1])]
    ranked = ranked[_sweep(ranked)]
    if ranked.shape[1] == 2:
        ceilings = np.concatenate((corner[1:], ranked[:-1, 1]))
        return float(np.sum((corner[0] - ranked[:, 0]) * (ceilings - ranked[:, 1])))
    total = 0.0
    for index, point in enumerate(ranked):
        shared = np.maximum(ranked[index + 1 :], point)
        total += float(np.prod(corner - point)) - _volume(shared, corner)
    return total
