"""The reconcile loop: looks at the ledger, does what is due, keeps nothing of its own.

Each ``step`` reads the state of all live jobs and moves it on (``advance.py``): ask -> cost -> train -> measure ->
tell -> front. Nothing is remembered between steps but the engine's processes, so a controller may die at
any point and another goes on from the ledger.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress

from stillhouse.search.advance import Desk, JobStep
from stillhouse.search.domain import StageKind, StagePlan
from stillhouse.search.errors import NotFoundError
from stillhouse.search.failpoints import passing
from stillhouse.search.job import AttemptRecord, DatasetRecord, JobRecord, StageRecord
from stillhouse.search.ports import Engine, Home, Ledger, Observer, Sole
from stillhouse.search.states import LIVE
from stillhouse.search.wanted import NO_ONE, Wanted

RETRY_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
"""How long a stage waits after its first lost attempt, four times as long after each further one, and at most."""
START_S = 120.0
"""Seconds that an attempt has to its first heartbeat: its process, or what it is forked from, may still be loading."""
TIDY_S = 60.0
"""How often the home is tidied."""
WIDENED = frozenset({StageKind.TEACHER, StageKind.TARGETS, StageKind.ASSISTANT})
"""Kinds of stages that trials wait for. By the time that students are due, there are enough of them for all slots."""
TAKEN = "another controller works on this database now; doing nothing until it is gone"

log = logging.getLogger(__name__)


class Controller:
    """Drives jobs from the ledger through an engine.

    Args:
        ledger: The truth.
        engine: Where attempts run.
        lease_s: Seconds that an attempt may go without a heartbeat.
        max_attempts: Tries at a stage whose process keeps dying.
        home: The disk that attempts work on; None takes it to have room without end.
        observer: Is told what is done.
        sole: Says whether this controller is the only one on the ledger; while it is not, it stands by. None takes it
            to be so.
        clock: Unix seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        *,
        lease_s: float,
        max_attempts: int,
        home: Home | None = None,
        observer: Observer | None = None,
        sole: Sole | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger, self._engine, self._home, self._clock = ledger, engine, home, clock
        self._lease_s, self._max_attempts, self._observer = lease_s, max_attempts, observer or Observer()
        self._sole, self._in_charge = sole or Sole(), True
        self._desks: dict[str, Desk] = {}
        self._started: set[str] = set()
        self._live: dict[str, str] = {}
        self._late: dict[str, float] = {}
        self._lack: str | None = None
        self._tidied = -TIDY_S

    def run(self, stop: threading.Event, *, poll_s: float = 0.2) -> None:
        """Steps until ``stop`` is set; a step that fails (the database is away) is logged and tried again."""
        while not stop.is_set():
            began, failed, stepped = time.monotonic(), False, True
            try:
                stepped = self.step()
            except Exception:
                failed = True
                log.exception("a step of the controller failed; trying again in %g s", RETRY_S)
            if stepped:
                self._observer.stepped(time.monotonic() - began, failed=failed)
            stop.wait(poll_s if stepped and not failed else RETRY_S)

    def step(self, only: Collection[str] | None = None) -> bool:
        """Does all that is due now; never waits. False on standby: another controller has the ledger.

        Args:
            only: Ids of the jobs and data sets to move on; None moves all. A run in the foreground does its own job
                and leaves what others left behind.
        """
        if not self._is_in_charge():
            return False
        self._look_at_home()
        self._reap()
        wanted = Wanted()
        for dataset in self._ledger.datasets("pending"):
            if only is None or dataset.id in only:
                self._advance_dataset(dataset, wanted)
        jobs, slots = self._ledger.jobs(*LIVE), self._slots()
        self._note({job.id: job for job in jobs})
        for job in jobs:
            if only is None or job.id in only:
                self._advance_job(job, wanted, slots)
        self._cancel_unwanted(wanted)
        self._offer(wanted)
        self._submit(wanted)
        return True

    def _is_in_charge(self) -> bool:
        """Asked before each step; one that lost the ledger stands by, and says so once."""
        held = self._sole.held()
        if held != self._in_charge:
            log.warning("%s", "in charge again; going on" if held else TAKEN)
            # The other one goes on with these jobs, and tells of them.
            self._live, self._late = {}, {}
            self._desks.clear()
        self._in_charge = held
        return held

    def _note(self, live: Mapping[str, JobRecord]) -> None:
        """Tells which jobs have come and gone since the last step, and forgets what was worked out for the latter."""
        for job in live.values():
            if job.state == "running" and self._live.get(job.id) != "running":
                self._observer.started(job)
        gone = self._live.keys() - live.keys()
        self._live = {job.id: job.state for job in live.values()}
        for job_id in gone:
            with suppress(NotFoundError):
                self._observer.ended(self._ledger.job(job_id), times=self._ends(job_id))
        for job_id in self._desks.keys() - live.keys():
            del self._desks[job_id]

    def _ends(self, job_id: str) -> int:
        """How often a job has ended: it may have been retried."""
        moves = (event.data for event in self._ledger.events(job_id) if event.kind == "job")
        return sum(move["state"] not in LIVE for move in moves)

    def _advance_job(self, job: JobRecord, wanted: Wanted, slots: int) -> None:
        """Moves one job on; one that is gone or cannot be planned is left out alone, and holds up no other."""
        try:
            JobStep(self._ledger, job, wanted, self._desks, slots=slots, now=self._clock()).advance()
        except (KeyError, ValueError, TypeError, ArithmeticError, NotFoundError) as error:
            if self._gone(job):
                return  # deleted since this step began
            log.exception("job %s cannot be planned", job.id)
            reason = f"unexpected {type(error).__name__} while planning: {error}; the controller's log has the details"
            self._ledger.move_job(job.id, expect=LIVE, to="failed", reason=reason)

    def _gone(self, job: JobRecord) -> bool:
        try:
            self._ledger.job(job.id)
        except NotFoundError:
            return True
        return False

    # --------------------------------------------------------------------------------- attempts

    def _slots(self) -> int:
        return max(1, self._engine.capacity() + sum(attempt.slots for attempt in self._ledger.open_attempts()))

    def _look_at_home(self) -> None:
        if self._home is None:
            return
        lack = self._home.lack()
        if lack != self._lack:
            log.warning("%s", lack or "there is room again; going on")
        self._lack = lack
        if self._clock() - self._tidied >= TIDY_S:
            self._tidied = self._clock()
            self._home.tidy()

    def _reap(self) -> None:
        """Ends the attempts whose process is gone, or has given no sign of life for longer than its lease.

        One that is late gets a third of a lease more from when it is first seen: after a machine was asleep or the
        database away, all are late, and their next heartbeat is on its way.
        """
        now, late = self._clock(), dict[str, float]()
        opened = self._ledger.open_attempts()
        self._started &= {attempt.id for attempt in opened}
        gone = [attempt for attempt in opened if not self._engine.running(attempt.id)]
        stages = self._ledger.stages({attempt.stage_key for attempt in gone})
        ended = {attempt.id for attempt in gone if stages[attempt.stage_key].plan.device is None}
        for attempt in opened:
            if attempt.id in ended:
                fault = self._engine.fault(attempt.id)
                if fault is not None:
                    self._ledger.fail(attempt.id, attempt.token, fault)
                else:
                    self._lose(attempt, "its process ended without a result")
            elif now > attempt.expires_at:
                late[attempt.id] = self._late.get(attempt.id, now)
                if now - late[attempt.id] >= self._lease_s / 3:
                    self._engine.cancel(attempt.id)
                    self._lose(attempt, f"its process gave no sign of life for {now - attempt.expires_at:.0f} s")
        self._late = late

    def _lose(self, attempt: AttemptRecord, reason: str) -> None:
        """Ends a lost attempt; its stage is tried again, after a pause when it may be the stage's doing."""
        if self._lack is not None or attempt.id not in self._started:
            # A full disk is no fault of the stage; what an earlier controller left open died with it.
            self._ledger.lose(attempt.id, max_attempts=None)
            return
        stage = self._ledger.stages([attempt.stage_key])[attempt.stage_key]
        tries = stage.attempts
        wait_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 4.0 ** min(tries - 1, 10))
        self._observer.lost(attempt, stage.plan, tries, reason)
        self._ledger.lose(attempt.id, max_attempts=self._max_attempts, wait_s=wait_s, reason=reason)

    def _cancel_unwanted(self, wanted: Wanted) -> None:
        for attempt in self._ledger.open_attempts():
            if attempt.stage_key not in wanted.plans:
                self._engine.cancel(attempt.id)
                self._ledger.lose(attempt.id, max_attempts=None)

    def _offer(self, wanted: Wanted) -> None:
        """Opens the next stage of each device that asks for work: it fetches that by itself."""
        waiting = [plan for plan in wanted.plans.values() if plan.device is not None]
        if self._lack is not None or not waiting:
            return
        now, known = self._clock(), {device.name: device for device in self._ledger.devices()}
        stored = self._ledger.stages(_with_inputs(waiting))
        busy = {stage.plan.device for stage in stored.values() if stage.state == "running"}
        for plan in waiting:
            device = known.get(plan.device or "")
            if device is None or device.name in busy or not device.at_hand(now) or not _is_due(plan, stored, now):
                continue
            if device.code != plan.code:  # it was another machine, or ran other code, when this was planned
                self._desks.clear()
                return
            attempt = self._open(plan, wanted, threads=plan.spec["threads"])
            if attempt is not None:
                self._observer.opened(attempt, plan)
                busy.add(device.name)

    def _open(self, plan: StagePlan, wanted: Wanted, *, threads: int, slots: int = 1) -> AttemptRecord | None:
        lease_s, asker = max(self._lease_s, START_S), wanted.askers.get(plan.key, NO_ONE)
        attempt = self._ledger.open_attempt(plan.key, lease_s=lease_s, threads=threads, slots=slots, asker=asker)
        if attempt is not None:
            self._started.add(attempt.id)
        return attempt

    def _submit(self, wanted: Wanted) -> None:
        """Starts ready stages up to capacity; one that measures latency runs alone on its machine."""
        if self._lack is not None:
            return
        stored, now = self._ledger.stages(_with_inputs(wanted.plans.values())), self._clock()
        running = [s for s in stored.values() if s.state == "running" and s.plan.device is None]
        if any(self._alone(s.plan) for s in running):
            return
        due = [plan for plan in wanted.plans.values() if plan.device is None and _is_due(plan, stored, now)]
        for place, plan in enumerate(due):
            if self._engine.capacity() < 1:
                return
            if self._alone(plan) and running:
                return
            slots = self._width(plan, len(due) - place)
            attempt = self._open(plan, wanted, threads=slots * self._engine.threads(), slots=slots)
            if attempt is None:
                continue
            passing("open.after")
            self._hand_over(attempt)
            self._observer.opened(attempt, plan)
            running.append(stored[plan.key])
            if self._alone(plan):
                return

    def _width(self, plan: StagePlan, due: int) -> int:
        """Slots for a stage: more than one when others would stand idle, such as while all wait for a teacher.

        Stages that are due share the free slots; one is left for what comes next.

        Args:
            plan: The stage.
            due: Stages that are due and not begun, this one included.
        """
        if plan.kind not in WIDENED:
            return 1
        return max(1, min(self._engine.widest(), (self._engine.capacity() - 1) // due))

    def _hand_over(self, attempt: AttemptRecord) -> None:
        try:
            self._engine.submit(attempt)
        except Exception as error:  # whatever it was, the stage had no part in it
            reason = f"the engine did not start it: {error}"
            self._ledger.lose(attempt.id, max_attempts=None, wait_s=FIRST_PAUSE_S, reason=reason)
            raise

    def _alone(self, plan: StagePlan) -> bool:
        latency = plan.kind is StageKind.MEASURE and bool(plan.spec.get("latency"))
        return latency and self._engine.one_machine

    def _advance_dataset(self, dataset: DatasetRecord, wanted: Wanted) -> None:
        stage = self._ledger.stages([dataset.stage_key])[dataset.stage_key]
        if stage.state == "done" and stage.result is not None:
            self._ledger.end_dataset(dataset.id, "ready", summary=stage.result.metrics, reason=None, faults=())
        elif stage.state == "failed":
            self._ledger.end_dataset(dataset.id, "failed", summary={}, reason=stage.reason, faults=stage.faults)
        else:
            wanted.add([stage.plan])


# ---------------------------------------------------------------------------------------- helpers


def _is_due(plan: StagePlan, stored: Mapping[str, StageRecord], now: float) -> bool:
    """True for a stage that waits for nothing but to be begun."""
    stage = stored.get(plan.key)
    if stage is None or stage.state != "pending" or (stage.not_before or 0.0) > now:
        return False
    return all(key in stored and stored[key].state == "done" for key in plan.inputs.values())


def _with_inputs(plans: Iterable[StagePlan]) -> set[str]:
    return {key for plan in plans for key in (plan.key, *plan.inputs.values())}
