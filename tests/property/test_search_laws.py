"""Laws of a whole search, on the in-memory ledger with an engine that does each stage at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from instant import catalogue, drive, honest, setup
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Budget, Size, StageKind, StagePlan, StageResult
from stillhouse.search.job import SAMPLERS, AttemptRecord, Epochs

SAMPLED = tuple(name for name in SAMPLERS if name not in ("gp", "brute_force"))  # torch and seconds; more trials


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1_100_000, 40_000_000),
    st.sampled_from(SAMPLED),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.integers(1, 8),
)
def test_no_candidate_beyond_the_budget_is_ever_submitted(
    max_macs: int, sampler: str, eta: int, slots: int, trials: int
) -> None:
    budget = Budget(max_macs=max_macs)
    changes = {"budget": budget, "sampler": sampler, "eta": eta, "trials": trials, "epochs": Epochs(1, 1, 9)}
    ledger, job, engine, controller = setup(honest, **changes)
    engine.slots = slots
    assert drive(controller, ledger, job.id) == "done"
    known = Catalogue.from_json(catalogue())
    for plan in engine.done:
        if plan.kind is StageKind.STUDENT:
            size = Size.parse(plan.spec["network_size"])
            assert known.macs(plan.spec["arch"], size, plan.spec["stem"], 3) <= max_macs
    assert len({trial.candidate for trial in ledger.trials(job.id)}) == len(ledger.trials(job.id)) <= trials
    assert all(trial.ended for trial in ledger.trials(job.id))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.sampled_from([1, 3]))
def test_spend_never_exceeds_the_budget_by_more_than_what_was_at_work(limit: int, slots: int, eta: int) -> None:
    """A stage takes a second here; at the limit those at work are cancelled, so that no more than they come on top."""
    spent = 0.0

    def work(plan: StagePlan) -> StageResult:
        nonlocal spent
        if plan.kind is not StageKind.INGEST and plan.spec.get("split") != "test":
            spent += 1.0
        return honest(plan)

    ledger, job, engine, controller = setup(work, max_device_s=float(limit), eta=eta, trials=9, epochs=Epochs(1, 1, 9))
    free, submit = slots, engine.submit

    def submit_one(attempt: AttemptRecord) -> None:
        nonlocal free
        free -= 1
        submit(attempt)

    engine.submit, engine.capacity = submit_one, lambda: free  # type: ignore[method-assign]
    ledger.device_seconds = lambda *_, **__: spent  # type: ignore[method-assign]
    for _ in range(400):
        free = slots  # all that began in the step before have ended
        controller.step()
    assert ledger.job(job.id).state in ("done", "failed")
    assert spent <= limit + slots


FASTER = {"fp32": 1.0, "fp16": 1.5, "int8": 0.4}


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
