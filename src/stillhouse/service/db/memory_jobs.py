"""The memory ledger's jobs, trials and events."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stillhouse.search.domain import Candidate, Cost, Json
from stillhouse.search.errors import ConflictError, UserError
from stillhouse.search.job import Event, JobRecord, JobSpec, TrialRecord
from stillhouse.search.owner import NOBODY, Owner
from stillhouse.search.states import JOB, LIVE, TRIAL, check_move, with_job
from stillhouse.service.db.memory_tables import MemoryTables, asked_for
from stillhouse.service.db.records import (
    JOB_ENDS,
    as_json,
    as_text,
    as_text_or_none,
    body_hash,
    new_id,
    not_found,
    reused_key,
    trial_event,
)


class MemoryJobs(MemoryTables):
    """Jobs, trials and events; see ``stillhouse.search.ports.Ledger`` for what each method promises."""

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
            if self._get(self._datasets, "data set", spec.dataset).tenant != owner.tenant:
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
            return [copy.deepcopy(r) for r in self._jobs.values() if asked_for(r, states, tenant)]

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
            self._follow(record)
            self.emit(job_id, "job", {"state": to, "reason": record.reason})
            return True

    def _follow(self, job: JobRecord) -> None:
        """Moves the trials that go with their job."""
        for trial in self.trials(job.id):
            move = with_job(trial.state, trial.reason, job.state, job.reason)
            if move is not None:
                self._put_trial(replace(trial, state=move.to, reason=move.reason))

    # ------------------------------------------------------------------------------------ trials

    def trials(self, job_id: str) -> list[TrialRecord]:
        """Those of a job, in order of number."""
        with self._lock:
            found = [r for r in self._trials.values() if r.job_id == job_id]  # nothing in them can be changed
        return sorted(found, key=lambda trial: trial.number)

    def add_trial(self, job_id: str, number: int, candidate: Candidate, cost: Cost) -> bool:
        """Stores a trial in state costing; False when that number exists, or the job has ended."""
        with self._lock:
            if self.job(job_id).state not in LIVE or (job_id, number) in self._trials:
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
        """Sets the state if it is the one expected and the job lives, and what else is given; emits its event."""
        check_move(TRIAL, (expect,), to)
        with self._lock:
            record = self._trials.get((job_id, number))
            if record is None or record.state != expect or self._jobs[job_id].state not in LIVE:
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
            self._put_trial(record)
            return True

    def _put_trial(self, trial: TrialRecord) -> None:
        self._trials[trial.job_id, trial.number] = trial
        self.emit(trial.job_id, "trial", trial_event(trial))

    # ---------------------------------------------------------------------- -------------- events

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
