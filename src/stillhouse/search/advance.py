"""One job within one step of the controller: what has come about is taken in, what is due is asked for.

::

    ask -> cost -> train to a rung -> paused -> train on -> ... -> measure -> tell -> front
                                        |
                                        +-> stopped
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.choice import Chooser, Move
from stillhouse.search.domain import PRECISIONS, Candidate, Cost, Json, StageKind, StagePlan
from stillhouse.search.effort import Effort, Prices, pictures_of
from stillhouse.search.ending import Ending
from stillhouse.search.errors import InfeasibleError, UserError
from stillhouse.search.failpoints import passing
from stillhouse.search.family import deployed, failed_stage, reference
from stillhouse.search.job import UNMET, DatasetRecord, JobRecord, StageRecord, TrialRecord
from stillhouse.search.limits import Limits, is_trained
from stillhouse.search.plan import Planner, measured_cost, planner, unique
from stillhouse.search.ports import Ledger
from stillhouse.search.rungs import Curves, hopeful, leading, promotable
from stillhouse.search.space import Space
from stillhouse.search.states import LIVE
from stillhouse.search.wanted import Asker, Wanted
from stillhouse.search.warm import Earlier, earlier


class Desk:
    """What follows from a job, its data set and the catalogue, worked out once: nothing that a restart would miss.

    Args:
        job: The job.
        dataset: Its data set, which is ready.
        data: The catalogue.
        past: What earlier jobs on the data set had found out when this one was created.

    Raises:
        InfeasibleError: No candidate meets the budget.
        UserError: The job does not fit the data set.
    """

    def __init__(
        self, job: JobRecord, dataset: DatasetRecord, data: Mapping[str, Json], past: Sequence[Earlier] = ()
    ) -> None:
        known = Catalogue.from_json(data)
        self.space = Space(known, dataset.summary, job.spec)
        self.space.check()
        self.planner: Planner = planner(job, dataset, data)
        pictures = pictures_of(dataset.summary, self.space.classes)
        self._prices = Prices(self.planner, Effort(known, pictures, self.space.classes))
        self.chooser = Chooser(self.space, job.spec, self.planner.levels, self._prices, past)
        self._plans: dict[tuple[Candidate, int], dict[str, tuple[StagePlan, ...]]] = {}

    @cached_property
    def mentors(self) -> frozenset[str]:
        """Keys of the stages that come before a student, of all candidates."""
        return frozenset(key for candidate in self.space.feasible for key, _ in self._prices.mentors(candidate))

    def stages(self, candidate: Candidate, level: int) -> dict[str, tuple[StagePlan, ...]]:
        """The stages that carry a candidate to a rung; by precision to a measured file when it is the last.

        Level 0 is its costs on the device, if they count.
        """
        if (candidate, level) not in self._plans:
            self._plans[candidate, level] = self._planned(candidate, level)
        return self._plans[candidate, level]

    def _planned(self, candidate: Candidate, level: int) -> dict[str, tuple[StagePlan, ...]]:
        if level == 0:
            costings = self.planner.costings(candidate) if self.planner.spec.budget.needs_device else {}
            return {name: plan.stages for name, plan in costings.items()}
        if level == self.planner.levels[-1]:
            return self.planner.family(candidate)
        return {PRECISIONS[0]: self.planner.rung(candidate, level).stages}


class JobStep:
    """One job within one step.

    Args:
        ledger: The truth.
        job: The job.
        wanted: Takes the stages that it waits for.
        desks: By job id; kept from step to step.
        slots: Trials that may be at work at a time.
        now: Unix seconds.
    """

    def __init__(
        self, ledger: Ledger, job: JobRecord, wanted: Wanted, desks: dict[str, Desk], *, slots: int, now: float
    ) -> None:
        self._ledger, self._job, self._spec, self._wanted, self._slots = ledger, job, job.spec, wanted, slots
        self._desks, self._now = desks, now
        self._stored: dict[str, StageRecord] = {}
        self._trials: list[TrialRecord] = []

    def advance(self) -> None:
        """Moves the job on as far as it goes now."""
        dataset = self._ledger.dataset(self._spec.dataset)
        if dataset.state == "pending":
            return
        if dataset.state == "failed":
            self._end("failed", f"the data set cannot be used: {dataset.reason}")
            return
        try:
            if self._job.id not in self._desks:
                past = earlier(self._ledger, self._job)
                self._desks[self._job.id] = Desk(self._job, dataset, self._ledger.catalogue() or {}, past)
        except UserError as error:
            unmet = f"{UNMET}: " if isinstance(error, InfeasibleError) else ""
            self._end("failed", f"{unmet}{error}")
            return
        if self._job.state == "queued":
            self._ledger.move_job(self._job.id, expect=("queued",), to="running")
            self._job = self._ledger.job(self._job.id)
        self._trials = self._ledger.trials(self._job.id)
        at_work = [trial for trial in self._trials if trial.at_work]
        chains = [chain for trial in at_work for chain in self._plans(trial).values()]
        self._stored = self._ledger.stages({plan.key for chain in chains for plan in chain})
        limits = Limits(self._ledger, self._job, self._desk.stages, self._desk.planner.levels, now=self._now)
        reason = limits.reached(self._trials)
        for trial in at_work:
            # Once the search is over, what has been trained is still delivered, and nothing more is trained.
            if reason is None or self._trained(trial):
                self._advance_trial(trial)
        if self._fill(reason):
            return
        spent = partial(limits.reached, self._trials)
        verdict = Ending(self._ledger, self._job, self._desk.planner, self._want, spent).advance()
        if verdict is not None:
            self._end(verdict.state, verdict.reason)

    @property
    def _desk(self) -> Desk:
        return self._desks[self._job.id]

    def _end(self, state: str, reason: str | None = None) -> None:
        expect = ("running",) if state == "done" else LIVE
        self._ledger.move_job(self._job.id, expect=expect, to=state, reason=reason)

    # ------------------------------------------------------------------------------------ asking

    def _fill(self, reason: str | None) -> bool:
        """Begins and promotes trials up to the slots; True while trials are at work or more are to come.

        Args:
            reason: Why the search is over; None while it is not.
        """
        if reason is not None:
            delivered = [trial for trial in self._trials if trial.at_work and self._trained(trial)]
            self._stop([trial for trial in self._trials if trial not in delivered], reason)
            return bool(delivered)
        while sum(trial.at_work for trial in self._trials) < self._slots:
            move = self._next(self._trials)
            if move is None:
                break
            if move.trial is None:
                number, cost = len(self._trials), self._desk.space.cost(move.candidate)
                if not self._ledger.add_trial(self._job.id, number, move.candidate, cost):
                    return True  # its user has just ended the job
                passing("trial.after")
                self._trials.append(TrialRecord(self._job.id, number, move.candidate, "costing", cost))
                self._advance_trial(self._trials[-1])
            elif not self._train(move.trial, move.trial.cost):
                return True
        if any(trial.at_work for trial in self._trials):
            return True
        self._stop(self._trials, "what it promised was not worth the rest of its training")
        return False

    def _next(self, trials: Sequence[TrialRecord]) -> Move | None:
        """What to do next; None when nothing is left.

        As long as nothing has met the limits that need a device, the cheapest network of each architecture is looked
        at first, so that a budget nothing can meet is found out soon.
        """
        infeasible = [trial.candidate for trial in trials if trial.state == "infeasible"]
        new = len(trials) - len(infeasible) < self._spec.trials
        if infeasible and len(infeasible) == len(trials):
            tried = set(infeasible)
            left = (c for c in self._desk.space.cheapest_by_arch() if c not in tried)
            return next((Move(None, candidate) for candidate in left), None)
        beyond = {c for c in self._desk.space.feasible if any(_beyond(c, bad) for bad in infeasible)}
        levels, sampler = self._desk.planner.levels, self._spec.sampler
        if sampler == "auto":
            ready = [trial for trial in trials if trial.state == "paused"]
        else:
            ready = promotable(trials, levels, self._spec.eta, self._spec.objectives)
        return self._choose(trials, ready, beyond, new=new) or self._last(trials)

    def _last(self, trials: Sequence[TrialRecord]) -> Move | None:
        """Of the trials that wait at a rung when nothing else is left, the next that is not given up."""
        auto = self._spec.sampler == "auto"
        if (auto and self._spec.min_gain > 0) or not any(trial.state == "paused" for trial in trials):
            return None
        rule = leading if auto else hopeful
        left = rule(trials, self._curves, self._desk.planner.levels, self._spec.objectives)
        return Move(left[0], left[0].candidate) if left else None

    @cached_property
    def _curves(self) -> Curves:
        """The accuracies of the job's students, as they are when the step's results have been taken in."""
        keys: dict[str, tuple[int, int]] = {}
        for trial in self._trials:
            for level in (level for level in self._desk.planner.levels if level <= (trial.epochs or 0)):
                chain = self._desk.stages(trial.candidate, level)[PRECISIONS[0]]
                student = next(plan for plan in reversed(chain) if plan.kind is StageKind.STUDENT)
                keys[student.key] = trial.number, level
        found: dict[int, dict[int, float]] = {}
        for key, stage in self._ledger.stages(keys).items():
            if stage.result is not None:
                val, (number, level) = stage.result.metrics["val"], keys[key]
                found.setdefault(number, {})[level] = val["correct"] / val["total"]
        return found

    def _choose(
        self, trials: Sequence[TrialRecord], ready: Sequence[TrialRecord], beyond: Collection[Candidate], *, new: bool
    ) -> Move | None:
        if not new and not ready:
            return None
        paid = self._paid() if self._spec.sampler == "auto" else ()
        return self._desk.chooser.next(trials, ready, new=new, left_out=beyond, paid=paid)

    def _paid(self) -> Collection[str]:
        """Keys of teachers, targets and assistants that are done or will be made anyway."""
        return self._made | set(self._wanted.plans)

    @cached_property
    def _made(self) -> set[str]:
        stages = self._ledger.stages(self._desk.mentors)
        return {key for key, stage in stages.items() if stage.state in ("done", "running")}

    def _stop(self, trials: Sequence[TrialRecord], reason: str) -> None:
        for trial in list(trials):
            if not trial.ended:
                self._move(trial, "stopped", reason=f"stopped: {reason}")

    def _move(self, trial: TrialRecord, to: str, **values: Any) -> bool:
        """Moves a trial, in the ledger and in what this step knows of it; False when its job has just ended."""
        if not self._ledger.move_trial(self._job.id, trial.number, expect=trial.state, to=to, **values):
            return False
        given = {name: value for name, value in values.items() if value is not None}  # the others stay as stored
        self._trials[trial.number] = replace(trial, state=to, **given)
        return True

    # ------------------------------------------------------------------------------------ trials

    def _advance_trial(self, trial: TrialRecord) -> None:
        """Takes in what has come about and asks for what is due."""
        if trial.state == "costing":
            self._cost(trial)
            return
        chains = self._plans(trial)
        stages = self._want(chains.pop(PRECISIONS[0]), trial.number)
        if failed_stage(stages) is not None:
            self._fail_trial(trial, stages)
        elif stages[-1].result is None:
            return
        elif (level := self._level(trial)) != self._desk.planner.levels[-1]:
            self._pause(trial, stages[-1].result.metrics["val"], level)
        else:
            files = {PRECISIONS[0]: stages, **{name: self._want(chain, trial.number) for name, chain in chains.items()}}
            if all(chain[-1].result is not None or failed_stage(chain) is not None for chain in files.values()):
                self._deploy(trial, files)

    def _cost(self, trial: TrialRecord) -> None:
        """Sends a trial to its training once a precision of its network meets the limits that need a device."""
        if not self._spec.budget.needs_device:
            self._train(trial, trial.cost)
            return
        costs: list[Cost] = []
        missing, chains = "", self._plans(trial)
        keys = _keys(chains)
        if trial.stages != keys and not self._move(trial, "costing", stages=keys):
            return  # its job has just ended
        for precision, plans in chains.items():
            stages = self._want(plans, trial.number)
            if (failed := failed_stage(stages)) is not None:
                if precision == PRECISIONS[0]:
                    self._fail_trial(trial, stages)
                    return
                missing += f"; {precision}, which might have met it, could not be made: {failed.reason}"
                continue
            if stages[-1].result is None:
                return
            costs.append(trial.cost.merged(measured_cost(stages[-1].result.metrics)))
            if not self._spec.budget.excess(costs[-1]):
                self._train(trial, costs[-1])
                return
        self._rule_out(trial, min(costs, key=lambda cost: max(self._spec.budget.excess(cost).values())), missing)

    def _trained(self, trial: TrialRecord) -> bool:
        """True when the training that it is at has a result: what is left is to take it in, or to deliver it."""
        return trial.state == "training" and is_trained(self._plans(trial)[PRECISIONS[0]], self._stored)

    def _plans(self, trial: TrialRecord) -> dict[str, tuple[StagePlan, ...]]:
        """The stages of its present phase, by precision."""
        return dict(self._desk.stages(trial.candidate, self._level(trial) if trial.state == "training" else 0))

    def _level(self, trial: TrialRecord) -> int:
        """The epochs that it is on the way to."""
        return next(level for level in self._desk.planner.levels if level > (trial.epochs or 0))

    def _rule_out(self, trial: TrialRecord, cost: Cost, missing: str = "") -> None:
        excess = self._spec.budget.excess(cost)
        reason = "beyond " + ", ".join(f"{name} (x{ratio:.2f})" for name, ratio in sorted(excess.items())) + missing
        self._move(trial, "infeasible", cost=cost, reason=reason)

    def _train(self, trial: TrialRecord, cost: Cost) -> bool:
        """Sends a trial on to its next rung; False when its job has just ended."""
        chains = self._desk.stages(trial.candidate, self._level(trial))
        moved = self._move(trial, "training", cost=cost, stages=_keys(chains))
        if moved:
            self._want(chains[PRECISIONS[0]], trial.number)
        return moved

    def _pause(self, trial: TrialRecord, val: Mapping[str, Json], level: int) -> None:
        self._move(trial, "paused", accuracy=val["correct"] / val["total"], epochs=level)

    def _fail_trial(self, trial: TrialRecord, stages: list[StageRecord]) -> None:
        stage = failed_stage(stages)
        self._move(trial, "failed", reason=f"stage {stage.plan.kind} failed: {stage.reason}" if stage else None)

    def _deploy(self, trial: TrialRecord, chains: Mapping[str, list[StageRecord]]) -> None:
        """Stores what has come of a trial: a failure of a lower precision costs that file, not the model."""
        faults = {name: stage for name, chain in chains.items() if (stage := failed_stage(chain)) is not None}
        lost = {name: f"stage {stage.plan.kind} failed: {stage.reason}" for name, stage in faults.items()}
        lacks = self._desk.planner.lacks(trial.candidate)
        lost |= {name: f"its check failed: {why}" for name, why in lacks.items()}
        there = {name: chain for name, chain in chains.items() if name not in lost}
        family = deployed(self._job, trial, there, self._desk.space.sent_bytes(trial.candidate.image_size), lost)
        for deployment in family:
            self._ledger.add_deployment(deployment)
            passing("deployment.after")
        chosen = reference(family, self._spec)
        epochs = self._desk.planner.levels[-1]
        self._move(trial, "done", cost=chosen.cost, accuracy=chosen.chosen_share, epochs=epochs)

    def _want(self, plans: Iterable[StagePlan], number: int) -> list[StageRecord]:
        """Makes sure that a trial's stages exist and are worked on; returns them as stored."""
        ordered = list(plans)
        unknown = [plan.key for plan in ordered if plan.key not in self._stored]
        if unknown:
            self._stored |= self._ledger.stages(unknown)
        stored = [self._stored.get(plan.key) or self._ledger.ensure_stage(plan) for plan in ordered]
        self._stored |= {stage.key: stage for stage in stored}
        if failed_stage(stored) is None:
            due = [plan for plan, stage in zip(ordered, stored, strict=True) if stage.state != "done"]
            self._wanted.add(due, Asker(self._job.id, number))
        return stored


# ---------------------------------------------------------------------------------------- helpers


def _beyond(candidate: Candidate, bad: Candidate) -> bool:
    """True when a candidate is the same network as one found too dear, at the same or a larger size.

    Latency, memory and file size do not fall as the same network reads a larger grid (ours, not a paper's).
    """
    same = candidate.arch == bad.arch and candidate.stem == bad.stem
    return same and candidate.network_size.pixels >= bad.network_size.pixels


def _keys(chains: Mapping[str, Sequence[StagePlan]]) -> tuple[str, ...]:
    """Of all stages of a phase, each once."""
    return tuple(plan.key for plan in unique([plan for chain in chains.values() for plan in chain]))
