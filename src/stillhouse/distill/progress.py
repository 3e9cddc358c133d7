"""How far a training is: figures that a heartbeat carries to the ledger."""

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
