"""How often a model is right, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy with the Wilson score interval (95 % by default)."""

    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise ValueError(f"0 <= correct <= total, total >= 1 must hold, but got {self.correct}/{self.total}")

    @property
    def value(self) -> float:
        """Share of pictures told right."""
        return self.correct / self.total

    def interval(self, z: float = 1.959963984540054) -> tuple[float, float]:
        """Wilson score interval (Wilson 1927), inside [0, 1]."""
        n, p = self.total, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low = 0.0 if self.correct == 0 else max(0.0, centre - half)
        high = 1.0 if self.correct == n else min(1.0, centre + half)
        return low, high
