"""What both ledgers share: records from rows, JSON made strict, and the rules of states."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Text, cast, select

from stillhouse.search.devices import DeviceRecord
from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Json, StagePlan, StageResult, content_key
from stillhouse.search.errors import NotFoundError, StageError
from stillhouse.search.job import (
    AttemptRecord,
    DatasetRecord,
    Event,
    JobRecord,
    JobSpec,
    StageRecord,
    TrialRecord,
)
from stillhouse.search.wanted import Asker
from stillhouse.service.db.tables import (
    AttemptRow,
    DatasetRow,
    DeploymentRow,
    DeviceRow,
    EventRow,
    JobRow,
    StageRow,
    TrialRow,
)

_TEXTS = 16_384
"""Rows, and texts of each kind, that are kept parsed."""
JOB_ENDS = ("done", "failed", "cancelled")


def new_id(prefix: str) -> str:
    """A fresh id such as ``job_3f9a0c12b4de``."""
    return f"{prefix}_{secrets.token_hex(6)}"


def as_json(value: object, *, error: type[Exception] = ValueError) -> Json:
    """A copy of the value as JSON gives it back: lists for tuples, no NaN.

    Raises:
        Exception: Of the type given, when the value is no JSON or holds NaN or infinity.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as cause:
        raise error(
            f"what the ledger keeps must be JSON with finite numbers, but got {value!r:.500}: {cause}"
        ) from cause


def as_progress(value: Mapping[str, Json]) -> Json:
    """As ``as_json``, with null for what is not finite: a loss that diverges must not cost the heartbeat.

    Raises:
        StageError: The value is no JSON.
    """
    return as_json(_finite(dict(value)), error=StageError)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def as_text(value: str) -> str:
    """The text as every database can keep it: no NUL, no lone surrogates."""
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def as_text_or_none(value: str | None) -> str | None:
    """As ``as_text``; None stays None."""
    return None if value is None else as_text(value)


def body_hash(spec: Mapping[str, Json]) -> str:
    """What tells a repeated request from another one under the same idempotency key."""
    return content_key(dict(spec))


def reused_key(key: str, job_id: str) -> str:
    """Why a request is refused whose idempotency key belongs to another one."""
    return (
        f"the idempotency key {key!r} made {job_id} with another body; send the same body to get that job, "
        "or another key to make a new one"
    )


def lost_reason(attempts: int, attempt_id: str) -> str:
    """Why a stage is given up whose process keeps dying."""
    return (
        f"its process ended {attempts} times without a result (killed, crashed or out of memory); "
        f"the log of attempt {attempt_id} may say more"
    )


def trial_event(trial: TrialRecord) -> dict[str, Json]:
    """The data of a ``trial`` event."""
    return {
        "number": trial.number,
        "state": trial.state,
        "candidate": trial.candidate.to_json(),
        "cost": trial.cost.to_json(),
        "accuracy": trial.accuracy,
        "epochs": trial.epochs,
        "reason": trial.reason,
    }


def not_found(what: str, name: str) -> NotFoundError:
    """The error for an id that is not stored."""
    return NotFoundError(f"no such {what}: {name!r}; ids are given when it is made, and listed by kind")


# -------------------------------------------------------------------------------- rows to records


def dataset_record(row: DatasetRow) -> DatasetRecord:
    """From its row."""
    return DatasetRecord(
        row.id,
        row.name,
        row.stage_key,
        row.state,
        row.reason,
        tuple(row.faults),
        row.summary,
        row.created_at,
        row.tenant,
    )


def job_record(row: JobRow) -> JobRecord:
    """From its row."""
    spec = JobSpec.from_json(row.spec)
    return JobRecord(row.id, spec, row.state, row.reason, row.created_at, row.started_at, row.finished_at, row.tenant)


def trial_record(row: TrialRow) -> TrialRecord:
    """From its row."""
    return TrialRecord(
        job_id=row.job_id,
        number=row.number,
        candidate=Candidate.from_json(row.candidate),
        state=row.state,
        cost=Cost.from_json(row.cost),
        stages=tuple(row.stages),
        accuracy=row.accuracy,
        reason=row.reason,
        epochs=row.epochs,
    )


TRIAL_TEXTS = select(
    TrialRow.job_id,
    TrialRow.number,
    TrialRow.state,
    TrialRow.accuracy,
    TrialRow.epochs,
    TrialRow.reason,
    cast(TrialRow.candidate, Text).label("candidate"),
    cast(TrialRow.cost, Text).label("cost"),
    cast(TrialRow.stages, Text).label("stages"),
)
"""What ``trial_from_texts`` reads. A search reads all of its trials in each step, and next to none has changed."""


def trial_from_texts(row: Any) -> TrialRecord:
    """From a row of ``TRIAL_TEXTS``; one that was read before is not made again."""
    return _trial(*row)


@lru_cache(maxsize=_TEXTS)
def _trial(
    job_id: str,
    number: int,
    state: str,
    accuracy: float | None,
    epochs: int | None,
    reason: str | None,
    candidate: str,
    cost: str,
    stages: str,
) -> TrialRecord:
    keys = tuple(json.loads(stages))
    return TrialRecord(job_id, number, _candidate(candidate), state, _cost(cost), keys, accuracy, reason, epochs)


@lru_cache(maxsize=_TEXTS)
def _candidate(text: str) -> Candidate:
    return Candidate.from_json(json.loads(text))


@lru_cache(maxsize=_TEXTS)
def _cost(text: str) -> Cost:
    return Cost.from_json(json.loads(text))


def stage_record(row: StageRow, progress: Mapping[str, Json] | None = None) -> StageRecord:
    """From its row and the progress of its open attempt, if it has one."""
    return StageRecord(
        plan=StagePlan.from_json(row.plan),
        state=row.state,
        attempts=row.attempts,
        result=None if row.result is None else StageResult.from_json(row.result),
        reason=row.reason,
        faults=tuple(row.faults),
        seconds=row.seconds,
        progress=progress or {},
        not_before=row.not_before,
    )


def attempt_record(row: AttemptRow) -> AttemptRecord:
    """From its row."""
    times = (row.opened_at, row.ended_at)
    asker = Asker(row.job_id, row.trial_number)
    return AttemptRecord(
        row.id, row.stage_key, row.token, row.state, row.expires_at, row.threads, *times, asker, row.slots
    )


def deployment_values(deployment: Deployment) -> dict[str, Json]:
    """The columns of a deployment, but for the time."""
    test = deployment.test
    return {
        "id": deployment.id,
        "job_id": deployment.job_id,
        "trial_number": deployment.trial_number,
        "candidate": as_json(deployment.candidate.to_json()),
        "cost": as_json(deployment.cost.to_json()),
        "precision": deployment.precision,
        "validation_correct": deployment.validation.correct,
        "validation_total": deployment.validation.total,
        "test_correct": None if test is None else test.correct,
        "test_total": None if test is None else test.total,
        "onnx_sha256": deployment.onnx_sha256,
        "preprocess": as_json(dict(deployment.preprocess)),
        "details": as_json(dict(deployment.details)),
    }


DEPLOYMENT_TEXTS = select(
    DeploymentRow.id,
    DeploymentRow.job_id,
    DeploymentRow.trial_number,
    DeploymentRow.precision,
    DeploymentRow.validation_correct,
    DeploymentRow.validation_total,
    DeploymentRow.test_correct,
    DeploymentRow.test_total,
    DeploymentRow.onnx_sha256,
    DeploymentRow.created_at,
    cast(DeploymentRow.candidate, Text).label("candidate"),
    cast(DeploymentRow.cost, Text).label("cost"),
    cast(DeploymentRow.preprocess, Text).label("preprocess"),
    cast(DeploymentRow.details, Text).label("details"),
)
"""What ``deployment_from_texts`` reads: a job has a hundred, and a trial's share what they were made from."""


def deployment_from_texts(row: Any) -> Deployment:
    """From a row of ``DEPLOYMENT_TEXTS``; candidates and costs that were read before are not parsed again."""
    read = row.test_correct is not None and row.test_total is not None
    return Deployment(
        id=row.id,
        job_id=row.job_id,
        trial_number=row.trial_number,
        candidate=_candidate(row.candidate),
        cost=_cost(row.cost),
        precision=row.precision,
        validation=Accuracy(row.validation_correct, row.validation_total),
        onnx_sha256=row.onnx_sha256,
        preprocess=json.loads(row.preprocess),
        test=Accuracy(row.test_correct or 0, row.test_total or 1) if read else None,
        details=json.loads(row.details),
    )


def device_record(row: DeviceRow) -> DeviceRecord:
    """From its row."""
    return DeviceRecord(row.name, row.runtime, row.measure, row.host, row.seen_at)


def with_devices(catalogue: Mapping[str, Json], devices: Iterable[DeviceRecord]) -> Mapping[str, Json]:
    """A catalogue that also names the devices, where there are any."""
    codes = {device.name: device.code for device in devices}
    return {**catalogue, "devices": codes} if codes else catalogue


def event_record(row: EventRow) -> Event:
    """From its row."""
    return Event(row.id, row.job_id, row.at, row.kind, row.data)
