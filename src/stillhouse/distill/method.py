"""What a training method is: named losses over a batch, with knobs that say their own ranges.

A method is one file in ``methods/``; it is found by scanning the folder. Its knobs, declared with ``knob``, reach the
API's schema, the checks of a request and the reference docs from here.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from stillhouse.distill.task import Task
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Json, Size
from stillhouse.search.errors import UnknownNameError, UserError


@dataclass(frozen=True)
class Needs:
    """What a method reads beside pictures and labels.

    Attributes:
        targets: Cached logits of a teacher for each view.
        starts_from_assistant: A trained network of the same architecture at the large size, to start from.
    """

    targets: bool = False
    starts_from_assistant: bool = False


@dataclass(frozen=True)
class Batch:
    """One step's input.

    Attributes:
        small: Views at the student's size (N, 3, h, w), in [0, 1].
        large: The same crops at the large size (N, 3, H, W), or None when the method does not read them.
        labels: (N,) int64.
        teacher_logits: (N, K) float32, or None.
    """

    small: Tensor
    large: Tensor | None
    labels: Tensor
    teacher_logits: Tensor | None


def knob(default: float, *, low: float, high: float, search: tuple[float, float] | None = None, help: str) -> Any:
    """A field of a method's ``Params``: default, valid range, range worth searching, one line of help."""
    if not low <= default <= high:
        raise ValueError(f"low <= default <= high must hold, but got {low}, {default}, {high}")
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "search": search, "help": help})


@dataclass(frozen=True)
class NoParams:
    """Knobs of a method that has none."""


class Method(ABC):
    """Turns a batch into named losses that the loop adds up.

    Args:
        params: An instance of ``Params``.
        task: Gives the supervised loss.
        student: The network in training.
        assistant: The network it starts from, or None; never trained.
        large: Size of the large crop.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    Params: ClassVar[type] = NoParams

    def __init__(self, params: Any, task: Task, student: Network, assistant: Network | None, large: Size) -> None:
        self.params, self.task, self.student, self.assistant, self.large = params, task, student, assistant, large
        self.extra = nn.ModuleDict()
        """Modules trained with the student and dropped afterwards."""

    @property
    def reads_large(self) -> bool:
        """True when ``Batch.large`` must be there."""
        return False

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; their sum is what is minimised."""

    @classmethod
    def params_from(cls, knobs: Mapping[str, Json]) -> Any:
        """The method's ``Params`` with some knobs set.

        Raises:
            UnknownNameError: The method has no such knob.
            UserError: A value out of its range.
        """
        known = {field.name: field for field in dataclasses.fields(cls.Params)}
        for name, value in knobs.items():
            if name not in known:
                raise UnknownNameError.among(f"knob of method {cls.name}", name, known)
            low, high = known[name].metadata["low"], known[name].metadata["high"]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise UserError(f"{low} <= {name} <= {high} must hold for method {cls.name}, but got {value!r}")
        return cls.Params(**knobs)

    @classmethod
    def describe(cls) -> list[dict[str, Json]]:
        """One row a knob, as JSON: name, type, default, low, high, search, help."""
        return [
            {"name": f.name, "type": "number", "default": f.default, **{n: _json(v) for n, v in f.metadata.items()}}
            for f in dataclasses.fields(cls.Params)
        ]


def _json(value: object) -> Json:
    return list(value) if isinstance(value, tuple) else value
