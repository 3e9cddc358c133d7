"""An engine that does an attempt's whole work inside ``submit``, by the worker's own code, on the ledger of a home."""

from pathlib import Path

from stillhouse.search.job import AttemptRecord
from stillhouse.search.ports import Engine
from stillhouse.service import worker


class AtOnce(Engine):
    def __init__(self, home: Path) -> None:
        self._home = home

    def capacity(self) -> int:
        return 1

    def threads(self) -> int:
        return 1

    def submit(self, attempt: AttemptRecord) -> None:
        worker.run_attempt(attempt.id, 1, str(self._home))

    def running(self, attempt_id: str) -> bool:  # noqa: ARG002
        return False
