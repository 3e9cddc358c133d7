"""Classification: one label a picture."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from stillhouse.distill.task import Task
from stillhouse.search.domain import Accuracy


class Classification(Task):
    """Cross-entropy to train, top-1 accuracy to judge."""

    name: ClassVar[str] = "classification"

    def loss(self, outputs: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of logits (N, K) and labels, (N,) or (N, K) probabilities, mean over the batch."""
        return F.cross_entropy(outputs, labels, label_smoothing=smoothing)

    def mixed(self, labels: Tensor, others: Tensor, own: Tensor, classes: int) -> Tensor:
        """Probabilities (N, K): each label's part of the mixture (Zhang et al. 2018)."""
        first, second = (F.one_hot(item, classes).float() for item in (labels, others))
        return torch.lerp(second, first, own[:, None])

    def score(self, outputs: Tensor, labels: Tensor) -> Accuracy:
        """Top-1."""
        return Accuracy(int((outputs.argmax(1) == labels).sum()), len(labels))
