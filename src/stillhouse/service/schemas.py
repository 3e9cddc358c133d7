"""What goes over the wire: request bodies checked by pydantic, answers as plain JSON.

``Search`` is made from ``JobSpec``'s own fields and ``Limits`` from those of ``Budget``, so a field added there reaches
the API's schema by itself, with the words of its docstring.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model, model_validator

from stillhouse.search.domain import Budget, Json
from stillhouse.search.job import DatasetRecord, JobRecord, JobSpec, StageRecord, TrialRecord
from stillhouse.service.db.lists import JobLine
from stillhouse.service.described import choices, explained

STRICT = ConfigDict(extra="forbid")
MOST = 2**63
UNFIT = re.compile("[\0\ud800-\udfff]")
"""Characters that JSON can write and no database keeps."""
_HINTS = typing.get_type_hints(JobSpec)
_TOLD = explained(JobSpec)


def _field(item: dataclasses.Field[Any]) -> Any:  # what pydantic takes as a default
    told: dict[str, Any] = {"description": _TOLD.get(item.name), "json_schema_extra": choices(item.name)}
    if item.default_factory is not dataclasses.MISSING:
        return Field(default_factory=item.default_factory, **told)
    return Field(item.default, **told)


_FIELDS: dict[str, Any] = {
    item.name: (_HINTS[item.name], _field(item))
    for item in dataclasses.fields(JobSpec)
    if item.name not in ("dataset", "budget")
}
Search: type[BaseModel] = create_model("Search", __config__=STRICT, __doc__="How to look.", **_FIELDS)

_ALSO_READ: Mapping[str, str] = {
    "max_flops": "The same as max_macs in FLOPs: 1 MAC = 2 FLOPs.",
    "max_kbit_per_s": "Bandwidth in place of max_image_bytes; goes with frames_per_s.",
    "frames_per_s": "Pictures a second over that bandwidth.",
}
_NUMBER: Json = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}
_SHAPES: Mapping[str, Json] = {
    "max_image_size": {"anyOf": [{"type": "integer"}, {"type": "string", "examples": ["48x64"]}, {"type": "null"}]},
    "min_accuracy": {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, {"type": "null"}]},
    "device": {"type": "string", "examples": ["local"]},
}


def _limits() -> dict[str, Any]:
    """Fields by name: read leniently, for the budget itself says best what is wrong with one."""
    told = explained(Budget)
    names = {item.name: (item.default, told.get(item.name)) for item in dataclasses.fields(Budget)}
    names |= {name: (None, text) for name, text in _ALSO_READ.items()}
    read = float | int | str | None
    return {
        name: (Annotated[read, WithJsonSchema(_SHAPES.get(name, _NUMBER))], Field(default, description=text))
        for name, (default, text) in names.items()
    }


Limits: type[BaseModel] = create_model(
    "Limits",
    __config__=STRICT,
    __doc__="Hard limits that every model must meet; one left out does not bind.",
    **_limits(),
)


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
    budget: Limits = Field(default_factory=Limits)  # type: ignore[valid-type]
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
        return JobSpec(
            dataset=self.dataset,
            budget=Budget.from_json(BaseModel.model_dump(self.budget, exclude_none=True)),
            **search,
        )


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
    waiting: str | None = None,
) -> dict[str, Json]:
    """A job with its trials and how far each is.

    Args:
        job: The job.
        trials: All of it.
        stages: By key.
        dataset_name: What its data set is called.
        eta_s: Seconds that it still needs, where they are told.
        waiting: Why it does not move, if it does not.
    """
    line = JobLine(
        job.id,
        job.state,
        job.reason,
        dataset_name,
        job.spec.to_json(),
        job.created_at,
        job.started_at,
        job.finished_at,
        Counter(trial.state for trial in trials),
        max((trial.accuracy for trial in trials if trial.accuracy is not None), default=None),
    )
    return {**line_json(line, eta_s=eta_s, waiting=waiting), "trials": [trial_json(trial, stages) for trial in trials]}


def line_json(line: JobLine, *, eta_s: float | None, waiting: str | None) -> dict[str, Json]:
    """A job without its trials."""
    return {
        "id": line.id,
        "state": line.state,
        "reason": line.reason,
        "dataset_name": line.dataset_name,
        "spec": line.spec,
        "created_at": line.created_at,
        "started_at": line.started_at,
        "finished_at": line.finished_at,
        "eta_s": eta_s,
        "counts": dict(line.counts),
        "trials_ended": sum(line.counts.get(state, 0) for state in ("done", "failed", "stopped")),
        "trials_wanted": line.spec["trials"],
        "best_accuracy": line.best_accuracy,
        "waiting": waiting,
    }


def trial_json(trial: TrialRecord, stages: Mapping[str, StageRecord]) -> dict[str, Json]:
    """A trial, with how far its stages are."""
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
