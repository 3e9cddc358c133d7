"""What noise in accuracy leaves open: deployments told apart, or not, on the same pictures.

===========  ======================================================================================
``costs``    (n, k) finite numbers: n deployments, k costs, all minimised, all exact
``right``    (n, pictures) bool: whether a deployment tells a picture right; the same pictures in each row
``words``    (n, pictures / 64) uint64: the same, a picture a bit
===========  ======================================================================================

Accuracy is the share of pictures told right, so a lead of a few pictures may be luck. Two deployments are compared
picture by picture: what both tell right, or both wrong, says nothing about which is better (McNemar 1947; for
classifiers: Dietterich 1998). The pictures are those of the validation split: the test split takes no part in choosing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillhouse.search.domain import Deployment
from stillhouse.search.pareto import Floats, front

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

ALPHA = 0.05
"""Level of each test."""


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value that two classifiers are equally right on the same pictures: the exact binomial test.

    Args:
        only_a: Pictures that the first alone tells right.
        only_b: Pictures that the second alone tells right.

    Raises:
        ValueError: A negative count.
    """
    fewer, more = min(only_a, only_b), max(only_a, only_b)
    if fewer < 0:
        raise ValueError(f"counts must be >= 0, but got {only_a} and {only_b}")
    n = fewer + more
    # Each term is C(n, k) / 2^n, from the greatest down: whole numbers that large would take seconds.
    term = math.exp(math.lgamma(n + 1) - math.lgamma(fewer + 1) - math.lgamma(more + 1) - n * math.log(2))
    tail = term
    for k in range(fewer, 0, -1):
        term *= k / (n - k + 1)
        tail += term
        if term < 1e-17 * tail:
            break
    return min(1.0, 2 * tail)


def significant_front(costs: ArrayLike, right: ArrayLike, alpha: float = ALPHA) -> list[int]:
    """Indices, ascending, of the deployments that the pictures do not rule out: the front with its doubtful rivals.

    One is ruled out when some other costs no more in anything and is significantly more accurate: right on more
    pictures, with p < ``alpha`` by ``mcnemar``. Nothing else rules out, so what is dearer and less accurate by a hair
    stays, for it may truly be better. All of the plain front stays too. Of copies, equal in every cost and right on the
    very same pictures, the first is kept.

    A rival rules out a deployment that is truly no worse than it with a chance of at most ``alpha / 2``. Each pair is
    tested by itself, whether or not the rival is itself ruled out; for that chance over all rivals at once, pass
    ``alpha`` divided by their number.

    Args:
        costs: (n, k).
        right: (n, pictures).
        alpha: Level of each test, in [0, 1); at 0 nothing but copies is ruled out.

    Raises:
        ValueError: Tables that do not match, or a level outside [0, 1).
    """
    table, told = _checked(costs, right, alpha)
    words = _words(np.packbits(told, axis=1))
    return _firsts(table, words, _not_ruled_out(table, words, np.arange(len(table)), alpha))


def tied_with(costs: ArrayLike, right: ArrayLike, alpha: float = ALPHA) -> dict[int, int | None]:
    """For each member of the plain front the next cheaper member, where the two cannot be told apart in accuracy.

    The next cheaper member is the most accurate of those that cost no more in anything; of equally accurate ones the
    cheapest in the first cost, then in the second, and so on. All such are less accurate, or the front would not hold
    both, so a tie says: the dearer of the two is not significantly better.

    Args:
        costs: (n, k).
        right: (n, pictures).
        alpha: Level of each test, in [0, 1): a tie is p >= ``alpha`` by ``mcnemar``.

    Returns:
        By index of the member, ascending: the index of the one it is tied with, or None where it is significantly
        better or nothing is cheaper.

    Raises:
        ValueError: Tables that do not match, or a level outside [0, 1).
    """
    table, told = _checked(costs, right, alpha)
    accuracy = told.mean(axis=1)
    members = front(np.column_stack((accuracy, table)))
    # In this order the first member that costs no more is the next cheaper one.
    order = np.lexsort((*table[members].T[::-1], -accuracy[members]))
    ranked = np.array(members, dtype=np.int64)[order]
    found: dict[int, int | None] = {}
    for member in members:
        cheaper = ranked[np.all(table[ranked] <= table[member], axis=1) & (ranked != member)]
        tied = len(cheaper) > 0 and _p_value(told[member], told[cheaper[0]]) >= alpha
        found[member] = int(cheaper[0]) if tied else None
    return found


def ties(members: Sequence[Deployment], objectives: Sequence[str]) -> dict[str, str]:
    """Of a front's members, which are not significantly better on validation than the next cheaper one (``tied_with``).

    Args:
        members: Of one front.
        objectives: Costs that it is drawn over, by name in ``Cost``.

    Returns:
        Id of the dearer -> id of the cheaper. Nothing where it is not kept which pictures each tells right.
    """
    tables = _tables(members, objectives)
    if tables is None:
        return {}
    costs, packed, pictures = tables
    found = tied_with(costs, np.unpackbits(packed, axis=1, count=pictures).astype(np.bool_))
    return {members[dear].id: members[cheap].id for dear, cheap in found.items() if cheap is not None}


def in_doubt(deployments: Sequence[Deployment], front_ids: Collection[str], objectives: Sequence[str]) -> list[str]:
    """Ids of what is off a front but not ruled out by a member of it, on the pictures (as ``significant_front`` rules).

    O(n f) at worst, f being the size of the front, and O(n) where most are clearly beaten.

    Args:
        deployments: That meet the budget, those of the front among them.
        front_ids: Of the front.
        objectives: Costs that it is drawn over, by name in ``Cost``.

    Returns:
        In the order given, one for each trial: the first of its family. Nothing where it is not kept which pictures
        each tells right.
    """
    tables = _tables(deployments, objectives)
    if tables is None:
        return []
    members = np.array([index for index, item in enumerate(deployments) if item.id in front_ids], dtype=np.int64)
    table, words = np.array(tables[0]) + 0.0, _words(tables[1])
    found: dict[int, str] = {}
    for index in _firsts(table, words, _not_ruled_out(table, words, members, ALPHA)):
        if deployments[index].id not in front_ids:
            found.setdefault(deployments[index].trial_number, deployments[index].id)
    return list(found.values())


# ---------------------------------------------------------------------------------------- helpers


def _tables(
    deployments: Sequence[Deployment], objectives: Sequence[str]
) -> tuple[list[list[float]], Bytes, int] | None:
    """Costs, pictures told right (a bit each) and their number.

    None for fewer than two deployments, or where the pictures are not known or not the same.
    """
    bits = [item.details.get("right") for item in deployments]
    if len(deployments) < 2 or not all(bits) or len({item.chosen_by.total for item in deployments}) > 1:
        return None
    packed = np.frombuffer(bytes.fromhex("".join(map(str, bits))), dtype=np.uint8).reshape(len(deployments), -1)
    costs = [[item.objective(name) for name in objectives] for item in deployments]
    return costs, packed, deployments[0].chosen_by.total


def _words(packed: Bytes) -> Words:
    """Eight bytes each, the last filled up with zeros."""
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


def _not_ruled_out(table: Floats, words: Words, rivals: NDArray[np.int64], alpha: float) -> NDArray[np.int64]:
    """Indices, ascending, of what no rival beats: one that costs no more in anything and is significantly better.

    Args:
        table: (n, k) costs.
        words: (n, pictures / 64).
        rivals: Indices of those that may rule out.
        alpha: Level of each test.
    """
    counts = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
    left = np.arange(len(table))
    # A lead of fewer pictures is never significant: all of them alone would have to be the rival's.
    lead = 1 + math.floor(math.log2(2 / alpha)) if alpha > 0 else words.shape[1] * 64 + 1
    # The most accurate first: it is the likeliest to settle it.
    for rival in rivals[np.argsort(-counts[rivals], kind="stable")]:
        may = left[counts[left] <= counts[rival] - lead]
        dearer = may[np.all(table[rival] <= table[may], axis=1)]
        if len(dearer) == 0:
            continue
        only_rival = np.bitwise_count(words[rival] & ~words[dearer]).sum(axis=1, dtype=np.int64)
        only_other = counts[dearer] - counts[rival] + only_rival
        apart, places = np.unique(only_rival + only_other, return_inverse=True)
        most = np.array([_most_lost(int(n), alpha) for n in apart])[places]
        left = np.setdiff1d(left, dearer[only_other <= most], assume_unique=True)
    return left


@functools.lru_cache(maxsize=100_000)
def _most_lost(n: int, alpha: float) -> int:
    """Of n pictures that two tell apart, the most that the better may lose and be significantly better; -1 for none."""
    low, high = -1, n // 2
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if mcnemar(n - middle, middle) < alpha else (low, middle - 1)
    return low


def _firsts(table: Floats, words: Words, indices: NDArray[np.int64]) -> list[int]:
    """Of copies, equal in every cost and right on the very same pictures, the first; a copy fares like the first."""
    found: dict[bytes, int] = {}
    for index in indices.tolist():
        found.setdefault(table[index].tobytes() + words[index].tobytes(), index)
    return list(found.values())


def _p_value(a: Bools, b: Bools) -> float:
    """Of two rows (pictures,)."""
    return mcnemar(int(np.count_nonzero(a > b)), int(np.count_nonzero(b > a)))


def _checked(costs: ArrayLike, right: ArrayLike, alpha: float) -> tuple[Floats, Bools]:
    table, told = np.array(costs, dtype=np.float64), np.asarray(right)
    if table.ndim != 2 or not np.all(np.isfinite(table)):
        raise ValueError(f"costs must be a table (n, costs) of finite numbers, but got {costs!r:.200}")
    if told.ndim != 2 or told.dtype != np.bool_ or len(told) != len(table) or told.shape[1] == 0:
        raise ValueError(
            f"right must be a table ({len(table)}, pictures >= 1) of bool, but got {told.dtype} of shape {told.shape}"
        )
    if not 0 <= alpha < 1:
        raise ValueError(f"0 <= alpha < 1 must hold, but got {alpha}")
    return table + 0.0, told  # -0.0 becomes 0.0: copies are found by their bytes.
