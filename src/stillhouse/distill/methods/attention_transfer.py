"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017): where the teacher is active, the student should be too.

Works between any two families: a ViT's levels are its patch tokens on their grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillhouse.distill.knowledge import chosen, tapped
from stillhouse.distill.losses.attention_transfer import attention_transfer
from stillhouse.distill.method import Batch, Needs, knob
from stillhouse.distill.methods.logits import Logits, LogitsParams
from stillhouse.distill.taps import tap


@dataclass(frozen=True)
class AttentionTransferParams(LogitsParams):
    """Beside those of L_pkd; the weight is ours (the released code averages over positions and takes 1000)."""

    beta: float = knob(5.0, low=0.0, high=1000.0, search=(0.5, 50.0), help="weight of the attention maps")


class AttentionTransfer(Logits):
    """L_pkd + beta * sum_l ||Q_s^l - Q_t^l||^2."""

    name: ClassVar[str] = "attention_transfer"
    needs: ClassVar[Needs] = Needs(targets=True, features="levels", features_by="beta")
    Params: ClassVar[type] = AttentionTransferParams

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``task``, ``distillation`` and ``attention``."""
        params: Any = self.params
        with tap(self.student, **tapped(self.student, self.features)) as taps:
            logits = self.student(batch.small)
        if not self.features:
            return self.pkd(logits, batch)
        pairs = zip(chosen(taps, self.features), self.taught(batch).features, strict=True)
        maps = torch.stack([attention_transfer(s, t) for s, t in pairs]).sum()
        return self.pkd(logits, batch) | {"attention": params.beta * maps}
