"""Any order of calls on the life of jobs, trials, stages and attempts: the ledgers answer as a small model does."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from stillhouse.search.domain import Candidate, Cost, Size, StageKind, StagePlan, StageResult
from stillhouse.search.job import JobSpec
from stillhouse.search.ports import Ledger
from stillhouse.search.states import JOB, LIVE, OPEN_TRIALS, STAGE, TRIAL
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.db.migrate import upgrade

CANDIDATE = Candidate("resnet18", Size(32, 32), Size(64, 64))
MAX_ATTEMPTS = 2
NAMES = st.sampled_from("abc")


@dataclass
class Stage:
    """What is known of a stage: how often it was tried, what it left, and who works on it."""

    state: str = "pending"
    tries: int = 0
    result: int | None = None
    waits: bool = False
    holder: str | None = None
    ended: list[str] = field(default_factory=list)


def plan(name: str) -> StagePlan:
    return StagePlan(StageKind.STUDENT, {"name": name})


class Lifecycle(RuleBasedStateMachine):
    """A ledger beside the model; subclasses say which ledger."""

    attempts = Bundle("attempts")

    def open_ledger(self) -> Ledger:
        return MemoryLedger()

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.open_ledger()
        self.stages: dict[str, Stage] = {}
        self.tokens: dict[str, tuple[str, str]] = {}
        self.trials: dict[int, str] = {}
        self.stopped: dict[int, str] = {}
        self.job_state = "queued"
        self.events = 0

    @initialize()
    def begin(self) -> None:
        dataset = self.ledger.add_dataset("d", StagePlan(StageKind.INGEST, {}))
        self.job = self.ledger.add_job(JobSpec(dataset.id), idempotency_key="once").id
        assert self.ledger.add_job(JobSpec(dataset.id), idempotency_key="once").id == self.job

    # ------------------------------------------------------------------------ stages and attempts

    @rule(name=NAMES)
    def ensure(self, name: str) -> None:
        stored = self.ledger.ensure_stage(plan(name))
        assert stored.state == self.stages.setdefault(name, Stage()).state

    @rule(target=attempts, name=NAMES)
    def open(self, name: str) -> tuple[str, str]:
        """Gives an attempt, or one that there is not."""
        stage = self.stages.get(name, Stage("unknown"))
        attempt = self.ledger.open_attempt(plan(name).key, lease_s=30, threads=1)
        assert (attempt is not None) == (stage.state == "pending" and not stage.waits)
        if attempt is None:
            return name, "att_none"
        stage.state, stage.tries, stage.holder = "running", stage.tries + 1, attempt.id
        self.tokens[attempt.id] = (name, attempt.token)
        return name, attempt.id

    def _held(self, given: tuple[str, str], right: bool) -> tuple[Stage | None, str, str]:
        """The stage if this attempt holds it and shows the right token, the attempt's id, the token shown."""
        name, attempt = given
        token = self.tokens.get(attempt, ("", "none"))[1] if right else "wrong"
        stage = self.stages.get(name)
        holds = stage is not None and stage.holder == attempt and right
        return (stage if holds else None), attempt, token

    @rule(given=attempts, right=st.booleans())
    def renew(self, given: tuple[str, str], right: bool) -> None:
        stage, attempt, token = self._held(given, right)
        assert self.ledger.renew(attempt, token, lease_s=30, progress={"done": 1}) == (stage is not None)

    @rule(given=attempts, right=st.booleans(), figure=st.integers(0, 99))
    def commit(self, given: tuple[str, str], right: bool, figure: int) -> None:
        stage, attempt, token = self._held(given, right)
        done = self.ledger.commit(attempt, token, StageResult({}, {"figure": figure}), seconds=1.0)
        assert done == (stage is not None)
        if stage is not None:
            stage.state, stage.result, stage.holder = "done", figure, None
            stage.ended.append("done")

    @rule(given=attempts, right=st.booleans())
    def fail(self, given: tuple[str, str], right: bool) -> None:
        stage, attempt, token = self._held(given, right)
        assert self.ledger.fail(attempt, token, "a fault") == (stage is not None)
        if stage is not None:
            stage.state, stage.holder = "failed", None
            stage.ended.append("failed")

    @rule(given=attempts, counts=st.booleans(), waits=st.booleans())
    def lose(self, given: tuple[str, str], counts: bool, waits: bool) -> None:
        stage, attempt, _ = self._held(given, True)
        most, wait_s = MAX_ATTEMPTS if counts else None, 600.0 if waits else 0.0
        assert self.ledger.lose(attempt, max_attempts=most, wait_s=wait_s, reason="gone") == (stage is not None)
        if stage is not None:
            stage.ended.append("lost")
            stage.holder, stage.tries = None, stage.tries if counts else stage.tries - 1
            stage.state = "failed" if counts and stage.tries >= MAX_ATTEMPTS else "pending"
            stage.waits = waits and stage.state == "pending"

    @rule(name=NAMES)
    def reopen(self, name: str) -> None:
        stage = self.stages.get(name, Stage("unknown"))
        assert self.ledger.reopen_stage(plan(name)) == (stage.state == "failed")
        if stage.state == "failed":
            stage.state, stage.tries, stage.waits = "pending", 0, False

    # ---------------------------------------------------------------------------- jobs and trials

    @rule(expect=st.sampled_from(sorted(JOB)), to=st.sampled_from(sorted(JOB)))
    def move_job(self, expect: str, to: str) -> None:
        if to not in JOB[expect]:
            return
        assert self.ledger.move_job(self.job, expect=(expect,), to=to) == (expect == self.job_state)
        if expect == self.job_state:
            self.job_state, self.events = to, self.events + 1
            self._follow(to)

    def _follow(self, to: str) -> None:
        """What becomes of the trials."""
        for number, state in self.trials.items():
            if to in ("failed", "cancelled") and state in OPEN_TRIALS:
                self.stopped[number] = state
                now = "stopped"
            elif to == "queued" and (state == "failed" or number in self.stopped):
                now = "paused" if self.stopped.pop(number, "") == "paused" else "costing"
            else:
                continue
            self.trials[number], self.events = now, self.events + 1

    @rule(number=st.integers(0, 2))
    def add_trial(self, number: int) -> None:
        new = number not in self.trials and self.job_state in LIVE
        assert self.ledger.add_trial(self.job, number, CANDIDATE, Cost(macs=1)) == new
        if new:
            self.trials[number] = "costing"

    @rule(number=st.integers(0, 2), expect=st.sampled_from(sorted(TRIAL)), to=st.sampled_from(sorted(TRIAL)))
    def move_trial(self, number: int, expect: str, to: str) -> None:
        if to not in TRIAL[expect]:
            return
        holds = self.trials.get(number) == expect and self.job_state in LIVE
        assert self.ledger.move_trial(self.job, number, expect=expect, to=to) == holds
        if holds:
            self.trials[number], self.events = to, self.events + 1

    # ------------------------------------------------------------------------------------- always

    @invariant()
    def stages_agree(self) -> None:
        stored = self.ledger.stages(plan(name).key for name in self.stages)
        for name, model in self.stages.items():
            stage = stored[plan(name).key]
            assert stage.state in STAGE
            figure = None if stage.result is None else stage.result.metrics["figure"]
            assert (stage.state, stage.attempts, figure) == (model.state, model.tries, model.result)
            assert ((stage.not_before or 0.0) > time.time()) == model.waits
            tried = self.ledger.attempts(plan(name).key)
            assert sorted(one.state for one in tried) == sorted([*model.ended, *(["open"] if model.holder else [])])
            assert sum(one.state == "done" for one in tried) == (model.state == "done")

    @invariant()
    def open_attempts_are_those_of_running_stages(self) -> None:
        held = {stage.holder for stage in self.stages.values() if stage.holder}
        assert {one.id for one in self.ledger.open_attempts()} == held
        assert all((stage.holder is not None) == (stage.state == "running") for stage in self.stages.values())

    @invariant()
    def the_job_agrees(self) -> None:
        assert self.ledger.job(self.job).state == self.job_state
        assert {trial.number: trial.state for trial in self.ledger.trials(self.job)} == self.trials
        if self.job_state in ("failed", "cancelled"):
            assert not set(self.trials.values()) & set(OPEN_TRIALS)
        events = self.ledger.events(self.job)
        assert len(events) == self.events
        assert [event.id for event in events] == sorted({event.id for event in events})


class SqliteLifecycle(Lifecycle):
    """On a file."""

    def open_ledger(self) -> Ledger:
        self.folder = Path(tempfile.mkdtemp(prefix="stillhouse-lifecycle-"))
        url = f"sqlite:///{self.folder / 'ledger.db'}"
        upgrade(url)
        return SqlLedger(url)

    def teardown(self) -> None:
        assert isinstance(self.ledger, SqlLedger)
        self.ledger.close()
        shutil.rmtree(self.folder)


TestMemory = Lifecycle.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSqlite = SqliteLifecycle.TestCase
TestSqlite.settings = settings(
    max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
