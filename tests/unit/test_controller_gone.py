"""A job that its user ends in the middle of a step: at each single call that the controller makes to the ledger."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest

from instant import drive, honest, setup
from stillhouse.search.controller import Controller
from stillhouse.search.domain import Budget, Deployment, StageKind, StagePlan
from stillhouse.search.job import Epochs
from stillhouse.search.retry import retry
from stillhouse.search.states import LIVE
from stillhouse.search.wanted import Wanted
from stillhouse.service.db.memory import MemoryLedger

Scene = tuple[MemoryLedger, str, str, "Interrupted", Controller]


class Interrupted:
    """A ledger that does something before one of its calls."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger, self.calls, self.at, self.act = ledger, 0, -1, lambda: None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)

        def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                self.act()
            return found(*args, **options)

        return call


def scene() -> Scene:
    """A job whose trials pause at rungs, and another one beside it."""
    spec = {"trials": 2, "eta": 3, "epochs": Epochs(1, 1, 3), "budget": Budget(max_latency_ms=9)}
    ledger, job, engine, _ = setup(honest, **spec)
    other = ledger.add_job(dataclasses.replace(job.spec, seed=9, trials=1))
    engine.slots = 2
    watched = Interrupted(ledger)
    controller = Controller(watched, engine, lease_s=30, max_attempts=2)  # type: ignore[arg-type]
    return ledger, job.id, other.id, watched, controller


def calls() -> int:
    """How many calls there are until both jobs have ended."""
    ledger, first, second, watched, controller = scene()
    assert [drive(controller, ledger, each) for each in (first, second)] == ["done", "done"]
    return watched.calls


def ended_at_each_call(end: Callable[[MemoryLedger, str], None]) -> list[tuple[MemoryLedger, str]]:
    """Ends the first job at every seventh call, and lets the other one finish."""
    found = []
    for at in range(1, calls(), 7):
        ledger, job, other, watched, controller = scene()
        watched.at, watched.act = at, lambda ledger=ledger, job=job: end(ledger, job)  # type: ignore[misc]
        assert drive(controller, ledger, other) == "done", f"at call {at}"
        controller.step()
        found.append((ledger, job))
    return found


def said_by_us(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """An exporter of traces that another test closed may still be giving up, and say so here."""
    return [record for record in caplog.records if record.name.startswith("stillhouse")]


def cancel(ledger: MemoryLedger, job: str) -> None:
    ledger.move_job(job, expect=LIVE, to="cancelled")


def delete(ledger: MemoryLedger, job: str) -> None:
    cancel(ledger, job)
    ledger.delete_job(job)


def test_a_deleted_job_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    for ledger, job in ended_at_each_call(delete):
        assert not ledger.trials(job)
        assert not ledger.open_attempts()
    assert not said_by_us(caplog), "nothing is amiss"


def test_nothing_is_done_for_a_cancelled_job(caplog: pytest.LogCaptureFixture) -> None:
    for ledger, job in ended_at_each_call(cancel):
        told = [(event.kind, event.data["state"]) for event in ledger.events(job)]
        assert told[-1] in (("job", "cancelled"), ("job", "done"))
        assert all(trial.ended for trial in ledger.trials(job))
        assert not ledger.open_attempts()
    assert not said_by_us(caplog), "nothing is amiss"


def test_a_stage_that_vanishes_before_it_is_submitted_is_left_out() -> None:
    """With its job's last word on it: between the look at what is wanted and the start of what is ready."""
    ledger, _, engine, _ = setup(honest)
    kept, early, late = (ledger.ensure_stage(StagePlan(StageKind.TEACHER, {"n": n})).plan for n in range(3))
    wanted, watched = Wanted(), Interrupted(ledger)
    wanted.add([early, late, kept])
    engine.slots = 3
    del ledger._stages[early.key]
    watched.at, watched.act = 2, lambda: ledger._stages.pop(late.key)  # the first call has read both
    Controller(watched, engine, lease_s=30, max_attempts=2)._submit(wanted)  # type: ignore[arg-type]
    assert engine.done == [kept]


def test_nothing_is_stored_of_a_job_that_was_cancelled() -> None:
    ledger, job, _, controller = setup(honest)
    add = ledger.add_deployment

    def cancelled_first(deployment: Deployment) -> bool:
        cancel(ledger, job.id)
        return add(deployment)

    ledger.add_deployment = cancelled_first  # type: ignore[method-assign]
    assert drive(controller, ledger, job.id) == "cancelled"
    assert ledger.deployments(job.id) == []
    ledger.add_deployment = add  # type: ignore[method-assign]
    assert retry(ledger, ledger.job(job.id)).state == "queued"
    assert drive(controller, ledger, job.id) == "done"
    assert ledger.deployments(job.id)


def test_a_job_that_was_cancelled_anywhere_goes_on_to_the_same_end() -> None:
    ledger, first, _, watched, controller = scene()
    drive(controller, ledger, first)
    wanted = [(trial.number, trial.candidate, trial.state) for trial in ledger.trials(first)]
    for at in range(1, watched.calls, 7):
        ledger, job, other, watched, controller = scene()
        watched.at, watched.act = at, lambda ledger=ledger, job=job: cancel(ledger, job)  # type: ignore[misc]
        drive(controller, ledger, other)
        if ledger.job(job).state == "cancelled":
            assert retry(ledger, ledger.job(job)).state == "queued"
        assert drive(controller, ledger, job) == "done", f"at call {at}"
        assert [(trial.number, trial.candidate, trial.state) for trial in ledger.trials(job)] == wanted
        assert all(trial.reason is None or trial.state == "stopped" for trial in ledger.trials(job))
