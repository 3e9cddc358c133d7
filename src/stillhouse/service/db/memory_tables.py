"""What the memory ledger keeps, which its parts share; ``MemoryLedger`` makes it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import TypeVar

from stillhouse.search.domain import Deployment
from stillhouse.search.job import AttemptRecord, DatasetRecord, Event, JobRecord, StageRecord, TrialRecord
from stillhouse.service.db.records import not_found

Record = TypeVar("Record")


class MemoryTables:
    """Records by what names them; the lock is held while they are looked at or changed."""

    _lock: threading.RLock
    _datasets: dict[str, DatasetRecord]
    _source_bytes: dict[str, int]
    _jobs: dict[str, JobRecord]
    _made_by: dict[str, str | None]
    _by_idempotency_key: dict[tuple[str, str], tuple[str, str]]
    _trials: dict[tuple[str, int], TrialRecord]
    _stages: dict[str, StageRecord]
    _stored_at: dict[str, float]
    _attempts: dict[str, AttemptRecord]
    _deployments: dict[str, Deployment]
    _events: list[Event]

    def _get(self, records: Mapping[str, Record], what: str, key: str) -> Record:
        with self._lock:
            if key not in records:
                raise not_found(what, key)
            return copy.deepcopy(records[key])


def asked_for(record: DatasetRecord | JobRecord, states: Sequence[str], tenant: str | None) -> bool:
    """True for one in these states (none named: in any) of a tenant (None: of any)."""
    return (not states or record.state in states) and (tenant is None or record.tenant == tenant)
