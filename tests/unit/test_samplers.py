"""What holds of a whole search, whoever proposes its candidates."""

from dataclasses import replace
from typing import Any

import pytest

from instant import drive, honest, setup
from stillhouse.search.domain import Budget, StageKind, StagePlan, StageResult
from stillhouse.search.job import SAMPLERS, Epochs


def measured(plan: StagePlan) -> StageResult:
    """Latency and accuracy are fractions made of the plan's key, so that no two networks or seeds share them."""
    done, odd = honest(plan), int(plan.key[:8], 16)
    if plan.kind is StageKind.STUDENT:
        done.metrics["val"] = {"correct": odd % 997, "total": 997}  # type: ignore[index]
    if plan.kind is StageKind.MEASURE:
        accuracy = {"correct": odd % 991, "total": 991}
        done = honest(plan, latency_ms=odd / 3e9)
        done.metrics["accuracy"] = accuracy  # type: ignore[index]
        done.metrics["coded"] = {quality: {"accuracy": accuracy} for quality in done.metrics["coded"]}  # type: ignore[index]
    return done


def serial_run(sampler: str, seed: int, eta: int) -> list[list[Any]]:
    """All that was done, and all that was told of it: every trial with its costs and accuracy, every deployment."""
    trials = {"gp": 7, "brute_force": 100}.get(sampler, 9)
    budget, objectives = Budget(max_latency_ms=1.2), ("macs", "image_bytes", "latency_ms")
    ledger, job, engine, controller = setup(
        measured,
        sampler=sampler,
        seed=seed,
        trials=trials,
        eta=eta,
        epochs=Epochs(1, 1, 9),
        budget=budget,
        objectives=objectives,
    )
    assert drive(controller, ledger, job.id, steps=2000) == "done"
    told = [replace(trial, job_id="") for trial in ledger.trials(job.id)]
    assert {"done", "infeasible"} <= {trial.state for trial in told}
    files = [(item.trial_number, item.cost, item.chosen_by.value) for item in ledger.deployments(job.id)]
    return [[(plan.kind, dict(plan.spec)) for plan in engine.done], told, files]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_makes_the_same_serial_run_to_the_bit(sampler: str) -> None:
    eta = 1 if sampler == "gp" else 3
    assert serial_run(sampler, 5, eta) == serial_run(sampler, 5, eta)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_promises_nothing_more_begins_no_candidate(sampler: str) -> None:
    trials = {"gp": 6, "brute_force": 100}.get(sampler, 9)
    counts = []
    for least in (0.0, 0.9):
        ledger, job, _, controller = setup(measured, min_gain=least, sampler=sampler, trials=trials)
        assert drive(controller, ledger, job.id, steps=2000) == "done"
        counts.append(len(ledger.trials(job.id)))
    assert counts[0] == (30 if sampler == "brute_force" else trials)
    assert 1 <= counts[1] < counts[0]
