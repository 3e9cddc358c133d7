"""What a running job still needs."""

from dataclasses import replace
from typing import Any

import pytest

from instant import SUMMARY, catalogue
from stillhouse.search.domain import (
    Accuracy,
    Budget,
    Candidate,
    Cost,
    Deployment,
    Size,
    StageKind,
    StagePlan,
    StageResult,
)
from stillhouse.search.effort import MEASURE_S
from stillhouse.search.forecast import KEPT_S, TURN_S, Forecast, Outlook, Prospects, Work
from stillhouse.search.job import Epochs, JobRecord, JobSpec
from stillhouse.search.pace import Pace
from stillhouse.search.plan import ingest_plan
from stillhouse.service.db.memory import MemoryLedger

SMALL = Candidate("small", Size(32, 32), Size(32, 32))
OTHER = Candidate("middle", Size(32, 32), Size(32, 32))


def stage(kind: StageKind, arch: str, **inputs: str) -> StagePlan:
    spec = {"arch": arch, "size": "32x32", "classes": 3, "epochs": 3, "views": 4}
    return StagePlan(kind, spec, inputs, hints={"arch": arch})


class Scene:
    """A running job on a ledger, whose parts are moved by hand."""

    def __init__(self, **changes: Any) -> None:
        self.ledger = MemoryLedger()
        self.ledger.publish_catalogue(catalogue())
        self.dataset = self.ledger.add_dataset("d", ingest_plan("d.zip", "d", False, {}))
        self.ledger.end_dataset(self.dataset.id, "ready", summary=SUMMARY, reason=None, faults=())
        given = {"teacher": "huge", "trials": 1, "epochs": Epochs(3, 3, 9), "sampler": "random", **changes}
        self.id = self.ledger.add_job(JobSpec(self.dataset.id, **given)).id
        self.ledger.move_job(self.id, expect=("queued",), to="running")
        self.now = self.job.started_at or 0.0
        self.forecast = Forecast(self.ledger, clock=lambda: self.now)
        pace = Pace.learned(self.ledger)
        assert pace is not None
        self.pace: Pace = pace

    @property
    def job(self) -> JobRecord:
        return self.ledger.job(self.id)

    def chain(self, candidate: Candidate) -> list[StagePlan]:
        read = {"dataset": self.dataset.stage_key}
        teacher = stage(StageKind.TEACHER, "huge", **read)
        student = stage(StageKind.STUDENT, candidate.arch, **read, teacher=teacher.key)
        student = replace(student, spec={**student.spec, "network_size": str(candidate.network_size), "epochs": 9})
        export = stage(StageKind.EXPORT, candidate.arch, **read, model=student.key)
        return [teacher, student, export, stage(StageKind.MEASURE, candidate.arch, **read, onnx=export.key)]

    def begin(self, number: int, candidate: Candidate = SMALL) -> list[StagePlan]:
        plans = self.chain(candidate)
        self.ledger.add_trial(self.id, number, candidate, Cost(macs=10, image_bytes=10.0))
        for plan in plans:
            self.ledger.ensure_stage(plan)
        keys = [plan.key for plan in plans]
        self.ledger.move_trial(self.id, number, expect="costing", to="training", stages=keys)
        return plans

    def do(self, plan: StagePlan) -> None:
        """Does a stage in the seconds that the rule gives, so that nothing is learned."""
        attempt = self.ledger.open_attempt(plan.key, lease_s=9, threads=1)
        assert attempt is not None
        self.ledger.commit(attempt.id, attempt.token, StageResult(), seconds=self.pace.rule(plan))

    def end(self, number: int, test: Accuracy | None = None) -> None:
        cost = Cost(10, 20, 30, 40.0, Size(32, 32), 1.5, 2.5, 50)
        self.ledger.add_deployment(
            Deployment(f"m{number}", self.id, number, SMALL, cost, "fp32", Accuracy(9, 12), "o", {}, test)
        )
        self.ledger.move_trial(self.id, number, expect="training", to="done", accuracy=0.75, epochs=9)

    def eta(self) -> float:
        trials = self.ledger.trials(self.id)
        found = self.forecast.eta_s(self.job, trials, self.ledger.stages(k for t in trials for k in t.stages))
        assert found is not None
        return found

    def seconds(self, *plans: StagePlan) -> float:
        return sum(self.pace.rule(plan) for plan in plans)


def test_a_job_that_does_not_run_or_has_begun_nothing_tells_none() -> None:
    scene = Scene()
    assert scene.forecast.eta_s(scene.job, [], {}) is None
    scene.begin(0)
    trials = scene.ledger.trials(scene.id)
    assert scene.forecast.eta_s(replace(scene.job, state="done"), trials, {}) is None
    assert scene.forecast.eta_s(replace(scene.job, spec=replace(scene.job.spec, classes=9)), trials, {}) is None
    empty = MemoryLedger()
    dataset = empty.add_dataset("d", ingest_plan("d.zip", "d", False, {}))
    spec = replace(scene.job.spec, dataset=dataset.id)
    assert Forecast(empty).eta_s(replace(scene.job, spec=spec), trials, {}) is None, "no catalogue yet"


def test_the_stages_that_are_left_and_the_test_split() -> None:
    scene = Scene()
    teacher, *rest = scene.begin(0)
    assert scene.eta() == pytest.approx(scene.seconds(teacher, *rest) + MEASURE_S)
    scene.do(teacher)
    assert scene.eta() == pytest.approx(scene.seconds(*rest) + MEASURE_S)


def test_what_trials_share_counts_once_and_workers_share_the_rest() -> None:
    scene = Scene(trials=2)
    teacher, *small = scene.begin(0)
    _, *other = scene.begin(1, OTHER)
    long, short = sorted((scene.seconds(*small), scene.seconds(*other)), reverse=True)
    assert scene.eta() == pytest.approx(scene.seconds(teacher) + long + short / 2 + MEASURE_S), "two are at work"
    scene.do(teacher)
    assert scene.eta() == pytest.approx(long + short / 2 + MEASURE_S)


def test_a_running_stage_counts_by_its_progress() -> None:
    scene = Scene()
    teacher, *rest = scene.begin(0)
    attempt = scene.ledger.open_attempt(teacher.key, lease_s=9, threads=1)
    assert attempt is not None
    scene.ledger.renew(attempt.id, attempt.token, lease_s=9, progress={"done": 90, "total": 100})
    assert scene.eta() < scene.seconds(*rest) + MEASURE_S + 0.1 * scene.seconds(teacher)


def test_a_stage_in_two_slots_has_run_for_as_long_as_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    teacher, *rest = scene.begin(0)
    attempt = scene.ledger.open_attempt(teacher.key, lease_s=9, threads=2, slots=2)
    assert attempt is not None
    ran = 0.3 * scene.seconds(teacher)
    long_open = replace(attempt, opened_at=attempt.opened_at - ran)
    monkeypatch.setattr(scene.ledger, "attempts", lambda _: [long_open])
    assert scene.eta() == pytest.approx(scene.seconds(teacher) - ran + scene.seconds(*rest) + MEASURE_S, abs=0.5)


def test_trials_to_come_are_priced_by_the_candidates() -> None:
    alone, more = Scene(), Scene(trials=3, budget=Budget(max_latency_ms=9.0))
    for scene in (alone, more):
        scene.begin(0)
    prospects = Prospects.of(more.pace, more.job, more.ledger.dataset(more.dataset.id))
    assert more.eta() - alone.eta() > 2 * 9 * prospects.epoch
    stages = more.ledger.stages(more.ledger.trials(more.id)[0].stages)

    def search() -> float:
        dataset, trials = more.ledger.dataset(more.dataset.id), more.ledger.trials(more.id)
        return Outlook(more.pace, prospects, more.job, dataset, trials).search(stages, {}, 1)

    before = search()
    more.ledger.add_trial(more.id, 1, OTHER, Cost())
    assert search() == before, "a trial that is costed is still to train"
    few = Scene(trials=10_000)
    few.begin(0)
    assert few.eta() < 2 * prospects.count * (9 * prospects.epoch + 30), "no more trials than candidates"


def test_rungs_and_baselines() -> None:
    whole, rungs, compared = Scene(trials=6), Scene(trials=6, eta=3), Scene(trials=6, ablate="best")
    for scene in (whole, rungs, compared):
        scene.begin(0)
    assert rungs.eta() < whole.eta() < compared.eta()
    limited = Scene(trials=6, max_wall_s=5.0)
    limited.begin(0)
    assert limited.eta() == pytest.approx(5.0 + MEASURE_S, abs=0.1)
    limited.now += 60
    assert limited.eta() == pytest.approx(MEASURE_S)
    device = Scene(trials=6, max_device_s=4.0)
    device.begin(0)
    assert device.eta() == pytest.approx(4.0 + MEASURE_S, abs=0.1)


def test_the_ending() -> None:
    scene = Scene(ablate="best")
    scene.begin(0)
    scene.end(0)
    student = scene.seconds(scene.chain(SMALL)[1])
    assert scene.eta() == pytest.approx(2 * (student + 13) + 3 * MEASURE_S, rel=0.01), "two baselines, three files read"
    won = replace(scene.ledger.deployments(scene.id)[0], id="b", details={"variant": "no_teacher", "is_baseline": True})
    scene.ledger.add_deployment(won)
    assert scene.eta() == pytest.approx(student + 13 + 3 * MEASURE_S, rel=0.01), "one is left to be trained"
    done = Scene()
    done.begin(0)
    done.end(0, test=Accuracy(9, 12))
    assert done.eta() == 0.0


def test_new_networks_need_assistants() -> None:
    scene, without = Scene(trials=6), Scene(trials=6)
    for each in (scene, without):
        each.begin(0)
    read = {"dataset": scene.dataset.stage_key}
    assistant = stage(StageKind.ASSISTANT, "small", **read)
    trial = scene.ledger.trials(scene.id)[0]
    scene.ledger.ensure_stage(assistant)
    keys = [assistant.key, *trial.stages]
    scene.ledger.move_trial(scene.id, 0, expect="training", to="training", stages=keys)
    prospects = Prospects.of(scene.pace, scene.job, scene.ledger.dataset(scene.dataset.id))
    assert set(prospects.assistants) == {"small", "middle", "large"}
    drawn = sum(
        (seconds + told) * (1 - (1 - share) ** 5)
        for arch, (share, seconds, told) in prospects.assistants.items()
        if arch != "small"
    )
    assert scene.eta() - without.eta() == pytest.approx(scene.seconds(assistant) + drawn), "five trials are to come"


def test_candidates_of_many_jobs_are_worked_out_in_turn() -> None:
    scene = Scene()
    scene.begin(0)
    assert scene.eta() > 0
    trials = scene.ledger.trials(scene.id)
    same, another = (
        replace(scene.job, spec=replace(scene.job.spec, **change)) for change in ({"seed": 9}, {"archs": ("small",)})
    )
    assert scene.forecast.eta_s(same, trials, {}) is not None
    assert scene.forecast.eta_s(another, trials, {}) is None
    scene.now += TURN_S
    assert scene.forecast.eta_s(another, trials, {}) is not None


def test_what_was_learned_is_kept_for_a_while() -> None:
    scene = Scene()
    teacher, *rest = scene.begin(0)
    before = scene.eta()
    attempt = scene.ledger.open_attempt(teacher.key, lease_s=9, threads=1)
    assert attempt is not None
    scene.ledger.commit(attempt.id, attempt.token, StageResult(), seconds=1.0)
    (student, *_), asked = rest, []
    scene.ledger.stage_seconds = lambda kind, *, limit: asked.append(kind) or [(student, 1e4)] * limit  # type: ignore
    assert scene.eta() < before
    assert not asked
    scene.now += KEPT_S + 1
    assert scene.eta() > 9000
    assert asked


def test_many_workers_wait_for_the_longest_chain() -> None:
    left = {"a": 4.0, "b": 2.0, "c": 1.0}
    reads = {"b": ["a", "elsewhere"], "c": ["a"]}
    work = Work.of([("a", "b"), ("a", "c")], left, reads)
    assert work == Work(7.0, 6.0)
    assert [work.over(n) for n in (1, 2, 100)] == pytest.approx([7.0, 6.5, 6.01])
    assert Work.of([], {}, {}).over(1) == 0.0
    parts = {"t": 10.0, "p0": 3.0, "p1": 4.0, "p2": 3.0, "s": 5.0}
    reads = {"p0": ["t"], "p1": ["t"], "p2": ["t"], "s": ["p0", "p1", "p2"]}
    assert Work.of([tuple(parts)], parts, reads) == Work(25.0, 19.0), "parts of a cache are made side by side"
