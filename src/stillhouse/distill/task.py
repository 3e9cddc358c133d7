"""What a task is: its loss, its metric. A task is one file in ``tasks/``, found by scanning the folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from stillhouse.search.domain import Accuracy
from stillhouse.search.errors import UserError


class Task(ABC):
    """Reads outputs of a network against labels."""

    name: ClassVar[str]

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """The supervised loss, mean over the batch, on labels as they are or as ``mixed`` made them."""

    def mixed(self, labels: Tensor, others: Tensor, own: Tensor, classes: int) -> Tensor:  # noqa: ARG002 - for tasks that can
        """Labels of mixed views.

        Args:
            labels: Of the pictures (N,).
            others: Of the pictures mixed in (N,).
            own: The pictures' own part (N,), float32.
            classes: K.

        Raises:
            UserError: The task has no such thing.
        """
        raise UserError(f"task {self.name} cannot mix pictures; set mixup to 0")

    @abstractmethod
    def score(self, outputs: Tensor, labels: Tensor) -> Accuracy:
        """How many are right."""
