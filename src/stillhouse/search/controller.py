"""The reconcile loop: looks at the ledger, does what is due, keeps nothing of its own.

Each ``step`` reads the state of all live jobs and moves it on (``advance.py``): ask -> cost -> train -> measure ->
tell -> front. Nothing is remembered between steps but the engine's processes, so a controller may die at
any point and another goes on from the ledger.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable

from stillhouse.search.advance import LIVE, Desk, JobStep, Wanted
from stillhouse.search.domain import StageKind, StagePlan
from stillhouse.search.job import DatasetRecord, JobRecord
from stillhouse.search.ports import Engine, Ledger

RETRY_S = 2.0

log = logging.getLogger(__name__)


class Controller:
    """Drives jobs from the ledger through an engine.

    Args:
        ledger: The truth.
        engine: Where attempts run. This controller is taken to be the only one on it.
        lease_s: Seconds that an attempt may go without a heartbeat.
        max_attempts: Tries at a stage whose process keeps dying.
        clock: Unix seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        *,
        lease_s: float,
        max_attempts: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger, self._engine, self._clock = ledger, engine, clock
        self._lease_s, self._max_attempts = lease_s, max_attempts
        self._desks: dict[str, Desk] = {}
        self._started: set[str] = set()

    def run(self, stop: threading.Event, *, poll_s: float = 0.2) -> None:
        """Steps until ``stop`` is set; a step that fails (the database is away) is logged and tried again."""
        while not stop.is_set():
            try:
                self.step()
            except Exception:
                log.exception("a step of the controller failed; trying again in %g s", RETRY_S)
                stop.wait(RETRY_S)
            stop.wait(poll_s)

    def step(self, only: Collection[str] | None = None) -> None:
        """Does all that is due now; never waits.

        Args:
            only: Ids of the jobs and data sets to move on; None moves all. A run in the foreground does its own job
                and leaves what others left behind.
        """
        self._reap()
        wanted = Wanted()
        for dataset in self._ledger.datasets("pending"):
            if only is None or dataset.id in only:
                self._advance_dataset(dataset, wanted)
        for job in self._ledger.jobs(*LIVE):
            if only is None or job.id in only:
                self._advance_job(job, wanted)
        self._cancel_unwanted(wanted)
        self._submit(wanted)

    def _advance_job(self, job: JobRecord, wanted: Wanted) -> None:
        """Moves one job on; one that cannot be planned fails alone and holds up no other."""
        try:
            JobStep(self._ledger, job, wanted, self._desks, slots=self._slots(), now=self._clock()).advance()
        except (KeyError, ValueError, TypeError, ArithmeticError) as error:
            log.exception("job %s cannot be planned", job.id)
            reason = f"unexpected {type(error).__name__} while planning: {error}; the controller's log has the details"
            self._ledger.move_job(job.id, expect=LIVE, to="failed", reason=reason)

    # --------------------------------------------------------------------------------- attempts

    def _slots(self) -> int:
        return max(1, self._engine.capacity() + len(self._ledger.open_attempts()))

    def _reap(self) -> None:
        for attempt in self._ledger.open_attempts():
            if not self._engine.running(attempt.id):
                # What an earlier controller left open died with it: that is no fault of the stage.
                most = self._max_attempts if attempt.id in self._started else None
                self._ledger.lose(attempt.id, max_attempts=most)

    def _cancel_unwanted(self, wanted: Wanted) -> None:
        for attempt in self._ledger.open_attempts():
            if attempt.stage_key not in wanted.plans:
                self._engine.cancel(attempt.id)
                self._ledger.lose(attempt.id, max_attempts=None)

    def _submit(self, wanted: Wanted) -> None:
        """Starts ready stages up to capacity; one that measures latency runs alone on its machine."""
        stored = self._ledger.stages(_with_inputs(wanted.plans.values()))
        running = [s for s in stored.values() if s.state == "running"]
        if any(self._alone(s.plan) for s in running):
            return
        for key, plan in wanted.plans.items():
            if self._engine.capacity() < 1:
                return
            ready = all(stored[i].state == "done" for i in plan.inputs.values() if i in stored)
            if stored[key].state != "pending" or not ready:
                continue
            if self._alone(plan) and running:
                return
            attempt = self._ledger.open_attempt(key, lease_s=self._lease_s, threads=self._engine.threads())
            if attempt is None:
                continue
            self._started.add(attempt.id)
            self._engine.submit(attempt)
            running.append(stored[key])
            if self._alone(plan):
                return

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


def _with_inputs(plans: Iterable[StagePlan]) -> set[str]:
    return {key for plan in plans for key in (plan.key, *plan.inputs.values())}
