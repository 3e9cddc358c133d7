"""Classification: one label a picture."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from stillhouse.distill.task import Task
from stillhouse.search.domain import Accuracy


class Classification(Task):
    """Cross-entropy to train, top-1 accuracy to judge."""

    name: ClassVar[str] = "classification"

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of logits (N, K) and labels (N,), mean over the batch."""
        return F.cross_entropy(outputs, labels)

    def score(self, outputs: Tensor, labels: Tensor) -> Accuracy:
        """Top-1."""
        return Accuracy(int((outputs.argmax(1) == labels).sum()), len(labels))
