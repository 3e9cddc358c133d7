"""The first trials of TPE and GP, which know nothing yet: a spread design.

The likely best, the end farthest from it, then ever the candidate farthest from all tried (maximin: Johnson, Moore &
Ylvisaker 1990).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stillhouse.search.domain import Candidate
from stillhouse.search.job import TrialRecord
from stillhouse.search.space import Neighbourhood, Space

SENSIBLE_SIDE = 96
"""Least side of the network's input, doubled by a stem that keeps the grid, that the spread design tries:
stock networks at 64 pixels lost 28 points to the same ones at 128 inside (METHODS section 4)."""

Mask = NDArray[np.bool_]


class Spread:
    """Proposes candidates far from one another.

    Args:
        near: The candidates that may be proposed.
        space: Knows their costs.
        seed: Breaks ties, with the trial's number.
        max_archs: Architectures that it tries at most, since trials of one architecture share its assistant.
    """

    def __init__(self, near: Neighbourhood, space: Space, seed: int, *, max_archs: int) -> None:
        self._near, self._space, self._seed, self._max_archs = near, space, seed, max_archs

    def propose(self, history: Sequence[TrialRecord], unseen: Mask, number: int) -> Candidate:
        """The candidate for trial ``number``.

        Args:
            history: All trials so far, in order.
            unseen: (n,) which candidates were not tried; some.
            number: Of the trial; with the seed it breaks ties.
        """
        tried = [trial.candidate for trial in history if trial.state not in ("infeasible", "failed")]
        pool = self._worth_trying(tried, unseen)
        worthy = [self._near.candidates[index] for index in np.flatnonzero(pool)]
        if not tried:
            return max(worthy, key=self._space.promise)
        if len(tried) == 1:
            ends = (min(worthy, key=self._expense), max(worthy, key=self._expense))
            return max(ends, key=lambda end: self._distance(end, tried[0]))
        gaps = np.min([self._near.distances(candidate) for candidate in tried], axis=0)
        ties = np.random.default_rng((self._seed, number)).random(len(gaps))
        return self._near.candidates[int(np.argmax(np.where(pool, gaps + 1e-6 * ties, -1.0)))]

    def _worth_trying(self, tried: Sequence[Candidate], unseen: Mask) -> Mask:
        """The unseen candidates that are worth a first try; a wish that nothing meets is dropped."""
        pretrained = self._space.catalogue.pretrained
        archs = {candidate.arch for candidate in tried}
        wishes = [
            [candidate.arch in pretrained for candidate in self._near.candidates],
            [_grid_side(candidate) >= SENSIBLE_SIDE for candidate in self._near.candidates],
            [candidate.arch in archs or len(archs) < self._max_archs for candidate in self._near.candidates],
        ]
        pool = unseen
        for wish in wishes:
            narrowed = pool & np.array(wish, dtype=np.bool_)
            pool = narrowed if narrowed.any() else pool
        return pool

    def _expense(self, candidate: Candidate) -> tuple[float, Candidate]:
        """MACs times picture bytes (in logarithms), so that neither end is cheap in one alone."""
        cost = self._space.cost(candidate)
        return math.log(cost.macs or 1) + math.log(cost.image_bytes or 1), candidate

    def _distance(self, a: Candidate, b: Candidate) -> float:
        return float(Neighbourhood([a], self._space).distances(b)[0])


def _grid_side(candidate: Candidate) -> int:
    """Network side that a stock stem would need for the same grid."""
    side = min(candidate.network_size.height, candidate.network_size.width)
    return side if candidate.stem == "stock" else 2 * side
