"""What a deployment costs, and the limits that it must meet. Units stand in names: ``latency_ms``, ``image_bytes``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from stillhouse.search.errors import BudgetError
from stillhouse.search.sizes import Size

Json = Any


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
        device: Name of the device that latency and memory are measured on; ``local`` is the machine that stages run
            on, any other runs ``stillhouse agent``.
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
        for limit_name, name, limit in self._limits:
            value = getattr(cost, name)
            if value is None:
                continue
            ratio = value.ratio(limit) if isinstance(value, Size) else value / limit
            if ratio > 1:
                found[limit_name] = ratio
        return found

    @cached_property
    def _limits(self) -> tuple[tuple[str, str, Any], ...]:
        """The limits that are set: name, name of the cost, value."""
        limits = ((limit_name, name, getattr(self, limit_name)) for limit_name, name in _COST_OF_LIMIT)
        return tuple(each for each in limits if each[2] is not None)

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
