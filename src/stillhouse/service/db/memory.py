"""A ledger in memory, for tests and for embedded runs of one process: same promises, nothing on disk.

Records are frozen, but what hangs on them is not: they are copied on the way in (as JSON) and out.
"""

from __future__ import annotations

import copy
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from stillhouse.search.domain import Candidate, Cost, Deployment, Json, StageKind, StagePlan, StageResult
from stillhouse.search.errors import ConflictError, StageError, UserError
from stillhouse.search.job import AttemptRecord, DatasetRecord, Event, JobRecord, JobSpec, StageRecord, TrialRecord
from stillhouse.search.owner import NOBODY, Owner
from stillhouse.search.states import DATASET, JOB, TRIAL, check_move
from stillhouse.search.wanted import NO_ONE, Asker
from stillhouse.service.accounts import Accounts
from stillhouse.service.db.accounts import MemoryAccounts
from stillhouse.service.db.lists import Lists
from stillhouse.service.db.memory_lists import MemoryLists
from stillhouse.service.db.memory_models import MemoryModels
from stillhouse.service.db.memory_unused import MemoryUnused
from stillhouse.service.db.records import (
    JOB_ENDS,
    as_json,
    as_progress,
    as_text,
    as_text_or_none,
    body_hash,
    lost_reason,
    new_id,
    not_found,
    reused_key,
    trial_event,
)
from stillhouse.service.db.totals import MemoryTotals

Record = TypeVar("Record")


class MemoryLedger(MemoryModels, MemoryLists, MemoryUnused, MemoryTotals, Lists):
    """A ``Ledger`` that lives and dies with its process; safe from several threads."""

    def __init__(self) -> None:
        self.accounts: Accounts = MemoryAccounts()
        self._lock = threading.RLock()
        self._datasets: dict[str, DatasetRecord] = {}
        self._jobs: dict[str, JobRecord] = {}
        self._by_idempotency_key: dict[tuple[str, str], tuple[str, str]] = {}
        self._made_by: dict[str, str | None] = {}
        self._source_bytes: dict[str, int] = {}
        self._trials: dict[tuple[str, int], TrialRecord] = {}
        self._stages: dict[str, StageRecord] = {}
        self._stored_at: dict[str, float] = {}
        self._attempts: dict[str, AttemptRecord] = {}
        self._deployments: dict[str, Deployment] = {}
        self._events: list[Event] = []
        self._catalogue: Mapping[str, Json] | None = None

    # --------------------------------------------------------------------------------- data sets

    def add_dataset(self, name: str, plan: StagePlan, *, owner: Owner = NOBODY, source_bytes: int = 0) -> DatasetRecord:
        """Stores a data set and its ingest stage, or puts a failed one back to pending."""
        mine = (owner.tenant, plan.key)
        with self._lock:
            record = next((r for r in self._datasets.values() if (r.tenant, r.stage_key) == mine), None)
            if record is None:
                if owner.key is not None:
                    owner.check_dataset_bytes(self.dataset_bytes(owner.key), source_bytes)
                record = DatasetRecord(
                    new_id("ds"), as_text(name), plan.key, "pending", created_at=time.time(), tenant=owner.tenant
                )
                self._made_by[record.id], self._source_bytes[record.id] = owner.key, source_bytes
                self.ensure_stage(plan)
                self.reopen_stage(plan)  # it may have failed for another tenant
            elif record.state == "failed":
                record = replace(record, state="pending", reason=None, faults=(), summary={})
                self.reopen_stage(plan)
            self._datasets[record.id] = record
            return copy.deepcopy(record)

    def dataset(self, dataset_id: str) -> DatasetRecord:
        """One data set, or NotFoundError."""
        return self._get(self._datasets, "data set", dataset_id)

    def datasets(self, *states: str, tenant: str | None = None) -> list[DatasetRecord]:
        """Those in these states of a tenant, oldest first."""
        with self._lock:
            return [copy.deepcopy(r) for r in self._datasets.values() if _asked_for(r, states, tenant)]

    def dataset_bytes(self, key: str) -> int:
        """Bytes of what an API key uploaded."""
        with self._lock:
            return sum(size for name, size in self._source_bytes.items() if self._made_by[name] == key)

    def end_dataset(
        self, dataset_id: str, state: str, *, summary: Mapping[str, Json], reason: str | None, faults: Sequence[str]
    ) -> bool:
        """Moves pending -> ready | failed."""
        check_move(DATASET, ("pending",), state)
        kept = as_json(dict(summary))
        with self._lock:
            record = self._datasets.get(dataset_id)
            if record is None or record.state != "pending":
                return False
            self._datasets[dataset_id] = replace(
                record, state=state, summary=kept, reason=as_text_or_none(reason), faults=tuple(faults)
            )
            return True

    # -------------------------------------------------------------------------------------- jobs

    def add_job(self, spec: JobSpec, *, idempotency_key: str | None = None, owner: Owner = NOBODY) -> JobRecord:
        """Stores a job, or returns the one that this idempotency key made."""
        data = as_json(spec.to_json(), error=UserError)
        digest = body_hash(data)
        with self._lock:
            job_id, known = self._by_idempotency_key.get((owner.tenant, idempotency_key or ""), ("", ""))
            if idempotency_key is not None and job_id:
                if known != digest:
                    raise ConflictError(reused_key(idempotency_key, job_id))
                return self.job(job_id)
            if self.dataset(spec.dataset).tenant != owner.tenant:
                raise not_found("data set", spec.dataset)
            if owner.key is not None:
                mine = [job for job in self._jobs.values() if self._made_by[job.id] == owner.key]
                owner.check_live_jobs(sum(job.state not in JOB_ENDS for job in mine))
            record = JobRecord(
                new_id("job"), JobSpec.from_json(data), "queued", created_at=time.time(), tenant=owner.tenant
            )
            self._jobs[record.id], self._made_by[record.id] = record, owner.key
            if idempotency_key is not None:
                self._by_idempotency_key[owner.tenant, idempotency_key] = (record.id, digest)
            return copy.deepcopy(record)

    def job(self, job_id: str) -> JobRecord:
        """One job, or NotFoundError."""
        return self._get(self._jobs, "job", job_id)

    def jobs(self, *states: str, tenant: str | None = None) -> list[JobRecord]:
        """Those in these states of a tenant, oldest first."""
        with self._lock:
            return [copy.deepcopy(r) for r in self._jobs.values() if _asked_for(r, states, tenant)]

    def move_job(self, job_id: str, *, expect: Sequence[str], to: str, reason: str | None = None) -> bool:
        """Sets the state if it is one of those expected, with its time stamp and event."""
        check_move(JOB, expect, to)
        with self._lock:
            record = self._jobs.get(job_id)
            if record is None or record.state not in expect:
                return False
            record = replace(record, state=to, reason=as_text_or_none(reason))
            if to == "running":
                record = replace(record, started_at=time.time())
            elif to in JOB_ENDS:
                record = replace(record, finished_at=time.time())
            self._jobs[job_id] = record
            self.emit(job_id, "job", {"state": to, "reason": record.reason})
            return True

    # ------------------------------------------------------------------------------------ trials

    def trials(self, job_id: str) -> list[TrialRecord]:
        """Those of a job, in order of number."""
        with self._lock:
            found = [r for r in self._trials.values() if r.job_id == job_id]  # nothing in them can be changed
        return sorted(found, key=lambda trial: trial.number)

    def add_trial(self, job_id: str, number: int, candidate: Candidate, cost: Cost) -> bool:
        """Stores a trial in state costing; False when that number exists."""
        with self._lock:
            self.job(job_id)
            if (job_id, number) in self._trials:
                return False
            self._trials[job_id, number] = TrialRecord(job_id, number, candidate, "costing", cost)
            return True

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
        """Sets the state if it is the one expected, and what else is given; emits its event."""
        check_move(TRIAL, (expect,), to)
        with self._lock:
            record = self._trials.get((job_id, number))
            if record is None or record.state != expect:
                return False
            record = replace(
                record,
                state=to,
                cost=record.cost if cost is None else cost,
                stages=record.stages if stages is None else tuple(stages),
                accuracy=record.accuracy if accuracy is None else accuracy,
                epochs=record.epochs if epochs is None else epochs,
                reason=record.reason if reason is None else as_text(reason),
            )
            self._trials[job_id, number] = record
            self.emit(job_id, "trial", trial_event(record))
            return True

    # ------------------------------------------------------------------------------------ stages

    def ensure_stage(self, plan: StagePlan) -> StageRecord:
        """The stage of a plan, stored now if it was not."""
        with self._lock:
            if plan.key not in self._stages:
                self._stages[plan.key] = StageRecord(StagePlan.from_json(as_json(plan.to_json())), "pending")
                self._stored_at[plan.key] = time.time()
            return _given(self._stages[plan.key])

    def stages(self, keys: Iterable[str]) -> dict[str, StageRecord]:
        """Those that exist, by key, with the progress of their open attempt."""
        with self._lock:
            return {key: _given(self._stages[key]) for key in dict.fromkeys(keys) if key in self._stages}

    def reopen_stage(self, plan: StagePlan) -> bool:
        """Moves failed -> pending with no attempts counted."""
        stored = StagePlan.from_json(as_json(plan.to_json()))
        with self._lock:
            if plan.key not in self._stages or self._stages[plan.key].state != "failed":
                return False
            self._stages[plan.key] = StageRecord(stored, "pending")
            return True

    # ---------------------------------------------------------------------------------- attempts

    def open_attempt(self, key: str, *, lease_s: float, threads: int, asker: Asker = NO_ONE) -> AttemptRecord | None:
        """Moves pending -> running; of several callers at once, one gets the attempt."""
        with self._lock:
            stage = self._stages.get(key)
            now = time.time()
            if stage is None or stage.state != "pending" or (stage.not_before or 0.0) > now:
                return None
            token, expires_at = secrets.token_hex(16), now + lease_s
            attempt = AttemptRecord(new_id("att"), key, token, "open", expires_at, threads, now, asker=asker)
            self._attempts[attempt.id] = attempt
            self._stages[key] = replace(
                stage, state="running", attempts=stage.attempts + 1, reason=None, not_before=None, progress={}
            )
            return attempt

    def attempt(self, attempt_id: str) -> AttemptRecord:
        """One attempt, or NotFoundError."""
        return self._get(self._attempts, "attempt", attempt_id)

    def open_attempts(self) -> list[AttemptRecord]:
        """Attempts in state open, oldest first."""
        with self._lock:
            return [attempt for attempt in self._attempts.values() if attempt.state == "open"]

    def attempts(self, key: str) -> list[AttemptRecord]:
        """Those at a stage, oldest first."""
        with self._lock:
            return [attempt for attempt in self._attempts.values() if attempt.stage_key == key]

    def device_seconds(self, keys: Collection[str], *, since: float) -> float:
        """Seconds that attempts at these stages have run since then."""
        wanted, now = frozenset(keys), time.time()
        with self._lock:
            found = [a for a in self._attempts.values() if a.stage_key in wanted and a.opened_at >= since]
        return sum((attempt.ended_at or now) - attempt.opened_at for attempt in found)

    def stage_seconds(self, kind: StageKind, *, limit: int) -> list[tuple[StagePlan, float]]:
        """Those done last, by the end of the attempt that did them."""
        with self._lock:
            ended = {a.stage_key: a.ended_at or 0.0 for a in self._attempts.values() if a.state == "done"}
            found = [self._stages[key] for key in ended if self._stages[key].plan.kind is kind]
        found.sort(key=lambda stage: (-ended[stage.key], stage.key))
        return [(stage.plan, stage.seconds) for stage in found if stage.seconds is not None][:limit]

    def renew(self, attempt_id: str, token: str, *, lease_s: float, progress: Mapping[str, Json]) -> bool:
        """Sets the lease's end and the progress, if the token still holds the attempt."""
        kept = as_progress(progress)
        with self._lock:
            attempt = self._attempts.get(attempt_id)
            if attempt is None or attempt.state != "open" or attempt.token != token:
                return False
            self._attempts[attempt_id] = replace(attempt, expires_at=time.time() + lease_s)
            self._stages[attempt.stage_key] = replace(self._stages[attempt.stage_key], progress=kept)
            return True

    def commit(self, attempt_id: str, token: str, result: StageResult, *, seconds: float) -> bool:
        """Stores the result of the attempt that the token holds; StageError for figures that are not finite."""
        kept = StageResult.from_json(as_json(result.to_json(), error=StageError))
        with self._lock:
            stage = self._end_attempt(attempt_id, token, "done")
            if stage is None:
                return False
            self._stages[stage.key] = replace(
                stage, state="done", result=kept, seconds=seconds, reason=None, faults=(), progress={}
            )
            return True

    def fail(self, attempt_id: str, token: str, reason: str, *, faults: Sequence[str] = ()) -> bool:
        """Ends the attempt and its stage with a reason."""
        with self._lock:
            stage = self._end_attempt(attempt_id, token, "failed")
            if stage is None:
                return False
            self._stages[stage.key] = replace(
                stage, state="failed", reason=as_text(reason), faults=tuple(faults), progress={}
            )
            return True

    def lose(
        self, attempt_id: str, *, max_attempts: int | None, wait_s: float = 0.0, reason: str | None = None
    ) -> bool:
        """Ends an open attempt whose process is gone."""
        with self._lock:
            attempt = self._attempts.get(attempt_id)
            stage = None if attempt is None else self._end_attempt(attempt_id, attempt.token, "lost")
            if stage is None:
                return False
            attempts = stage.attempts - (max_attempts is None)
            if max_attempts is not None and attempts >= max_attempts:
                reason = lost_reason(attempts, attempt_id)
                self._stages[stage.key] = replace(stage, state="failed", reason=reason, progress={})
                return True
            not_before = time.time() + wait_s if wait_s > 0 else None
            self._stages[stage.key] = replace(
                stage,
                state="pending",
                attempts=attempts,
                reason=as_text_or_none(reason),
                not_before=not_before,
                progress={},
            )
            return True

    def _end_attempt(self, attempt_id: str, token: str, state: str) -> StageRecord | None:
        """Ends the attempt that the token holds; returns its stage. The caller holds the lock."""
        attempt = self._attempts.get(attempt_id)
        if attempt is None or attempt.state != "open" or attempt.token != token:
            return None
        self._attempts[attempt_id] = replace(attempt, state=state, ended_at=time.time())
        return self._stages[attempt.stage_key]

    # ---------------------------------------------------------------------- events and catalogue

    def emit(self, job_id: str, kind: str, data: Mapping[str, Json]) -> None:
        """Appends an event; NotFoundError without its job."""
        kept = as_json(dict(data))
        with self._lock:
            self.job(job_id)
            self._events.append(Event(len(self._events) + 1, job_id, time.time(), kind, kept))

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Those of a job with an id greater than ``after``, in order."""
        with self._lock:
            return [copy.deepcopy(e) for e in self._events[max(after, 0) :] if e.job_id == job_id]

    def publish_catalogue(self, data: Mapping[str, Json]) -> None:
        """Replaces the catalogue."""
        kept = as_json(dict(data))
        with self._lock:
            self._catalogue = kept

    def catalogue(self) -> Mapping[str, Json] | None:
        """The catalogue last published."""
        with self._lock:
            return copy.deepcopy(self._catalogue)

    def _get(self, records: Mapping[str, Record], what: str, key: str) -> Record:
        with self._lock:
            if key not in records:
                raise not_found(what, key)
            return copy.deepcopy(records[key])


def _asked_for(record: DatasetRecord | JobRecord, states: Sequence[str], tenant: str | None) -> bool:
    return (not states or record.state in states) and (tenant is None or record.tenant == tenant)


def _given(stage: StageRecord) -> StageRecord:
    """A stage to hand out: what callers might change is copied, its plan is taken to be left alone."""
    return replace(stage, result=copy.deepcopy(stage.result), progress=copy.deepcopy(stage.progress))
