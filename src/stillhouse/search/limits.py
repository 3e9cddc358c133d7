"""What a job may spend: seconds of the clock and of workers, and what of its work counts.

Counted are the seconds of every stage that was begun for the job since it started, by whichever job wanted it first:
costs on a device, trainings with what comes before them, exports, measurements, and comparisons. What is at its limit
trains no more: a training at work is cancelled within one step of the controller. What has been trained is still
delivered: exported, measured, and read on the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from stillhouse.search.domain import Candidate, StageKind, StagePlan
from stillhouse.search.job import JobRecord, StageRecord, TrialRecord
from stillhouse.search.ports import Ledger

Stages = Callable[[Candidate, int], Mapping[str, Sequence[StagePlan]]]
"""The stages that carry a candidate to a rung, by precision; to its costs on the device at level 0."""


class Limits:
    """The limits of one job, within one step.

    Args:
        ledger: The truth.
        job: The job.
        stages: Plans what its trials need.
        levels: Epochs of each rung, the whole training last.
        now: Unix seconds.
    """

    def __init__(self, ledger: Ledger, job: JobRecord, stages: Stages, levels: Sequence[int], *, now: float) -> None:
        self._ledger, self._job, self._stages, self._levels, self._now = ledger, job, stages, tuple(levels), now

    def reached(self, trials: Sequence[TrialRecord], others: Collection[str] = ()) -> str | None:
        """Why nothing more may be trained; None while it may.

        Args:
            trials: All of the job.
            others: Keys of stages that were, or would be, run for it beside those of its trials.
        """
        wall, device = self._job.spec.max_wall_s, self._job.spec.max_device_s
        started = self._job.started_at or self._now
        if wall is not None and self._now - started >= wall:
            return f"the search had its {wall:g} seconds (max_wall_s)"
        if device is not None:
            keys = {*others, *(key for trial in trials for key in (*trial.stages, *self._behind(trial)))}
            if self._ledger.device_seconds(keys, since=started) >= device:
                return f"the search had its {device:g} seconds of workers (max_device_s)"
        return None

    def _behind(self, trial: TrialRecord) -> list[str]:
        """Keys of the stages of its earlier phases: costs on the device, and the rungs that it has reached."""
        levels = [level for level in (0, *self._levels) if level <= (trial.epochs or 0)]
        chains = [chain for level in levels for chain in self._stages(trial.candidate, level).values()]
        return [plan.key for chain in chains for plan in chain]


def is_trained(plans: Sequence[StagePlan], stored: Mapping[str, StageRecord]) -> bool:
    """True when all of a chain that has to be trained has been: its student has a result."""
    students = [stored.get(plan.key) for plan in plans if plan.kind is StageKind.STUDENT]
    return bool(students) and all(stage is not None and stage.result is not None for stage in students)
