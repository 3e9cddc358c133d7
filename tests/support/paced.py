"""An engine whose stages run until the test says so, on a clock that the test drives; the ledger is the real one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import patch

from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.job import AttemptRecord
from stillhouse.search.ports import Engine
from stillhouse.service.db import memory, memory_jobs
from stillhouse.service.db.memory import MemoryLedger

TRAINED = (StageKind.TEACHER, StageKind.ASSISTANT, StageKind.STUDENT)


@dataclass
class Running:
    """An attempt at work."""

    attempt: AttemptRecord
    plan: StagePlan
    ends_at: float


@dataclass
class PacedEngine(Engine):
    """Runs attempts on ``workers`` slots; one ends by ``finish``, when the clock has come to its end or before.

    Attributes:
        wide: Slots that one attempt may take.
        trained_s: Seconds of slots that trainings have run for, those cancelled included.
    """

    ledger: MemoryLedger
    work: Callable[[StagePlan], StageResult]
    workers: int
    seconds: Callable[[StagePlan], float] = lambda _: 1.0
    now: float = 1000.0
    one_machine: bool = False
    wide: int = 1
    at_work: list[Running] = field(default_factory=list)
    done: list[StagePlan] = field(default_factory=list)
    cancelled: list[StagePlan] = field(default_factory=list)
    trained_s: float = 0.0

    def capacity(self) -> int:
        return self.workers - sum(one.attempt.slots for one in self.at_work)

    def threads(self) -> int:
        return 1

    def widest(self) -> int:
        return self.wide

    def submit(self, attempt: AttemptRecord) -> None:
        assert self.capacity() >= attempt.slots
        plan = self.ledger.stages([attempt.stage_key])[attempt.stage_key].plan
        self.at_work.append(Running(attempt, plan, self.now + self.seconds(plan)))

    def finish(self, one: Running) -> None:
        """Ends an attempt with its result."""
        self.at_work.remove(one)
        self.done.append(one.plan)
        assert self.ledger.commit(one.attempt.id, one.attempt.token, self.work(one.plan), seconds=1.0)

    def pass_time(self, seconds: float) -> None:
        """Lets the clock run; what comes to its end meanwhile is finished at its end."""
        until = self.now + seconds
        for one in sorted(self.at_work, key=lambda running: running.ends_at):
            if one.ends_at <= until:
                self._count(one, max(0.0, one.ends_at - self.now))
                began, self.now = self.now, max(self.now, one.ends_at)
                self.finish(one)
                self.now = began
        for one in self.at_work:
            self._count(one, seconds)
        self.now = until

    def _count(self, one: Running, seconds: float) -> None:
        self.trained_s += seconds * one.attempt.slots if one.plan.kind in TRAINED else 0.0

    def running(self, attempt_id: str) -> bool:
        return any(one.attempt.id == attempt_id for one in self.at_work)

    def fault(self, _: str) -> str | None:
        return None

    def cancel(self, attempt_id: str) -> None:
        self.cancelled += [one.plan for one in self.at_work if one.attempt.id == attempt_id]
        self.at_work = [one for one in self.at_work if one.attempt.id != attempt_id]

    def close(self) -> None:
        pass


@contextmanager
def driven(engine: PacedEngine) -> Iterator[None]:
    """The ledger reads the engine's clock."""
    clock = SimpleNamespace(time=lambda: engine.now)
    with patch.object(memory, "time", clock), patch.object(memory_jobs, "time", clock):
        yield
