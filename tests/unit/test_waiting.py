"""Why a job waits, in one sentence."""

import dataclasses

import pytest

from stillhouse.search.devices import DeviceRecord
from stillhouse.search.domain import StageKind, StagePlan
from stillhouse.search.job import JobRecord, JobSpec, StageRecord
from stillhouse.service.waiting import waiting

NOW = 1000.0


def stage(kind: StageKind, state: str = "pending", *, due: float | None = None, tries: int = 0) -> StageRecord:
    return StageRecord(StagePlan(kind, {}), state, tries, reason="its process ended", not_before=due)


def job(state: str = "running") -> JobRecord:
    return JobRecord("job_1", JobSpec("ds_1"), state)


def test_a_stage_that_pauses_is_named_with_its_reason() -> None:
    stages = [stage(StageKind.TEACHER, due=1004.5, tries=2), stage(StageKind.STUDENT), stage(StageKind.INGEST, "done")]
    said = "stage teacher is tried again in 5 s after 2 lost tries: its process ended"
    assert waiting(job(), stages, lack=None, now=NOW) == said
    assert waiting(job(), [stage(StageKind.TEACHER, due=1001, tries=1)], lack=None, now=NOW) == (
        "stage teacher is tried again in 1 s after 1 lost try: its process ended"
    )
    assert waiting(job(), [stage(StageKind.TEACHER, due=1001)], lack=None, now=NOW) == (
        "stage teacher is tried again in 1 s: its process ended"
    )


def test_the_stage_that_is_due_first_is_named() -> None:
    stages = [stage(StageKind.STUDENT, due=1060), stage(StageKind.TEACHER, due=1010)]
    assert "teacher is tried again in 10 s" in (waiting(job(), stages, lack=None, now=NOW) or "")


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [stage(StageKind.TEACHER)],
        [stage(StageKind.TEACHER, due=999)],
        [stage(StageKind.TEACHER, due=1060), stage(StageKind.STUDENT, "running")],
    ],
)
def test_a_job_that_moves_waits_for_nothing(stages: list[StageRecord]) -> None:
    assert waiting(job(), stages, lack=None, now=NOW) is None


TIMED = StagePlan(StageKind.MEASURE, {"latency": True, "device": "gate-cam"})
CAM = DeviceRecord("gate-cam", "onnxruntime", "1", {}, seen_at=NOW)


def test_a_device_that_is_away_is_named() -> None:
    def said(*devices: DeviceRecord, state: str = "pending", plan: StagePlan = TIMED) -> str | None:
        return waiting(job(), [StageRecord(plan, state)], lack=None, now=NOW, devices=lambda: devices)

    assert said(CAM) is None
    away = dataclasses.replace(CAM, seen_at=NOW - 300)
    assert said(away) == "device gate-cam has not asked for work for 300 s; start its agent again"
    assert "gate-cam has been forgotten" in (said() or "")
    assert said(away, state="running") is None
    assert said(away, plan=StagePlan(StageKind.MEASURE, {"latency": True, "device": "local"})) is None
    assert said(away, plan=StagePlan(StageKind.MEASURE, {"latency": False, "device": "gate-cam"})) is None


def test_a_full_disk_holds_up_every_job_that_lives() -> None:
    assert waiting(job("queued"), [], lack="the disk is full", now=NOW) == "the disk is full"
    assert waiting(job(), [stage(StageKind.TEACHER, "running")], lack="the disk is full", now=NOW) == "the disk is full"
    for ended in ("done", "failed", "cancelled"):
        assert waiting(job(ended), [], lack="the disk is full", now=NOW) is None
