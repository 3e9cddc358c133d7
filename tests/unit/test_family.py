"""One training, many deployments: a file at each precision, read at each picture quality."""

import time
from collections import Counter
from collections.abc import Callable

import pytest

from instant import catalogue, drive, honest, setup
from stillhouse.search.controller import Controller
from stillhouse.search.domain import Budget, Deployment, Json, StageKind, StagePlan, StageResult
from stillhouse.search.pareto import deployment_front
from stillhouse.service.db.memory import MemoryLedger

ALL = {"precisions": ("fp32", "fp16", "int8"), "qualities": (50,)}
LATENCY = {"fp32": 10.0, "fp16": 15.0, "int8": 4.0}
BYTES = {"fp32": 4000, "fp16": 2000, "int8": 1000}
RIGHT = {"fp32": 11, "fp16": 11, "int8": 10}


def work(
    latency: dict[str, float] = LATENCY, fails: str = "", by_method: dict[str, int] | None = None
) -> Callable[[StagePlan], StageResult]:
    """Latency and bytes by precision; on validation (of 12) int8 costs a picture, and quality 50 two."""
    precision: dict[str, str] = {}
    method: dict[str, str] = {}

    def do(plan: StagePlan) -> StageResult:
        source = plan.inputs.get("onnx") or plan.inputs.get("model") or ""
        precision[plan.key] = str(plan.spec.get("precision") or precision.get(source, ""))
        method[plan.key] = str(plan.spec.get("method") or method.get(source, ""))
        if plan.kind is StageKind.EXPORT and plan.spec["precision"] == fails and "dataset" in plan.inputs:
            raise ValueError("no such operator")
        if plan.kind is not StageKind.MEASURE:
            return honest(plan)
        name = precision[plan.key]
        metrics: dict[str, Json] = {"model_bytes": BYTES[name]}
        if plan.spec["latency"]:
            metrics |= {
                "latency_ms": latency[name],
                "latency_p95_ms": 2 * latency[name],
                "memory_bytes": 1000 * BYTES[name],
            }
        right, total = RIGHT[name] + (by_method or {}).get(method[plan.key], 0), 12
        if plan.spec["split"] is not None:
            metrics["accuracy"] = {"correct": right, "total": total}
            metrics["coded"] = {
                str(quality): {"accuracy": {"correct": right - (2 if quality == 50 else 0), "total": total}}
                for quality in plan.spec["qualities"]
            }
        return StageResult({}, metrics)

    return do


def finished(do: Callable[[StagePlan], StageResult] | None = None, **changes: Json) -> tuple[MemoryLedger, str]:
    ledger, job, _, controller = setup(do or work(), **{"trials": 1, **ALL, **changes})
    assert drive(controller, ledger, job.id) == "done", ledger.job(job.id).reason
    return ledger, job.id


def by_point(ledger: MemoryLedger, job_id: str) -> dict[tuple[str, int | None], Deployment]:
    return {(d.precision, d.quality): d for d in ledger.deployments(job_id) if not d.is_baseline}


def front(ledger: MemoryLedger, job_id: str) -> set[tuple[str, int | None]]:
    spec = ledger.job(job_id).spec
    members = deployment_front(ledger.deployments(job_id), spec.objectives, spec.budget)
    return {(member.precision, member.quality) for member in members}


def test_a_trial_is_a_family_of_files_and_qualities() -> None:
    ledger, job_id = finished(objectives=("macs", "image_bytes", "model_bytes"))
    family = by_point(ledger, job_id)
    assert set(family) == {(name, quality) for name in ALL["precisions"] for quality in (90, 50)}
    assert len({d.id for d in family.values()}) == 6
    assert len({d.onnx_sha256 for d in family.values()}) == 3, "a quality is the same file"
    for (name, quality), member in family.items():
        assert (member.cost.latency_ms, member.cost.model_bytes) == (LATENCY[name], BYTES[name])
        assert member.cost.macs == family["fp32", 90].cost.macs
        assert member.chosen_by.correct == RIGHT[name] - (2 if quality == 50 else 0)
        assert member.validation.correct == RIGHT[name], "the file's own figure is that on plain pictures"
        assert member.test is not None
        assert member.coded_test is not None
    ratio = (family["int8", 50].cost.image_bytes or 0) / (family["int8", 90].cost.image_bytes or 1)
    assert ratio == pytest.approx(50 / 90), "as the data set's own curve says"
    assert front(ledger, job_id) == {("fp16", 90), ("int8", 90), ("fp16", 50), ("int8", 50)}
    (trial,) = ledger.trials(job_id)
    assert (trial.accuracy, trial.cost) == (11 / 12, family["fp32", 90].cost)


def test_a_precision_stays_only_where_it_wins_on_its_device() -> None:
    ledger, job_id = finished()
    family = by_point(ledger, job_id)
    assert {name for name, _ in family} == {"fp32", "int8"}
    assert "15.00 ms on local, where fp32 takes 10.00 ms" in family["fp32", 90].details["left_out"]["fp16"]
    ledger, job_id = finished(budget=Budget(max_memory_bytes=5_000_000))
    assert {name for name, _ in by_point(ledger, job_id)} == {"fp32", "fp16", "int8"}, "memory counts"


def test_a_file_that_cannot_be_made_costs_that_file_alone() -> None:
    ledger, job_id = finished(work(fails="int8"))
    family = by_point(ledger, job_id)
    assert {name for name, _ in family} == {"fp32"}
    assert "stage export failed: no such operator" in family["fp32", 90].details["left_out"]["int8"]
    assert ledger.job(job_id).reason is None


def test_a_latency_that_int8_alone_meets_is_met() -> None:
    ledger, job_id = finished(budget=Budget(max_latency_ms=5.0))
    (trial,) = ledger.trials(job_id)
    assert (trial.state, trial.cost.latency_ms, trial.accuracy) == ("done", 4.0, 10 / 12)
    assert front(ledger, job_id) == {("int8", 90), ("int8", 50)}
    ledger, job, engine, controller = setup(work(), trials=1, **ALL, budget=Budget(max_latency_ms=3.0))
    assert drive(controller, ledger, job.id) == "failed"
    assert all(plan.kind in (StageKind.EXPORT, StageKind.MEASURE, StageKind.INGEST) for plan in engine.done)
    reason = ledger.job(job.id).reason or ""
    assert "max_latency_ms >= 4" in reason, "what the quickest file needs"


def test_a_file_that_might_have_met_the_budget_and_cannot_be_made_is_named() -> None:
    def do(plan: StagePlan) -> StageResult:
        if plan.kind is StageKind.EXPORT and plan.spec.get("precision") == "int8":
            raise ValueError("no such operator")
        return usual(plan)

    usual = work()
    ledger, job, _, controller = setup(do, trials=1, **ALL, budget=Budget(max_latency_ms=5.0))
    assert drive(controller, ledger, job.id) == "failed"
    reasons = [trial.reason or "" for trial in ledger.trials(job.id)]
    assert reasons
    assert all(
        "beyond max_latency_ms (x2.00); int8, which might have met it, could not" in reason for reason in reasons
    )
    assert all("no such operator" in reason for reason in reasons)


def test_a_slow_file_is_not_converted_to_cost_it_when_fp32_fits() -> None:
    ledger, job, engine, controller = setup(work(), trials=1, **ALL, budget=Budget(max_latency_ms=12.0))
    assert drive(controller, ledger, job.id) == "done"
    costed = [plan for plan in engine.done if plan.kind is StageKind.MEASURE and plan.spec["split"] is None]
    assert len(costed) == 1


def test_bytes_that_a_lower_quality_alone_meets_are_met() -> None:
    # Sizes 32, 48 and 64 take 2700, 5400 and 8100 bytes at quality 90, 1500 and more at 50.
    ledger, job_id = finished(budget=Budget(max_image_bytes=1600), image_sizes=("32",))
    (trial,) = ledger.trials(job_id)
    assert trial.cost.image_bytes == pytest.approx(1500)
    assert trial.accuracy == 9 / 12, "of pictures as they are sent"
    assert front(ledger, job_id) == {("fp32", 50)}


def test_where_nothing_is_sent_plain_accuracy_chooses() -> None:
    ledger, job_id = finished(objectives=("macs", "latency_ms"))
    family = by_point(ledger, job_id)
    assert set(family) == {("fp32", 90), ("int8", 90)}
    assert {member.judged for member in family.values()} == {"plain"}


@pytest.mark.parametrize("ablate", ["best", "all"])
def test_baselines_are_compared_file_by_file(ablate: str) -> None:
    better = work(by_method={"supervised": 1, "logits": -3})
    ledger, job_id = finished(better, ablate=ablate, objectives=("macs", "image_bytes", "latency_ms"))
    spec = ledger.job(job_id).spec
    deployments = ledger.deployments(job_id)
    members = deployment_front(deployments, spec.objectives, spec.budget)
    files = {"fp32"} if ablate == "best" else {"fp32", "int8"}
    assert {d.precision for d in deployments if d.is_baseline} == files
    for member in members:
        compared = member.precision in files
        assert member.variant == ("no_teacher" if compared else "distilled")
        assert set(member.details.get("baselines", {})) == ({"distilled", "plain_kd"} if compared else set())
        if compared:
            own = member.details["baselines_coded"]["distilled"]["correct"]
            assert own == RIGHT[member.precision] - (2 if member.quality == 50 else 0)
    assert len({(d.precision, d.quality, d.variant) for d in deployments}) == len(deployments)


@pytest.mark.parametrize("last", [StageKind.STUDENT, StageKind.EXPORT, StageKind.MEASURE])
def test_a_search_that_must_stop_delivers_the_whole_family_of_what_is_trained(last: StageKind) -> None:
    ledger, job_id, state = stopped_after(last, objectives=("macs", "model_bytes"))
    assert state == "done"
    assert {name for name, _ in by_point(ledger, job_id)} == {"fp32", "fp16", "int8"}
    assert Counter(trial.state for trial in ledger.trials(job_id)) == {"done": 1}
    assert ledger.job(job_id).reason is None


def test_a_search_that_must_stop_delivers_the_lower_precision_that_alone_meets_the_budget() -> None:
    ledger, job_id, state = stopped_after(StageKind.STUDENT, budget=Budget(max_memory_bytes=1_500_000))
    assert state == "done"
    assert {name for name, _ in front(ledger, job_id)} == {"int8"}


def stopped_after(last: StageKind, **changes: Json) -> tuple[MemoryLedger, str, str]:
    """A search of up to three trials whose time is up once the first stage of a kind has been done on pictures."""
    offset = [0.0]
    done = work()

    def do(plan: StagePlan) -> StageResult:
        if plan.kind is last and "dataset" in plan.inputs:
            offset[0] = 100.0
        return done(plan)

    ledger, job, engine, _ = setup(do, **{"trials": 3, **ALL, "max_wall_s": 50.0, **changes})
    controller = Controller(ledger, engine, lease_s=30, max_attempts=2, clock=lambda: time.time() + offset[0])
    return ledger, job.id, drive(controller, ledger, job.id)


@pytest.mark.parametrize("slots", [1, 3])
def test_a_family_survives_a_new_controller_at_each_step(slots: int) -> None:
    ledger, job, engine, _ = setup(work(), trials=3, **ALL, ablate="best")
    engine.slots = slots
    for _ in range(400):
        Controller(ledger, engine, lease_s=30, max_attempts=2).step()
    assert ledger.job(job.id).state == "done"
    assert len({plan.key for plan in engine.done}) == len(engine.done), "nothing is done twice"
    assert sum(not d.is_baseline for d in ledger.deployments(job.id)) == 3 * 4


def test_a_precision_whose_check_failed_is_never_made_and_the_family_says_why() -> None:
    ledger, job, engine, controller = setup(work(), trials=1, archs=("small",), budget=Budget(max_latency_ms=11), **ALL)
    known = catalogue()
    lacks = {stem: {"int8": "the cosine must be >= 0.6, but is 0.1"} for stem in ("stock", "stride1")}
    known["archs"]["small"]["lacks"] = lacks
    ledger.publish_catalogue(known)
    assert drive(controller, ledger, job.id) == "done", ledger.job(job.id).reason
    made = {plan.spec["precision"] for plan in engine.done if plan.kind is StageKind.EXPORT}
    assert made == {"fp32", "fp16"}, "neither of the trained network nor of the untrained one"
    family = by_point(ledger, job.id)
    assert {precision for precision, _ in family} == {"fp32"}, "fp16 takes longer here"
    left_out = family["fp32", 90].details["left_out"]
    assert left_out["int8"] == "its check failed: the cosine must be >= 0.6, but is 0.1"
    assert left_out.keys() == {"fp16", "int8"}
