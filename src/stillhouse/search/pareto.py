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

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillhouse.search.domain import PRECISIONS, Budget, Deployment

Floats = NDArray[np.float64]


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """True when ``a`` is no worse than ``b`` in every objective and better in one (a strict partial order)."""
    first, second = _minimised([a, b])
    return bool(np.all(first <= second) and np.any(first < second))


def front(points: ArrayLike) -> list[int]:
    """Indices, ascending, of the points that no other dominates; of equal points the first.

    O(n log n) for up to three objectives; O(n f) for more, f being the size of the front.

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
    return [int(index) for index in np.sort(order[_sweep(worse[order])])]


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """Volume dominated by the points, up to the reference point; exact.

    Sweeps for up to three objectives, O(f^2) for a front of f; beyond them recursion over exclusive volumes (While,
    Bradstreet & Barone 2012), meant for fronts of up to some hundred points.

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
    """Index of the front's member that is cheapest in one cost of those within a margin of the best accuracy.

    Of equally cheap ones the most accurate, then the first.

    Args:
        points: (n, m), n >= 1, accuracy first.
        cost: Column of the cost, 1 for the first.
        margin: Of accuracy, as a share: 0.01 is one percentage point.

    Raises:
        ValueError: No points, not a table of finite numbers, no such cost, or a negative margin.
    """
    members = front(points)
    if not members:
        raise ValueError("the cheapest needs at least one point, but got none")
    worse = _minimised(points)[members]
    if not 1 <= cost < worse.shape[1]:
        raise ValueError(f"1 <= cost < {worse.shape[1]} objectives must hold, but got {cost}")
    if margin < 0:
        raise ValueError(f"margin must be >= 0, but got {margin}")
    # The slack lets 0.91 lie within 0.01 of 0.92, which binary fractions miss by a hair.
    near = np.flatnonzero(worse[:, 0] <= worse[:, 0].min() + margin + 1e-12)
    return members[int(near[np.lexsort((worse[near, 0], worse[near, cost]))[0]])]


def ranks(points: ArrayLike) -> NDArray[np.int64]:
    """(n,) non-dominated rank of each point: 0 on the front, 1 on the front of the rest, and so on.

    A point's rank is one more than the worst rank of those that dominate it. Equal points have equal ranks: none of
    them dominates another. O(n^2 m) time, O(n m) memory: meant for a job's trials, up to some thousands.

    Args:
        points: (n, m), accuracy first.

    Raises:
        ValueError: Not a table of finite numbers.
    """
    worse = _minimised(points)
    order = np.lexsort(worse.T[::-1])
    ranked = worse[order]
    as_before = np.concatenate(([False], np.all(ranked[1:] == ranked[:-1], axis=1)))
    costs = np.ascontiguousarray(ranked[:, 1:].T)
    depth = np.zeros(len(worse), dtype=np.int64)
    for index in range(len(worse)):
        if as_before[index]:
            depth[index] = depth[index - 1]
            continue
        # Whatever comes earlier in this order is no less accurate, so the costs alone decide.
        reached = (costs[:, :index] <= costs[:, index, None]).all(axis=0)
        depth[index] = 1 + (depth[:index] * reached).max(initial=0)
    found = np.empty_like(depth)
    found[order] = depth - 1
    return found


def net_order(points: ArrayLike) -> list[int]:
    """All points in an order in which each next one is the farthest from those before it: an epsilon net.

    The most accurate comes first, the cheaper of two such; distances are Euclidean, each objective scaled to its range
    (Gonzalez 1985). Of points equally far the first in the table. O(n^2 m).

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
        away = scaled - scaled[order[-1]]
        np.minimum(gaps, np.einsum("nm,nm->n", away, away), out=gaps)
        gaps[order[-1]] = -1.0  # Taken: the minimum keeps it so.
        order.append(int(gaps.argmax()))
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


def deployment_front(deployments: Sequence[Deployment], objectives: Sequence[str], budget: Budget) -> list[Deployment]:
    """The deployments that meet the budget and that no other such beats; in order of trial number.

    Costs are the measured ones, and accuracy is that of the validation split (of pictures as sent, where they are): the
    test split takes no part in choosing. Equal deployments: the one of the earlier trial stays; of one trial's
    variants, that of the job's own method, then the baselines by name; then the higher precision and quality.

    Args:
        deployments: Those of one job.
        objectives: Costs to draw the front over, by name in ``Cost``.
        budget: Limits, ``min_accuracy`` included.

    Raises:
        ValueError: A deployment was not measured in one of the objectives.
    """
    least = budget.min_accuracy or 0.0
    accuracy = [item.chosen_share for item in deployments]
    fits = [value >= least and not budget.excess(item.cost) for value, item in zip(accuracy, deployments, strict=True)]
    fitting = list(itertools.compress(deployments, fits))
    columns = [list(itertools.compress(accuracy, fits))]
    columns += [[item.objective(name) for item in fitting] for name in objectives]
    points = np.array(columns).T
    members = front(points)
    # Few are equal to a member: to sort them all by who comes first would take longer than the front itself.
    alike = [np.isin(column, column[members]) for column in points.T] if members else []
    equal: list[int] = np.flatnonzero(np.all(alike, axis=0)).tolist() if members else []
    first: dict[bytes, Deployment] = {points[index].tobytes(): fitting[index] for index in members}
    for index in equal:
        point, item = points[index].tobytes(), fitting[index]
        if point in first and _first_kept(item) < _first_kept(first[point]):
            first[point] = item
    return sorted(first.values(), key=_first_kept)


def picks(members: Sequence[Deployment], objectives: Sequence[str]) -> dict[str, Deployment]:
    """The members of a front to look at first, by validation accuracy.

    Args:
        members: Of one front.
        objectives: Costs that it is drawn over, by name in ``Cost``.

    Returns:
        ``knee``: the best trade-off; by objective: the cheapest within one point of the most accurate. Nothing for an
        empty front.
    """
    if not members:
        return {}
    points = [[item.chosen_share, *(item.objective(name) for name in objectives)] for item in members]
    found = {name: members[cheapest_within(points, column)] for column, name in enumerate(objectives, start=1)}
    return {"knee": members[knee(points)], **found}


# ---------------------------------------------------------------------------------------- helpers


def _first_kept(item: Deployment) -> tuple[int, bool, str, int, int, str]:
    precision = PRECISIONS.index(item.precision)
    return item.trial_number, item.is_baseline, item.variant, precision, -(item.quality or 0), item.id


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


def _sweep(ranked: Floats) -> list[int]:
    """Indices of the points (n, m) that none before them is as good as in everything.

    Args:
        ranked: Sorted by the first objective, then the second, and so on: none is dominated by a later one, and the
            first objective need not be compared any more.
    """
    if ranked.shape[1] == 1:
        return [0]
    if ranked.shape[1] == 2:
        best_before = np.concatenate(([np.inf], np.minimum.accumulate(ranked[:-1, 1])))
        return np.flatnonzero(ranked[:, 1] < best_before).tolist()
    return _sweep_three(ranked) if ranked.shape[1] == 3 else _sweep_blocks(ranked)


def _sweep_three(ranked: Floats) -> list[int]:
    """As ``_sweep``, for three objectives, in O(n log n).

    A Fenwick tree (Fenwick 1994) over the distinct values of the second objective holds the least third objective of
    the points so far; a node covers the values that its lowest set bit spans.
    """
    values, places = np.unique(ranked[:, 1], return_inverse=True)
    least = [np.inf] * (len(values) + 1)
    kept = []
    for index, (place, third) in enumerate(zip((places + 1).tolist(), ranked[:, 2].tolist(), strict=True)):
        node = place
        while node and least[node] > third:
            node &= node - 1
        if node:
            continue
        kept.append(index)
        node = place
        # A node that already holds less is covered by ones that hold no more.
        while node < len(least) and least[node] > third:
            least[node] = third
            node += node & -node
    return kept


def _sweep_blocks(ranked: Floats) -> list[int]:
    """As ``_sweep``, for any number of objectives, in O(n f m)."""
    costs = ranked[:, 1:]
    kept: list[int] = []
    members = np.empty((0, costs.shape[1]))
    for start in range(0, len(costs), _BLOCK):
        block = costs[start : start + _BLOCK]
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
        return _area(ranked, corner)
    total = 0.0
    if ranked.shape[1] == 3:
        # In slabs between one value of the third objective and the next: what is no worse there spans the same area.
        ranked = ranked[np.argsort(ranked[:, 2], kind="stable")]
        stairs = np.empty((0, 2))
        for point, height in zip(ranked[:, :2], np.diff(ranked[:, 2], append=corner[2]), strict=True):
            stairs = _with_step(stairs, point)
            total += float(height) * _area(stairs, corner)
        return total
    for index, point in enumerate(ranked):
        shared = np.maximum(ranked[index + 1 :], point)
        total += float(np.prod(corner - point)) - _volume(shared, corner)
    return total


def _area(stairs: Floats, corner: Floats) -> float:
    """Area between the corner and a front (n, 2) that is sorted by its first objective, falling in its second."""
    ceilings = np.concatenate((corner[1:2], stairs[:-1, 1]))
    return float(np.sum((corner[0] - stairs[:, 0]) * (ceilings - stairs[:, 1])))


def _with_step(stairs: Floats, point: Floats) -> Floats:
    """Such a front with a point (2,) more, and without what that one dominates."""
    before = int(np.searchsorted(stairs[:, 0], point[0], side="right"))
    if before and stairs[before - 1, 1] <= point[1]:
        return stairs
    first = int(np.searchsorted(stairs[:, 0], point[0], side="left"))
    after = first + int(np.count_nonzero(stairs[first:, 1] >= point[1]))
    return np.concatenate((stairs[:first], point[None], stairs[after:]))
