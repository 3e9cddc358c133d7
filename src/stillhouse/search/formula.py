"""Costs at sizes that were not counted, where those that were counted tell them exactly.

=======  =====================================================================================
``g_s``  places of the grid after stride s: sides / s, rounded up (padding) or down (patches)
=======  =====================================================================================

A convolution costs the same at each place of its grid, and attention the same for each pair of places. So a network
costs c + sum over s of (a_s g_s + b_s g_s^2). Sides are multiples of 8: the grids of strides 1 to 8 are then multiples
of one another, and s = 8, 16, 32 and 64 are enough. The unknowns are found by least squares. What they say is believed
only if they give every counted cost, of which there are some more than unknowns, and if the answer does not hang on
what those leave open. A network that pads its grid to windows has no such formula, and keeps its listed sizes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.search.sizes import Size

STEP = 8
"""Sides of the sizes that formulas speak of are multiples of this."""

STRIDES = (8, 16, 32, 64)
TERMS = 1 + 2 * len(STRIDES)
SPARE = 3
"""Counted costs that must be there beyond those that determine the unknowns: they prove the formula."""

_NEAR = 0.01
"""Costs are whole numbers up to 1e11, which leaves rounding errors far smaller than this."""


@dataclass(frozen=True)
class Formula:
    """A cost as a function of the size.

    Attributes:
        weights: (9,) of the terms of ``_terms``.
        open: (k, 9) directions in which the weights are not determined.
        up: Whether grids are rounded up.
    """

    weights: NDArray[np.float64]
    open: NDArray[np.float64]
    up: bool

    @classmethod
    def through(cls, points: Mapping[Size, int]) -> Formula | None:
        """The formula of these counted costs; None when there is none, or too few prove it."""
        wanted = np.array(list(points.values()), dtype=np.float64)
        for up in (True, False):
            table = np.array([_terms(size, up=up) for size in points]).reshape(-1, TERMS)
            scale = np.maximum(table.max(axis=0, initial=0.0), 1.0)
            left, strengths, right = np.linalg.svd(table / scale)
            rank = int(np.count_nonzero(strengths > 1e-9 * strengths.max(initial=1.0)))
            if len(points) < rank + SPARE:
                return None
            weights = right[:rank].T @ (left[:, :rank].T @ wanted / strengths[:rank]) / scale
            if np.abs(table @ weights - wanted).max() < _NEAR:
                return cls(weights, right[rank:] / scale, up)
        return None

    def at(self, size: Size) -> int | None:
        """The cost at a size with sides that are multiples of ``STEP``; None where the counted ones leave it open."""
        terms = _terms(size, up=self.up)
        value = float(terms @ self.weights)
        if self.open.size and np.abs(self.open @ terms).max() > 1e-6:
            return None
        return round(value) if abs(value - round(value)) < _NEAR and value > -_NEAR else None


class Formulas:
    """Formulas of a network's cells, worked out when they are first asked for.

    Args:
        cells: (network size, stem) -> (MACs, parameters).
    """

    def __init__(self, cells: Mapping[tuple[Size, str], tuple[int, int]]) -> None:
        self._cells = cells
        self._known: dict[tuple[Size, str], tuple[int, int] | None] = {}
        self._found: dict[str, tuple[Formula, Formula] | None] = {}

    def covering(self, size: Size, stem: str) -> Size | None:
        """The least size with known costs that a size fits inside, each side by itself; None when that is unknown."""
        step = self._steps.get(stem)
        if step is None:
            return None
        found = Size(-(-size.height // step) * step, -(-size.width // step) * step)
        return None if self.at(found, stem) is None else found

    def at(self, size: Size, stem: str) -> tuple[int, int] | None:
        """(MACs, parameters) at a size that need not be a cell; None where the cells do not tell."""
        if (size, stem) not in self._known:
            self._known[size, stem] = self._worked_out(size, stem)
        return self._known[size, stem]

    def _worked_out(self, size: Size, stem: str) -> tuple[int, int] | None:
        step = self._steps.get(stem)
        if step is None or size.height % step or size.width % step:
            return None
        if stem not in self._found:
            self._found[stem] = self._formulas(stem)
        formulas = self._found[stem]
        sides = [side for other, name in self._cells if name == stem for side in (other.height, other.width)]
        inside = min(sides) <= min(size.height, size.width) and max(size.height, size.width) <= max(sides)
        if formulas is None or not inside:
            return None
        macs, params = (formula.at(size) for formula in formulas)
        return None if macs is None or params is None else (macs, params)

    @functools.cached_property
    def _steps(self) -> dict[str, int]:
        """By stem: what the sides of its sizes are multiples of, a patch where it has patches."""
        sides: dict[str, list[int]] = {}
        for size, stem in self._cells:
            sides.setdefault(stem, []).extend((size.height, size.width))
        return {stem: math.lcm(STEP, math.gcd(*found)) for stem, found in sides.items()}

    def _formulas(self, stem: str) -> tuple[Formula, Formula] | None:
        """Those of MACs and of parameters; None unless there are both."""
        whole = {
            size: cost
            for (size, name), cost in self._cells.items()
            if name == stem and size.height % STEP == size.width % STEP == 0
        }
        macs, params = (Formula.through({size: cost[i] for size, cost in whole.items()}) for i in (0, 1))
        return None if macs is None or params is None else (macs, params)


def _terms(size: Size, *, up: bool) -> NDArray[np.float64]:
    """(9,): 1, the places of each grid, and their squares."""
    sides = [
        (-(-size.height // s), -(-size.width // s)) if up else (size.height // s, size.width // s) for s in STRIDES
    ]
    places = [float(height * width) for height, width in sides]
    return np.array([1.0, *places, *(count**2 for count in places)])
