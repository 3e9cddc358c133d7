"""The SQL ledger's part about what is no longer used.

Nothing that a step of the controller has just seen may vanish under it. What a live job could take up is never unused
(``unused.py``), so what must be kept out is a job that becomes live between the look and the removal: the removal
holds off writers to the table of jobs for its own short time, and is refused when anything has happened to them.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import case, delete, exists, func, select, text
from sqlalchemy.orm import Session

from stillhouse.service.db.lists import Mark
from stillhouse.service.db.records import JOB_ENDS, new_id
from stillhouse.service.db.sessions import Sessions, insert_new
from stillhouse.service.db.tables import (
    AttemptRow,
    DatasetRow,
    DeploymentRow,
    IdentityRow,
    JobRow,
    StageRow,
    TrialRow,
)
from stillhouse.service.db.unused import Holders, StageLine, stage_files, stage_reads

_IDENTITY_ID = 1
_LAST_TRY = (
    select(func.max(func.coalesce(AttemptRow.ended_at, AttemptRow.opened_at)))
    .where(AttemptRow.stage_key == StageRow.key)
    .scalar_subquery()
)
_USED_AT = func.coalesce(_LAST_TRY, StageRow.created_at)
_LIVE = JobRow.state.not_in(JOB_ENDS)
_MARK = select(
    func.count(),
    func.max(JobRow.created_at),
    func.max(JobRow.started_at),
    func.max(JobRow.finished_at),
    func.coalesce(func.sum(case((_LIVE, 1), else_=0)), 0),
).select_from(JobRow)
_LINE = select(
    StageRow.key,
    StageRow.kind,
    StageRow.state,
    _USED_AT.label("used_at"),
    StageRow.plan["inputs"].label("inputs"),
    StageRow.plan["hints"]["resume"].as_string().label("resume"),
    StageRow.result["artifacts"].label("artifacts"),
    StageRow.plan["spec"]["checkpoint"].as_string().label("checkpoint"),
)


class UnusedTables:
    """See ``stillhouse.service.db.unused.Forgets`` for what each method promises."""

    _sessions: Sessions

    def identity(self) -> str:
        """The ledger's own name."""
        with self._sessions.write() as session:
            insert_new(session, IdentityRow, {"id": _IDENTITY_ID, "name": new_id("led")})
            return session.scalars(select(IdentityRow.name).where(IdentityRow.id == _IDENTITY_ID)).one()

    def stage_lines(self, *, after: str = "", limit: int) -> list[StageLine]:
        """Stages in order of key."""
        query = _LINE.where(StageRow.key > after).order_by(StageRow.key).limit(limit)
        with self._sessions.read() as session:
            return [
                StageLine(
                    row.key,
                    row.kind,
                    row.state,
                    row.used_at,
                    stage_reads(row.inputs, row.resume),
                    stage_files(row.artifacts, row.checkpoint),
                )
                for row in session.execute(query)
            ]

    def holders(self) -> Holders:
        """What holds on to stages and files now."""
        live = select(DatasetRow.stage_key).join(JobRow, JobRow.dataset_id == DatasetRow.id).where(_LIVE).distinct()
        made = select(DatasetRow.stage_key, DatasetRow.summary["digest"].as_string(), StageRow.plan["spec"]["digest"])
        made = made.join(StageRow, StageRow.key == DatasetRow.stage_key)
        with self._sessions.read() as session:
            mark = _mark(session)
            held = frozenset(session.scalars(live))
            datasets = session.execute(made).all()
            trials = {key for stages in session.scalars(select(TrialRow.stages)) for key in stages}
        return Holders(
            mark,
            frozenset(trials | {key for key, _, _ in datasets}),
            held,
            frozenset(digest for _, digest, _ in datasets if digest),
            frozenset(digest for _, _, digest in datasets if digest),
        )

    def forget_stages(self, keys: Collection[str], *, mark: Mark, before: float) -> list[str] | None:
        """Removes stages with their attempts."""
        of_dataset = exists().where(DatasetRow.stage_key == StageRow.key)
        at_work = exists().where(AttemptRow.stage_key == StageRow.key, AttemptRow.state == "open")
        idle = (StageRow.state != "running", before > _USED_AT, ~of_dataset, ~at_work)
        with self._sessions.write() as session:
            if session.get_bind().dialect.name == "postgresql":
                # First, while nothing is held: whoever writes to jobs now is waited for, whoever comes later waits.
                session.execute(text("LOCK TABLE jobs IN SHARE MODE"))
            if _mark(session) != mark:
                return None
            # What another holds (a data set that is being made) is not waited for: it is used.
            query = select(StageRow.key).where(StageRow.key.in_(keys), *idle).with_for_update(skip_locked=True)
            found = set(session.scalars(query))
            # A data set that was stored while the rows were looked for is seen only now that they are held.
            found -= set(session.scalars(select(DatasetRow.stage_key).where(DatasetRow.stage_key.in_(found))))
            session.execute(delete(AttemptRow).where(AttemptRow.stage_key.in_(found)))
            session.execute(delete(StageRow).where(StageRow.key.in_(found)))
        return sorted(found)

    def named_files(self, among: Collection[str]) -> set[str]:
        """Those that a model or a job names."""
        checkpoint = JobRow.spec["teacher_checkpoint"].as_string()
        with self._sessions.read() as session:
            models = session.scalars(select(DeploymentRow.onnx_sha256).where(DeploymentRow.onnx_sha256.in_(among)))
            return set(models) | set(session.scalars(select(checkpoint).where(checkpoint.in_(among))))

    def known_attempts(self, among: Collection[str]) -> set[str]:
        """Those that exist."""
        with self._sessions.read() as session:
            return set(session.scalars(select(AttemptRow.id).where(AttemptRow.id.in_(among))))


def _mark(session: Session) -> Mark:
    return tuple(session.execute(_MARK).one())
