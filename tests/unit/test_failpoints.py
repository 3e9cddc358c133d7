"""Failpoints do nothing unless they are named, and then what they are told, once."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillhouse.search import failpoints
from stillhouse.search.failpoints import ONCE, VARIABLE, passing


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(ONCE, raising=False)
    failpoints._passed.clear()


def test_nothing_happens_unless_the_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    passing("commit.before")
    monkeypatch.setenv(VARIABLE, "commit.before=raise")
    passing("commit.after")
    with pytest.raises(RuntimeError, match=r"failpoint commit\.before"):
        passing("commit.before")


def test_the_nth_passing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "put.after=enospc@2; put.before=sleep:0.05")
    passing("put.after")
    with pytest.raises(OSError, match=r"put\.after") as told:
        passing("put.after")
    assert told.value.errno == errno.ENOSPC
    passing("put.after")
    begun = time.monotonic()
    passing("put.before")
    assert time.monotonic() - begun >= 0.05


def test_once_for_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "put.after=raise")
    monkeypatch.setenv(ONCE, str(tmp_path))
    with pytest.raises(RuntimeError):
        passing("put.after")
    passing("put.after")


def test_notes_are_taken_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "epoch.before=note")
    monkeypatch.setenv(ONCE, str(tmp_path))
    passing("epoch.before")
    passing("epoch.before")
    assert (tmp_path / "notes").read_text() == f"epoch.before {os.getpid()}\n" * 2


def test_an_unknown_action_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "put.after=explode")
    with pytest.raises(ValueError, match="'explode'"):
        passing("put.after")


def test_kill_ends_the_process() -> None:
    code = "from stillhouse.search.failpoints import passing; passing('a'); print('lives')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, VARIABLE: "a=kill"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
