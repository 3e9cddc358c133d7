"""A job that failed, was cancelled or lacks comparisons set going again, on the user's word only."""

from __future__ import annotations

from stillhouse.search.domain import StagePlan
from stillhouse.search.job import UNMET, JobRecord
from stillhouse.search.plan import baselines, planner, unique
from stillhouse.search.ports import Ledger


def retry(ledger: Ledger, job: JobRecord) -> JobRecord:
    """Puts a failed or cancelled job, or one with comparisons missing, back in the queue with all of it that failed.

    A job in another state, and one whose budget nothing can meet, is returned as it is.
    """
    incomplete = job.state == "done" and job.reason is not None
    if not (incomplete or job.state in ("failed", "cancelled")) or (job.reason or "").startswith(UNMET):
        return job
    dataset = ledger.dataset(job.spec.dataset)
    plan = planner(job, dataset, ledger.catalogue() or {})
    for trial in ledger.trials(job.id):
        rungs = [plan.rung(trial.candidate, level) for level in plan.levels[:-1]]
        stages: list[StagePlan] = [stage for rung in rungs for stage in rung.stages]
        for precision in plan.precisions(trial.candidate):
            stages += plan.costing(trial.candidate, precision).stages
            for method in (job.spec.method, *baselines(job.spec, plan.catalogue).values()):
                stages += plan.training(trial.candidate, method, precision).stages
                stages += plan.testing(trial.candidate, method, precision).stages
        for stage in unique(stages):
            ledger.reopen_stage(stage)
    ledger.move_job(job.id, expect=(job.state,), to="queued")  # and its trials with it
    return ledger.job(job.id)
