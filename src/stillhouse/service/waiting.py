"""Why a job that lives does not move: the disk is full, or a stage that was lost pauses before its next try."""

from __future__ import annotations

import math
from collections.abc import Iterable

from stillhouse.search.job import JobRecord, StageRecord
from stillhouse.search.states import LIVE
from stillhouse.service.db.lists import JobLine


def waiting(job: JobRecord | JobLine, stages: Iterable[StageRecord], *, lack: str | None, now: float) -> str | None:
    """One sentence for people; None when the job ended, or nothing holds it up.

    Args:
        job: The job.
        stages: Those that it waits for, its data set's among them.
        lack: What the home has too little of, or None.
        now: Unix seconds.
    """
    if job.state not in LIVE:
        return None
    if lack is not None:
        return lack
    found = list(stages)
    if any(stage.state == "running" for stage in found):
        return None
    pausing = [stage for stage in found if stage.state == "pending" and (stage.not_before or 0.0) > now]
    if not pausing:
        return None
    stage = min(pausing, key=lambda stage: stage.not_before or 0.0)
    tried = f" after {stage.attempts} lost {'try' if stage.attempts == 1 else 'tries'}" if stage.attempts else ""
    left = math.ceil((stage.not_before or now) - now)
    return f"stage {stage.plan.kind} is tried again in {left} s{tried}: {stage.reason}"
