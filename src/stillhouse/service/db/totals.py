"""How much there is of everything, of all tenants together: what an operator watches."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from stillhouse.service.db.memory_tables import MemoryTables
from stillhouse.service.db.sessions import Sessions
from stillhouse.service.db.tables import AttemptRow, DatasetRow, DeploymentRow, JobRow, StageRow, TrialRow


@dataclass(frozen=True)
class Totals:
    """Counts by state; times are Unix seconds.

    Attributes:
        datasets: Data sets by state.
        jobs: Jobs by state.
        trials: Trials by state.
        stages: Stages by kind and state.
        stage_seconds: Seconds that the stages which are done took, by kind.
        attempts: Attempts by state; ``lost`` are those that ended without a result.
        deployments: Models.
        queued_since: When the oldest job was made that has not begun; None without one.
        expires_at: When the first lease of an open attempt ends; None without one.
    """

    datasets: Mapping[str, int] = field(default_factory=dict)
    jobs: Mapping[str, int] = field(default_factory=dict)
    trials: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    deployments: int = 0
    queued_since: float | None = None
    expires_at: float | None = None


class SqlTotals:
    """Counted by the database."""

    _sessions: Sessions

    def totals(self) -> Totals:
        """How much there is of everything."""
        with self._sessions.read() as session:
            kinds = select(StageRow.kind, StageRow.state, func.count(), func.sum(StageRow.seconds))
            stages = session.execute(kinds.group_by(StageRow.kind, StageRow.state)).all()
            return Totals(
                _by(session, DatasetRow.state),
                _by(session, JobRow.state),
                _by(session, TrialRow.state),
                {(kind, state): count for kind, state, count, _ in stages},
                {kind: float(seconds or 0.0) for kind, state, _, seconds in stages if state == "done"},
                _by(session, AttemptRow.state),
                session.scalar(select(func.count()).select_from(DeploymentRow)) or 0,
                session.scalar(select(func.min(JobRow.created_at)).where(JobRow.state == "queued")),
                session.scalar(select(func.min(AttemptRow.expires_at)).where(AttemptRow.state == "open")),
            )


def _by(session: Session, state: Any) -> dict[str, int]:
    rows = session.execute(select(state, func.count()).group_by(state))
    return {str(name): int(count) for name, count in rows}


class MemoryTotals(MemoryTables):
    """Counted one by one."""

    def totals(self) -> Totals:
        """How much there is of everything."""
        with self._lock:
            seconds: dict[str, float] = defaultdict(float)
            for stage in self._stages.values():
                if stage.state == "done":
                    seconds[str(stage.plan.kind)] += stage.seconds or 0.0
            return Totals(
                Counter(dataset.state for dataset in self._datasets.values()),
                Counter(job.state for job in self._jobs.values()),
                Counter(trial.state for trial in self._trials.values()),
                Counter((str(stage.plan.kind), stage.state) for stage in self._stages.values()),
                seconds,
                Counter(attempt.state for attempt in self._attempts.values()),
                len(self._deployments),
                min((job.created_at for job in self._jobs.values() if job.state == "queued"), default=None),
                min((each.expires_at for each in self._attempts.values() if each.state == "open"), default=None),
            )
