"""What a job may spend is what it spends: the real ledger, on a clock that the test drives."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instant import honest, setup
from paced import TRAINED, PacedEngine, driven
from stillhouse.search.controller import Controller
from stillhouse.search.domain import StageKind
from stillhouse.search.job import Epochs, JobRecord
from stillhouse.service.db.memory import MemoryLedger

INTERVAL_S = 5.0
"""Between two checkpoints, and between two steps of the controller: what a worker may run on after the limit."""


def run(
    seconds: dict[StageKind, int], workers: int, *, wide: int = 1, **changes: object
) -> tuple[MemoryLedger, JobRecord, PacedEngine]:
    """A job to its end; stages last so many seconds by their kind."""
    ledger, job, _, _ = setup(honest, **{"trials": 5, "epochs": Epochs(1, 1, 9), **changes})
    engine = PacedEngine(ledger, honest, workers, lambda plan: seconds.get(plan.kind, 1.0), wide=wide)
    controller = Controller(ledger, engine, lease_s=1e9, max_attempts=2, clock=lambda: engine.now)
    with driven(engine):
        for _ in range(4000):
            controller.step()
            if ledger.job(job.id).state not in ("queued", "running"):
                break
            engine.pass_time(INTERVAL_S)
    return ledger, ledger.job(job.id), engine


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["max_device_s", "max_wall_s"]),
    st.integers(1, 60).map(lambda tens: 10 * tens),
    st.sampled_from(["best", "all", "none"]),
    st.sampled_from(["auto", "random"]),
    st.sampled_from([1, 3]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.fixed_dictionaries({kind: st.integers(1, 100) for kind in TRAINED}),
)
def test_a_job_trains_at_most_an_interval_a_worker_beyond_its_limit_and_delivers_what_is_trained(
    name: str, limit: int, ablate: str, sampler: str, eta: int, workers: int, wide: int, seconds: dict[StageKind, int]
) -> None:
    changes = {name: float(limit), "ablate": ablate, "sampler": sampler, "eta": eta}
    ledger, job, engine = run(seconds, workers, wide=wide, **changes)
    assert job.state in ("done", "failed")
    assert not engine.at_work
    if name == "max_device_s":
        assert engine.trained_s <= limit + INTERVAL_S * workers
    else:
        trainings = [a for p in engine.done if p.kind in TRAINED for a in ledger.attempts(p.key)]
        ends = [attempt.ended_at or 0.0 for attempt in trainings]
        assert max(ends, default=0.0) <= (job.started_at or 0.0) + limit + INTERVAL_S
    students = [plan for plan in engine.done if plan.kind is StageKind.STUDENT and "until" not in plan.spec]
    deployments = ledger.deployments(job.id)
    made = Counter(str(item.details["method"]) for item in deployments)
    assert made == Counter(plan.spec["method"] for plan in students), "all that is trained is delivered"
    assert (job.state == "done") == bool(made)
    front = {item.trial_number for item in deployments if item.test is not None}
    assert bool(front) == (job.state == "done")
    asked = 0 if ablate == "none" else 2 * (1 if ablate == "best" else len(front))
    missing = asked - made["logits"] - made["supervised"]
    if job.state == "done":
        assert (job.reason or "").startswith(f"{missing} of the comparisons" if missing > 0 else "")
        assert missing <= 0 or name in (job.reason or "")
        assert missing > 0 or job.reason is None


@pytest.mark.parametrize("ablate", ["best", "all"])
def test_comparisons_come_out_of_what_the_search_left(ablate: str) -> None:
    _, _, engine = run({}, 1)
    searched = sum(plan.kind is not StageKind.INGEST and plan.spec.get("split") != "test" for plan in engine.done)
    ledger, job, engine = run({}, 1, ablate=ablate, max_device_s=float(searched))
    assert job.state == "done"
    assert "could not be made: the search had its" in (job.reason or "")
    assert {plan.spec["method"] for plan in engine.done if plan.kind is StageKind.STUDENT} == {"tas"}
    assert any(item.test is not None for item in ledger.deployments(job.id))
    _, job, engine = run({}, 1, ablate=ablate, max_device_s=float(searched + 1000))
    assert job.reason is None
    assert {plan.spec["method"] for plan in engine.done if plan.kind is StageKind.STUDENT} > {"tas"}
