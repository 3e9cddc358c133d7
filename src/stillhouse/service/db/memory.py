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

from stillhouse.search.devices import DeviceRecord
from stillhouse.search.domain import Deployment, Json, StageKind, StagePlan, StageResult
from stillhouse.search.errors import StageError
from stillhouse.search.job import AttemptRecord, DatasetRecord, Event, JobRecord, StageRecord, TrialRecord
from stillhouse.search.owner import NOBODY, Owner
from stillhouse.search.states import DATASET, check_move
from stillhouse.search.wanted import NO_ONE, Asker
from stillhouse.service.accounts import Accounts
from stillhouse.service.db.accounts import MemoryAccounts
from stillhouse.service.db.lists import Lists
from stillhouse.service.db.memory_jobs import MemoryJobs
from stillhouse.service.db.memory_lists import MemoryLists
from stillhouse.service.db.memory_models import MemoryModels
from stillhouse.service.db.memory_offers import MemoryOffers
from stillhouse.service.db.memory_tables import asked_for
from stillhouse.service.db.memory_unused import MemoryUnused
from stillhouse.service.db.records import (
    as_json,
    as_progress,
    as_text,
    as_text_or_none,
    lost_reason,
    new_id,
)
from stillhouse.service.db.totals import MemoryTotals


class MemoryLedger(MemoryOffers, MemoryJobs, MemoryModels, MemoryLists, MemoryUnused, MemoryTotals, Lists):
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
        self._devices: dict[str, DeviceRecord] = {}

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
            return [copy.deepcopy(r) for r in self._datasets.values() if asked_for(r, states, tenant)]

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

    def results(self, keys: Iterable[str]) -> dict[str, StageResult]:
        """Those of stages that are done, by key."""
        return {key: stage.result for key, stage in self.stages(keys).items() if stage.result is not None}

    def reopen_stage(self, plan: StagePlan) -> bool:
        """Moves failed -> pending with no attempts counted."""
        stored = StagePlan.from_json(as_json(plan.to_json()))
        with self._lock:
            if plan.key not in self._stages or self._stages[plan.key].state != "failed":
                return False
            self._stages[plan.key] = StageRecord(stored, "pending")
            return True

    # ---------------------------------------------------------------------------------- attempts

    def open_attempt(
        self, key: str, *, lease_s: float, threads: int, slots: int = 1, asker: Asker = NO_ONE
    ) -> AttemptRecord | None:
        """Moves pending -> running; of several callers at once, one gets the attempt."""
        with self._lock:
            stage = self._stages.get(key)
            now = time.time()
            if stage is None or stage.state != "pending" or (stage.not_before or 0.0) > now:
                return None
            token, expires_at = secrets.token_hex(16), now + lease_s
            attempt = AttemptRecord(
                new_id("att"), key, token, "open", expires_at, threads, now, asker=asker, slots=slots
            )
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
        """Seconds that attempts at these stages have run since then, in all of their slots."""
        wanted, now = frozenset(keys), time.time()
        with self._lock:
            found = [a for a in self._attempts.values() if a.stage_key in wanted and a.opened_at >= since]
        return sum(((attempt.ended_at or now) - attempt.opened_at) * attempt.slots for attempt in found)

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


def _given(stage: StageRecord) -> StageRecord:
    """A stage to hand out: what callers might change is copied, its plan is taken to be left alone."""
    return replace(stage, result=copy.deepcopy(stage.result), progress=copy.deepcopy(stage.progress))
