"""What one step of the controller found to be done, and for whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from stillhouse.search.domain import StagePlan


@dataclass(frozen=True)
class Asker:
    """Who waits for a stage: a trial of a job; both None for a data set."""

    job: str | None = None
    trial: int | None = None


NO_ONE = Asker()


@dataclass
class Wanted:
    """Stages that live jobs wait for, in order of priority, each with the first who asked for it."""

    plans: dict[str, StagePlan] = field(default_factory=dict)
    askers: dict[str, Asker] = field(default_factory=dict)

    def add(self, plans: Iterable[StagePlan], asker: Asker = NO_ONE) -> None:
        """Adds plans that are not there yet."""
        for plan in plans:
            self.plans.setdefault(plan.key, plan)
            self.askers.setdefault(plan.key, asker)
