"""What a task is: its loss, its metric. A task is one file in ``tasks/``, found by scanning the folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from stillhouse.search.domain import Accuracy


class Task(ABC):
    """Reads outputs of a network against labels."""

    name: ClassVar[str]

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The supervised loss, mean over the batch."""

    @abstractmethod
    def score(self, outputs: Tensor, labels: Tensor) -> Accuracy:
        """How many are right."""
