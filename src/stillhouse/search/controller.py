"""The reconcile loop: looks at the ledger, does what is due, keeps nothing of its own.

Each ``step`` reads the state of all live jobs and moves it on: ask -> cost -> train -> measure -> tell ->
front. Nothing is remembered between steps but the engine's processes, so a controller may die at
any point and another goes on from the ledger.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Candidate, Cost, StageKind, StagePlan
from stillhouse.search.ending import Ending, deployed, failed_stage
from stillhouse.search.errors import InfeasibleError, UserError
from stillhouse.search.job import UNMET, DatasetRecord, JobRecord, StageRecord, TrialRecord
from stillhouse.search.plan import measured_cost, planner
from stillhouse.search.ports import Engine, Ledger
from stillhouse.search.sampler import Sampler
from stillhouse.search.space import Space

LIVE = ("queued", "running")
RETRY_S = 2.0

log = logging.getLogger(__name__)


@dataclass
class Wanted:
    """What one step found to be done: stages that live jobs wait for, in order of priority."""

    plans: dict[str, StagePlan] = field(default_factory=dict)

    def add(self, plans: Iterable[StagePlan]) -> None:
        """Adds plans that are not there yet."""
        for plan in plans:
            self.plans.setdefault(plan.key, plan)


class Controller:
    """Drives jobs from the ledger through an engine.

    Args:
        ledger: The truth.
        engine: Where attempts run. This controller is taken to be the only one on it.
        lease_s: Seconds that an attempt may go without a heartbeat.
        max_attempts: Tries at a stage whose process keeps dying.
    """

    def __init__(self, ledger: Ledger, engine: Engine, *, lease_s: float, max_attempts: int) -> None:
        self._ledger, self._engine = ledger, engine
        self._lease_s, self._max_attempts = lease_s, max_attempts
        self._spaces: dict[str, Space] = {}
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
            _Job(self._ledger, job, wanted, self._spaces, slots=self._slots()).advance()
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
        """Starts ready stages up to capacity; one that measures latency runs alone."""
        stored = self._ledger.stages(_with_inputs(wanted.plans.values()))
        running = [s for s in stored.values() if s.state == "running"]
        if any(_alone(s.plan) for s in running):
            return
        for key, plan in wanted.plans.items():
            if self._engine.capacity() < 1:
                return
            ready = all(stored[i].state == "done" for i in plan.inputs.values() if i in stored)
            if stored[key].state != "pending" or not ready:
                continue
            if _alone(plan) and running:
                return
            attempt = self._ledger.open_attempt(key, lease_s=self._lease_s, threads=self._engine.threads())
            if attempt is None:
                continue
            self._started.add(attempt.id)
            self._engine.submit(attempt)
            running.append(stored[key])
            if _alone(plan):
                return

    def _advance_dataset(self, dataset: DatasetRecord, wanted: Wanted) -> None:
        stage = self._ledger.stages([dataset.stage_key])[dataset.stage_key]
        if stage.state == "done" and stage.result is not None:
            self._ledger.end_dataset(dataset.id, "ready", summary=stage.result.metrics, reason=None, faults=())
        elif stage.state == "failed":
            self._ledger.end_dataset(dataset.id, "failed", summary={}, reason=stage.reason, faults=stage.faults)
        else:
            wanted.add([stage.plan])


class _Job:
    """One job within one step."""

    def __init__(self, ledger: Ledger, job: JobRecord, wanted: Wanted, spaces: dict[str, Space], *, slots: int) -> None:
        self._ledger, self._job, self._spec, self._wanted, self._slots = ledger, job, job.spec, wanted, slots
        self._spaces = spaces
        self._dataset = ledger.dataset(job.spec.dataset)
        self._catalogue = ledger.catalogue() or {}

    def advance(self) -> None:
        """Moves the job on as far as it goes now."""
        if self._dataset.state == "pending":
            return
        if self._dataset.state == "failed":
            self._end("failed", f"the data set cannot be used: {self._dataset.reason}")
            return
        try:
            self._space = self._load_space()
            self._planner = planner(self._job, self._dataset, self._catalogue)
        except UserError as error:
            unmet = f"{UNMET}: " if isinstance(error, InfeasibleError) else ""
            self._end("failed", f"{unmet}{error}")
            return
        if self._job.state == "queued":
            self._ledger.move_job(self._job.id, expect=("queued",), to="running")
        for trial in self._ledger.trials(self._job.id):
            if not trial.ended:
                self._advance_trial(trial)
        if self._propose():
            return
        if all(trial.ended for trial in self._ledger.trials(self._job.id)):
            verdict = Ending(self._ledger, self._job, self._planner, self._want).advance()
            if verdict is not None:
                self._end(verdict.state, verdict.reason)

    def _load_space(self) -> Space:
        if self._job.id not in self._spaces:
            space = Space(Catalogue.from_json(self._catalogue), self._dataset.summary, self._spec)
            space.check()
            self._spaces[self._job.id] = space
        return self._spaces[self._job.id]

    def _end(self, state: str, reason: str | None = None) -> None:
        self._ledger.move_job(self._job.id, expect=LIVE, to=state, reason=reason)
        self._spaces.pop(self._job.id, None)

    # ------------------------------------------------------------------------------------ asking

    def _propose(self) -> bool:
        """Adds trials up to the slots and the number asked for; True while more are to come."""
        while True:
            trials = self._ledger.trials(self._job.id)
            counted = [trial for trial in trials if trial.state != "infeasible"]
            if len(counted) >= self._spec.trials:
                return False
            if sum(not trial.ended for trial in trials) >= self._slots:
                return True
            candidate = self._next(trials)
            if candidate is None:
                return False
            self._ledger.add_trial(self._job.id, len(trials), candidate, self._space.cost(candidate))
            self._advance_trial(self._ledger.trials(self._job.id)[-1])

    def _next(self, trials: list[TrialRecord]) -> Candidate | None:
        """The candidate to try now; None when none is left.

        As long as nothing has met the limits that need a device, the cheapest network of each architecture
        is looked at first, so that a budget nothing can meet is found out soon.
        """
        infeasible = [trial.candidate for trial in trials if trial.state == "infeasible"]
        if infeasible and len(infeasible) == len(trials):
            tried = {trial.candidate for trial in trials}
            return next((c for c in self._space.cheapest_by_arch() if c not in tried), None)
        left = [c for c in self._space.feasible if not any(_beyond(c, bad) for bad in infeasible)]
        sampler = Sampler(left, self._space, self._spec.seed, planned_trials=self._spec.trials)
        return sampler.propose(trials, len(trials), self._spec.objectives)

    # ------------------------------------------------------------------------------------ trials

    def _advance_trial(self, trial: TrialRecord) -> None:
        if trial.state == "costing":
            if not self._spec.budget.needs_device:
                self._train(trial, trial.cost)
                return
            stages = self._want(self._planner.costing(trial.candidate).stages)
            if failed_stage(stages) is not None:
                self._fail_trial(trial, stages)
            elif stages[-1].result is not None:
                self._judge(trial, trial.cost.merged(measured_cost(stages[-1].result.metrics)))
        elif trial.state == "training":
            stages = self._want(self._planner.training(trial.candidate).stages)
            if failed_stage(stages) is not None:
                self._fail_trial(trial, stages)
            elif stages[-1].result is not None:
                self._deploy(trial, stages)

    def _judge(self, trial: TrialRecord, cost: Cost) -> None:
        excess = self._spec.budget.excess(cost)
        if not excess:
            self._train(trial, cost)
            return
        reason = "beyond " + ", ".join(f"{name} (x{ratio:.2f})" for name, ratio in sorted(excess.items()))
        self._ledger.move_trial(self._job.id, trial.number, expect="costing", to="infeasible", cost=cost, reason=reason)

    def _train(self, trial: TrialRecord, cost: Cost) -> None:
        plans = self._planner.training(trial.candidate).stages
        keys = [plan.key for plan in plans]
        self._ledger.move_trial(self._job.id, trial.number, expect="costing", to="training", cost=cost, stages=keys)
        self._want(plans)

    def _fail_trial(self, trial: TrialRecord, stages: list[StageRecord]) -> None:
        stage = failed_stage(stages)
        reason = f"stage {stage.plan.kind} failed: {stage.reason}" if stage else None
        self._ledger.move_trial(self._job.id, trial.number, expect=trial.state, to="failed", reason=reason)

    def _deploy(self, trial: TrialRecord, stages: list[StageRecord]) -> None:
        deployment = deployed(self._job, trial, stages)
        self._ledger.add_deployment(deployment)
        self._ledger.move_trial(
            self._job.id,
            trial.number,
            expect="training",
            to="done",
            cost=deployment.cost,
            accuracy=deployment.validation.value,
        )

    def _want(self, plans: Iterable[StagePlan]) -> list[StageRecord]:
        """Makes sure the stages exist and are worked on; returns them as stored."""
        ordered = list(plans)
        stored = [self._ledger.ensure_stage(plan) for plan in ordered]
        if failed_stage(stored) is None:
            self._wanted.add(plan for plan, stage in zip(ordered, stored, strict=True) if stage.state != "done")
        return stored


# ---------------------------------------------------------------------------------------- helpers


def _beyond(candidate: Candidate, bad: Candidate) -> bool:
    """True when a candidate is the same network as one found too dear, at the same or a larger size.

    Latency, memory and file size do not fall as the same network reads a larger grid (ours, not a paper's).
    """
    same = candidate.arch == bad.arch and candidate.stem == bad.stem
    return same and candidate.network_size.pixels >= bad.network_size.pixels


def _alone(plan: StagePlan) -> bool:
    return plan.kind is StageKind.MEASURE and bool(plan.spec.get("latency"))


def _with_inputs(plans: Iterable[StagePlan]) -> list[str]:
    return [key for plan in plans for key in (plan.key, *plan.inputs.values())]
