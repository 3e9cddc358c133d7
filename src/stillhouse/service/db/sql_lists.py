"""The SQL ledger's lists: counted, filtered and cut to a page by the database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import String, bindparam, delete, exists, func, select, tuple_
from sqlalchemy.orm import Session

from stillhouse.search.domain import Deployment, Json, StageKind, StagePlan
from stillhouse.search.errors import ConflictError
from stillhouse.search.job import TrialRecord
from stillhouse.service.db.lists import JobFilter, JobLine, Mark, ModelFilter, Place, in_use, not_ended, timed_here
from stillhouse.service.db.records import DEPLOYMENT_TEXTS, JOB_ENDS, deployment_from_texts, not_found, trial_record
from stillhouse.service.db.sessions import Sessions
from stillhouse.service.db.tables import (
    AttemptRow,
    DatasetRow,
    DeploymentRow,
    EventRow,
    JobRow,
    StageRow,
    TrialRow,
)

_LOOKED_THROUGH = 50
"""Measurements that are looked through for one of latency; those of the test split have none."""

_MOST_ENDED = 2000
"""Lines that are remembered: some 6 MB."""

_LAST = select(func.max(EventRow.id)).where(EventRow.job_id == JobRow.id).correlate(JobRow).scalar_subquery()
_JOB_MARKS = select(JobRow.id, JobRow.state, func.coalesce(_LAST, 0), JobRow.finished_at).where(
    JobRow.id.in_(bindparam("jobs", type_=String(), expanding=True))
)
_JOBS_MARK = select(func.count(JobRow.id), func.max(JobRow.created_at), select(func.max(EventRow.id)).scalar_subquery())
_OWN = JobRow.tenant == bindparam("tenant", type_=String())
_OWN_JOB_MARKS, _OWN_JOBS_MARK = _JOB_MARKS.where(_OWN), _JOBS_MARK.where(_OWN)
"""Built once: they are asked for with nearly every request, and building takes longer than asking."""


class ListTables:
    """Lists and deletion; see ``stillhouse.service.db.lists.Lists`` for what each method promises."""

    _sessions: Sessions
    _ended: dict[tuple[Any, ...], JobLine]
    """Lines of jobs that have ended, by what their rows say of it: most of a list is of them, and they are costly."""

    def job_lines(self, wanted: JobFilter, *, limit: int, after: Place | None = None) -> list[JobLine]:
        """Jobs, newest first."""
        query: Any = select(JobRow.id, JobRow.state, JobRow.reason, JobRow.finished_at)
        if wanted.tenant is not None:
            query = query.where(JobRow.tenant == wanted.tenant)
        if wanted.states:
            query = query.where(JobRow.state.in_(wanted.states))
        if wanted.dataset is not None:
            query = query.where(JobRow.dataset_id == wanted.dataset)
        if after is not None:
            query = query.where(tuple_(JobRow.created_at, JobRow.id) < tuple_(after.at, after.id))
        query = query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
        with self._sessions.read() as session:
            rows = [tuple(row) for row in session.execute(query)]
            known = {row[0]: self._ended[row] for row in rows if row in self._ended}
            known |= self._read_lines(session, [row[0] for row in rows if row[0] not in known])
        return [known[row[0]] for row in rows if row[0] in known]  # one may have been deleted since

    def _read_lines(self, session: Session, job_ids: list[str]) -> dict[str, JobLine]:
        """By id. Of a job that has ended, nothing changes until it is set going again, which shows in its row."""
        if not job_ids:
            return {}
        columns = (JobRow.id, JobRow.state, JobRow.reason, DatasetRow.name, JobRow.spec)
        times = (JobRow.created_at, JobRow.started_at, JobRow.finished_at)
        query = select(*columns, *times).join(DatasetRow, DatasetRow.id == JobRow.dataset_id)
        rows = session.execute(query.where(JobRow.id.in_(job_ids))).all()
        counts, best = _counted(session, [row.id for row in rows])
        lines = {row.id: _line(row, counts.get(row.id, {}), best.get(row.id)) for row in rows}
        for line in lines.values():
            if line.state in JOB_ENDS:
                if len(self._ended) >= _MOST_ENDED:
                    self._ended.clear()
                self._ended[line.id, line.state, line.reason, line.finished_at] = line
        return lines

    def model_page(
        self, wanted: ModelFilter, *, limit: int, after: Place | None = None
    ) -> list[tuple[Place, Deployment]]:
        """Deployments, newest first."""
        query = DEPLOYMENT_TEXTS
        # Not a join: that would be read in order of jobs, and all of it sorted.
        own = exists().where(JobRow.id == DeploymentRow.job_id)
        for column, value in ((JobRow.tenant, wanted.tenant), (JobRow.dataset_id, wanted.dataset)):
            query = query if value is None else query.where(own.where(column == value))
        for column, value in (
            (DeploymentRow.job_id, wanted.job),
            (DeploymentRow.candidate["arch"].as_string(), wanted.arch),
            (DeploymentRow.precision, wanted.precision),
        ):
            query = query if value is None else query.where(column == value)
        if after is not None:
            query = query.where(tuple_(DeploymentRow.created_at, DeploymentRow.id) < tuple_(after.at, after.id))
        query = query.order_by(DeploymentRow.created_at.desc(), DeploymentRow.id.desc()).limit(limit)
        with self._sessions.read() as session:
            return [(Place(row.created_at, row.id), deployment_from_texts(row)) for row in session.execute(query)]

    def trial_page(self, job_id: str, *, states: Collection[str], limit: int, after: int = -1) -> list[TrialRecord]:
        """Trials of a job in order of number."""
        query = select(TrialRow).where(TrialRow.job_id == job_id, TrialRow.number > after)
        query = query.where(TrialRow.state.in_(states)) if states else query
        with self._sessions.read() as session:
            return [trial_record(row) for row in session.scalars(query.order_by(TrialRow.number).limit(limit))]

    def job_marks(self, job_ids: Collection[str], *, tenant: str | None = None) -> dict[str, Mark]:
        """State and last event of each job."""
        asked: dict[str, Any] = {"jobs": list(job_ids)}
        with self._sessions.read() as session:
            connection = session.connection()
            if tenant is None:
                rows = connection.execute(_JOB_MARKS, asked).all()
            else:
                rows = connection.execute(_OWN_JOB_MARKS, {**asked, "tenant": tenant}).all()
        return {job_id: tuple(mark) for job_id, *mark in rows}

    def jobs_mark(self, tenant: str | None = None) -> Mark:
        """Count and last of the jobs, and the last event of any."""
        with self._sessions.read() as session:
            connection = session.connection()
            if tenant is None:
                return tuple(connection.execute(_JOBS_MARK).one())
            return tuple(connection.execute(_OWN_JOBS_MARK, {"tenant": tenant}).one())

    def last_host(self) -> tuple[float, Mapping[str, Json]] | None:
        """The last measurement of latency."""
        did = (AttemptRow.stage_key == StageRow.key) & (AttemptRow.state == "done")
        query = select(AttemptRow.ended_at, StageRow.result, StageRow.plan).join(AttemptRow, did)
        query = query.where(StageRow.kind == str(StageKind.MEASURE), StageRow.state == "done")
        with self._sessions.read() as session:
            rows = session.execute(query.order_by(AttemptRow.ended_at.desc()).limit(_LOOKED_THROUGH)).all()
        here = ((at, result) for at, result, plan in rows if timed_here(StagePlan.from_json(plan)))
        found = ((at, result["metrics"]) for at, result in here if at is not None and result is not None)
        return next(((at, metrics) for at, metrics in found if metrics.get("host")), None)

    def delete_job(self, job_id: str) -> None:
        """Forgets a job that has ended."""
        with self._sessions.write() as session:
            state = session.scalar(select(JobRow.state).where(JobRow.id == job_id).with_for_update())
            if state is None:
                raise not_found("job", job_id)
            if state not in JOB_ENDS:
                raise ConflictError(not_ended(job_id, state))
            for table in (EventRow, DeploymentRow, TrialRow):
                session.execute(delete(table).where(table.job_id == job_id))
            session.execute(delete(JobRow).where(JobRow.id == job_id))

    def delete_dataset(self, dataset_id: str) -> None:
        """Forgets a data set without jobs."""
        with self._sessions.write() as session:
            state = session.scalar(select(DatasetRow.state).where(DatasetRow.id == dataset_id).with_for_update())
            if state is None:
                raise not_found("data set", dataset_id)
            used = session.scalar(select(func.count(JobRow.id)).where(JobRow.dataset_id == dataset_id))
            if used or state == "pending":
                raise ConflictError(in_use(dataset_id, state))
            session.execute(delete(DatasetRow).where(DatasetRow.id == dataset_id))


def _line(row: Any, counts: Mapping[str, int], best: float | None) -> JobLine:
    times = (row.created_at, row.started_at, row.finished_at)
    return JobLine(row.id, row.state, row.reason, row.name, row.spec, *times, counts, best)


def _counted(session: Session, job_ids: Iterable[str]) -> tuple[dict[str, dict[str, int]], dict[str, float]]:
    """By job: trials by state, and the best accuracy where one is known."""
    columns = (TrialRow.job_id, TrialRow.state, func.count(), func.max(TrialRow.accuracy))
    query = select(*columns).where(TrialRow.job_id.in_(list(job_ids))).group_by(TrialRow.job_id, TrialRow.state)
    counts: dict[str, dict[str, int]] = {}
    best: dict[str, float] = {}
    for job_id, state, count, accuracy in session.execute(query):
        counts.setdefault(job_id, {})[state] = count
        if accuracy is not None:
            best[job_id] = max(accuracy, best.get(job_id, accuracy))
    return counts, best
