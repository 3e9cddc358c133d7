"""Laws of a whole search, on the in-memory ledger with an engine that does each stage at once."""

from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from instant import SUMMARY, catalogue, drive, honest, setup
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.curve import ByteCurve
from stillhouse.search.domain import Budget, Cost, Size, StageKind, StagePlan, StageResult
from stillhouse.search.job import SAMPLERS, UNMET, Epochs

FASTER = {"fp32": 1.0, "fp16": 1.5, "int8": 0.4}
SIDES = (32, 48, 64)
KNOWN = Catalogue.from_json(catalogue())
SENT = ByteCurve(SUMMARY["curve"], fit="squash", codec="jpeg", quality=90)  # type: ignore[arg-type]


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    """Limits of each kind or none; most of them are met by some networks of the catalogue, and not by all."""

    def limit(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | values)

    return Budget(
        max_macs=limit(st.sampled_from([900_000, 2_500_000, 10_000_000, 30_000_000, 60_000_000])),
        max_params=limit(st.sampled_from([90_000, 200_000, 400_000, 1_000_000])),
        max_model_bytes=limit(st.sampled_from([700_000, 2_000_000, 3_700_000])),
        max_image_bytes=limit(st.integers(2_700, 9_000)),
        max_image_size=limit(st.builds(Size, st.sampled_from(SIDES), st.sampled_from(SIDES))),
        max_latency_ms=limit(st.floats(0.9, 60)),
        max_memory_bytes=limit(st.sampled_from([4_000, 5_000, 6_000, 7_000])),
    )


def figures(spec: Mapping[str, Any]) -> Cost:
    """What a network of ``instant.catalogue`` costs: latency is its MACs in millions, 5,000 bytes are its memory."""
    image, size = Size.parse(spec["image_size"]), Size.parse(spec["network_size"])
    macs, params = KNOWN.costs(spec["arch"], size, spec["stem"], 3)
    return Cost(macs, params, 4 * params, SENT.bytes(image), image, latency_ms=macs / 1e6, memory_bytes=5_000)


def searched(budget: Budget, sampler: str, eta: int, slots: int, trials: int) -> None:
    """Runs a search and checks that nothing beyond the budget was trained."""
    costs: dict[str, Cost] = {}

    def work(plan: StagePlan) -> StageResult:
        done = honest(plan)
        if plan.kind is StageKind.EXPORT:
            costs[plan.key] = figures(plan.spec)
        if plan.kind is StageKind.MEASURE:
            cost = costs[plan.inputs["onnx"]]
            done = honest(plan, latency_ms=cost.latency_ms or 0.0)
            done.metrics["model_bytes"] = cost.model_bytes  # type: ignore[index]
        return done

    changes = {"budget": budget, "sampler": sampler, "eta": eta, "trials": trials, "epochs": Epochs(1, 1, 9)}
    ledger, job, engine, controller = setup(work, **changes)
    engine.slots = slots
    state = drive(controller, ledger, job.id, steps=2000)
    tried = ledger.trials(job.id)
    trained = [figures(plan.spec) for plan in engine.done if plan.kind is StageKind.STUDENT]
    assert not [budget.excess(cost) for cost in trained if budget.excess(cost)]
    for trial in tried:
        spec = {name: str(getattr(trial.candidate, name)) for name in ("arch", "image_size", "network_size", "stem")}
        cost = figures(spec)
        known = Cost(cost.macs, cost.params, None, cost.image_bytes, cost.image_size)
        assert not budget.excess(known), "what is known beforehand is not even looked at"
        assert (trial.state == "infeasible") == bool(budget.excess(cost))
    assert (state == "done") == bool(trained)
    assert state == "done" or (ledger.job(job.id).reason or "").startswith(UNMET)
    assert len({trial.candidate for trial in tried}) == len(tried)
    assert sum(trial.state != "infeasible" for trial in tried) <= trials
    assert all(trial.ended for trial in tried)


@settings(max_examples=60, deadline=None)
@given(
    budgets(),
    st.sampled_from([name for name in SAMPLERS if name not in ("gp", "brute_force")]),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.integers(1, 8),
)
def test_no_candidate_beyond_the_budget_is_ever_submitted(
    budget: Budget, sampler: str, eta: int, slots: int, trials: int
) -> None:
    searched(budget, sampler, eta, slots, trials)


@settings(max_examples=15, deadline=None)
@given(budgets(), st.integers(1, 3))
def test_nor_where_all_that_fit_are_tried(budget: Budget, slots: int) -> None:
    searched(budget, "brute_force", 1, slots, 1000)


@settings(max_examples=3, deadline=None)
@given(budgets())
def test_nor_by_gp_which_is_asked_for_the_last_of_six(budget: Budget) -> None:
    searched(budget, "gp", 1, 1, 6)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.3, 30),
    st.floats(1000, 9000),
    st.sets(st.sampled_from(["fp16", "int8"])),
    st.lists(st.integers(20, 89), max_size=2, unique=True),
    st.integers(1, 3),
)
def test_whatever_is_trained_has_a_member_of_its_family_within_the_budget(
    max_latency_ms: float, max_image_bytes: float, lower: set[str], qualities: list[int], slots: int
) -> None:
    """Latency is the network's MACs in millions, times a factor of its precision."""
    known = Catalogue.from_json(catalogue())
    latencies: dict[str, float] = {}

    def work(plan: StagePlan) -> StageResult:
        if plan.kind is StageKind.EXPORT:
            size = Size.parse(plan.spec["network_size"])
            macs = known.macs(plan.spec["arch"], size, plan.spec["stem"], 3)
            latencies[plan.key] = FASTER[plan.spec["precision"]] * macs / 1e6
        return honest(plan, latency_ms=latencies.get(plan.inputs.get("onnx", ""), 1.0))

    budget = Budget(max_latency_ms=max_latency_ms, max_image_bytes=max_image_bytes)
    family = {"precisions": ("fp32", *lower), "qualities": tuple(qualities)}
    ledger, job, engine, controller = setup(work, budget=budget, trials=4, **family)
    engine.slots = slots
    state = drive(controller, ledger, job.id)
    deployments = ledger.deployments(job.id)
    assert (state == "done") == bool(deployments)
    done = [trial for trial in ledger.trials(job.id) if trial.state == "done"]
    for trial in done:
        own = [item for item in deployments if item.trial_number == trial.number]
        assert any(not budget.excess(item.cost) for item in own), "else it should not have been trained"
        assert not budget.excess(trial.cost)
    students = [plan for plan in engine.done if plan.kind is StageKind.STUDENT]
    assert len(students) == len(done)
