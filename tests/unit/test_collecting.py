"""The home has what nobody needs collected in the background, once an hour, and nothing waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stillhouse.search.errors import AwayError
from stillhouse.service import home
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.home import DiskHome
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore
from stillhouse.service.unneeded import Collector, Removed


class Collecting:
    """A home whose collector removes three stages and then does what a test wants."""

    def __init__(self, folder: Path, last: Callable[[], object] = lambda: None) -> None:
        settings, ledger = Settings.load(home=folder), MemoryLedger()
        settings.make_folders()
        store = DiskStore(settings.artifacts)
        self.runs: list[float] = []
        self.pieces, runs = 0, self.runs
        outer = self

        class Watched(Collector):
            def run(self, *, older_than_s: float, dry_run: bool = False, claim: bool = False) -> Iterator[Removed]:
                assert not dry_run and not claim
                runs.append(older_than_s)
                for _ in range(3):
                    outer.pieces += 1
                    yield Removed("stages", 1)
                last()

        self.home = DiskHome(settings, ledger, store, Watched(settings, ledger, store))

    def tidy(self, *, later_s: float = 0.0, wait_s: float = 20) -> bool:
        """Tidies; True when what was begun by then has ended."""
        self.home._begun -= later_s
        self.home.tidy()
        assert self.home._collecting is not None
        self.home._collecting.join(wait_s)
        return not self.home._collecting.is_alive()


def test_the_home_collects_once_an_hour(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="stillhouse")
    subject = Collecting(tmp_path / "home")
    assert subject.tidy() and subject.tidy(later_s=60)
    assert subject.runs == [30 * 86_400.0]
    assert "removed what is no longer needed: 3 stages" in caplog.text
    assert subject.tidy(later_s=home.COLLECT_S)
    assert len(subject.runs) == 2
    subject.home.close()
    subject.tidy(later_s=home.COLLECT_S)
    assert len(subject.runs) == 2, "a closed home begins nothing"


def test_a_bucket_that_hangs_holds_up_no_tidying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    subject = Collecting(tmp_path / "home", lambda: answer.wait(60))
    began = time.monotonic()
    assert not subject.tidy(wait_s=0.2)
    assert not subject.tidy(later_s=home.COLLECT_S, wait_s=0.2)
    assert len(subject.runs) == 1, "one at a time"
    monkeypatch.setattr(home, "CLOSE_S", 0.2)
    subject.home.close()
    assert time.monotonic() - began < 10
    assert subject.home._collecting is not None and subject.home._collecting.daemon, "it ends with the process"
    answer.set()
    subject.home._collecting.join(20)


def test_a_home_that_is_closed_collects_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "PAUSE_S", 60.0)
    subject = Collecting(tmp_path / "home")
    assert not subject.tidy(wait_s=0.2)
    subject.home.close()
    assert subject.home._collecting is not None and not subject.home._collecting.is_alive()
    assert subject.pieces == 1


@pytest.mark.parametrize("error", [AwayError("the database is away"), OSError("no route"), RuntimeError("unforeseen")])
def test_a_collecting_that_fails_is_logged_and_done_again(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    subject = Collecting(tmp_path / "home", fail)
    assert subject.tidy()
    assert "could not all be removed" in caplog.text and str(error) in caplog.text
    assert subject.tidy(later_s=home.COLLECT_S)
    assert len(subject.runs) == 2
