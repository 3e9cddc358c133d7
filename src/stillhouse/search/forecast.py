"""Seconds that a running job still needs: its ETA.

::

    search   stages of the trials at work (what they share counts once), rungs and trials still to come
    ending   baselines of the front (``ablate``), the test split
    ETA      of each: its longest chain + the rest / workers

Each stage takes what ``pace.py`` learned. A trial to come is priced by the mean of the candidates, and of those at a
rung about ``SENT_ON`` in eta are taken to train on. How many go at a time is not known outside of the engine: it is
taken to be as many as there are trials at work, which the controller keeps at the engine's slots, or open attempts.

Neglected: other jobs that wait for the same workers; that ``min_gain`` ends a search early; trials that turn out
infeasible; that measurements of latency run alone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from stillhouse.search.domain import Candidate, Deployment, Json, Size, StageKind, canonical_json
from stillhouse.search.effort import CONVERT_S, EXPORT_S, FORWARD, MEASURE_S
from stillhouse.search.errors import UserError
from stillhouse.search.job import DatasetRecord, JobRecord, StageRecord, TrialRecord
from stillhouse.search.pace import Pace
from stillhouse.search.pareto import deployment_front
from stillhouse.search.plan import PARTS, baselines
from stillhouse.search.ports import Ledger
from stillhouse.search.rungs import levels
from stillhouse.search.space import Space

KEPT_S = 30.0
"""Seconds that what was learned is used before the ledger is asked again."""
MOST_JOBS, TURN_S = 256, 1.0
"""Jobs whose candidates are remembered, and seconds between two that are worked out: 0.3 s for the whole catalogue."""
SENT_ON = 1.7
"""In ``eta`` of a rung train on: more than one, for the best of a rung change while it fills (ours, from replays)."""


@dataclass(frozen=True)
class Work:
    """Seconds of one worker, and of the longest chain: what any number of workers needs."""

    total: float = 0.0
    longest: float = 0.0

    @classmethod
    def of(cls, chains: Iterable[Sequence[str]], left: Mapping[str, float], reads: Mapping[str, Iterable[str]]) -> Work:
        """Chains of stages, of which those in several count once; the parts of a cache are made side by side.

        Args:
            chains: Keys of the stages of each, in order.
            left: Seconds by key.
            reads: Keys that each stage reads.
        """
        ends: dict[str, float] = {}
        for key in (key for chain in chains for key in chain):
            ends[key] = left.get(key, 0.0) + max((ends.get(before, 0.0) for before in reads.get(key, ())), default=0.0)
        return cls(sum(left.get(key, 0.0) for key in ends), max(ends.values(), default=0.0))

    def over(self, workers: int) -> float:
        """Seconds with so many workers, which wait for what they read: at most this (Graham 1966), and no less."""
        return self.longest + max(0.0, self.total - self.longest) / workers


@dataclass(frozen=True)
class Prospects:
    """What a job's candidates need, by the rule.

    Attributes:
        count: Candidates that the budget leaves.
        epoch: Mean seconds of an epoch of a student.
        assistants: Network -> its share of the candidates, seconds of its assistants, and of what they tell.
    """

    count: int
    epoch: float
    assistants: Mapping[str, tuple[float, float, float]]

    @classmethod
    def of(cls, pace: Pace, job: JobRecord, dataset: DatasetRecord) -> Prospects:
        """Of a job; raises UserError where it does not fit its data set."""
        spec = job.spec
        space = Space(pace.catalogue, dataset.summary, spec)
        space.check()
        effort = pace.effort(dataset.stage_key, space.classes)
        count = len(space.feasible)
        epochs = (effort.trained(space.cost(candidate).macs or 0) for candidate in space.feasible)
        sides = [Size(side, side) for side in (spec.teacher_size, *spec.ladder)]
        assistants = {}
        for arch, tried in Counter(candidate.arch for candidate in space.feasible).items():
            epoch = sum(effort.epoch(arch, side, "stock") for side in sides)
            assistants[arch] = tried / count, epoch * spec.epochs.assistant, epoch * spec.views * FORWARD
        return cls(count, sum(epochs) / count, assistants)


class Forecast:
    """Tells jobs' ETA from the ledger; what is learned of stages is kept for ``KEPT_S``.

    Args:
        ledger: The truth.
        clock: Unix seconds.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._clock = ledger, clock
        self._pace: Pace | None = None
        self._methods: Mapping[str, Json] = {}
        self._kept_until = -math.inf
        self._prospects: dict[str, Prospects] = {}
        self._busy_until = -math.inf

    def eta_s(self, job: JobRecord, trials: Sequence[TrialRecord], stages: Mapping[str, StageRecord]) -> float | None:
        """Seconds that a job still needs; None of one that does not run or has begun no trial, or waits for its turn.

        Args:
            job: The job.
            trials: All of it.
            stages: Those of its trials, by key.
        """
        if job.state != "running" or job.started_at is None or not trials:
            return None
        self._learn()
        pace, dataset = self._pace, self._ledger.dataset(job.spec.dataset)
        prospects = None if pace is None or dataset.state != "ready" else self._prospects_of(pace, job, dataset)
        if pace is None or prospects is None:
            return None
        outlook = Outlook(pace, prospects, job, dataset, trials)
        attempts = {attempt.stage_key: attempt for attempt in self._ledger.open_attempts()}
        workers = max(1, sum(one.slots for one in attempts.values()), sum(trial.at_work for trial in trials))
        elapsed = {key: self._elapsed(key) for key in attempts}
        search, left = 0.0, self._left(job, trials, workers)
        if not outlook.search_is_over:
            search = min(left, outlook.search(stages, elapsed, workers))
        others = [stage for key, stage in self._ledger.stages(attempts).items() if key not in stages]
        working = sum(outlook.passed(stage, elapsed[stage.key]) for stage in others)
        # A search that takes all that the job may spend leaves nothing for comparisons.
        methods = len(baselines(job.spec, self._methods)) if search < left else 0
        ending = outlook.ending(self._ledger.deployments(job.id), methods)
        return search + max(0.0, Work(max(0.0, ending.total - working), ending.longest - working).over(workers))

    def _elapsed(self, key: str) -> float:
        """Seconds that the attempts at a stage have run, in however many slots."""
        now = time.time()
        return sum((one.ended_at or now) - one.opened_at for one in self._ledger.attempts(key))

    def _learn(self) -> None:
        if self._clock() >= self._kept_until:
            self._pace = Pace.learned(self._ledger)
            self._methods = {"methods": (self._ledger.catalogue() or {}).get("methods", {})}
            self._kept_until = self._clock() + KEPT_S

    def _prospects_of(self, pace: Pace, job: JobRecord, dataset: DatasetRecord) -> Prospects | None:
        """Jobs that differ in nothing that counts here share one; each other takes a while, so they wait their turn."""
        same = replace(job.spec, seed=0, trials=1, sampler="auto", eta=1, max_wall_s=None, max_device_s=None)
        key = canonical_json(same.to_json())
        if key not in self._prospects:
            if self._clock() < self._busy_until:
                return None
            self._busy_until = self._clock() + TURN_S
            while len(self._prospects) >= MOST_JOBS:
                self._prospects.pop(next(iter(self._prospects)), None)
            try:
                self._prospects[key] = Prospects.of(pace, job, dataset)
            except UserError:
                return None  # The controller will say so and end the job.
        return self._prospects[key]

    def _left(self, job: JobRecord, trials: Sequence[TrialRecord], workers: int) -> float:
        """The seconds that a job's limits leave; infinite without any."""
        started, spec, left = job.started_at or 0.0, job.spec, math.inf
        if spec.max_wall_s is not None:
            left = started + spec.max_wall_s - self._clock()
        if spec.max_device_s is not None:
            keys = {key for trial in trials for key in trial.stages}
            left = min(left, (spec.max_device_s - self._ledger.device_seconds(keys, since=started)) / workers)
        return max(0.0, left)


class Outlook:
    """What is to come of one job.

    Args:
        pace: Knows the seconds of stages.
        prospects: What its candidates need.
        job: The job.
        dataset: Its data set, ready.
        trials: All of it, at least one.
    """

    def __init__(
        self, pace: Pace, prospects: Prospects, job: JobRecord, dataset: DatasetRecord, trials: Sequence[TrialRecord]
    ) -> None:
        self._prospects = prospects
        self._pace, self._spec, self._dataset, self._trials = pace, job.spec, dataset, trials
        self._classes = job.spec.classes or len(dataset.summary["classes"])
        self._levels = levels(job.spec.epochs.student, job.spec.eta)
        self._export, self._convert = (seconds * pace.factor(StageKind.EXPORT) for seconds in (EXPORT_S, CONVERT_S))
        self._measure = MEASURE_S * pace.factor(StageKind.MEASURE)

    @property
    def search_is_over(self) -> bool:
        """True once every trial has ended: the controller begins the next in the step that ends the last."""
        return all(trial.ended for trial in self._trials)

    def search(self, stages: Mapping[str, StageRecord], elapsed: Mapping[str, float], workers: int) -> float:
        """Seconds until the last trial has ended.

        Args:
            stages: Those of the trials, by key.
            elapsed: Seconds that the attempts at each running stage have run.
            workers: Slots at a time.
        """
        chains = [trial.stages for trial in self._trials if trial.state == "training"]
        left = {
            key: self._pace.left(stages[key], elapsed.get(key, 0.0))
            for chain in chains
            for key in chain
            if key in stages
        }
        reads = {key: stages[key].plan.inputs.values() for key in left}
        now, later = Work.of(chains, left, reads), self._to_come(stages)
        return Work(now.total + later.total, max(now.longest, later.longest)).over(workers)

    def passed(self, stage: StageRecord, elapsed: float) -> float:
        """Seconds of a running stage of the ending, of those expected, that it no longer needs."""
        if stage.plan.inputs.get("dataset", "") != self._dataset.stage_key:
            return 0.0
        return max(0.0, self._pace.seconds(stage.plan) - self._pace.left(stage, elapsed))

    def ending(self, deployments: Sequence[Deployment], methods: int) -> Work:
        """What comes after the last trial, if the front stays as it is; a front of one before there is any.

        Args:
            deployments: All of the job so far.
            methods: Baselines that a network is compared with.
        """
        own = [item for item in deployments if not item.is_baseline]
        members = deployment_front(own, self._spec.objectives, self._spec.budget)
        compared = members
        if self._spec.ablate != "all" and members:
            compared = [max(members, key=lambda member: member.chosen_share)]
        students = {item.trial_number: self._student(item.candidate) for item in compared} or {0: self._mean_student}
        files = max(1, len({(item.trial_number, item.precision) for item in compared}))
        made = {(item.trial_number, item.precision, item.variant) for item in deployments if item.is_baseline}
        missing = max(0, methods * files - len(made))
        trained = len({(number, variant) for number, _, variant in made})
        train = max(0, methods * len(students) - trained) * sum(students.values()) / len(students)
        front = {item.trial_number for item in members}
        waiting = [item for item in deployments if item.trial_number in front and item.test is None]
        tests = missing + len({(item.trial_number, item.precision, item.variant) for item in waiting}) + (not own)
        longest = (max(students.values()) + self._export + self._measure if missing else 0.0) + self._measure * bool(
            tests
        )
        return Work(train + missing * (self._export + self._measure) + tests * self._measure, longest)

    # ------------------------------------------------------------------------------------ helpers

    def _to_come(self, stages: Mapping[str, StageRecord]) -> Work:
        """Rungs and trials that have not begun."""
        begun = [trial for trial in self._trials if trial.state not in ("costing", "infeasible")]
        in_all = min(self._spec.trials, self._prospects.count)
        new = max(0, in_all - len(begun))
        tail = self._export + self._measure + (len(self._spec.precisions) - 1) * (self._convert + self._measure)
        total, longest, below = 0.0, 0.0, 0
        for rung, level in enumerate(self._levels):
            wanted = math.ceil(in_all * min(1.0, SENT_ON / self._spec.eta) ** rung)
            coming = max(0, wanted - sum(self._rungs_begun(trial) > rung for trial in begun))
            one = self._mean_epoch * (level - below) + (tail if level == self._levels[-1] else 0.0)
            total, longest, below = total + coming * one, max(longest, one if coming else 0.0), level
        if self._spec.budget.needs_device:
            total += new * (self._export + self._measure)
        before, each = self._assistants_to_come(new, stages)
        return Work(total + before, longest + (min(before, each) if new else 0.0))

    def _assistants_to_come(self, new: int, stages: Mapping[str, StageRecord]) -> tuple[float, float]:
        """Seconds of the assistants, and of what they tell, that new trials will need and none has so far; of one.

        ``auto`` goes on with new networks as often as it did, half a network to begin with; the other samplers draw
        candidates alike.
        """
        known = {stage.plan.spec["arch"] for stage in stages.values() if stage.plan.kind is StageKind.ASSISTANT}
        others = [entry for arch, entry in self._prospects.assistants.items() if arch not in known]
        if not known or not others:
            return 0.0, 0.0
        factors = self._pace.factor(StageKind.ASSISTANT), self._pace.factor(StageKind.TARGETS)
        prices = [seconds * factors[0] + told * factors[1] for _, seconds, told in others]
        parts = min(PARTS, self._spec.views)
        each = sum(seconds * factors[0] + told * factors[1] / parts for _, seconds, told in others) / len(others)
        if self._spec.sampler == "auto":
            rate = (len(known) - 0.5) / (len(self._trials) + 1)
            return sum(prices) / len(prices) * min(len(others), rate * new), each
        return sum(price * (1 - (1 - entry[0]) ** new) for price, entry in zip(prices, others, strict=True)), each

    def _rungs_begun(self, trial: TrialRecord) -> int:
        """How many rungs a trial has come to or is, or failed, on the way to."""
        reached = sum(level <= (trial.epochs or 0) for level in self._levels)
        return reached + (trial.state in ("training", "failed"))

    @property
    def _mean_epoch(self) -> float:
        """Of a trial to come: ``auto`` begins with cheap ones, so half by those begun and half by all candidates."""
        drawn = self._prospects.epoch * self._pace.factor(StageKind.STUDENT)
        if self._spec.sampler != "auto":
            return drawn
        begun = [self._epoch(trial.candidate) for trial in self._trials]
        return (sum(begun) / len(begun) + drawn) / 2

    @property
    def _mean_student(self) -> float:
        return self._mean_epoch * self._levels[-1]

    def _student(self, candidate: Candidate) -> float:
        return self._epoch(candidate) * self._levels[-1]

    def _epoch(self, candidate: Candidate) -> float:
        return self._pace.epoch(candidate, self._dataset.stage_key, self._classes)
