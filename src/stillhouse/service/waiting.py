"""Why a job that lives does not move: a full disk, a device that is away, a stage that pauses before its next try."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from stillhouse.search.devices import DeviceRecord
from stillhouse.search.job import JobRecord, StageRecord
from stillhouse.search.states import LIVE
from stillhouse.service.db.lists import JobLine


def waiting(
    job: JobRecord | JobLine,
    stages: Iterable[StageRecord],
    *,
    lack: str | None,
    now: float,
    devices: Callable[[], Iterable[DeviceRecord]] = tuple,
) -> str | None:
    """One sentence for people; None when the job ended, or nothing holds it up.

    Args:
        job: The job.
        stages: Those that it waits for, its data set's among them.
        lack: What the home has too little of, or None.
        now: Unix seconds.
        devices: Gives those that are known; asked only where a stage needs one.
    """
    if job.state not in LIVE:
        return None
    if lack is not None:
        return lack
    found = list(stages)
    if any(stage.state == "running" for stage in found):
        return None
    away = next((why for stage in found if (why := _away(stage, devices, now)) is not None), None)
    if away is not None:
        return away
    pausing = [stage for stage in found if stage.state == "pending" and (stage.not_before or 0.0) > now]
    if not pausing:
        return None
    stage = min(pausing, key=lambda stage: stage.not_before or 0.0)
    tried = f" after {stage.attempts} lost {'try' if stage.attempts == 1 else 'tries'}" if stage.attempts else ""
    left = math.ceil((stage.not_before or now) - now)
    return f"stage {stage.plan.kind} is tried again in {left} s{tried}: {stage.reason}"


def _away(stage: StageRecord, devices: Callable[[], Iterable[DeviceRecord]], now: float) -> str | None:
    """Why a stage's device does not take it; None when it needs none, or the device is there."""
    name = stage.plan.device
    if name is None or stage.state != "pending":
        return None
    device = next((each for each in devices() if each.name == name), None)
    if device is None:
        return f"device {name} has been forgotten; start its agent again, or cancel the job"
    if device.at_hand(now):
        return None
    return f"device {name} has not asked for work for {math.floor(now - device.seen_at)} s; start its agent again"
