"""Features that do not show which resolution they come from (after Feng et al., IEEE TIP 2021; METHODS section 2).

A discriminator tells the assistant's pooled features (large pictures) from the student's (small ones); gradient
reversal makes the student's features fool it, in one path with one optimiser. With it go a resolution-aware loss, a
pair-wise constraint and the maximum mean discrepancy. Of the paper only the abstract is known: all forms are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillhouse.distill.knowledge import Outline, chosen, tapped
from stillhouse.distill.losses.logits import distillation_kl
from stillhouse.distill.losses.resolution import mmd, pairwise, squared_distance
from stillhouse.distill.method import Batch, Method, Needs, knob
from stillhouse.distill.taps import tap
from stillhouse.distill.task import Task
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Size


@dataclass(frozen=True)
class AdversarialMmdParams:
    """The weights are ours."""

    adversarial: float = knob(0.1, low=0.0, high=100.0, search=(0.01, 1.0), help="l1: weight of the discriminator")
    aware: float = knob(1.0, low=0.0, high=100.0, search=(0.1, 4.0), help="l2: weight of the resolution-aware loss")
    pairs: float = knob(1.0, low=0.0, high=100.0, search=(0.1, 10.0), help="l3: weight of the pair-wise constraint")
    mmd: float = knob(1.0, low=0.0, high=100.0, search=(0.1, 10.0), help="l4: weight of the mean discrepancy")
    temperature: float = knob(4.0, low=0.1, high=100.0, search=(1.0, 10.0), help="T of the resolution-aware loss")


class AdversarialMmd(Method):
    """L = L_task + l1 L_adv + l2 (||f_t - f_s||^2 + T^2 KL) + l3 L_pair + l4 L_mmd."""

    name: ClassVar[str] = "adversarial_mmd"
    needs: ClassVar[Needs] = Needs(targets=True, starts_from_assistant=True, features="pooled")
    Params: ClassVar[type] = AdversarialMmdParams

    def __init__(self, params: Any, task: Task, student: Network, mentor: Outline | None, large: Size) -> None:
        super().__init__(params, task, student, mentor, large)
        self.extra["discriminator"] = discriminator(self.outline().features[0][0])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``task``, ``adversarial``, ``aware``, ``pairs`` and ``mmd``."""
        params: Any = self.params
        with tap(self.student, **tapped(self.student, self.features)) as taps:
            logits = self.student(batch.small)
        taught = self.taught(batch)
        (own,), (mentor,) = chosen(taps, self.features), taught.features
        aware = squared_distance(own, mentor) + distillation_kl(logits, taught.logits, params.temperature)
        return {
            "task": self.task.loss(logits, batch.labels),
            "adversarial": params.adversarial * self._adversarial(own, mentor),
            "aware": params.aware * aware,
            "pairs": params.pairs * pairwise(own, mentor),
            "mmd": params.mmd * mmd(own, mentor),
        }

    def _adversarial(self, own: Tensor, mentor: Tensor) -> Tensor:
        """Binary cross-entropy of "comes from the large picture"; the student gets its gradient reversed."""
        told = self.extra["discriminator"](torch.cat([reverse(own), mentor])).squeeze(1)
        truth = torch.cat([torch.zeros(len(own)), torch.ones(len(mentor))]).to(told)
        return F.binary_cross_entropy_with_logits(told, truth)


def discriminator(width: int) -> nn.Module:
    """D -> 512 -> 128 -> 1 with LeakyReLU 0.2."""
    return nn.Sequential(
        nn.Linear(width, 512),
        nn.LeakyReLU(0.2),
        nn.Linear(512, 128),
        nn.LeakyReLU(0.2),
        nn.Linear(128, 1),
    )


def reverse(x: Tensor) -> Tensor:
    """The same values; the gradient comes back with its sign turned (Ganin & Lempitsky 2015)."""
    reversed_: Tensor = _Reverse.apply(x)
    return reversed_


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient
