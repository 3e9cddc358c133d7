"""The disk under the home: whether it has room, what of it is swept, and which errors tell that it is full."""

import errno
import fcntl
import os
import sqlite3
import time
from pathlib import Path

import pytest

from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.errors import StageError, StillhouseError
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.home import DiskHome, kept_tidy
from stillhouse.service.room import disk_full, lack_of_room
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings.load(home=tmp_path / "home")
    settings.make_folders()
    return settings


def test_room_is_what_the_file_system_says(settings: Settings) -> None:
    assert lack_of_room(Settings.load(home=settings.home, least_free_bytes=0)) is None
    said = lack_of_room(Settings.load(home=settings.home, least_free_bytes=2**60)) or ""
    assert "MiB left" in said
    assert "STILLHOUSE_LEAST_FREE_BYTES" in said
    assert lack_of_room(Settings.load(home=settings.home / "none", least_free_bytes=2**60)) is None


def old(path: Path, seconds: float = 4000) -> Path:
    path.write_bytes(b"torn")
    before = path.stat().st_mtime - seconds
    os.utime(path, (before, before))
    return path


def test_only_what_nobody_uses_is_swept(settings: Settings) -> None:
    ledger, store = MemoryLedger(), DiskStore(settings.artifacts)
    done, pending = (StagePlan(StageKind.TEACHER, {"name": name}) for name in ("done", "pending"))
    for plan in (done, pending):
        ledger.ensure_stage(plan)
        (settings.work / plan.key).mkdir()
        (settings.work / plan.key / "checkpoint").write_bytes(b"state")
    attempt = ledger.open_attempt(done.key, lease_s=9, threads=1)
    assert attempt is not None
    ledger.commit(attempt.id, attempt.token, StageResult(), seconds=1)
    torn, fresh = old(settings.artifacts / "tmp" / "torn"), settings.artifacts / "tmp" / "fresh"
    locked, upload = old(settings.artifacts / "tmp" / "locked"), old(settings.uploads / "a.tmp")
    slow, kept = old(settings.uploads / "slow.tmp", 600), old(settings.uploads / "whole.zip")
    fresh.write_bytes(b"")
    with locked.open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        DiskHome(settings, ledger, store).tidy()
    assert [path.exists() for path in (torn, upload, settings.work / done.key)] == [False] * 3
    assert [path.exists() for path in (fresh, locked, slow, kept, settings.work / pending.key)] == [True] * 5


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EACCES, "x"), False),
        (sqlite3.OperationalError("database or disk is full"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (raised(StageError("the file was not written"), OSError(errno.ENOSPC, "x")), True),
        (raised(StageError("the loss is not finite"), ValueError("nan")), False),
    ],
)
def test_errors_of_a_full_disk(error: Exception, full: bool) -> None:
    assert disk_full(error) == full


def test_a_home_without_a_controller_is_kept_tidy(caplog: pytest.LogCaptureFixture) -> None:
    class Kept:
        calls = 0
        closed = False

        def tidy(self) -> None:
            self.calls += 1
            if self.calls == 1:
                raise StillhouseError("the database is away")
            if self.calls == 2:
                raise KeyError("a fault of ours")

        def close(self) -> None:
            self.closed = True

    kept, deadline = Kept(), time.monotonic() + 10
    with kept_tidy(kept, every_s=0.01):  # type: ignore[arg-type]
        while kept.calls < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
    calls = kept.calls
    time.sleep(0.05)
    assert (calls >= 4, kept.calls, kept.closed) == (True, calls, True)
    assert "the database is away" in caplog.text
    assert "a fault of ours" in caplog.text
