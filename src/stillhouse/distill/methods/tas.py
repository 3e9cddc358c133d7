"""Teacher-assistant-student, stage 2: input compression (Guo et al., TPAMI 2024).

The assistant is the student's architecture at the large size; it learned from the teacher by ``logits`` (stage 1).
The student starts from it [ours] and learns
L = L_pkd(teacher := assistant) + beta * sum_l L_fkd^l + gamma * L_isrd.
Levels are the last three of a CNN, the last four blocks' attention maps of a ViT [ours; the paper leaves it open].
The assistant's own may come from the cache: its views are the student's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillhouse.distill.knowledge import chosen, tapped
from stillhouse.distill.losses.attention import upsampled_attention_mse
from stillhouse.distill.losses.features import upsampled_mse
from stillhouse.distill.method import Batch, Needs, knob
from stillhouse.distill.methods.pixel import Pixel, PixelParams
from stillhouse.distill.taps import Taps, tap


@dataclass(frozen=True)
class TasParams(PixelParams):
    """Weights of what goes with L_pkd: off, since they did not help beyond the noise (docs/benchmarks.md)."""

    gamma: float = knob(0.0, low=0.0, high=1000.0, search=(0.1, 50.0), help="weight of the reconstruction (ISRD)")
    beta: float = knob(0.0, low=0.0, high=1000.0, search=(0.01, 10.0), help="weight of the feature or attention loss")


class Tas(Pixel):
    """L_pkd from the assistant, its features or attention maps, and ISRD."""

    name: ClassVar[str] = "tas"
    needs: ClassVar[Needs] = Needs(targets=True, starts_from_assistant=True, features="native", features_by="beta")
    Params: ClassVar[type] = TasParams

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``task``, ``distillation``, ``features`` and ``isrd``."""
        params: Any = self.params
        with tap(self.student, input=params.gamma > 0, **tapped(self.student, self.features)) as taps:
            logits = self.student(batch.small)
        found = self.pkd(logits, batch)
        if self.features:
            found["features"] = params.beta * self._features(taps, batch)
        return found | self.reconstruction(taps, batch)

    def _features(self, taps: Taps, batch: Batch) -> Tensor:
        pairs = list(zip(chosen(taps, self.features), self.taught(batch).features, strict=True))
        grid = self.outline().grid
        if taps.grid is not None and grid is not None:
            return torch.stack([upsampled_attention_mse(s, a, taps.grid, grid) for s, a in pairs]).sum()
        return torch.stack([upsampled_mse(s, a) for s, a in pairs]).sum()
