"""The newest checkpoint is sent from time to time beside a training, and nothing that goes wrong with it stops that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.search.domain import StageKind, StagePlan
from stillhouse.search.errors import LeaseLostError, StillhouseError
from stillhouse.service import courier
from stillhouse.service.claim import Order
from stillhouse.service.courier import Courier


class FakeClaim:
    """Takes checkpoints, after these errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.tried, self.came = list(errors), 0, list[str]()

    def send_checkpoint(self, path: Path, stop: threading.Event) -> bool:
        self.tried += 1
        if self.errors:
            raise self.errors.pop(0)
        self.came.append(path.name)
        return not stop.is_set()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "LOOK_S", 0.01)


def order(every_s: float, checkpoint: str | None = None) -> Order:
    return Order(StagePlan(StageKind.TEACHER, {}), {}, 1, 30, 2, checkpoint=checkpoint, checkpoint_every_s=every_s)


def name(epoch: int) -> str:
    return f"checkpoint-{epoch:06d}-{'0' * 64}.pt"


def wrote(folder: Path, *epochs: int) -> None:
    for epoch in epochs:
        (folder / name(epoch)).write_bytes(b"state")


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def opened(claim: FakeClaim, given: Order, folder: Path) -> Courier:
    return Courier(claim, given, folder)  # type: ignore[arg-type]


def test_each_newest_is_sent_once(tmp_path: Path) -> None:
    claim = FakeClaim()
    with opened(claim, order(0), tmp_path / "none yet"):
        time.sleep(0.05)
    assert claim.came == []
    with opened(claim, order(0), tmp_path):
        wrote(tmp_path, 1, 2)
        (tmp_path / "weights.pt").write_bytes(b"no checkpoint")
        until(lambda: claim.came)
        time.sleep(0.05)
        wrote(tmp_path, 3)
        until(lambda: len(claim.came) > 1)
    assert claim.came[-1] == name(3)
    assert len(claim.came) == len(set(claim.came)) <= 3


def test_what_came_from_there_is_not_sent_back(tmp_path: Path) -> None:
    claim = FakeClaim()
    wrote(tmp_path, 4, 5)
    with opened(claim, order(0, checkpoint=name(5)), tmp_path):
        time.sleep(0.05)
        assert claim.came == []
        wrote(tmp_path, 6)
        until(lambda: claim.came == [name(6)])


def test_it_waits_between_two(tmp_path: Path) -> None:
    claim = FakeClaim()
    with opened(claim, order(0.3), tmp_path):
        began = time.monotonic()
        wrote(tmp_path, 1)
        until(lambda: claim.came)
        assert time.monotonic() - began >= 0.25


@pytest.mark.parametrize("error", [StillhouseError("away"), OSError("reset"), FileNotFoundError("replaced")])
def test_what_fails_is_sent_again(tmp_path: Path, error: Exception) -> None:
    claim = FakeClaim(error)
    wrote(tmp_path, 1)
    with opened(claim, order(0), tmp_path):
        until(lambda: claim.came == [name(1)])


def test_a_lost_lease_ends_it(tmp_path: Path) -> None:
    claim = FakeClaim(LeaseLostError("another's"))
    wrote(tmp_path, 1)
    with opened(claim, order(0), tmp_path):
        until(lambda: claim.tried)
        time.sleep(0.05)
    assert (claim.tried, claim.came) == (1, [])
