"""What a training is expected to add to the front, given that its costs are known and its accuracy is not.

==========  =========================================================================================
``a``       accuracy, maximised; uncertain: a normal distribution with mean and sd
``u``       (m,) costs, minimised, each scaled to [0, 1]; exact before anything is trained
``A(c)``    the best accuracy on the front at costs no greater than c; the reference where there is none
==========  =========================================================================================

A deployment at costs ``u`` with accuracy ``a`` adds ``max(0, a - A(c))`` at each c >= u. Since the costs are exact, the
expectation of the hypervolume that it adds is an integral of one-dimensional expected improvements,

    gain = integral over c in [u, 1] of E[max(0, a - A(c))] dc,

and ``A`` is constant between the front's coordinates, so the integral is a finite sum: no sampling, exact for any
number of costs (expected improvement: Jones, Schonlau & Welch 1998; of hypervolume: Emmerich et al. 2006).
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.search.domain import Budget
from stillhouse.search.pareto import front, net_order

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

MARGIN = 1.05
"""Of the range of each cost: where the reference lies, so that the dearest point counts."""
MOST_CELLS = 1500
"""Boxes that the front is cut into at most; a front that needs more is thinned to a net of its members."""


@dataclass(frozen=True)
class Prior:
    """What a linear model thinks before anything is seen: accuracy = x . w + b[group] + noise, all weights independent.

    Attributes:
        mean, sd: (k,) of the weights w.
        group_sd: (g,) of the offsets b, whose mean is 0.
    """

    mean: Floats
    sd: Floats
    group_sd: Floats

    def told(self, x: Floats, group: Places, y: Floats, noise: Floats) -> Linear:
        """The model after n observations, none being allowed.

        An observation has one offset, so the offsets' block of the precision is a diagonal, which is eliminated
        (Schur complement): O(n k^2 + g k^2), however many groups there are.

        Args:
            x: (n, k) features.
            group: (n,) index of each one's group.
            y: (n,) what was seen.
            noise: (n,) standard deviation of each.
        """
        count, weight = len(self.group_sd), noise**-2
        weighted = x * weight[:, None]
        held = np.bincount(group, weight, count) + self.group_sd**-2
        offset = np.bincount(group, weight * y, count) / held
        pulls = np.array([np.bincount(group, column, count) for column in weighted.T]) / held
        precision = np.diag(self.sd**-2) + np.einsum("nk,nl->kl", weighted, x)
        precision -= np.einsum("kg,lg->kl", pulls * held, pulls)
        seen = self.mean * self.sd**-2 + np.einsum("nk,n->k", weighted, y) - np.einsum("kg,g->k", pulls, held * offset)
        covariance = np.linalg.inv(precision).astype(np.float64)
        return Linear(np.einsum("kl,l->k", covariance, seen), covariance, pulls.T.copy(), offset, 1 / held)


@dataclass(frozen=True)
class Linear:
    """The model after observations: of w, and of each group's offset given w, which is ``offset - pulls . w``.

    Its sums are ``einsum``'s, which never calls BLAS: one thread, and the same bits whatever the number of cores.

    Attributes:
        mean: (k,) of the weights w.
        covariance: (k, k) of them.
        pulls: (g, k) how each group's offset falls as a weight rises.
        offset, variance: (g,) of the offsets where w is 0, and given w.
    """

    mean: Floats
    covariance: Floats
    pulls: Floats
    offset: Floats
    variance: Floats

    def predict(self, x: Floats, group: Places) -> tuple[Floats, Floats]:
        """Mean and standard deviation, (n,) each, at features (n, k) in groups (n,)."""
        own = x - self.pulls[group]
        variance = np.einsum("nk,nk->n", np.einsum("nk,kl->nl", own, self.covariance), own) + self.variance[group]
        return np.einsum("nk,k->n", own, self.mean) + self.offset[group], np.sqrt(np.maximum(variance, 1e-12))


def expected_improvement(mean: Floats, sd: Floats, best: Floats) -> Floats:
    """E[max(0, a - best)] for a normal with this mean and sd; arrays that broadcast."""
    z = (mean - best) / sd
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    found: Floats = sd * (density + z * _cumulative(z, density))
    return np.maximum(found, 0.0)


class Boxes:
    """A front as boxes of costs on which the best accuracy so far is constant.

    Args:
        accuracy: (f,) of any points.
        costs: (f, m) of the same, in [0, 1].
        worst: Accuracy of the reference point: what guessing gives.
    """

    def __init__(self, accuracy: Floats, costs: Floats, worst: float) -> None:
        self._dims = costs.shape[1]
        kept = front(np.column_stack((accuracy, costs)))
        most = max(1, int(MOST_CELLS ** (1 / self._dims)) - 1)
        if len(kept) > most:
            kept = [kept[index] for index in net_order(np.column_stack((accuracy, costs))[kept])[:most]]
        edges = [np.unique(np.concatenate(([0.0], costs[kept, dim], [1.0]))) for dim in range(self._dims)]
        grid = np.indices([len(edge) - 1 for edge in edges]).reshape(self._dims, -1)
        corners = np.array([edge[at] for edge, at in zip(edges, grid, strict=True)])
        best = np.full(corners.shape[1], worst)
        for index in kept:
            reached = (costs[index][:, None] <= corners).all(axis=0)
            best[reached] = np.maximum(best[reached], accuracy[index])
        self.levels, level = np.unique(np.append(best, worst), return_inverse=True)
        low, high, level = _merged(grid, grid + 1, level[:-1])
        # An empty box stands first, so that the reference has one where every cost is on the front already.
        none = np.zeros((self._dims, 1), dtype=np.intp)
        low, high, level = np.hstack((none, low)), np.hstack((none, high)), np.append(0, level)
        self._low = np.array([edge[at] for edge, at in zip(edges, low, strict=True)])
        self._high = np.array([edge[at] for edge, at in zip(edges, high, strict=True)])
        self._first = np.searchsorted(level, np.arange(len(self.levels)))

    def volumes(self, costs: Floats) -> Floats:
        """(n, levels) volume of [u, 1] that lies at each level, for costs (n, m)."""
        sides = (
            np.clip(high - np.maximum(low, at[:, None]), 0.0, None)
            for low, high, at in zip(self._low, self._high, costs.T, strict=True)
        )
        found: Floats = np.add.reduceat(functools.reduce(np.multiply, sides), self._first, axis=1)
        return found

    def gains(self, mean: Floats, sd: Floats, costs: Floats) -> Floats:
        """(n,) hypervolume that each is expected to add."""
        improvements = expected_improvement(mean[:, None], sd[:, None], self.levels[None, :])
        found: Floats = np.einsum("nl,nl->n", improvements, self.volumes(costs))
        return found

    @property
    def hypervolume(self) -> float:
        """What the front dominates, up to the reference accuracy and costs of 1."""
        whole = self.volumes(np.zeros((1, self._dims)))[0]
        return float(whole @ (self.levels - self.levels[0]))


def scaled(octaves: Floats) -> Floats:
    """(n, m) costs in octaves, scaled to [0, 1 / MARGIN] over them."""
    low, high = octaves.min(axis=0), octaves.max(axis=0)
    found: Floats = (octaves - low) / (MARGIN * np.where(high > low, high - low, 1.0))
    return found


def worst_accuracy(classes: int, budget: Budget) -> float:
    """Accuracy of the reference: what guessing reaches, or the least that the budget asks for."""
    return max(1 / classes, budget.min_accuracy or 0.0)


def quadratic(x: Floats) -> Floats:
    """(n, k) -> (n, k + k (k + 1) / 2): the features and all their products of two."""
    pairs = itertools.combinations_with_replacement(range(x.shape[1]), 2)
    return np.column_stack((x, *(x[:, i] * x[:, j] for i, j in pairs)))


# ---------------------------------------------------------------------------------------- helpers


def _merged(low: Places, high: Places, level: Places) -> tuple[Places, Places, Places]:
    """Boxes (m, b) that tile, of a level each (b,), with neighbours of one level joined; in order of level."""
    for dim in range(len(low)):
        across = [*np.delete(low, dim, axis=0), *np.delete(high, dim, axis=0), level]
        order = np.lexsort((low[dim], *across))
        low, high, level = low[:, order], high[:, order], level[order]
        same = np.array([low[dim][1:] == high[dim][:-1], *(key[order][1:] == key[order][:-1] for key in across)])
        starts = np.flatnonzero(np.append(True, ~same.all(axis=0)))
        ends = np.append(starts[1:], len(level)) - 1
        joined = high[:, starts]
        joined[dim] = high[dim, ends]
        low, high, level = low[:, starts], joined, level[starts]
    return low, high, level


def _cumulative(z: Floats, density: Floats) -> Floats:
    """Of the standard normal, whose density at z is known, to 1e-7 (Abramowitz & Stegun 1964, 26.2.17)."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    series = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = density * series
    return np.where(z >= 0, 1 - tail, tail)
