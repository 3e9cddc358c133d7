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

from stillhouse.search.pareto import front, promotion_order

Floats = NDArray[np.float64]

MOST_CELLS = 1500
"""Boxes that the front is cut into at most; a front that needs more is thinned to a net of its members."""


@dataclass(frozen=True)
class Linear:
    """A linear model with a normal prior on its weights: accuracy = x . w + noise.

    Attributes:
        mean: (d,) of the weights.
        covariance: (d, d) of the weights.
    """

    mean: Floats
    covariance: Floats

    @classmethod
    def prior(cls, mean: Floats, sd: Floats) -> Linear:
        """Independent weights: (d,) means and standard deviations."""
        return cls(mean, np.diag(sd**2))

    def told(self, x: Floats, y: Floats, noise: Floats) -> Linear:
        """The model after observations.

        Args:
            x: (n, d) features.
            y: (n,) what was seen.
            noise: (n,) standard deviation of each.
        """
        if len(y) == 0:
            return self
        weighted = x / noise[:, None] ** 2
        precision = np.linalg.inv(self.covariance)
        covariance = np.linalg.inv(precision + x.T @ weighted).astype(np.float64)
        return Linear(covariance @ (precision @ self.mean + weighted.T @ y), covariance)

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation, (n,) each, at features (n, d)."""
        variance = np.einsum("nd,nd->n", x @ self.covariance, x)
        return x @ self.mean, np.sqrt(np.maximum(variance, 1e-12))


def expected_improvement(mean: Floats, sd: Floats, best: Floats) -> Floats:
    """E[max(0, a - best)] for a normal with this mean and sd; arrays that broadcast."""
    z = (mean - best) / sd
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    found: Floats = sd * (density + z * _cumulative(z))
    return np.maximum(found, 0.0)


class Boxes:
    """A front as boxes of costs on which the best accuracy so far is constant.

    Args:
        accuracy: (f,) of any points.
        costs: (f, m) of the same, in [0, 1].
        worst: Accuracy of the reference point: what guessing gives.
    """

    def __init__(self, accuracy: Floats, costs: Floats, worst: float) -> None:
        dims = costs.shape[1]
        points = np.column_stack((accuracy, costs))
        kept = front(points)
        most = max(1, int(MOST_CELLS ** (1 / dims)) - 1)
        if len(kept) > most:
            kept = [kept[index] for index in promotion_order(points[kept])[:most]]
        self.levels = np.array([worst, *sorted(set(accuracy[kept]))])
        self._edges = [np.unique(np.concatenate(([0.0], costs[kept, dim], [1.0]))) for dim in range(dims)]
        corners = np.stack(np.meshgrid(*(edge[:-1] for edge in self._edges), indexing="ij"), axis=-1).reshape(-1, dims)
        best = np.full(len(corners), worst)
        for index in kept:
            reached = np.all(costs[index] <= corners, axis=1)
            best[reached] = np.maximum(best[reached], accuracy[index])
        self._level_of = (np.searchsorted(self.levels, best)[:, None] == np.arange(len(self.levels))).astype(np.float64)

    def volumes(self, costs: Floats) -> Floats:
        """(n, levels) volume of [u, 1] that lies at each level, for costs (n, m)."""
        sides = [
            np.clip(edge[1:] - np.maximum(edge[:-1], costs[:, dim, None]), 0.0, None)
            for dim, edge in enumerate(self._edges)
        ]
        cells = functools.reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(costs), -1), sides)
        found: Floats = cells @ self._level_of
        return found

    def gains(self, mean: Floats, sd: Floats, costs: Floats) -> Floats:
        """(n,) hypervolume that each is expected to add."""
        improvements = expected_improvement(mean[:, None], sd[:, None], self.levels[None, :])
        found: Floats = np.einsum("nl,nl->n", improvements, self.volumes(costs))
        return found

    @property
    def hypervolume(self) -> float:
        """What the front dominates, up to the reference accuracy and costs of 1."""
        whole = self.volumes(np.zeros((1, len(self._edges))))[0]
        return float(whole @ (self.levels - self.levels[0]))


def quadratic(x: Floats) -> Floats:
    """(n, k) -> (n, k + k (k + 1) / 2): the features and all their products of two."""
    pairs = itertools.combinations_with_replacement(range(x.shape[1]), 2)
    return np.column_stack((x, *(x[:, i] * x[:, j] for i, j in pairs)))


# ---------------------------------------------------------------------------------------- helpers


def _cumulative(z: Floats) -> Floats:
    """Of the standard normal, to 1e-7 (Abramowitz & Stegun 1964, 26.2.17)."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    series = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) * series
    return np.where(z >= 0, 1 - tail, tail)
