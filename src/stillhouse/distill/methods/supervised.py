"""Labels alone: how the teacher is fine-tuned, and what distillation is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stillhouse.distill.method import Batch, Method, knob


@dataclass(frozen=True)
class SupervisedParams:
    """Smoothing belongs to training without a teacher: a teacher's soft labels do its work."""

    smoothing: float = knob(0.0, low=0.0, high=0.9, search=(0.0, 0.2), help="label smoothing (Szegedy et al. 2016)")


class Supervised(Method):
    """The task's own loss."""

    name: ClassVar[str] = "supervised"
    Params: ClassVar[type] = SupervisedParams

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``task``: the task's loss."""
        params: Any = self.params
        return {"task": self.task.loss(self.student(batch.small), batch.labels, smoothing=params.smoothing)}
