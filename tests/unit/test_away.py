"""A database that does not answer for a while: told from other faults, asked again by workers, a 503 of the API."""

import sqlite3
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from served import CATALOGUE
from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.errors import AwayError, LeaseLostError
from stillhouse.search.job import AttemptRecord
from stillhouse.service.app import create_app
from stillhouse.service.claim import LocalClaim
from stillhouse.service.db import connect
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore

PLAN = StagePlan(StageKind.TEACHER, {})


@pytest.fixture
def locked(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A ledger whose file another process has locked."""
    upgrade(sqlite_url)
    monkeypatch.setattr(connect, "BUSY_TIMEOUT_S", 0.05)
    ledger = SqlLedger(sqlite_url)
    ledger.ensure_stage(PLAN)
    ledger.publish_catalogue(CATALOGUE)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield ledger
    other.close()
    ledger.close()


def test_a_locked_database_is_away(locked: SqlLedger) -> None:
    with pytest.raises(AwayError, match="the database does not answer: database is locked"):
        locked.open_attempt(PLAN.key, lease_s=9, threads=1)


def test_the_api_says_503_and_when_to_ask_again(locked: SqlLedger, tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path / "home")
    app = create_app(locked, DiskStore(settings.artifacts), settings)
    with TestClient(app, base_url="http://127.0.0.1") as http:
        answer = http.post("/datasets", json={"builtin": "textures"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "send the request again" in answer.json()["detail"]


class Away(MemoryLedger):
    """Does not answer the next calls; with ``deaf`` it does what it is told and then does not answer."""

    calls, deaf = 0, False

    def _fail(self) -> None:
        if self.calls > 0:
            self.calls -= 1
            raise AwayError("the database does not answer")

    def attempt(self, attempt_id: str) -> AttemptRecord:
        if not self.deaf:
            self._fail()
        return super().attempt(attempt_id)

    def commit(self, attempt_id: str, token: str, result: StageResult, *, seconds: float) -> bool:
        if not self.deaf:
            self._fail()
        done = super().commit(attempt_id, token, result, seconds=seconds)
        if self.deaf:
            self._fail()
        return done


def claim(ledger: Away, tmp_path: Path, lease_s: float = 9) -> LocalClaim:
    ledger.ensure_stage(PLAN)
    attempt = ledger.open_attempt(PLAN.key, lease_s=lease_s, threads=1)
    assert attempt is not None
    return LocalClaim(ledger, DiskStore(tmp_path), attempt.id, lease_s=lease_s, heartbeat_s=1, log="log")


def test_a_worker_asks_again(tmp_path: Path) -> None:
    ledger = Away()
    ledger.calls = 1
    held = claim(ledger, tmp_path)
    ledger.calls = 2
    assert held.commit(StageResult({}, {"a": 1}), seconds=1)
    assert ledger.stages([PLAN.key])[PLAN.key].state == "done"


def test_a_commit_whose_answer_was_lost_is_known_for_done(tmp_path: Path) -> None:
    ledger = Away()
    held = claim(ledger, tmp_path)
    ledger.deaf, ledger.calls = True, 1
    assert held.commit(StageResult(), seconds=1)
    assert not held.commit(StageResult(), seconds=1), "asked for the first time, it is late"


def test_a_worker_gives_up_when_its_lease_must_be_over(tmp_path: Path) -> None:
    ledger = Away()
    held = claim(ledger, tmp_path, lease_s=0.3)
    ledger.calls = 1000
    with pytest.raises(LeaseLostError, match=r"the database gave no answer for 0\.3 s"):
        held.commit(StageResult(), seconds=1)
