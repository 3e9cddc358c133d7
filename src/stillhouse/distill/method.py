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

from stillhouse.distill.knowledge import Knowledge, Outline
from stillhouse.distill.task import Task
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Json, Size
from stillhouse.search.errors import UnknownNameError, UserError


@dataclass(frozen=True)
class Needs:
    """What a method reads beside pictures and labels.

    Attributes:
        targets: The mentor's logits for each view.
        starts_from_assistant: The mentor is a trained network of the student's architecture at a larger size, and the
            student starts from it. Otherwise the mentor is the teacher.
        features: What is read inside the mentor (one of ``knowledge.FEATURES``).
        features_by: Knob that weighs them; at 0 they are not read, and the planner does not have them cached.
    """

    targets: bool = False
    starts_from_assistant: bool = False
    features: str = ""
    features_by: str = ""


@dataclass(frozen=True)
class Batch:
    """One step's input.

    Attributes:
        small: Views at the student's size and in its colour (N, C, h, w), in [0, 1].
        large: The same views at the large size, RGB (N, 3, H, W), or None when the method does not read them.
        labels: (N,) int64; where views are mixed, what the task made of both labels ((N, K) float32).
        taught: The mentor's outputs for the same views, or None when the method needs no mentor.
    """

    small: Tensor
    large: Tensor | None
    labels: Tensor
    taught: Knowledge | None = None


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
        mentor: Shapes of what the mentor tells; None without one.
        large: Size of the large crop.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    Params: ClassVar[type] = NoParams

    def __init__(self, params: Any, task: Task, student: Network, mentor: Outline | None, large: Size) -> None:
        self.params, self.task, self.student, self.mentor, self.large = params, task, student, mentor, large
        self.extra = nn.ModuleDict()
        """Modules trained with the student and dropped afterwards."""

    @property
    def reads_large(self) -> bool:
        """True when ``Batch.large`` must be there."""
        return False

    @property
    def features(self) -> str:
        """What must be in ``Batch.taught.features``: what the class needs, or nothing where its weight is 0."""
        weight = self.needs.features_by
        return "" if weight and not getattr(self.params, weight) else self.needs.features

    @property
    def compiles(self) -> bool:
        """False when it reads inside the student: its hooks would have the network compiled anew at each step."""
        return not self.features and not self.reads_large

    def taught(self, batch: Batch) -> Knowledge:
        """The mentor's outputs."""
        if batch.taught is None:
            raise ValueError(f"method {self.name} needs what its mentor told of these views")
        return batch.taught

    def outline(self) -> Outline:
        """The mentor's shapes."""
        if self.mentor is None:
            raise ValueError(f"method {self.name} needs a mentor")
        return self.mentor

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
