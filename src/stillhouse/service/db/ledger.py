"""The ledger on SQLite or PostgreSQL: the truth that controller, API and stage processes share.

Transactions are short and hold one change of state each. Events of a job get their ids under a lock on
the job's row, so a reader that has seen an id has seen all before it (a replay skips none).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Json
from stillhouse.search.errors import ConflictError, UserError
from stillhouse.search.failpoints import passing
from stillhouse.search.job import Event, JobRecord, JobSpec, TrialRecord
from stillhouse.search.owner import NOBODY, Owner
from stillhouse.search.states import CUT_SHORT, JOB, LIVE, TRIAL, UNSETTLED, check_move, with_job
from stillhouse.service.accounts import Accounts
from stillhouse.service.db.accounts import SqlAccounts
from stillhouse.service.db.lists import Lists
from stillhouse.service.db.records import (
    DEPLOYMENT_TEXTS,
    JOB_ENDS,
    TRIAL_TEXTS,
    as_json,
    as_text_or_none,
    body_hash,
    deployment_from_texts,
    deployment_values,
    event_record,
    job_record,
    new_id,
    not_found,
    reused_key,
    trial_event,
    trial_from_texts,
    trial_record,
)
from stillhouse.service.db.sessions import Sessions, insert_new, lock_key, rows_changed
from stillhouse.service.db.sql_lists import ListTables
from stillhouse.service.db.sql_offers import OfferTables
from stillhouse.service.db.sql_unused import UnusedTables
from stillhouse.service.db.tables import DatasetRow, DeploymentRow, EventRow, JobRow, TrialRow
from stillhouse.service.db.totals import SqlTotals
from stillhouse.service.db.work import WorkTables


class SqlLedger(WorkTables, OfferTables, ListTables, UnusedTables, SqlTotals, Lists):
    """A ``Ledger`` in a database that ``migrate.upgrade`` has brought up to date.

    One instance serves any number of threads, and goes on working in a forked child.

    Args:
        url: ``sqlite:////folder/file.db`` or ``postgresql://user:password@host/name``.

    Raises:
        UserError: The URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._sessions = Sessions(url)
        self.accounts: Accounts = SqlAccounts(self._sessions)
        self._ended = {}

    def close(self) -> None:
        """Closes the database connections; a later call opens new ones."""
        self._sessions.close()

    # -------------------------------------------------------------------------------------- jobs

    def add_job(self, spec: JobSpec, *, idempotency_key: str | None = None, owner: Owner = NOBODY) -> JobRecord:
        """Stores a job, or returns the one that this idempotency key made."""
        data = as_json(spec.to_json(), error=UserError)
        digest = body_hash(data)
        new = {
            "id": new_id("job"),
            "tenant": owner.tenant,
            "key_id": owner.key,
            "dataset_id": spec.dataset,
            "spec": data,
            "state": "queued",
            "created_at": time.time(),
            "idempotency_key": idempotency_key,
            "body_hash": digest,
        }
        same_key = select(JobRow).where(JobRow.tenant == owner.tenant, JobRow.idempotency_key == idempotency_key)
        with self._sessions.write() as session:
            row = None if idempotency_key is None else session.scalars(same_key).one_or_none()
            if row is None:
                # Held until the job is stored: it must not be deleted in between.
                dataset = session.get(DatasetRow, spec.dataset, with_for_update={"read": True, "key_share": True})
                if dataset is None or dataset.tenant != owner.tenant:
                    raise not_found("data set", spec.dataset)
                _check_live_jobs(session, owner)
                if insert_new(session, JobRow, new):
                    passing("accept.before")
                    return job_record(session.scalars(select(JobRow).where(JobRow.id == new["id"])).one())
                row = session.scalars(same_key).one()  # another caller came in between
            if row.body_hash != digest:
                raise ConflictError(reused_key(str(idempotency_key), row.id))
            return job_record(row)

    def job(self, job_id: str) -> JobRecord:
        """One job, or NotFoundError."""
        with self._sessions.read() as session:
            row = session.get(JobRow, job_id)
            if row is None:
                raise not_found("job", job_id)
            return job_record(row)

    def jobs(self, *states: str, tenant: str | None = None) -> list[JobRecord]:
        """Those in these states of a tenant, oldest first."""
        query = select(JobRow).order_by(JobRow.created_at, JobRow.id)
        if states:
            query = query.where(JobRow.state.in_(states))
        if tenant is not None:
            query = query.where(JobRow.tenant == tenant)
        with self._sessions.read() as session:
            return [job_record(row) for row in session.scalars(query)]

    def move_job(self, job_id: str, *, expect: Sequence[str], to: str, reason: str | None = None) -> bool:
        """Sets the state if it is one of those expected, with its time stamp and event."""
        check_move(JOB, expect, to)
        values: dict[str, Json] = {"state": to, "reason": as_text_or_none(reason)}
        if to == "running":
            values["started_at"] = time.time()
        elif to in JOB_ENDS:
            values["finished_at"] = time.time()
        change = update(JobRow).where(JobRow.id == job_id, JobRow.state.in_(expect))
        with self._sessions.write() as session:
            if rows_changed(session, change.values(**values)) != 1:
                return False
            _follow(session, job_id, to, values["reason"])
            _append(session, job_id, "job", {"state": to, "reason": values["reason"]})
            return True

    # ------------------------------------------------------------------------------------ trials

    def trials(self, job_id: str) -> list[TrialRecord]:
        """Those of a job, in order of number."""
        query = TRIAL_TEXTS.where(TrialRow.job_id == job_id).order_by(TrialRow.number)
        with self._sessions.read() as session:
            return [trial_from_texts(row) for row in session.execute(query)]

    def add_trial(self, job_id: str, number: int, candidate: Candidate, cost: Cost) -> bool:
        """Stores a trial in state costing; False when that number exists, or the job has ended."""
        new = {
            "job_id": job_id,
            "number": number,
            "candidate": as_json(candidate.to_json()),
            "state": "costing",
            "cost": as_json(cost.to_json()),
            "stages": [],
        }
        with self._sessions.write() as session:
            return _lock_job(session, job_id) in LIVE and insert_new(session, TrialRow, new)

    def move_trial(
        self,
        job_id: str,
        number: int,
        *,
        expect: str,
        to: str,
        cost: Cost | None = None,
        stages: Sequence[str] | None = None,
        accuracy: float | None = None,
        epochs: int | None = None,
        reason: str | None = None,
    ) -> bool:
        """Sets the state if it is the one expected and the job lives, and what else is given; emits its event."""
        check_move(TRIAL, (expect,), to)
        given: dict[str, Json] = {
            "cost": None if cost is None else as_json(cost.to_json()),
            "stages": None if stages is None else list(stages),
            "accuracy": accuracy,
            "epochs": epochs,
            "reason": as_text_or_none(reason),
        }
        values = {"state": to} | {name: value for name, value in given.items() if value is not None}
        one = (TrialRow.job_id == job_id, TrialRow.number == number)
        with self._sessions.write() as session:
            # The job first: a job that ends at this moment is waited for, and its trials are locked in that order.
            if _locked_state(session, job_id) not in LIVE:
                return False
            change = update(TrialRow).where(*one, TrialRow.state == expect).values(**values)
            if rows_changed(session, change) != 1:
                return False
            trial = trial_record(session.scalars(select(TrialRow).where(*one)).one())
            _append(session, job_id, "trial", trial_event(trial))
            return True

    # ------------------------------------------------------------------------------- deployments

    def add_deployment(self, deployment: Deployment) -> bool:
        """Stores a deployment; False when its id exists, or its job was cut short."""
        new = deployment_values(deployment) | {"created_at": time.time()}
        with self._sessions.write() as session:
            taken = _lock_job(session, deployment.job_id) not in CUT_SHORT
            return taken and insert_new(session, DeploymentRow, new)

    def deployment(self, deployment_id: str) -> Deployment:
        """One deployment, or NotFoundError."""
        with self._sessions.read() as session:
            row = session.execute(DEPLOYMENT_TEXTS.where(DeploymentRow.id == deployment_id)).one_or_none()
        if row is None:
            raise not_found("model", deployment_id)
        return deployment_from_texts(row)

    def deployments(self, job_id: str) -> list[Deployment]:
        """Those of a job, in order of trial number."""
        query = DEPLOYMENT_TEXTS.where(DeploymentRow.job_id == job_id)
        query = query.order_by(DeploymentRow.trial_number, DeploymentRow.created_at, DeploymentRow.id)
        with self._sessions.read() as session:
            return [deployment_from_texts(row) for row in session.execute(query)]

    def set_test(self, deployment_id: str, test: Accuracy, details: Mapping[str, Json]) -> bool:
        """Stores the test counts once, and merges the details."""
        added = as_json(dict(details))
        with self._sessions.write() as session:
            query = select(DeploymentRow).where(DeploymentRow.id == deployment_id).with_for_update()
            row = session.scalars(query).one_or_none()
            if row is None:
                raise not_found("model", deployment_id)
            if row.test_total is not None:
                return False
            row.test_correct, row.test_total = test.correct, test.total
            row.details = row.details | added
            return True

    # ------------------------------------------------------------------------------------ events

    def emit(self, job_id: str, kind: str, data: Mapping[str, Json]) -> None:
        """Appends an event; NotFoundError without its job."""
        stored = as_json(dict(data))
        with self._sessions.write() as session:
            _lock_job(session, job_id)
            _append(session, job_id, kind, stored)

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Those of a job with an id greater than ``after``, in order."""
        query = select(EventRow).where(EventRow.job_id == job_id, EventRow.id > after).order_by(EventRow.id)
        with self._sessions.read() as session:
            return [event_record(row) for row in session.scalars(query)]


def _check_live_jobs(session: Session, owner: Owner) -> None:
    if owner.key is None or owner.max_live_jobs is None:
        return
    lock_key(session, owner.key)
    live = (JobRow.key_id == owner.key, JobRow.state.not_in(JOB_ENDS))
    owner.check_live_jobs(session.scalar(select(func.count()).select_from(JobRow).where(*live)) or 0)


def _locked_state(session: Session, job_id: str) -> str | None:
    """Puts writers to one job in line until they commit; returns its state, None without it.

    The lock is the weaker one that inserts of child rows do not wait for (FOR NO KEY UPDATE). SQLite
    needs none: its write transactions are in line already.
    """
    query = select(JobRow.state).where(JobRow.id == job_id).with_for_update(key_share=True)
    return session.scalars(query).one_or_none()


def _lock_job(session: Session, job_id: str) -> str:
    """As ``_locked_state``; NotFoundError without the job."""
    state = _locked_state(session, job_id)
    if state is None:
        raise not_found("job", job_id)
    return state


def _follow(session: Session, job_id: str, to: str, why: str | None) -> None:
    """Moves the trials that go with their job, whose row is locked."""
    query = select(TrialRow).where(TrialRow.job_id == job_id, TrialRow.state.in_(UNSETTLED))
    for row in session.scalars(query.order_by(TrialRow.number)):
        move = with_job(row.state, row.reason, to, why)
        if move is not None:
            row.state, row.reason = move.to, move.reason
            _append(session, job_id, "trial", trial_event(trial_record(row)))


def _append(session: Session, job_id: str, kind: str, data: Mapping[str, Json]) -> None:
    """Adds an event of a job whose row is locked."""
    session.add(EventRow(job_id=job_id, at=time.time(), kind=kind, data=dict(data)))
