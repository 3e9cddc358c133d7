"""What goes over the wire: request bodies checked by pydantic, answers as plain JSON.

``Search`` is made from ``JobSpec``'s own fields, so a field added there reaches the API's schema by itself.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from stillhouse.search.domain import Budget, Json
from stillhouse.search.job import DatasetRecord, JobRecord, JobSpec, StageRecord, TrialRecord

STRICT = ConfigDict(extra="forbid")
MOST = 2**63
UNFIT = re.compile("[\0\ud800-\udfff]")
"""Characters that JSON can write and no database keeps."""
_HINTS = typing.get_type_hints(JobSpec)
_FIELDS: dict[str, Any] = {
    field.name: (
        _HINTS[field.name],
        Field(default_factory=field.default_factory)
        if field.default_factory is not dataclasses.MISSING
        else field.default,
    )
    for field in dataclasses.fields(JobSpec)
    if field.name not in ("dataset", "budget")
}
Search: type[BaseModel] = create_model("Search", __config__=STRICT, **_FIELDS)


class DatasetRequest(BaseModel):
    """A data set that need not be uploaded: one that ships with Stillhouse, or a folder or zip on the server."""

    model_config = STRICT

    builtin: Annotated[str | None, Field(description="Name of a built-in data set.", examples=["textures"])] = None
    path: Annotated[str | None, Field(description="Path under the server's allowed folder.")] = None
    name: Annotated[str | None, Field(description="How to call it.")] = None
    skip_faults: Annotated[bool, Field(description="Leave unreadable pictures out and go on.")] = False


class JobRequest(BaseModel):
    """A search to run."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "dataset": "ds_0123456789ab",
                    "budget": {"max_macs": 60e6, "max_image_size": 64, "max_latency_ms": 20},
                    "search": {"trials": 8, "seed": 0},
                }
            ]
        },
    )

    dataset: Annotated[str, Field(description="Id of a data set.")]
    budget: Annotated[
        dict[str, float | int | str | None],
        Field(
            description="Limits by name: max_macs or max_flops, max_params, max_model_bytes, max_image_bytes or "
            "max_kbit_per_s with frames_per_s, max_image_size, max_latency_ms, max_memory_bytes, min_accuracy, device."
        ),
    ] = {}
    search: Search = Field(default_factory=Search)  # type: ignore[valid-type]

    @model_validator(mode="before")
    @classmethod
    def _can_be_kept(cls, data: Json) -> Json:
        for leaf in _leaves(data):
            if isinstance(leaf, str) and UNFIT.search(leaf):
                raise ValueError(f"texts must have no NUL and no lone surrogates, but got {leaf[:80]!r}")
            if isinstance(leaf, int) and abs(leaf) >= MOST:
                raise ValueError("whole numbers must lie below 2**63 in size; leave a limit out for no limit")
        return data

    def to_spec(self) -> JobSpec:
        """The job's spec; raises UserError for what the schema cannot say."""
        search = {name: getattr(self.search, name) for name in _FIELDS}
        return JobSpec(dataset=self.dataset, budget=Budget.from_json(self.budget), **search)


def dataset_json(record: DatasetRecord) -> dict[str, Json]:
    """A data set as the API gives it."""
    return {
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "reason": record.reason,
        "faults": list(record.faults),
        "summary": dict(record.summary),
        "created_at": record.created_at,
    }


def job_json(
    job: JobRecord,
    trials: list[TrialRecord],
    stages: Mapping[str, StageRecord],
    *,
    dataset_name: str,
    eta_s: float | None,
) -> dict[str, Json]:
    """A job with its trials and how far each is; ``eta_s`` are the seconds that it still needs, where they are told."""
    counts = Counter(trial.state for trial in trials)
    return {
        "id": job.id,
        "state": job.state,
        "reason": job.reason,
        "dataset_name": dataset_name,
        "spec": job.spec.to_json(),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "eta_s": eta_s,
        "counts": dict(counts),
        "trials_ended": counts["done"] + counts["failed"] + counts["stopped"],
        "trials_wanted": job.spec.trials,
        "best_accuracy": max((t.accuracy for t in trials if t.accuracy is not None), default=None),
        "trials": [_trial_json(trial, stages) for trial in trials],
    }


def _trial_json(trial: TrialRecord, stages: Mapping[str, StageRecord]) -> dict[str, Json]:
    known = [stages[key] for key in trial.stages if key in stages]
    running = next((stage for stage in known if stage.state == "running"), None)
    return {
        "number": trial.number,
        "state": trial.state,
        "reason": trial.reason,
        "candidate": trial.candidate.to_json(),
        "cost": trial.cost.to_json(),
        "val_accuracy": trial.accuracy,
        "epochs": trial.epochs,
        "stages_done": sum(stage.state == "done" for stage in known),
        "stages": len(trial.stages),
        "running": None if running is None else {"kind": str(running.plan.kind), "progress": dict(running.progress)},
    }


def _leaves(value: Json) -> Iterator[Json]:
    """Names and values of a JSON value that hold no others."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
