"""What earlier jobs on the same data set have found out: trials that a new search is told before its first.

A job's decisions are a function of the ledger, the job and its seed, and must be the same after a restart. So only
trials that were done before the job was created are read: they never change, whatever happens later to their job.
When each was done, its event says; a job's own ``finished_at`` moves when a user retries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stillhouse.search.domain import Candidate
from stillhouse.search.errors import UserError
from stillhouse.search.job import JobRecord, JobSpec, TrialRecord
from stillhouse.search.ports import Ledger
from stillhouse.search.space import Space

MOST_JOBS, MOST_TRIALS = 20, 1000
"""That are read, newest jobs first."""

_NO_RECIPE = {
    *("dataset", "task", "classes", "trials", "seed", "sampler", "eta", "max_wall_s", "max_device_s", "min_gain"),
    *("budget", "objectives", "archs", "image_sizes", "ablate", "latency_threads", "feature_cache_bytes", "compile"),
}
"""Fields of a job that do not change how accurate a candidate becomes, or that agree anyway. All others do."""


@dataclass(frozen=True)
class Earlier:
    """What one earlier job has found out.

    Attributes:
        trials: Those trained to the end, with their accuracy, in order of number.
        same_recipe: It trained as this job does; else its accuracies differ by an offset, and nobody knows which.
    """

    trials: tuple[TrialRecord, ...]
    same_recipe: bool


def earlier(ledger: Ledger, job: JobRecord) -> tuple[Earlier, ...]:
    """What jobs on the same data set, task and number of classes had found out when this one was created, newest first.

    At most ``MOST_JOBS`` jobs are looked at, and at most ``MOST_TRIALS`` trials returned.

    Raises:
        NotFoundError: No such data set.
    """
    there = len(ledger.dataset(job.spec.dataset).summary.get("classes", ()))
    question = _question(job.spec, there)
    alike = [
        other
        for other in ledger.jobs()
        if other.id != job.id and other.created_at < job.created_at and _question(other.spec, there) == question
    ]
    found: list[Earlier] = []
    left = MOST_TRIALS
    for other in sorted(alike, key=lambda other: (-other.created_at, other.id))[:MOST_JOBS]:
        trials = _done(ledger, other.id, job.created_at)[:left]
        left -= len(trials)
        if trials:
            found.append(Earlier(trials, recipe(other.spec) == recipe(job.spec)))
    return tuple(found)


def recipe(spec: JobSpec) -> dict[str, object]:
    """Everything in a job that changes how accurate a given candidate becomes; the seed's part is noise.

    ``sends`` is part of it: accuracy is then read on pictures as sent. That a tight budget may let a lower quality or
    precision stand for a trial is taken to be noise as well.
    """
    kept = {name: value for name, value in spec.to_json().items() if name not in _NO_RECIPE}
    return kept | {"sends": spec.sends}


def usable(jobs: Sequence[Earlier], space: Space) -> list[Earlier]:
    """Of these jobs, the trials whose candidates the catalogue still holds, with knobs that occur in this space."""
    known = {candidate.knobs for candidate in space.feasible}

    def kept(candidate: Candidate) -> bool:
        try:
            space.cost(candidate)
        except UserError:
            return False
        return candidate.knobs in known

    left = [replace(job, trials=tuple(trial for trial in job.trials if kept(trial.candidate))) for job in jobs]
    return [job for job in left if job.trials]


# ---------------------------------------------------------------------------------------- helpers


def _question(spec: JobSpec, there: int) -> tuple[str, str, int]:
    return spec.dataset, spec.task, spec.classes or there


def _done(ledger: Ledger, job_id: str, before: float) -> tuple[TrialRecord, ...]:
    """Trials of a job that were trained to the end before this time (Unix seconds)."""
    numbers = {
        event.data["number"]
        for event in ledger.events(job_id)
        if event.kind == "trial" and event.data["state"] == "done" and event.at < before
    }
    return tuple(trial for trial in ledger.trials(job_id) if trial.number in numbers and trial.accuracy is not None)
