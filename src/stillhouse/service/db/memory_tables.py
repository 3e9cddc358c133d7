"""What the memory ledger keeps, which its parts share; ``MemoryLedger`` makes it."""

from __future__ import annotations

import threading

from stillhouse.search.domain import Deployment
from stillhouse.search.job import AttemptRecord, DatasetRecord, Event, JobRecord, StageRecord, TrialRecord


class MemoryTables:
    """Records by what names them; the lock is held while they are looked at or changed."""

    _lock: threading.RLock
    _datasets: dict[str, DatasetRecord]
    _source_bytes: dict[str, int]
    _jobs: dict[str, JobRecord]
    _by_idempotency_key: dict[tuple[str, str], tuple[str, str]]
    _trials: dict[tuple[str, int], TrialRecord]
    _stages: dict[str, StageRecord]
    _stored_at: dict[str, float]
    _attempts: dict[str, AttemptRecord]
    _deployments: dict[str, Deployment]
    _events: list[Event]
