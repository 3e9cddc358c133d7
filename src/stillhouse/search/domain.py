"""The words of the planner as frozen data: sizes, budgets, candidates, costs, plans, deployments.

Units stand in names: ``latency_ms``, ``image_bytes``. MACs are the unit stored and shown; "FLOPs" in a budget
means 2 x MACs (METHODS section 5). All survives a trip through JSON, which is how the ledger keeps it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from stillhouse.search.errors import BudgetError
from stillhouse.search.sizes import Fit as Fit  # noqa: PLC0414 - sizes are words of the domain too
from stillhouse.search.sizes import Size as Size  # noqa: PLC0414

Json = Any
"""A JSON value: None, bool, int, float, str, list or dict of these."""


def canonical_json(value: Json) -> str:
    """Returns the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_key(value: Json) -> str:
    """Returns the sha256 (64 hex digits) of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class Budget:
    """Hard limits that a deployment must meet; a limit that is None does not bind.

    Attributes:
        max_macs: Multiply-accumulates of one forward pass.
        max_params: Parameters of the deployed network.
        max_model_bytes: The ONNX file on disk.
        max_image_bytes: Mean bytes per picture sent, on the user's own pictures.
        max_image_size: Greatest height and width that the device captures and sends.
        max_latency_ms: Median latency of one picture on ``device``.
        max_memory_bytes: Peak memory of inference on ``device``.
        min_accuracy: Least top-1 accuracy, between 0 and 1.
        device: Name of the device that latency and memory are measured on.
    """

    max_macs: int | None = None
    max_params: int | None = None
    max_model_bytes: int | None = None
    max_image_bytes: int | None = None
    max_image_size: Size | None = None
    max_latency_ms: float | None = None
    max_memory_bytes: int | None = None
    min_accuracy: float | None = None
    device: str = "local"

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None or not item.name.startswith("max_") or isinstance(value, Size):
                continue
            if not math.isfinite(value) or value <= 0:
                raise BudgetError(f"{item.name} must be a number > 0, but got {value!r}; leave it out for no limit")
        accuracy = self.min_accuracy
        if accuracy is not None and not 0 < accuracy < 1:
            raise BudgetError(f"min_accuracy must lie between 0 and 1 (0.9 means 90 %), but got {accuracy!r}")

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Budget:
        """Reads a budget as users write it.

        Beside the attributes it takes ``max_flops`` (2 x MACs) in place of ``max_macs``, and
        ``max_kbit_per_s`` with ``frames_per_s`` in place of ``max_image_bytes``.

        Raises:
            BudgetError: An unknown, contradictory or malformed limit.
        """
        left = {name: value for name, value in data.items() if value is not None}
        flops = _number(left, "max_flops")
        kbit, frames = _number(left, "max_kbit_per_s"), _number(left, "frames_per_s")
        if flops is not None:
            if "max_macs" in left:
                raise BudgetError("give max_macs or max_flops (1 MAC = 2 FLOPs), not both")
            left["max_macs"] = flops / 2
        if (kbit is None) != (frames is None):
            raise BudgetError(
                "max_kbit_per_s and frames_per_s go together: bytes per picture = 125 x kbit/s / frames/s"
            )
        if kbit is not None and frames is not None:
            if "max_image_bytes" in left:
                raise BudgetError("give max_image_bytes or max_kbit_per_s with frames_per_s, not both")
            if frames <= 0:
                raise BudgetError(f"frames_per_s must be > 0, but got {frames}")
            left["max_image_bytes"] = kbit * 125 / frames
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(left) - known)
        if unknown:
            raise BudgetError(f"unknown limit {unknown[0]!r}; known: {', '.join(sorted(known | _ALSO_READ))}")
        return cls(**{name: _limit(name, value) for name, value in left.items()})

    def to_json(self) -> dict[str, Json]:
        """The limits that bind, by name; ``from_json`` reads it back."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        return {n: str(v) if isinstance(v, Size) else v for n, v in data.items() if v is not None}

    def excess(self, cost: Cost) -> dict[str, float]:
        """How far a cost lies beyond each limit, as a ratio to the limit: empty when all known costs fit.

        A cost that is not known yet (None) does not count.
        """
        found: dict[str, float] = {}
        for limit_name, name in _COST_OF_LIMIT:
            limit = getattr(self, limit_name)
            value = None if limit is None else getattr(cost, name)
            if value is None:
                continue
            ratio = value.ratio(limit) if isinstance(value, Size) else value / limit
            if ratio > 1:
                found[limit_name] = ratio
        return found

    @property
    def needs_device(self) -> bool:
        """True when a limit can only be checked on an exported file."""
        return any(x is not None for x in (self.max_latency_ms, self.max_memory_bytes, self.max_model_bytes))


_COST_OF_LIMIT = tuple((f.name, f.name.removeprefix("max_")) for f in fields(Budget) if f.name.startswith("max_"))
_ALSO_READ = frozenset({"max_flops", "max_kbit_per_s", "frames_per_s"})
_WHOLE = frozenset({"max_macs", "max_params", "max_model_bytes", "max_image_bytes", "max_memory_bytes"})


def _number(data: dict[str, Json], name: str) -> float | None:
    value = data.pop(name, None)
    if value is None:
        return None
    return float(_limit(name, value))


def _limit(name: str, value: Json) -> Json:
    if name == "device":
        return str(value)
    if name == "max_image_size":
        return Size.parse(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BudgetError(f"{name} must be a number, but got {value!r}") from None
    if name in _WHOLE and math.isfinite(number):
        whole = math.floor(number)
        return whole if whole > 0 else number
    return number


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


@dataclass(frozen=True)
class Cost:
    """A candidate's costs; None where not known yet. Names match the budget's ``max_*``."""

    macs: int | None = None
    params: int | None = None
    model_bytes: int | None = None
    image_bytes: float | None = None
    image_size: Size | None = None
    latency_ms: float | None = None
    latency_p95_ms: float | None = None
    memory_bytes: int | None = None

    def merged(self, other: Cost) -> Cost:
        """This cost with what the other knows laid over it."""
        known = {f.name: getattr(other, f.name) for f in fields(other) if getattr(other, f.name) is not None}
        return dataclasses.replace(self, **known)

    def to_json(self) -> dict[str, Json]:
        """JSON form; ``from_json`` reads it back."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        return {n: str(v) if isinstance(v, Size) else v for n, v in data.items() if v is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Cost:
        """Reads what ``to_json`` wrote."""
        left = dict(data)
        if "image_size" in left:
            left["image_size"] = Size.parse(left["image_size"])
        return cls(**left)


COST_OBJECTIVES = ("macs", "params", "model_bytes", "image_bytes", "latency_ms", "memory_bytes")
"""The costs that a front may be drawn over; each is minimised, accuracy is maximised."""


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


@dataclass(frozen=True)
class StagePlan:
    """One unit of work, named by the hash of all that decides its result.

    Attributes:
        kind: What work it is.
        spec: JSON parameters of the work.
        inputs: Role -> key of the stage whose result is read under that role.
        code: Digest of the code that does the work (from the catalogue).
        hints: What decides no more than rounding: a path, whether to compile. Not in the key.
    """

    kind: StageKind
    spec: Mapping[str, Json]
    inputs: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    hints: Mapping[str, Json] = field(default_factory=dict)

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

DISTILLED = "distilled"
"""The variant of a network that the job's own method trained, unless that method is itself a baseline."""


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy with the Wilson score interval (95 % by default)."""

    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise ValueError(f"0 <= correct <= total, total >= 1 must hold, but got {self.correct}/{self.total}")

    @property
    def value(self) -> float:
        """Share of pictures told right."""
        return self.correct / self.total

    def interval(self, z: float = 1.959963984540054) -> tuple[float, float]:
        """Wilson score interval (Wilson 1927), inside [0, 1]."""
        n, p = self.total, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low = 0.0 if self.correct == 0 else max(0.0, centre - half)
        high = 1.0 if self.correct == n else min(1.0, centre + half)
        return low, high


@dataclass(frozen=True)
class Deployment:
    """A trained student as one ONNX file: one point on the front.

    ``validation`` chose it; ``test`` is None until it is a member of a finished job's front, or compared with one.
    Variants share a trial's number, candidate and cost.
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

    def objective(self, name: str) -> float:
        """The value of one cost objective."""
        value = getattr(self.cost, name)
        if value is None:
            raise ValueError(f"deployment {self.id} has no {name}")
        return float(value)
