"""How far a stage is: figures that a heartbeat carries to the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stillhouse.search.domain import Json

Report = Callable[[Mapping[str, Json]], None]
REPORT_EVERY_S = 0.5


@dataclass
class Progress:
    """Running figures of one training; reported at most twice a second."""

    report: Report
    epochs: int
    pictures: int
    history: list[dict[str, Json]] = field(default_factory=list)
    _last: float = 0.0

    def due(self) -> bool:
        """True when a report would be taken now."""
        return time.monotonic() - self._last >= REPORT_EVERY_S

    def step(self, epoch: int, seen: int, seconds: float, losses: Mapping[str, float], *, force: bool = False) -> None:
        """Reports a step of ``epoch`` (from 0) after ``seen`` pictures of it."""
        if not force and not self.due():
            return
        self._last = time.monotonic()
        self.report(
            {
                "done": epoch * self.pictures + seen,
                "total": self.epochs * self.pictures,
                "unit": "pictures",
                "epoch": epoch + 1,
                "epochs": self.epochs,
                "images_per_s": seen / seconds if seconds > 0 else None,
                "losses": dict(losses),
                "val_accuracy": self.history[-1]["val_accuracy"] if self.history else None,
            }
        )


class Pace:
    """How far a count of pictures is; reported at most twice a second.

    Args:
        report: Takes the figures.
        total: Pictures in all.
        done: Those that an earlier attempt has done.
    """

    def __init__(self, report: Report, total: int, done: int) -> None:
        self.report, self.total, self.done, self.fresh = report, total, done, 0
        self.began = self.last = time.monotonic()

    def step(self, pictures: int) -> None:
        """So many more are done."""
        self.fresh += pictures
        now = time.monotonic()
        if now - self.last >= REPORT_EVERY_S:
            self.last = now
            rate = self.fresh / (now - self.began)
            self.report({"done": self.done + self.fresh, "total": self.total, "unit": "pictures", "images_per_s": rate})
