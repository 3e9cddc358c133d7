"""Stages take the slots that would stand idle: the controller on an engine whose stages run until the test says so."""

from collections.abc import Iterator

import pytest

from instant import honest, setup
from paced import PacedEngine, driven
from stillhouse.search.controller import Controller
from stillhouse.search.domain import StageKind
from stillhouse.search.job import AttemptRecord


class Rig:
    """A job of ten trials whose data set is read, and what its attempts take."""

    def __init__(self, workers: int, *, wide: int, trials: int = 10) -> None:
        self.ledger, self.job, _, _ = setup(honest, trials=trials)
        self.engine = PacedEngine(self.ledger, honest, workers, wide=wide)
        self.controller = Controller(
            self.ledger, self.engine, lease_s=1e9, max_attempts=1, clock=lambda: self.engine.now
        )
        self.steps = self._steps()

    def _steps(self) -> Iterator[list[AttemptRecord]]:
        """What was at work after each step; the stages of a step end together."""
        while self.ledger.job(self.job.id).state in ("queued", "running"):
            with driven(self.engine):
                self.controller.step()
            yield [one.attempt for one in self.engine.at_work]
            with driven(self.engine):
                self.engine.pass_time(1.0)

    def of(self, kind: StageKind) -> list[AttemptRecord]:
        """Attempts of the next step that has any at stages of this kind."""
        return next(
            found
            for attempts in self.steps
            if (found := [a for a in attempts if self.ledger.stages([a.stage_key])[a.stage_key].plan.kind is kind])
        )


def slots(attempts: list[AttemptRecord]) -> list[int]:
    return [attempt.slots for attempt in attempts]


@pytest.mark.parametrize(
    ("workers", "wide", "taken"), [(8, 2, 2), (8, 4, 4), (8, 1, 1), (3, 2, 2), (2, 2, 1), (1, 2, 1)]
)
def test_a_teacher_that_all_wait_for_takes_idle_slots_but_the_last(workers: int, wide: int, taken: int) -> None:
    (teacher,) = Rig(workers, wide=wide).of(StageKind.TEACHER)
    assert (teacher.slots, teacher.threads) == (taken, taken)


def test_stages_that_are_due_share_what_is_free() -> None:
    rig = Rig(8, wide=8)
    assert slots(rig.of(StageKind.TEACHER)) == [7]
    assistants = rig.of(StageKind.ASSISTANT)
    assert slots(assistants) == [2, 2, 3], "one of each architecture"
    assert rig.engine.capacity() == 1
    students = slots(rig.of(StageKind.STUDENT))
    assert len(students) >= 4
    assert max(students) == 1, "none is wide where others fill the slots"


def test_ingest_student_export_and_measurement_take_one_slot() -> None:
    """Each is the only stage that is due, with seven slots idle beside it."""
    rig = Rig(8, wide=8, trials=1)
    for kind in (StageKind.INGEST, StageKind.STUDENT, StageKind.EXPORT, StageKind.MEASURE):
        assert slots(rig.of(kind)) == [1]


def test_a_wide_attempt_does_not_lessen_the_trials_at_work() -> None:
    """Eight slots are eight trials, of which some wait for the same teacher."""
    at_work = set[int]()
    for wide in (1, 4):
        rig = Rig(8, wide=wide)
        rig.of(StageKind.TEACHER)
        assert rig.controller._slots() == 8
        with driven(rig.engine):
            rig.controller.step()
        at_work.add(sum(trial.at_work for trial in rig.ledger.trials(rig.job.id)))
    assert len(at_work) == 1
    assert at_work.pop() > 1


def test_what_a_wide_attempt_spends_is_that_of_its_slots() -> None:
    rig = Rig(4, wide=2)
    (teacher,) = rig.of(StageKind.TEACHER)
    next(rig.steps)
    assert rig.ledger.attempt(teacher.id).state == "done"
    assert rig.ledger.device_seconds([teacher.stage_key], since=0.0) == pytest.approx(2 * 1.0)
