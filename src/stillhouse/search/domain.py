"""The words of the planner as frozen data: sizes, budgets, candidates, costs, plans, deployments.

Units stand in names: ``latency_ms``, ``image_bytes``. MACs are the unit stored and shown; "FLOPs" in a budget
means 2 x MACs (METHODS section 5). All survives a trip through JSON, which is how the ledger keeps it.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillhouse.search.accuracy import Accuracy as Accuracy  # noqa: PLC0414 - a word of the domain too
from stillhouse.search.budget import COST_OBJECTIVES as COST_OBJECTIVES  # noqa: PLC0414
from stillhouse.search.budget import Budget as Budget  # noqa: PLC0414
from stillhouse.search.budget import Cost as Cost  # noqa: PLC0414
from stillhouse.search.sizes import CHANNELS as CHANNELS  # noqa: PLC0414
from stillhouse.search.sizes import Fit as Fit  # noqa: PLC0414 - sizes are words of the domain too
from stillhouse.search.sizes import Size as Size  # noqa: PLC0414

Json = Any
"""A JSON value: None, bool, int, float, str, list or dict of these."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Json) -> str:
    """Returns the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return _CANONICAL.encode(value)


def content_key(value: Json) -> str:
    """Returns the sha256 (64 hex digits) of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


# -------------------------------------------------------------------------------- candidates, costs

Knobs = tuple[tuple[str, float | int | str | bool], ...]


@dataclass(frozen=True, order=True)
class Candidate:
    """What the search picks.

    Attributes:
        arch: A timm architecture name.
        image_size: What the device captures and sends.
        network_size: What the network computes at; a larger one upsamples inside the graph.
        stem: ``stock``, ``stride1`` (CNN) or ``half_patch`` (ViT).
        knobs: Training knobs by name, sorted.
    """

    arch: str
    image_size: Size
    network_size: Size
    stem: str = "stock"
    knobs: Knobs = ()

    def to_json(self) -> dict[str, Json]:
        """JSON form; ``from_json`` reads it back."""
        return {
            "arch": self.arch,
            "image_size": str(self.image_size),
            "network_size": str(self.network_size),
            "stem": self.stem,
            "knobs": dict(self.knobs),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Candidate:
        """Reads what ``to_json`` wrote."""
        return cls(
            arch=data["arch"],
            image_size=Size.parse(data["image_size"]),
            network_size=Size.parse(data["network_size"]),
            stem=data["stem"],
            knobs=tuple(sorted(data.get("knobs", {}).items())),
        )

    def __str__(self) -> str:
        return f"{self.arch} {self.image_size}->{self.network_size} {self.stem}"


# ------------------------------------------------------------------------------------------ plans


class StageKind(enum.StrEnum):
    """The kinds of work an attempt can do."""

    INGEST = "ingest"
    PROBE = "probe"
    TEACHER = "teacher"
    TARGETS = "targets"
    ASSISTANT = "assistant"
    STUDENT = "student"
    EXPORT = "export"
    MEASURE = "measure"


LOCAL = "local"
"""The device that is the machine which stages run on."""

CHECKPOINT = re.compile(r"checkpoint-(\d{6})-([0-9a-f]{64})\.pt")
"""Name of a file with the state of a training: the epochs that it has had, and the sha256 of its bytes."""


@dataclass(frozen=True)
class StagePlan:
    """One unit of work, named by the hash of all that decides its result.

    Attributes:
        kind: What work it is.
        spec: JSON parameters of the work.
        inputs: Role -> key of the stage whose result is read under that role.
        code: Digest of the code that does the work (from the catalogue).
        hints: What decides no more than rounding (a path, whether to compile), and notes for who reads it. Not in the
            key.
    """

    kind: StageKind
    spec: Mapping[str, Json]
    inputs: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    hints: Mapping[str, Json] = field(default_factory=dict)

    @property
    def device(self) -> str | None:
        """The device that must do it, by itself; None for what any worker may do."""
        if self.kind is not StageKind.MEASURE or not self.spec.get("latency"):
            return None
        device: str = self.spec.get("device", LOCAL)
        return None if device == LOCAL else device

    @functools.cached_property
    def key(self) -> str:
        """sha256 over kind, spec, inputs and code: equal keys mean equal results."""
        data = self.to_json()
        del data["hints"]
        return content_key(data)

    def to_json(self) -> dict[str, Json]:
        """JSON form; ``from_json`` reads it back."""
        return {
            "kind": str(self.kind),
            "spec": dict(self.spec),
            "inputs": dict(self.inputs),
            "code": self.code,
            "hints": dict(self.hints),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> StagePlan:
        """Reads what ``to_json`` wrote."""
        return cls(StageKind(data["kind"]), dict(data["spec"]), dict(data["inputs"]), data["code"], dict(data["hints"]))


@dataclass(frozen=True)
class TrialPlan:
    """A candidate and the stages that carry it, each after those it reads."""

    candidate: Candidate
    stages: tuple[StagePlan, ...]

    @property
    def last(self) -> StagePlan:
        """The stage whose result ends the trial."""
        return self.stages[-1]


@dataclass(frozen=True)
class StageResult:
    """What a stage commits: artifacts by name (sha256) and JSON figures."""

    artifacts: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """JSON form; ``from_json`` reads it back."""
        return {"artifacts": dict(self.artifacts), "metrics": dict(self.metrics)}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> StageResult:
        """Reads what ``to_json`` wrote."""
        return cls(dict(data["artifacts"]), dict(data["metrics"]))


# ------------------------------------------------------------------------------------ deployments

PRECISIONS = ("fp32", "fp16", "int8")
"""Of the numbers in an ONNX file; the first is what is trained, the others are made from it."""

DISTILLED = "distilled"
"""The variant of a network that the job's own method trained, unless that method is itself a baseline."""


@dataclass(frozen=True)
class Deployment:
    """A trained student at one precision and one picture quality: one ONNX file and one point on the front.

    ``validation`` and ``test`` are the file's accuracy on pictures as they are, ``coded`` that on pictures that went
    through the codec at this quality. Test figures are None until it is on a finished job's front, or shares its trial
    with one that is. Variants share a trial's number, candidate and cost.
    """

    id: str
    job_id: str
    trial_number: int
    candidate: Candidate
    cost: Cost
    precision: str
    validation: Accuracy
    onnx_sha256: str
    preprocess: Mapping[str, Json]
    test: Accuracy | None = None
    details: Mapping[str, Json] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """How the network was trained: ``distilled``, or the name of a baseline such as ``no_teacher``."""
        return str(self.details.get("variant", DISTILLED))

    @property
    def is_baseline(self) -> bool:
        """True for a variant that was trained for comparison, by another method than the job's."""
        return bool(self.details.get("is_baseline", False))

    @property
    def quality(self) -> int | None:
        """Of the codec that its pictures are sent with."""
        return (self.details.get("picture") or self.details.get("coded") or {}).get("quality")

    @property
    def coded(self) -> Accuracy | None:
        """On validation pictures that went through the codec; None where that was not measured."""
        return _accuracy(self.details.get("coded_val"))

    @property
    def coded_test(self) -> Accuracy | None:
        """On test pictures that went through the codec; None where that was not measured."""
        return _accuracy(self.details.get("coded"))

    @property
    def judged(self) -> str:
        """``coded`` where pictures are sent, so that the coded accuracy is what counts; else ``plain``."""
        return str(self.details.get("judged", "plain"))

    @property
    def chosen_by(self) -> Accuracy:
        """The validation accuracy that counts."""
        return (self.coded if self.judged == "coded" else None) or self.validation

    @property
    def chosen_share(self) -> float:
        """The value of ``chosen_by``, at a fraction of its time: a front asks a hundred thousand deployments."""
        coded = self.details.get("coded_val") if self.judged == "coded" else None
        return coded["correct"] / coded["total"] if coded else self.validation.value

    @property
    def shown(self) -> Accuracy:
        """The accuracy that counts, on test where that was read."""
        return (self.coded_test if self.judged == "coded" else self.test) or self.test or self.chosen_by

    def objective(self, name: str) -> float:
        """The value of one cost objective."""
        value = getattr(self.cost, name)
        if value is None:
            raise ValueError(f"deployment {self.id} has no {name}")
        return float(value)


def _accuracy(entry: Mapping[str, Json] | None) -> Accuracy | None:
    return None if entry is None else Accuracy(entry["correct"], entry["total"])
