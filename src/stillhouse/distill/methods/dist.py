"""DIST (Huang et al., NeurIPS 2022): Pearson over classes and over the batch in place of KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stillhouse.distill.losses.dist import inter_class, intra_class
from stillhouse.distill.method import Batch, Method, Needs, knob


@dataclass(frozen=True)
class DistParams:
    """T = 1, both weights 2 and the labels' weight 1 are the paper's for ImageNet."""

    temperature: float = knob(1.0, low=0.1, high=100.0, search=(1.0, 4.0), help="T: softens both sets of logits")
    inter: float = knob(2.0, low=0.0, high=100.0, search=(0.5, 4.0), help="weight of the relation over classes")
    intra: float = knob(2.0, low=0.0, high=100.0, search=(0.5, 4.0), help="weight of the relation over the batch")


class Dist(Method):
    """L = CE + inter * T^2 (1 - rho over classes) + intra * T^2 (1 - rho over the batch)."""

    name: ClassVar[str] = "dist"
    needs: ClassVar[Needs] = Needs(targets=True)
    Params: ClassVar[type] = DistParams

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``task``, ``inter`` and ``intra``."""
        params: Any = self.params
        logits, teacher = self.student(batch.small), self.taught(batch).logits
        return {
            "task": self.task.loss(logits, batch.labels),
            "inter": params.inter * inter_class(logits, teacher, params.temperature),
            "intra": params.intra * intra_class(logits, teacher, params.temperature),
        }
