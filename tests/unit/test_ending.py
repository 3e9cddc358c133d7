"""How a job ends: comparisons with the baselines, what is shipped, and the test split read last."""

import contextlib
from collections import Counter
from collections.abc import Callable

import pytest

from instant import InstantEngine, catalogue, drive, honest, setup
from stillhouse.search.controller import Controller
from stillhouse.search.domain import Accuracy, Deployment, Size, StageKind, StagePlan, StageResult
from stillhouse.search.job import JobRecord
from stillhouse.search.pareto import deployment_front
from stillhouse.search.retry import retry
from stillhouse.service.db.memory import MemoryLedger


def accuracies(by_method: dict[str, int], *, test: dict[str, int] | None = None) -> Callable[[StagePlan], StageResult]:
    """Stages whose accuracy on validation (of 12) and on test (of 18) depends on the student's method."""
    methods: dict[str, str] = {}

    def work(plan: StagePlan) -> StageResult:
        source = plan.inputs.get("model") or plan.inputs.get("onnx") or ""
        methods[plan.key] = str(plan.spec.get("method") or methods.get(source, ""))
        result = honest(plan, latency_ms=1.0 + len(methods) / 1000)
        if plan.kind is not StageKind.MEASURE or plan.spec["split"] is None:
            return result
        right = by_method if plan.spec["split"] == "val" else test or by_method
        accuracy = dict(result.metrics["accuracy"]) | {"correct": right[methods[plan.key]]}
        coded = {quality: {"accuracy": accuracy} for quality in result.metrics["coded"]}
        return StageResult({}, dict(result.metrics) | {"accuracy": accuracy, "coded": coded})

    return work


def final_front(ledger: MemoryLedger, job: JobRecord) -> list[Deployment]:
    return deployment_front(ledger.deployments(job.id), job.spec.objectives, job.spec.budget)


def students(engine: InstantEngine, method: str) -> list[StagePlan]:
    return [plan for plan in engine.done if plan.kind is StageKind.STUDENT and plan.spec["method"] == method]


@pytest.mark.parametrize("ablate", ["best", "all"])
def test_baselines_are_trained_at_the_same_size_and_epochs(ablate: str) -> None:
    ledger, job, engine, controller = setup(accuracies({"tas": 10, "logits": 9, "supervised": 8}), ablate=ablate)
    assert drive(controller, ledger, job.id) == "done"
    front = final_front(ledger, job)
    compared = [member for member in front if member.details.get("baselines")]
    assert len(compared) == (1 if ablate == "best" else len(front))
    for method in ("supervised", "logits"):
        plans = students(engine, method)
        assert {plan.spec["epochs"] for plan in plans} == {1}
        assert {plan.spec["views"] for plan in plans} == {job.spec.views}
        assert [plan.spec["knobs"] for plan in plans] == [{}] * len(compared)
        assert {Size.parse(p.spec["image_size"]) for p in plans} == {d.candidate.image_size for d in compared}
    assert len(ledger.trials(job.id)) == 3, "a comparison is no trial"
    assert {trial.accuracy for trial in ledger.trials(job.id)} == {10 / 12}


def test_distilling_that_wins_is_shipped_with_all_figures() -> None:
    work = accuracies({"tas": 10, "logits": 9, "supervised": 8}, test={"tas": 15, "logits": 16, "supervised": 12})
    ledger, job, _, controller = setup(work, ablate="best")
    assert drive(controller, ledger, job.id) == "done"
    (member,) = [d for d in final_front(ledger, job) if d.details.get("baselines")]
    assert (member.variant, member.is_baseline, member.details["method"]) == ("distilled", False, "tas")
    assert (member.validation, member.test) == (Accuracy(10, 12), Accuracy(15, 18)), "the test split does not choose"
    assert member.details["baselines"] == {
        "no_teacher": {"correct": 12, "total": 18},
        "plain_kd": {"correct": 16, "total": 18},
    }


@pytest.mark.parametrize(
    ("validation", "winner"),
    [
        ({"tas": 8, "logits": 9, "supervised": 10}, "no_teacher"),
        ({"tas": 8, "logits": 10, "supervised": 9}, "plain_kd"),
        ({"tas": 8, "logits": 10, "supervised": 10}, "no_teacher"),
        ({"tas": 10, "logits": 10, "supervised": 10}, "distilled"),
    ],
)
@pytest.mark.parametrize("objectives", [("macs", "image_bytes"), ("latency_ms", "memory_bytes")])
def test_the_variant_best_on_validation_is_on_the_front(
    validation: dict[str, int], winner: str, objectives: tuple[str, ...]
) -> None:
    test = {"tas": 17, "logits": 16, "supervised": 15}
    ledger, job, engine, controller = setup(accuracies(validation, test=test), ablate=True, objectives=objectives)
    assert job.spec.ablate == "all"
    assert drive(controller, ledger, job.id) == "done"
    front = final_front(ledger, job)
    assert {member.variant for member in front} == {winner}
    assert len({member.trial_number for member in front}) == len(front), "one variant of each network is shipped"
    figures = {"distilled": 17, "plain_kd": 16, "no_teacher": 15}
    for member in front:
        assert member.test is not None
        assert member.test.correct == figures[member.variant]
        others = {name: figure["correct"] for name, figure in member.details["baselines"].items()}
        assert others | {winner: member.test.correct} == figures
    for item in ledger.deployments(job.id):
        own = next(d for d in ledger.deployments(job.id) if d.trial_number == item.trial_number and not d.is_baseline)
        assert item.cost == own.cost, "the same network costs the same, whatever the clock said"
    students_end = max(i for i, plan in enumerate(engine.done) if plan.kind is StageKind.STUDENT)
    read = [i for i, p in enumerate(engine.done) if p.kind is StageKind.MEASURE and p.spec["split"] == "test"]
    assert min(read) > students_end, "the test split is read after the last comparison"


@pytest.mark.parametrize("slots", [1, 3])
def test_an_ablated_job_survives_a_new_controller_at_each_step(slots: int) -> None:
    work = accuracies({"tas": 8, "logits": 9, "supervised": 10})
    ledger, job, engine, _ = setup(work, ablate="all")
    engine.slots = slots
    states = set()
    for _ in range(400):
        Controller(ledger, engine, lease_s=30, max_attempts=2).step()
        states.add(ledger.job(job.id).state)
    assert states in ({"queued", "running", "done"}, {"running", "done"})
    assert max(Counter(plan.key for plan in engine.done).values()) == 1
    front = final_front(ledger, job)
    assert {member.variant for member in front} == {"no_teacher"}
    per_trial = Counter((d.trial_number, d.variant) for d in ledger.deployments(job.id))
    assert set(per_trial.values()) == {1}
    compared = {d.trial_number for d in ledger.deployments(job.id) if d.is_baseline}
    assert all({(number, "plain_kd"), (number, "no_teacher")} <= set(per_trial) for number in compared)


@pytest.mark.parametrize("verb", ["add_deployment", "set_test"])
def test_an_ending_cut_off_between_two_writes_goes_on(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, job, engine, _ = setup(accuracies({"tas": 8, "logits": 9, "supervised": 10}), ablate="all")
    write, cut = getattr(ledger, verb), False

    def torn(*args: object) -> bool:
        nonlocal cut
        cut = not cut
        if cut:
            raise ConnectionError("the database is away")
        return bool(write(*args))

    monkeypatch.setattr(ledger, verb, torn)
    for _ in range(800):
        with contextlib.suppress(ConnectionError):
            Controller(ledger, engine, lease_s=30, max_attempts=2).step()
    assert ledger.job(job.id).state == "done"
    for member in final_front(ledger, job):
        assert set(member.details["baselines"]) == {"distilled", "plain_kd"}
    assert max(Counter(plan.key for plan in engine.done).values()) == 1


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("supervised", {"no_teacher": False, "plain_kd": True}),
        ("logits", {"plain_kd": False, "no_teacher": True}),
        ("tas", {"distilled": False, "plain_kd": True, "no_teacher": True}),
    ],
)
def test_a_method_is_not_compared_with_itself(method: str, expected: dict[str, bool]) -> None:
    work = accuracies({"tas": 9, "logits": 9, "supervised": 9})
    ledger, job, _, controller = setup(work, ablate="all", method=method)
    assert drive(controller, ledger, job.id) == "done"
    assert {d.variant: d.is_baseline for d in ledger.deployments(job.id)} == expected
    assert {d.is_baseline for d in final_front(ledger, job)} == {False}, "on a tie the job's own method stays"


def test_a_baseline_that_no_worker_offers_is_left_out() -> None:
    ledger, job, _, controller = setup(honest, ablate="all")
    known = catalogue()
    del known["methods"]["logits"]
    ledger.publish_catalogue(known)
    assert drive(controller, ledger, job.id) == "done"
    assert all(set(member.details["baselines"]) == {"no_teacher"} for member in final_front(ledger, job))


def test_no_comparison_without_ablate() -> None:
    ledger, job, engine, controller = setup(honest)
    assert drive(controller, ledger, job.id) == "done"
    assert {d.variant for d in ledger.deployments(job.id)} == {"distilled"}
    assert not students(engine, "supervised")
    assert not any("baselines" in d.details for d in ledger.deployments(job.id))


def test_retry_runs_a_failed_comparison_again() -> None:
    healthy = False

    def work(plan: StagePlan) -> StageResult:
        if plan.kind is StageKind.STUDENT and plan.spec["method"] == "logits" and not healthy:
            raise ValueError("disk full")
        return honest(plan)

    ledger, job, engine, controller = setup(work, ablate="best")
    assert drive(controller, ledger, job.id) == "done"
    expected = "1 of the comparisons could not be made: stage student by logits failed: disk full"
    assert ledger.job(job.id).reason == expected
    front = final_front(ledger, job)
    assert front, "what the job was for is there"
    assert all(member.test is not None for member in front), "and read on the test split"
    before, healthy = len(engine.done), True
    assert retry(ledger, ledger.job(job.id)).state == "queued"
    assert drive(controller, ledger, job.id) == "done"
    assert ledger.job(job.id).reason is None
    assert {item.variant for item in ledger.deployments(job.id)} == {"distilled", "no_teacher", "plain_kd"}
    assert retry(ledger, ledger.job(job.id)).state == "done", "nothing is left to try"
    assert not [p for p in engine.done[before:] if p.kind is StageKind.STUDENT and p.spec["method"] == "tas"]
