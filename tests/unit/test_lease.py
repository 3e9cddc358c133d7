"""A stage's process says at once that it lives, and keeps its work folder to itself."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from stillhouse.search.domain import Json
from stillhouse.search.errors import LeaseLostError
from stillhouse.service.worker import Lease, _only_worker


class FakeClaim:
    attempt_id = "att_1"

    def __init__(self, held: bool = True) -> None:
        self.held, self.renewed = held, list[Mapping[str, Json]]()

    def renew(self, progress: Mapping[str, Json]) -> bool:
        self.renewed.append(progress)
        return self.held


def until(claim: FakeClaim) -> None:
    deadline = time.monotonic() + 5
    while not claim.renewed and time.monotonic() < deadline:
        time.sleep(0.01)


def test_the_first_heartbeat_comes_at_once() -> None:
    """An attempt is opened with a long lease; only a heartbeat makes it short."""
    claim = FakeClaim()
    with Lease(claim, lease_s=300, heartbeat_s=60):  # type: ignore[arg-type]
        until(claim)
    assert claim.renewed == [{}]


def test_a_lease_that_is_gone_stops_the_work() -> None:
    claim = FakeClaim(held=False)
    with Lease(claim, lease_s=300, heartbeat_s=60) as lease:  # type: ignore[arg-type]
        until(claim)
        time.sleep(0.05)
        with pytest.raises(LeaseLostError):
            lease.report({})


def test_one_process_works_in_a_folder_and_clears_what_another_left(tmp_path: Path) -> None:
    work, order = tmp_path / "work", list[str]()
    inside = threading.Event()

    def second() -> None:
        inside.wait(5)
        with _only_worker(work):
            order.append("second")
            assert not (work / "part" / "torn.tmp").exists()

    thread = threading.Thread(target=second)
    thread.start()
    with _only_worker(work):
        (work / "part").mkdir()
        (work / "part" / "torn.tmp").write_bytes(b"torn")
        inside.set()
        time.sleep(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
