"""Picture sizes, and how pictures are brought to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from stillhouse.search.errors import BudgetError


@dataclass(frozen=True, order=True)
class Size:
    """A picture's height and width in pixels."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if not (1 <= self.height <= 4096 and 1 <= self.width <= 4096):
            raise BudgetError(f"a size needs 1 <= height, width <= 4096, but got {self.height}x{self.width}")

    @classmethod
    def parse(cls, text: str | int | Size) -> Size:
        """Reads ``64`` (square) or ``48x64`` (height x width)."""
        if isinstance(text, Size):
            return text
        parts = str(text).lower().split("x")
        if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
            raise BudgetError(f"a size is written 64 or 48x64 (height x width, pixels), but got {text!r}")
        numbers = [int(part) for part in parts]
        return cls(numbers[0], numbers[-1])

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width

    @property
    def short(self) -> str:
        """``64`` for a square, ``48x64`` for what is none."""
        return str(self.height) if self.height == self.width else str(self)

    def ratio(self, limit: Size) -> float:
        """The greater of the two sides' ratios to the limit's: at most 1 when this size fits inside."""
        return max(self.height / limit.height, self.width / limit.width)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class Fit(enum.StrEnum):
    """How a picture is brought to (height, width), in training, evaluation and deployment alike."""

    SQUASH = "squash"
    """Resize both sides; the aspect ratio is not kept."""
    CROP = "crop"
    """Resize until the size is covered, cut the centre."""
    LETTERBOX = "letterbox"
    """Resize until the picture fits inside, fill the border with grey 128."""


CHANNELS = {"rgb": 3, "grey": 1}
"""Channels of a picture by colour."""
