"""What the controller does about attempts that are lost, late or doomed, and about a full disk."""

import time
from dataclasses import dataclass, field

import pytest

from instant import drive, honest, setup
from stillhouse.search import controller as controllers
from stillhouse.search.controller import Controller
from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.errors import StillhouseError
from stillhouse.search.job import StageRecord
from stillhouse.service.db.memory import MemoryLedger


@dataclass
class FakeHome:
    why: str | None = None
    tidied: list[float] = field(default_factory=list)

    def lack(self) -> str | None:
        return self.why

    def tidy(self) -> None:
        self.tidied.append(time.time())


def dies_as(kind: StageKind, times: int):  # type: ignore[no-untyped-def]
    """Work whose first processes of a kind die."""
    left = [times]

    def work(plan: StagePlan) -> StageResult | None:
        if plan.kind is kind and left[0] > 0:
            left[0] -= 1
            return None
        return honest(plan)

    return work


def stage_of(ledger: MemoryLedger, kind: StageKind) -> StageRecord:
    return next(stage for stage in ledger._stages.values() if stage.plan.kind is kind)


def to_loss(controller: Controller, ledger: MemoryLedger, kind: StageKind) -> StageRecord:
    for _ in range(50):
        controller.step()
        for stage in ledger._stages.values():
            if stage.plan.kind is kind and stage.not_before is not None:
                return stage
    raise AssertionError(f"no {kind} was lost")


def test_a_lost_stage_waits_longer_each_time() -> None:
    ledger, _, engine, _ = setup(dies_as(StageKind.TEACHER, 9))
    controller = Controller(ledger, engine, lease_s=30, max_attempts=9)
    waits = []
    for _ in range(3):
        stage = to_loss(controller, ledger, StageKind.TEACHER)
        assert (stage.state, stage.reason) == ("pending", "its process ended without a result")
        waits.append(round((stage.not_before or 0) - time.time()))
        done = len(engine.done)
        controller.step()
        assert len(engine.done) == done, "nothing is started before its time"
        ledger._stages[stage.key] = type(stage)(stage.plan, "pending", stage.attempts)
    assert waits == [1, 4, 16]
    assert controllers.LONGEST_PAUSE_S == 300


def test_a_stage_that_waits_is_done_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "FIRST_PAUSE_S", 0.2)
    ledger, job, _, controller = setup(dies_as(StageKind.TEACHER, 1))
    to_loss(controller, ledger, StageKind.TEACHER)
    time.sleep(0.25)
    assert drive(controller, ledger, job.id) == "done"
    assert stage_of(ledger, StageKind.TEACHER).attempts == 2


def late(lease_s: float = 30):  # type: ignore[no-untyped-def]
    """A job whose teacher is running as far as the engine knows, and a clock that can be moved."""
    ledger, job, engine, _ = setup(dies_as(StageKind.TEACHER, 1))
    engine.keeps_running = True
    ahead = [0.0]
    controller = Controller(ledger, engine, lease_s=lease_s, max_attempts=5, clock=lambda: time.time() + ahead[0])
    for _ in range(20):
        controller.step()
    (attempt,) = ledger.open_attempts()
    return ledger, job, engine, controller, attempt, ahead


def test_an_attempt_with_no_sign_of_life_is_lost_and_cancelled() -> None:
    ledger, job, engine, controller, attempt, ahead = late()
    assert attempt.expires_at > time.time() + 100, "the first heartbeat may take long: its process is still loading"
    assert ledger.renew(attempt.id, attempt.token, lease_s=30, progress={})
    ahead[0] = 29
    controller.step()
    assert ledger.open_attempts()
    ahead[0] = 31
    controller.step()
    assert ledger.open_attempts(), "all are late after a sleep of the machine: the next heartbeat may be on its way"
    ahead[0] = 42
    controller.step()
    assert not ledger.open_attempts()
    assert engine.cancelled == [attempt.id]
    assert "no sign of life for 12 s" in (stage_of(ledger, StageKind.TEACHER).reason or "")
    assert not ledger.commit(attempt.id, attempt.token, StageResult(), seconds=1.0), (
        "the late holder has lost its right"
    )
    assert not ledger.renew(attempt.id, attempt.token, lease_s=30, progress={})
    ahead[0] = 60
    time.sleep(1.1)
    assert drive(controller, ledger, job.id) == "done"


def test_a_late_attempt_that_renews_is_kept() -> None:
    ledger, _, engine, controller, attempt, ahead = late()
    ledger.renew(attempt.id, attempt.token, lease_s=30, progress={})
    ahead[0] = 31
    controller.step()
    ledger.renew(attempt.id, attempt.token, lease_s=60, progress={})
    for seconds in (45, 59, 61, 65):
        ahead[0] = seconds
        controller.step()
    assert [one.id for one in ledger.open_attempts()] == [attempt.id]
    assert engine.cancelled == []


def test_a_fault_that_would_come_again_fails_the_stage_at_once() -> None:
    ledger, job, engine, _ = setup(dies_as(StageKind.TEACHER, 9))
    controller = Controller(ledger, engine, lease_s=30, max_attempts=9)
    engine.fault = lambda _: "it took more than it may"  # type: ignore[method-assign]
    assert drive(controller, ledger, job.id) == "failed"
    assert "it took more than it may" in (ledger.job(job.id).reason or "")
    assert [one.state for one in ledger.attempts(stage_of(ledger, StageKind.TEACHER).key)] == ["failed"]


def test_a_full_disk_starts_nothing_and_counts_no_try() -> None:
    ledger, job, engine, _ = setup(dies_as(StageKind.TEACHER, 1))
    home = FakeHome()
    controller = Controller(ledger, engine, lease_s=30, max_attempts=1, home=home)
    while not ledger.open_attempts():
        controller.step()
    home.why = "the disk is full"
    done = len(engine.done)
    for _ in range(20):
        controller.step()
    stage = stage_of(ledger, StageKind.TEACHER)
    assert (stage.state, stage.attempts, stage.not_before) == ("pending", 0, None)
    assert len(engine.done) == done
    assert ledger.job(job.id).state == "running"
    home.why = None
    assert drive(controller, ledger, job.id) == "done"


def test_the_home_is_tidied_at_the_start_and_then_now_and_then() -> None:
    ledger, _, engine, _ = setup(honest)
    home, ahead = FakeHome(), [0.0]
    controller = Controller(ledger, engine, lease_s=30, max_attempts=1, home=home, clock=lambda: time.time() + ahead[0])
    for seconds, times in ((0, 1), (30, 1), (61, 2), (90, 2)):
        ahead[0] = seconds
        controller.step()
        assert len(home.tidied) == times


def test_an_engine_that_does_not_start_an_attempt_costs_no_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "FIRST_PAUSE_S", 0.05)
    ledger, job, engine, _ = setup(honest)
    controller, submit = Controller(ledger, engine, lease_s=30, max_attempts=1), engine.submit

    def broken(_: object) -> None:
        raise StillhouseError("its server ended")

    for _ in range(3):
        monkeypatch.setattr(engine, "submit", broken)
        with pytest.raises(StillhouseError):
            controller.step()
        assert ledger.open_attempts() == []
        assert stage_of(ledger, StageKind.INGEST).reason == "the engine did not start it: its server ended"
        time.sleep(0.06)
    monkeypatch.setattr(engine, "submit", submit)
    assert drive(controller, ledger, job.id) == "done"
