"""The table of real trainings (``bench/search_table.py``) as a search meets it, and what a search has made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillhouse.search.domain import Budget, Candidate
from stillhouse.search.job import JobSpec
from stillhouse.search.pareto import hypervolume

MEASURE_S = 2.0
SHARE = 0.95
"""Of the whole table's hypervolume: the aim."""


@dataclass(frozen=True)
class Row:
    """One candidate of the table."""

    candidate: Candidate
    macs: int
    image_bytes: float
    curve: tuple[int, ...]
    test: int
    epoch_s: float


class Table:
    """The table, as one seed sees it.

    Args:
        data: The file.
        wide: What ``bench/wide.py`` measured: mentors' stages in two slots, and in parts.
        seed: Draws the accuracies that are told.
    """

    def __init__(self, data: dict[str, Any], wide: dict[str, Any], seed: int) -> None:
        self.data, self.wide = data, wide
        self.spec = JobSpec.from_json(data["spec"])
        self.total: int = data["pictures"]["val"]
        self.tests: int = data["pictures"]["test"]
        self.shared: dict[str, dict[str, float]] = {
            arch: {name: self._whole(arch, name, took) for name, took in of.items()}
            for arch, of in data["shared_s"].items()
        }
        self.rows = {row.candidate: row for row in map(_row, data["rows"])}
        rng = np.random.default_rng(seed)
        self.told = {
            candidate: tuple(rng.binomial(self.total, np.array(row.curve) / self.total))
            for candidate, row in self.rows.items()
        }

    def _whole(self, arch: str, name: str, seconds: float) -> float:
        """Seconds of a stage; of one that was recorded in parts, those that it takes as a whole."""
        if not self.data.get("in_parts") or not name.endswith("targets"):
            return seconds
        return seconds / self._measured("in_parts", name, arch)

    def _measured(self, ratio: str, name: str, arch: str) -> float:
        """A ratio of ``bench/wide.py`` for a mentor's stage; all networks share one teacher."""
        label = name if name.startswith("teacher") else f"{name} {arch}"
        found: float = self.wide[ratio][label]["median"]
        return found

    def alone(self, candidate: Candidate) -> float:
        """Seconds of a trial that shares nothing."""
        return sum(self.shared[candidate.arch].values()) + self.student(candidate) + MEASURE_S

    def student(self, candidate: Candidate) -> float:
        """Seconds of a student's own training."""
        row = self.rows[candidate]
        return len(row.curve) * row.epoch_s

    def mentor(self, name: str, arch: str, slots: int, share: float) -> float:
        """Seconds of a mentor's stage, or of so much of one that is in parts, in so many slots."""
        whole = self.shared[arch if arch in self.shared else next(iter(self.shared))][name]
        longer = self._measured("in_parts", name, arch) if share < 1 else 1.0
        sooner = self._measured("speedup", name, arch) if slots > 1 else 1.0
        return whole * share * longer / sooner


class Score:
    """Hypervolume of what has been trained, as a share of the whole table's."""

    def __init__(self, table: Table, budget: Budget) -> None:
        self.fits = {c for c, r in table.rows.items() if budget.max_macs is None or r.macs <= budget.max_macs}
        costs = np.log2([[table.rows[c].macs, table.rows[c].image_bytes] for c in self.fits])
        low, high = costs.min(axis=0), costs.max(axis=0)
        scaled = (costs - low) / (high - low)
        self._point = {
            c: (table.rows[c].test / table.tests, *row) for c, row in zip(self.fits, scaled.tolist(), strict=True)
        }
        self._corner = (1 / len(table.data["summary"]["classes"]), 1.05, 1.05)
        self._whole = hypervolume(list(self._point.values()), self._corner)
        self._trained: list[Candidate] = []
        self.history: list[tuple[float, float]] = []

    def trained(self, candidate: Candidate, at: float) -> bool:
        """Takes in a model; True when the aim is reached."""
        if candidate in self.fits:
            self._trained.append(candidate)
            share = hypervolume([self._point[c] for c in self._trained], self._corner) / self._whole
            self.history.append((at, share))
        return self.reached is not None

    @property
    def reached(self) -> float | None:
        """Seconds until the aim."""
        return next((at for at, share in self.history if share >= SHARE), None)

    @property
    def seconds(self) -> float:
        """Until the aim; infinite when it is never reached."""
        return math.inf if self.reached is None else self.reached

    def share(self, at: float) -> float:
        """Of the whole hypervolume, at so many seconds."""
        return max((share for when, share in self.history if when <= at), default=0.0)


def candidate_of(spec: Any) -> Candidate:
    """That a stage's spec holds."""
    return Candidate.from_json({name: spec[name] for name in ("arch", "image_size", "network_size", "stem")})


def _row(data: dict[str, Any]) -> Row:
    costs = data["macs"], data["image_bytes"]
    return Row(Candidate.from_json(data["candidate"]), *costs, tuple(data["curve"]), data["test"], data["epoch_s"])
