"""Teacher-assistant-student, stage 2: input compression (Guo et al., TPAMI 2024).

The assistant is the student's architecture at the large size; it learned from the teacher by ``logits`` (stage 1).
The student starts from it [ours] and learns
L = L_pkd(teacher := assistant) + beta * sum_l L_fkd^l + gamma * L_isrd.
Levels are the last three of a CNN, the last four blocks' attention maps of a ViT [ours; the paper leaves it open].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillhouse.distill.losses.attention import upsampled_attention_mse
from stillhouse.distill.losses.features import upsampled_mse
from stillhouse.distill.method import Batch, Needs, knob
from stillhouse.distill.methods.pixel import Pixel, PixelParams
from stillhouse.distill.taps import Taps, tap

LEVELS, BLOCKS = 3, 4


@dataclass(frozen=True)
class TasParams(PixelParams):
    """Weights of the three parts."""

    gamma: float = knob(1.0, low=0.0, high=1000.0, search=(0.1, 50.0), help="weight of the reconstruction (ISRD)")
    beta: float = knob(0.1, low=0.0, high=1000.0, search=(0.01, 10.0), help="weight of the feature or attention loss")


class Tas(Pixel):
    """L_pkd from the assistant, its features or attention maps, and ISRD."""

    name: ClassVar[str] = "tas"
    needs: ClassVar[Needs] = Needs(targets=True, starts_from_assistant=True)
    Params: ClassVar[type] = TasParams

    @property
    def reads_large(self) -> bool:
        """The assistant reads the large crop, and ISRD gives it back."""
        params: Any = self.params
        return bool(params.gamma > 0 or params.beta > 0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``task``, ``distillation``, ``features`` and ``isrd``."""
        params: Any = self.params
        with tap(self.student, input=params.gamma > 0, levels=params.beta > 0, attention=params.beta > 0) as taps:
            logits = self.student(batch.small)
        found = self.pkd(logits, batch)
        if params.beta > 0:
            found["features"] = params.beta * self._features(taps, batch)
        if params.gamma > 0:
            found |= self.reconstruction(taps, batch)
        return found

    def _features(self, student: Taps, batch: Batch) -> Tensor:
        if self.assistant is None or batch.large is None:
            raise ValueError("the feature loss needs the assistant and the large crop")
        with torch.no_grad(), tap(self.assistant, levels=True, attention=True) as assistant:
            self.assistant(batch.large)
        if student.grid is not None and assistant.grid is not None:
            grids = student.grid, assistant.grid
            pairs = zip(student.attention[-BLOCKS:], assistant.attention[-BLOCKS:], strict=True)
            return torch.stack([upsampled_attention_mse(s, a, *grids) for s, a in pairs]).sum()
        levels = zip(student.levels[-LEVELS:], assistant.levels[-LEVELS:], strict=True)
        return torch.stack([upsampled_mse(s, a) for s, a in levels]).sum()
