"""How a job ends once all its trials have: the front, its comparisons, and the test split, read last.

The members of the front that the job compares are trained again by each baseline's method, everything else the same.
Each such variant is a deployment of its own at the cost of its trial (it is the same network, and noise in latency
must not decide), so the variant that is best on validation is the one on the front. As in the rest of the loop, what is
due follows from the ledger alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from stillhouse.search.domain import Accuracy, Deployment, Json, StagePlan, StageResult, content_key
from stillhouse.search.job import UNMET, JobRecord, StageRecord, TrialRecord
from stillhouse.search.pareto import deployment_front
from stillhouse.search.plan import Planner, baselines, measured_cost, variant_of
from stillhouse.search.ports import Ledger

Want = Callable[[Iterable[StagePlan]], list[StageRecord]]
"""Makes sure stages exist and are worked on; gives them as stored."""


@dataclass(frozen=True)
class Verdict:
    """The state that a job ends in, and why; of a job that is done, which comparisons are not there."""

    state: str
    reason: str | None = None


class Ending:
    """The end of one job whose trials have all ended.

    Args:
        ledger: The truth.
        job: The job.
        planner: Plans its stages.
        want: Has stages worked on.
    """

    def __init__(self, ledger: Ledger, job: JobRecord, planner: Planner, want: Want) -> None:
        self._ledger, self._job, self._planner, self._want = ledger, job, planner, want

    def advance(self) -> Verdict | None:
        """Does what is due; None while stages are still to be run."""
        deployments = self._ledger.deployments(self._job.id)
        chosen = self._front([item for item in deployments if not item.is_baseline])
        if not chosen:
            return Verdict("failed", why_empty(self._job, self._ledger.trials(self._job.id), deployments))
        missing = self._missing(chosen, deployments)
        chains = [self._want(self._planner.training(one.candidate, method).stages) for one, method in missing]
        # A comparison that fails costs the comparison, not the models that the job was for.
        lost = [said for chain in chains if (said := _fault(chain)) is not None]
        made = [
            variant(one, method, chain)
            for (one, method), chain in zip(missing, chains, strict=True)
            if chain[-1].result is not None
        ]
        for deployment in made:
            self._ledger.add_deployment(deployment)
        if len(made) + len(lost) < len(missing):
            return None
        deployments = self._ledger.deployments(self._job.id)
        verdict = self._read_tests(self._front(deployments), deployments)
        if verdict is None or verdict.state != "done" or not lost:
            return verdict
        return Verdict("done", f"{len(lost)} of the comparisons could not be made: {lost[0]}")

    def _front(self, deployments: Sequence[Deployment]) -> list[Deployment]:
        return deployment_front(deployments, self._job.spec.objectives, self._job.spec.budget)

    def _missing(self, chosen: Sequence[Deployment], deployments: Sequence[Deployment]) -> list[tuple[Deployment, str]]:
        """(deployment, method of a baseline) of the comparisons that are still to be made.

        Args:
            chosen: The front of what the job's own method made. It stays as it is while comparisons come in, so what is
                compared does not depend on their order; and no other trial can come onto the front by them.
            deployments: All of the job.
        """
        known = {(item.trial_number, item.variant) for item in deployments}
        best = max(chosen, key=lambda member: member.validation.value)
        return [
            (member, method)
            for member in (chosen if self._job.spec.ablate == "all" else [best])
            for name, method in baselines(self._job.spec, self._planner.catalogue).items()
            if (member.trial_number, name) not in known
        ]

    def _read_tests(self, front: Sequence[Deployment], deployments: Sequence[Deployment]) -> Verdict | None:
        """Reads the test split for all variants of the front's members."""
        waiting = False
        for member in front:
            variants = [item for item in deployments if item.trial_number == member.trial_number]
            if all(item.test is not None for item in variants):
                continue
            plans = [self._planner.testing(item.candidate, item.details["method"]) for item in variants]
            chains = [self._want(plan.stages) for plan in plans]
            if (fault := next((said for chain in chains if (said := _fault(chain)) is not None), None)) is not None:
                return Verdict("failed", fault)
            if all(chain[-1].result is not None for chain in chains):
                self._store_tests(variants, [result_of(chain[-1]).metrics for chain in chains])
            else:
                waiting = True
        return None if waiting else Verdict("done")

    def _store_tests(self, variants: Sequence[Deployment], metrics: Sequence[Mapping[str, Json]]) -> None:
        """Stores each variant's test figures and, beside them, those of all others of its trial."""
        figures = {item.variant: read["accuracy"] for item, read in zip(variants, metrics, strict=True)}
        for item, read in zip(variants, metrics, strict=True):
            if item.test is not None:
                continue
            others = {name: figure for name, figure in figures.items() if name != item.variant}
            details: dict[str, Json] = {"coded": read.get("coded")}
            self._ledger.set_test(
                item.id, Accuracy(**read["accuracy"]), details | ({"baselines": others} if others else {})
            )


def deployed(job: JobRecord, trial: TrialRecord, stages: Sequence[StageRecord]) -> Deployment:
    """The deployment that a trial's last two stages, export and measure, have made."""
    export, measure = result_of(stages[-2]), result_of(stages[-1])
    return Deployment(
        id=_model_id(job.id, trial.number, stages),
        job_id=job.id,
        trial_number=trial.number,
        candidate=trial.candidate,
        cost=trial.cost.merged(measured_cost(measure.metrics)),
        precision=str(stages[-2].plan.spec["precision"]),
        validation=Accuracy(**measure.metrics["accuracy"]),
        onnx_sha256=export.artifacts["onnx"],
        preprocess=export.metrics["preprocess"],
        details={
            "method": job.spec.method,
            "variant": variant_of(job.spec.method),
            "seed": job.spec.seed,
            "right": measure.metrics.get("right"),
            "measured": {n: measure.metrics.get(n) for n in ("threads", "runs", "runtime", "host")},
            "parity": export.metrics.get("parity"),
        },
    )


def variant(own: Deployment, method: str, stages: Sequence[StageRecord]) -> Deployment:
    """The network of a deployment at its measured cost, as these stages of a baseline's method trained it."""
    export, measure = result_of(stages[-2]), result_of(stages[-1])
    return replace(
        own,
        id=_model_id(own.job_id, own.trial_number, stages),
        validation=Accuracy(**measure.metrics["accuracy"]),
        onnx_sha256=export.artifacts["onnx"],
        preprocess=export.metrics["preprocess"],
        test=None,
        details={
            "method": method,
            "variant": variant_of(method),
            "is_baseline": True,
            "seed": own.details["seed"],
            "right": measure.metrics.get("right"),
            "measured": own.details["measured"],
            "parity": export.metrics.get("parity"),
        },
    )


def why_empty(job: JobRecord, trials: Sequence[TrialRecord], deployments: Sequence[Deployment]) -> str:
    """Why no deployment of a job is on its front."""
    budget = job.spec.budget
    if deployments:
        best = max(deployments, key=lambda d: d.validation.value)
        excess = ", ".join(sorted(budget.excess(best.cost)))
        beyond = f" and lies beyond {excess}" if excess else ""
        return (
            f"{UNMET}: of {len(deployments)} trained models the best reaches {best.validation.value:.1%} "
            f"on validation{beyond}; relax min_accuracy or the limit named, or train longer"
        )
    stopped = next((trial for trial in trials if trial.state == "stopped"), None)
    if stopped is not None:
        return f"no training had come to its end: {stopped.reason}; give the search more time, or fewer epochs"
    failed = next((trial for trial in trials if trial.state == "failed"), None)
    if failed is not None:
        return f"every trial failed; the first ({failed.candidate}): {failed.reason}"
    nearest = min(trials, key=lambda t: max(budget.excess(t.cost).values(), default=0.0))
    over = budget.excess(nearest.cost)
    needs = ", ".join(f"{name} >= {getattr(nearest.cost, name[4:]):.6g}" for name in sorted(over))
    binding = sorted({name for trial in trials for name in budget.excess(trial.cost)})
    return (
        f"{UNMET}: measured on device {budget.device!r}, {' and '.join(binding)} rules out the cheapest "
        f"network of every architecture; the nearest is {nearest.candidate}, which needs {needs}"
    )


# ---------------------------------------------------------------------------------------- helpers


def failed_stage(stages: Iterable[StageRecord]) -> StageRecord | None:
    """The first stage that failed, if any did."""
    return next((stage for stage in stages if stage.state == "failed"), None)


def result_of(stage: StageRecord) -> StageResult:
    """The result of a stage that is done.

    Raises:
        ValueError: It is not.
    """
    if stage.result is None:
        raise ValueError(f"stage {stage.key} is {stage.state}, not done")
    return stage.result


def _fault(chain: Sequence[StageRecord]) -> str | None:
    """What failed in a chain, and why; None while nothing has."""
    failed = failed_stage(chain)
    if failed is None:
        return None
    method = f" by {failed.plan.spec['method']}" if "method" in failed.plan.spec else ""
    return f"stage {failed.plan.kind}{method} failed: {failed.reason}"


def _model_id(job_id: str, trial_number: int, stages: Sequence[StageRecord]) -> str:
    return "mdl_" + content_key([job_id, trial_number, stages[-1].key])[:12]
