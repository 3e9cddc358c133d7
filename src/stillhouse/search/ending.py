"""How a job ends once all its trials have: the front, its comparisons, and the test split, read last.

The members of the front that the job compares are trained again by each baseline's method, everything else the same.
Each such variant is a deployment of its own at the cost of its trial (it is the same network, and noise in latency
must not decide), so the variant that is best on validation is the one on the front. They count in what the job may
spend: one that is not trained when that is used up is left out, and the job says so. As in the rest of the loop, what
is due follows from the ledger alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from stillhouse.search.domain import Accuracy, Deployment, Json, StagePlan
from stillhouse.search.family import exported, failed_stage, model_id, picture_details, result_of
from stillhouse.search.job import UNMET, JobRecord, StageRecord, TrialRecord
from stillhouse.search.limits import is_trained
from stillhouse.search.pareto import deployment_front
from stillhouse.search.plan import Planner, baselines, variant_of
from stillhouse.search.ports import Ledger

Want = Callable[[Iterable[StagePlan], int], list[StageRecord]]
"""Makes sure stages exist and are worked on; gives them as stored."""

Comparison = tuple[Deployment, str, tuple[StagePlan, ...]]
"""A file of the front, the method of a baseline, and the stages from its teacher to its measured file."""

Spent = Callable[[Collection[str]], str | None]
"""Why nothing more may be trained, with what stages of these keys have taken; None while it may."""


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
        want: Has stages of a trial (by number) worked on.
        spent: Says when nothing more may be trained.
    """

    def __init__(self, ledger: Ledger, job: JobRecord, planner: Planner, want: Want, spent: Spent) -> None:
        self._ledger, self._job, self._planner, self._want, self._spent = ledger, job, planner, want, spent

    def advance(self) -> Verdict | None:
        """Does what is due; None while stages are still to be run."""
        deployments = self._ledger.deployments(self._job.id)
        chosen = self._front([item for item in deployments if not item.is_baseline])
        if not chosen:
            return Verdict("failed", why_empty(self._job, self._ledger.trials(self._job.id), deployments))
        compared = self._comparisons(chosen)
        spent = self._spent({plan.key for _, _, plans in compared for plan in plans}) if compared else None
        lost, waiting = list[str](), False
        for one, method, plans in self._missing(compared, deployments):
            # A comparison that fails, or for which nothing is left, costs the comparison, not what the job was for.
            if spent is not None and not self._is_settled(plans):
                lost.append(spent)
                continue
            chain = self._want(plans, one.trial_number)
            if chain[-1].result is None:
                fault = _fault(chain)
                lost += [] if fault is None else [fault]
                waiting = waiting or fault is None
                continue
            for own in deployments:
                if not own.is_baseline and _file_of(own) == _file_of(one):
                    self._ledger.add_deployment(variant(own, method, chain))
        if waiting:
            return None
        deployments = self._ledger.deployments(self._job.id)
        verdict = self._read_tests(self._front(deployments), deployments)
        if verdict is None or verdict.state != "done" or not lost:
            return verdict
        return Verdict("done", f"{len(lost)} of the comparisons could not be made: {lost[0]}")

    def _front(self, deployments: Sequence[Deployment]) -> list[Deployment]:
        return deployment_front(deployments, self._job.spec.objectives, self._job.spec.budget)

    def _comparisons(self, chosen: Sequence[Deployment]) -> list[Comparison]:
        """Those of the job, one for each file and baseline.

        Args:
            chosen: The front of what the job's own method made. It stays as it is while comparisons come in, so what is
                compared does not depend on their order; and no other trial can come onto the front by them.
        """
        best = max(chosen, key=lambda member: member.chosen_share)
        files = {_file_of(member): member for member in (chosen if self._job.spec.ablate == "all" else [best])}
        methods = baselines(self._job.spec, self._planner.catalogue).values()
        return [
            (member, method, self._planner.training(member.candidate, method, member.precision).stages)
            for member in files.values()
            for method in methods
        ]

    def _missing(self, compared: Sequence[Comparison], deployments: Sequence[Deployment]) -> list[Comparison]:
        """The comparisons that are still to be made.

        Args:
            compared: All of the job.
            deployments: All of the job.
        """
        known = {(*_file_of(item), item.variant, item.quality) for item in deployments}
        return [
            (member, method, plans)
            for member, method, plans in compared
            if not all(
                (*_file_of(member), variant_of(method), own.quality) in known
                for own in deployments
                if _file_of(own) == _file_of(member)
            )
        ]

    def _is_settled(self, plans: Sequence[StagePlan]) -> bool:
        """True when nothing of a comparison is left to train: its student is there, or something failed."""
        stored = self._ledger.stages({plan.key for plan in plans})
        return is_trained(plans, stored) or failed_stage(stored.values()) is not None

    def _read_tests(self, front: Sequence[Deployment], deployments: Sequence[Deployment]) -> Verdict | None:
        """Reads the test split for all files of the front's networks: its members, their families, their variants."""
        waiting, compared = False, {_file_of(member) for member in front}
        trials = {member.trial_number for member in front}
        files: dict[tuple[int, str], list[Deployment]] = {}
        for item in deployments:
            if item.trial_number in trials:
                files.setdefault(_file_of(item), []).append(item)
        for file, items in files.items():
            if all(item.test is not None for item in items):
                continue
            methods = {str(item.details["method"]): item for item in items}
            chains = {
                method: self._want(
                    self._planner.testing(item.candidate, method, item.precision).stages, item.trial_number
                )
                for method, item in methods.items()
            }
            fault = next((said for chain in chains.values() if (said := _fault(chain)) is not None), None)
            if fault is not None and file in compared:
                return Verdict("failed", fault)
            if all(chain[-1].result is not None for chain in chains.values()):
                self._store_tests(items, {name: result_of(chain[-1]).metrics for name, chain in chains.items()})
            elif fault is None:
                waiting = True
        return None if waiting else Verdict("done")

    def _store_tests(self, items: Sequence[Deployment], metrics: Mapping[str, Mapping[str, Json]]) -> None:
        """Stores each deployment's test figures and, beside them, those of its variants at the same quality."""
        for item in items:
            if item.test is not None:
                continue
            read = metrics[str(item.details["method"])]
            variants = [other for other in items if other.quality == item.quality and other.variant != item.variant]
            others = {other.variant: metrics[str(other.details["method"])] for other in variants}
            details: dict[str, Json] = {"coded": _coded(read, item.quality)}
            if others:
                details["baselines"] = {name: found["accuracy"] for name, found in others.items()}
                details["baselines_coded"] = {name: _coded(found, item.quality) for name, found in others.items()}
            self._ledger.set_test(item.id, Accuracy(**read["accuracy"]), details)


def variant(own: Deployment, method: str, stages: Sequence[StageRecord]) -> Deployment:
    """The file of a deployment at its measured cost, as these stages of a baseline's method made it."""
    export, measure = exported(stages), result_of(stages[-1])
    return replace(
        own,
        id=model_id(own.job_id, own.trial_number, stages, own.quality),
        validation=Accuracy(**measure.metrics["accuracy"]),
        onnx_sha256=export.artifacts["onnx"],
        preprocess=export.metrics["preprocess"],
        test=None,
        details={
            "method": method,
            "variant": variant_of(method),
            "is_baseline": True,
            "seed": own.details["seed"],
            "measured": own.details["measured"],
            "parity": export.metrics.get("parity"),
            **picture_details(measure.metrics, own.details.get("picture", {"quality": own.quality}), own.judged),
        },
    )


def why_empty(job: JobRecord, trials: Sequence[TrialRecord], deployments: Sequence[Deployment]) -> str:
    """Why no deployment of a job is on its front."""
    budget = job.spec.budget
    if deployments:
        best = max(deployments, key=lambda d: d.chosen_share)
        excess = ", ".join(sorted(budget.excess(best.cost)))
        beyond = f" and lies beyond {excess}" if excess else ""
        return (
            f"{UNMET}: of {len(deployments)} trained models the best reaches {best.chosen_share:.1%} "
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


def _fault(chain: Sequence[StageRecord]) -> str | None:
    """What failed in a chain, and why; None while nothing has."""
    failed = failed_stage(chain)
    if failed is None:
        return None
    method = f" by {failed.plan.spec['method']}" if "method" in failed.plan.spec else ""
    return f"stage {failed.plan.kind}{method} failed: {failed.reason}"


def _file_of(deployment: Deployment) -> tuple[int, str]:
    """Trial and precision: what has an ONNX file of its own for each variant."""
    return deployment.trial_number, deployment.precision


def _coded(metrics: Mapping[str, Json], quality: int | None) -> Json:
    """Right and total on pictures sent at this quality."""
    found = metrics["coded"].get(str(quality))
    return None if found is None else found["accuracy"]
