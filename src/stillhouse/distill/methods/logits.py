"""Logits at one resolution: L_pkd of Guo et al. (TPAMI 2024), after Hinton et al. (2015).

It makes the assistant (TAS stage 1: model compression); the other methods build on it. Teacher and student see the
same view, mixture included (Beyer et al. 2022), whether its logits come live or from the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stillhouse.distill.losses.logits import distillation_kl
from stillhouse.distill.method import Batch, Method, Needs, knob


@dataclass(frozen=True)
class LogitsParams:
    """T = 4 and alpha = 0.9 are the paper's."""

    temperature: float = knob(4.0, low=0.1, high=100.0, search=(1.0, 10.0), help="T: softens both sets of logits")
    alpha: float = knob(0.9, low=0.0, high=1.0, search=(0.5, 1.0), help="weight of the teacher against the labels")


class Logits(Method):
    """L_pkd = (1 - alpha) CE(z_s, y) + alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T))."""

    name: ClassVar[str] = "logits"
    needs: ClassVar[Needs] = Needs(targets=True)
    Params: ClassVar[type] = LogitsParams

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``task`` and ``distillation``."""
        return self.pkd(self.student(batch.small), batch)

    def pkd(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The two terms of L_pkd for logits (N, K)."""
        params: Any = self.params
        return {
            "task": (1 - params.alpha) * self.task.loss(logits, batch.labels),
            "distillation": params.alpha * distillation_kl(logits, self.taught(batch).logits, params.temperature),
        }
