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

import math
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


def cheapest_within(points: ArrayLike, cost: int = 1, margin: float = 0.01) -> int:
    """Index of the cheapest point in one cost whose accuracy lies within a margin of the best.

    Of equally cheap ones the most accurate, then the first.

    Args:
        points: (n, m), n >= 1, accuracy first.
        cost: Column of the cost.
        margin: Of accuracy, as a share: 0.01 is one percentage point.

    Raises:
        ValueError: No points, or not a table of finite numbers.
    """
    worse = _minimised(points)
    if len(worse) == 0:
        raise ValueError("the cheapest needs at least one point, but got none")
    near = np.flatnonzero(worse[:, 0] <= worse[:, 0].min() + margin + 1e-12)
    return int(near[np.lexsort((worse[near, 0], worse[near, cost]))[0]])


def ranks(points: ArrayLike) -> NDArray[np.int64]:
    """(n,) non-dominated rank of each point: 0 on the front, 1 on the front of the rest, and so on.

    Equal points have equal ranks: none of them dominates another.

    Args:
        points: (n, m), accuracy first.

    Raises:
        ValueError: Not a table of finite numbers.
    """
    worse = _minimised(points)
    if len(worse) == 0:
        return np.empty(0, dtype=np.int64)
    unique, back = np.unique(worse, axis=0, return_inverse=True)
    found = np.full(len(unique), -1, dtype=np.int64)
    left = np.arange(len(unique))
    for rank in range(len(unique)):
        here = _peeled(unique[left])
        found[left[here]] = rank
        left = np.delete(left, here)
        if len(left) == 0:
            break
    return found[back.reshape(-1)]


def net_order(points: ArrayLike) -> list[int]:
    """All points in an order in which each next one is the farthest from those before it: an epsilon net.

    The most accurate comes first; distances are Euclidean, each objective scaled to its range (Gonzalez 1985).

    Args:
        points: (n, m), accuracy first.

    Raises:
        ValueError: Not a table of finite numbers.
    """
    worse = _minimised(points)
    if len(worse) == 0:
        return []
    low, high = worse.min(axis=0), worse.max(axis=0)
    scaled = (worse - low) / np.where(high > low, high - low, 1.0)
    order = [int(np.lexsort(scaled.T[::-1])[0])]
    gaps = np.full(len(scaled), np.inf)
    while len(order) < len(scaled):
        gaps = np.minimum(gaps, np.sum((scaled - scaled[order[-1]]) ** 2, axis=1))
        gaps[order] = -1.0
        order.append(int(np.argmax(gaps)))
    return order


def promotion_order(points: ArrayLike) -> list[int]:
    """All points, best first: by non-dominated rank, and within a rank as an epsilon net (Schmucker et al. 2021).

    Args:
        points: (n, m), accuracy first.

    Raises:
        ValueError: Not a table of finite numbers.
    """
    table = np.array(points, dtype=np.float64)
    rank = ranks(table)
    order: list[int] = []
    for level in range(int(rank.max(initial=-1)) + 1):
        members = np.flatnonzero(rank == level)
        order += [int(members[index]) for index in net_order(table[members])]
    return order


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value that two classifiers are equally right on the same pictures: the exact binomial test.

    Args:
        only_a: Pictures that the first alone tells right.
        only_b: Pictures that the second alone tells right.

    Raises:
        ValueError: A negative count.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(f"counts must be >= 0, but got {only_a} and {only_b}")
    n = only_a + only_b
    tail: int = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / (1 << n))


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

_BLOCK = 256
"""Points that are compared at once."""


def _minimised(points: ArrayLike) -> Floats:
    table = np.array(points, dtype=np.float64)
    if table.size == 0:
        return np.empty((0, 1))
    if table.ndim != 2 or not np.all(np.isfinite(table)):
        raise ValueError(f"points must be a table (n, objectives) of finite numbers, but got {points!r:.200}")
    table[:, 0] *= -1
    return table


def _peeled(worse: Floats) -> NDArray[np.int64]:
    """Indices of the points (n, m) that no other dominates; all points differ."""
    order = np.lexsort(worse.T[::-1])
    return np.sort(order[_sweep(worse[order])])


def _sweep(ranked: Floats) -> list[int]:
    """Indices of the points (n, m) that none before them is as good as in everything; sorted so that none after is."""
    kept: list[int] = []
    members = np.empty((0, ranked.shape[1]))
    for start in range(0, len(ranked), _BLOCK):
        block = ranked[start : start + _BLOCK]
        new = np.flatnonzero(~_reached(members, block).any(axis=0))
        # Among themselves: an earlier one may itself be beaten, but then by one that beats the later too.
        new = new[~np.triu(_reached(block[new], block[new]), 1).any(axis=0)]
        members = np.concatenate((members, block[new]))
        kept += (start + new).tolist()
    return kept


def _reached(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """(len(a), len(b)): whether a point of ``a`` is no worse than one of ``b`` in every objective."""
    found = np.ones((len(a), len(b)), dtype=np.bool_)
    for column in range(a.shape[1]):
        found &= a[:, column, None] <= b[None, :, column]
    return found


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
