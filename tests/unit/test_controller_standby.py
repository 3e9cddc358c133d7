"""A controller that lost its ledger to another one does nothing until that one is gone."""

import logging
import threading
import time
from collections.abc import Callable

import pytest

from instant import drive, honest, setup
from stillhouse.search import controller as controllers
from stillhouse.search.controller import TAKEN, Controller
from stillhouse.search.domain import StageKind
from stillhouse.search.errors import AwayError
from stillhouse.search.job import JobRecord
from stillhouse.search.ports import Observer, Sole


class Told(Sole):
    """Says what a test wants."""

    def __init__(self) -> None:
        self.answer: bool | Exception = True

    def held(self) -> bool:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Watch(Observer):
    def __init__(self) -> None:
        self.steps: list[bool] = []
        self.ends: list[str] = []

    def stepped(self, seconds: float, *, failed: bool) -> None:  # noqa: ARG002
        self.steps.append(failed)

    def ended(self, job: JobRecord, *, times: int) -> None:  # noqa: ARG002
        self.ends.append(job.id)


class AnyHome:
    """Counts how often it is looked at."""

    looks = 0

    def lack(self) -> str | None:
        self.looks += 1
        return None

    def tidy(self) -> None:
        pass


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_on_standby_nothing_is_done(caplog: pytest.LogCaptureFixture) -> None:
    ledger, job, engine, _ = setup(lambda plan: None if plan.kind is StageKind.TEACHER else honest(plan))
    engine.keeps_running = True
    sole, home, watch = Told(), AnyHome(), Watch()
    controller = Controller(ledger, engine, lease_s=30, max_attempts=2, sole=sole, home=home, observer=watch)
    for _ in range(20):
        assert controller.step()
    (attempt,) = ledger.open_attempts()
    sole.answer, looks, events = False, home.looks, ledger.events(job.id)
    engine.alive.clear()  # in charge, it would be lost
    with caplog.at_level(logging.WARNING):
        assert [controller.step() for _ in range(3)] == [False] * 3
        assert [one.id for one in ledger.open_attempts()] == [attempt.id]
        assert (home.looks, ledger.events(job.id)) == (looks, events)
        sole.answer = AwayError("the database does not answer")
        with pytest.raises(AwayError):
            controller.step()
        sole.answer = False
        assert not controller.step()
        sole.answer = True
        assert controller.step()
    assert caplog.messages == [TAKEN, "in charge again; going on"], "each is said once"
    assert ledger.attempt(attempt.id).state == "lost"
    engine.work = honest
    ledger._stages.update({s.key: type(s)(s.plan, s.state, s.attempts, s.result) for s in ledger._stages.values()})
    assert drive(controller, ledger, job.id) == "done"


def test_an_end_that_came_on_standby_is_for_the_other_to_tell() -> None:
    ledger, job, engine, _ = setup(honest)
    sole, watch = Told(), Watch()
    controller = Controller(ledger, engine, lease_s=30, max_attempts=2, sole=sole, observer=watch)
    other = Controller(ledger, engine, lease_s=30, max_attempts=2, observer=Watch())
    for _ in range(5):
        controller.step()
    sole.answer = False
    controller.step()
    assert drive(other, ledger, job.id) == "done"
    sole.answer = True
    controller.step()
    assert watch.ends == []


def test_the_loop_goes_on_asking_and_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "RETRY_S", 0.01)
    ledger, job, engine, _ = setup(honest)
    sole, watch, stop = Told(), Watch(), threading.Event()
    sole.answer = False
    controller = Controller(ledger, engine, lease_s=30, max_attempts=2, sole=sole, observer=watch)
    thread = threading.Thread(target=controller.run, args=(stop,), kwargs={"poll_s": 0.0})
    thread.start()
    try:
        time.sleep(0.1)
        assert (watch.steps, ledger.job(job.id).state) == ([], "queued"), "an alert on steps must not take it for work"
        sole.answer = AwayError("the database does not answer")
        until(lambda: watch.steps)
        assert all(watch.steps), "these have failed"
        sole.answer = True
        until(lambda: ledger.job(job.id).state == "done")
    finally:
        stop.set()
        thread.join()
