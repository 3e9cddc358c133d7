"""KD on z-scored logits (Sun et al., CVPR 2024): the student need match the teacher's logits in shape alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stillhouse.distill.losses.logits import distillation_kl
from stillhouse.distill.losses.standardised import standardised
from stillhouse.distill.method import Batch, knob
from stillhouse.distill.methods.logits import Logits, LogitsParams


@dataclass(frozen=True)
class StandardisedParams(LogitsParams):
    """T = 2 is the paper's; the labels' share stays as in ``logits``."""

    temperature: float = knob(2.0, low=0.1, high=100.0, search=(1.0, 4.0), help="T: softens the standardised logits")


class Standardised(Logits):
    """L = (1 - alpha) CE + alpha T^2 KL(softmax(Z(z_t) / T) || softmax(Z(z_s) / T)), Z the z-score."""

    name: ClassVar[str] = "standardised"
    Params: ClassVar[type] = StandardisedParams

    def pkd(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The two terms, for logits (N, K)."""
        params: Any = self.params
        pair = standardised(logits), standardised(self.taught(batch).logits)
        return {
            "task": (1 - params.alpha) * self.task.loss(logits, batch.labels),
            "distillation": params.alpha * distillation_kl(*pair, params.temperature),
        }
