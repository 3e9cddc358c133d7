"""Labels alone: how the teacher is fine-tuned, and what distillation is compared with."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from stillhouse.distill.method import Batch, Method


class Supervised(Method):
    """The task's own loss."""

    name: ClassVar[str] = "supervised"

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``task``: the task's loss."""
        return {"task": self.task.loss(self.student(batch.small), batch.labels)}
