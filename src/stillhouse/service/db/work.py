"""The SQL ledger's part about work: data sets, stages and the attempts at them.

Each change of state is one ``UPDATE`` that names the state it expects; the number of rows changed
answers whether it held. Rows are always locked in the order attempts, stages, data sets.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from stillhouse.search.domain import Json, StageKind, StagePlan, StageResult
from stillhouse.search.errors import StageError
from stillhouse.search.job import AttemptRecord, DatasetRecord, StageRecord
from stillhouse.search.owner import NOBODY, Owner
from stillhouse.search.states import DATASET, check_move
from stillhouse.search.wanted import NO_ONE, Asker
from stillhouse.service.db.records import (
    as_json,
    as_progress,
    as_text,
    as_text_or_none,
    attempt_record,
    dataset_record,
    lost_reason,
    new_id,
    not_found,
    stage_record,
)
from stillhouse.service.db.sessions import Sessions, insert_new, lock_key, rows_changed
from stillhouse.service.db.tables import AttemptRow, DatasetRow, StageRow

_KEYS_A_QUERY = 500
"""Databases limit the parameters of one statement."""


class WorkTables:
    """Data sets, stages and attempts; see ``stillhouse.search.ports.Ledger`` for what each method promises."""

    _sessions: Sessions

    # --------------------------------------------------------------------------------- data sets

    def add_dataset(self, name: str, plan: StagePlan, *, owner: Owner = NOBODY, source_bytes: int = 0) -> DatasetRecord:
        """Stores a data set and its ingest stage, or puts a failed one back to pending."""
        mine = (DatasetRow.tenant == owner.tenant, DatasetRow.stage_key == plan.key)
        with self._sessions.write() as session:
            _hold_stage(session, plan)
            new: dict[str, Json] = {
                "id": new_id("ds"),
                "tenant": owner.tenant,
                "key_id": owner.key,
                "source_bytes": source_bytes,
                "name": as_text(name),
                "stage_key": plan.key,
                "state": "pending",
                "faults": [],
                "summary": {},
                "created_at": time.time(),
            }
            if owner.key is not None and session.scalars(select(DatasetRow.id).where(*mine)).one_or_none() is None:
                lock_key(session, owner.key)
                owner.check_dataset_bytes(_dataset_bytes(session, owner.key), source_bytes)
            is_new = insert_new(session, DatasetRow, new)
            again = update(DatasetRow).where(*mine, DatasetRow.state == "failed")
            if rows_changed(session, again.values(state="pending", reason=None, faults=[], summary={})) or is_new:
                _reopen_stage(session, plan)  # a new one's stage may have failed for another tenant
            return dataset_record(session.scalars(select(DatasetRow).where(*mine)).one())

    def dataset(self, dataset_id: str) -> DatasetRecord:
        """One data set, or NotFoundError."""
        with self._sessions.read() as session:
            row = session.get(DatasetRow, dataset_id)
            if row is None:
                raise not_found("data set", dataset_id)
            return dataset_record(row)

    def datasets(self, *states: str, tenant: str | None = None) -> list[DatasetRecord]:
        """Those in these states of a tenant, oldest first."""
        query = select(DatasetRow).order_by(DatasetRow.created_at, DatasetRow.id)
        if states:
            query = query.where(DatasetRow.state.in_(states))
        if tenant is not None:
            query = query.where(DatasetRow.tenant == tenant)
        with self._sessions.read() as session:
            return [dataset_record(row) for row in session.scalars(query)]

    def dataset_bytes(self, key: str) -> int:
        """Bytes of what an API key uploaded."""
        with self._sessions.read() as session:
            return _dataset_bytes(session, key)

    def end_dataset(
        self, dataset_id: str, state: str, *, summary: Mapping[str, Json], reason: str | None, faults: Sequence[str]
    ) -> bool:
        """Moves pending -> ready | failed."""
        check_move(DATASET, ("pending",), state)
        change = update(DatasetRow).where(DatasetRow.id == dataset_id, DatasetRow.state == "pending")
        values = {
            "state": state,
            "summary": as_json(dict(summary)),
            "reason": as_text_or_none(reason),
            "faults": as_json(list(faults)),
        }
        with self._sessions.write() as session:
            return rows_changed(session, change.values(**values)) == 1

    # ------------------------------------------------------------------------------------ stages

    def ensure_stage(self, plan: StagePlan) -> StageRecord:
        """The stage of a plan, stored now if it was not; two racing callers get the same one."""
        found = self.stages([plan.key])
        if found:  # by far the most frequent case, and it needs no write lock
            return found[plan.key]
        with self._sessions.write() as session:
            _ensure_stage(session, plan)
        return self.stages([plan.key])[plan.key]

    def stages(self, keys: Iterable[str]) -> dict[str, StageRecord]:
        """Those that exist, by key, with the progress of their open attempt."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, StageRecord] = {}
        is_open = (AttemptRow.stage_key == StageRow.key) & (AttemptRow.state == "open")
        query = select(StageRow, AttemptRow.progress).outerjoin(AttemptRow, is_open)
        with self._sessions.read() as session:
            for start in range(0, len(wanted), _KEYS_A_QUERY):
                part = query.where(StageRow.key.in_(wanted[start : start + _KEYS_A_QUERY]))
                found |= {row.key: stage_record(row, progress) for row, progress in session.execute(part)}
        return {key: found[key] for key in wanted if key in found}

    def results(self, keys: Iterable[str]) -> dict[str, StageResult]:
        """Those of stages that are done, by key; no plan is parsed."""
        wanted, found = list(dict.fromkeys(keys)), dict[str, StageResult]()
        query = select(StageRow.key, StageRow.result).where(StageRow.state == "done")
        with self._sessions.read() as session:
            for start in range(0, len(wanted), _KEYS_A_QUERY):
                part = query.where(StageRow.key.in_(wanted[start : start + _KEYS_A_QUERY]))
                found |= {key: StageResult.from_json(result) for key, result in session.execute(part) if result}
        return found

    def reopen_stage(self, plan: StagePlan) -> bool:
        """Moves failed -> pending with no attempts counted."""
        with self._sessions.write() as session:
            return _reopen_stage(session, plan)

    # ---------------------------------------------------------------------------------- attempts

    def open_attempt(
        self, key: str, *, lease_s: float, threads: int, slots: int = 1, asker: Asker = NO_ONE
    ) -> AttemptRecord | None:
        """Moves pending -> running; of several callers at once, one gets the attempt."""
        now = time.time()
        with self._sessions.write() as session:
            due = or_(StageRow.not_before.is_(None), StageRow.not_before <= now)
            change = update(StageRow).where(StageRow.key == key, StageRow.state == "pending", due)
            values = {"state": "running", "attempts": StageRow.attempts + 1, "reason": None, "not_before": None}
            if rows_changed(session, change.values(**values)) != 1:
                return None
            row = AttemptRow(
                id=new_id("att"),
                stage_key=key,
                token=secrets.token_hex(16),
                state="open",
                expires_at=now + lease_s,
                threads=threads,
                slots=slots,
                progress={},
                opened_at=now,
                ended_at=None,
                job_id=asker.job,
                trial_number=asker.trial,
            )
            session.add(row)
            session.flush()
            return attempt_record(row)

    def attempt(self, attempt_id: str) -> AttemptRecord:
        """One attempt, or NotFoundError."""
        with self._sessions.read() as session:
            row = session.get(AttemptRow, attempt_id)
            if row is None:
                raise not_found("attempt", attempt_id)
            return attempt_record(row)

    def open_attempts(self) -> list[AttemptRecord]:
        """Attempts in state open, oldest first."""
        query = select(AttemptRow).where(AttemptRow.state == "open").order_by(AttemptRow.opened_at, AttemptRow.id)
        with self._sessions.read() as session:
            return [attempt_record(row) for row in session.scalars(query)]

    def attempts(self, key: str) -> list[AttemptRecord]:
        """Those at a stage, oldest first."""
        query = select(AttemptRow).where(AttemptRow.stage_key == key).order_by(AttemptRow.opened_at, AttemptRow.id)
        with self._sessions.read() as session:
            return [attempt_record(row) for row in session.scalars(query)]

    def device_seconds(self, keys: Collection[str], *, since: float) -> float:
        """Seconds that attempts at these stages have run since then, in all of their slots."""
        wanted, now, total = list(dict.fromkeys(keys)), time.time(), 0.0
        took = func.sum((func.coalesce(AttemptRow.ended_at, now) - AttemptRow.opened_at) * AttemptRow.slots)
        with self._sessions.read() as session:
            for start in range(0, len(wanted), _KEYS_A_QUERY):
                part = AttemptRow.stage_key.in_(wanted[start : start + _KEYS_A_QUERY])
                total += session.scalar(select(took).where(part, AttemptRow.opened_at >= since)) or 0.0
        return total

    def stage_seconds(self, kind: StageKind, *, limit: int) -> list[tuple[StagePlan, float]]:
        """Those done last, by the end of the attempt that did them."""
        did = (AttemptRow.stage_key == StageRow.key) & (AttemptRow.state == "done")
        query = select(StageRow.plan, StageRow.seconds).join(AttemptRow, did)
        query = query.where(StageRow.kind == str(kind), StageRow.state == "done", StageRow.seconds.is_not(None))
        query = query.order_by(AttemptRow.ended_at.desc(), StageRow.key).limit(limit)
        with self._sessions.read() as session:
            return [(StagePlan.from_json(plan), seconds or 0.0) for plan, seconds in session.execute(query)]

    def renew(self, attempt_id: str, token: str, *, lease_s: float, progress: Mapping[str, Json]) -> bool:
        """Sets the lease's end and the progress, if the token still holds the attempt."""
        change = update(AttemptRow).where(*_held(attempt_id, token))
        values = {"expires_at": time.time() + lease_s, "progress": as_progress(progress)}
        with self._sessions.write() as session:
            return rows_changed(session, change.values(**values)) == 1

    def commit(self, attempt_id: str, token: str, result: StageResult, *, seconds: float) -> bool:
        """Stores the result of the attempt that the token holds.

        The token alone decides: a holder that is late but was not taken over may commit.

        Raises:
            StageError: The figures are no JSON, or are not finite.
        """
        stored = as_json(result.to_json(), error=StageError)
        values = {"state": "done", "result": stored, "seconds": seconds, "reason": None, "faults": []}
        return self._end_attempt(attempt_id, token, "done", values)

    def fail(self, attempt_id: str, token: str, reason: str, *, faults: Sequence[str] = ()) -> bool:
        """Ends the attempt and its stage with a reason."""
        values = {"state": "failed", "reason": as_text(reason), "faults": as_json(list(faults))}
        return self._end_attempt(attempt_id, token, "failed", values)

    def lose(
        self, attempt_id: str, *, max_attempts: int | None, wait_s: float = 0.0, reason: str | None = None
    ) -> bool:
        """Ends an open attempt whose process is gone."""
        now = time.time()
        with self._sessions.write() as session:
            change = update(AttemptRow).where(AttemptRow.id == attempt_id, AttemptRow.state == "open")
            if rows_changed(session, change.values(state="lost", ended_at=now)) != 1:
                return False
            key = session.scalars(select(AttemptRow.stage_key).where(AttemptRow.id == attempt_id)).one()
            attempts = session.scalars(select(StageRow.attempts).where(StageRow.key == key)).one()
            values: dict[str, Json] = {
                "state": "pending",
                "reason": as_text_or_none(reason),
                "not_before": now + wait_s if wait_s > 0 else None,
            }
            if max_attempts is None:
                values["attempts"] = attempts - 1
            elif attempts >= max_attempts:
                values = {"state": "failed", "reason": lost_reason(attempts, attempt_id)}
            running = (StageRow.key == key, StageRow.state == "running")
            session.execute(update(StageRow).where(*running).values(**values))
            return True

    def _end_attempt(self, attempt_id: str, token: str, state: str, stage_values: Mapping[str, Json]) -> bool:
        with self._sessions.write() as session:
            change = update(AttemptRow).where(*_held(attempt_id, token))
            if rows_changed(session, change.values(state=state, ended_at=time.time())) != 1:
                return False
            key = select(AttemptRow.stage_key).where(AttemptRow.id == attempt_id).scalar_subquery()
            # An open attempt's stage is running: both change in one transaction everywhere.
            session.execute(update(StageRow).where(StageRow.key == key).values(**stage_values))
            return True


def _held(attempt_id: str, token: str) -> tuple[Json, ...]:
    return AttemptRow.id == attempt_id, AttemptRow.token == token, AttemptRow.state == "open"


def _dataset_bytes(session: Session, key: str) -> int:
    return int(session.scalar(select(func.sum(DatasetRow.source_bytes)).where(DatasetRow.key_id == key)) or 0)


def _hold_stage(session: Session, plan: StagePlan) -> None:
    """As ``_ensure_stage``, and nobody can forget it until what names it is stored (see ``sql_unused.py``)."""
    _ensure_stage(session, plan)
    held = select(StageRow.key).where(StageRow.key == plan.key).with_for_update(read=True, key_share=True)
    if session.scalars(held).one_or_none() is None:  # it was forgotten just now
        _ensure_stage(session, plan)


def _ensure_stage(session: Session, plan: StagePlan) -> None:
    new = {
        "key": plan.key,
        "kind": str(plan.kind),
        "plan": as_json(plan.to_json()),
        "state": "pending",
        "attempts": 0,
        "faults": [],
        "created_at": time.time(),
    }
    insert_new(session, StageRow, new)


def _reopen_stage(session: Session, plan: StagePlan) -> bool:
    change = update(StageRow).where(StageRow.key == plan.key, StageRow.state == "failed")
    values = {
        "state": "pending",
        "attempts": 0,
        "reason": None,
        "faults": [],
        "plan": as_json(plan.to_json()),
        "not_before": None,
    }
    return rows_changed(session, change.values(**values)) == 1
