"""Hints from inside the teacher (FitNets; Romero et al., ICLR 2015), across resolutions.

The student's middle level, brought by a 1x1 convolution to the teacher's channels and bilinearly to its grid, must
match the teacher's (the upsampled feature loss of Guo et al., TPAMI 2024, between two architectures). FitNets trains
hints first and labels later; here both go together [ours]. The convolution is dropped afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from stillhouse.distill.knowledge import Outline, chosen, outline, tapped
from stillhouse.distill.losses.features import upsampled_mse
from stillhouse.distill.method import Batch, Needs, knob
from stillhouse.distill.methods.logits import Logits, LogitsParams
from stillhouse.distill.taps import tap
from stillhouse.distill.task import Task
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Size

MIDDLE = -2
"""The last level but one: a 16th of the picture in most CNNs [ours; FitNets takes the middle layer]."""


@dataclass(frozen=True)
class HintsParams(LogitsParams):
    """Beside those of L_pkd."""

    beta: float = knob(0.1, low=0.0, high=1000.0, search=(0.01, 10.0), help="weight of the hint")


class Hints(Logits):
    """L_pkd + beta * MSE(upsampled(r(f_s)), f_t), r a 1x1 convolution."""

    name: ClassVar[str] = "hints"
    needs: ClassVar[Needs] = Needs(targets=True, features="levels", features_by="beta")
    Params: ClassVar[type] = HintsParams

    def __init__(self, params: Any, task: Task, student: Network, mentor: Outline | None, large: Size) -> None:
        super().__init__(params, task, student, mentor, large)
        if self.features:
            own = outline(student, self.features).features[MIDDLE][0]
            self.extra["regressor"] = nn.Conv2d(own, self.outline().features[MIDDLE][0], kernel_size=1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``task``, ``distillation`` and ``hint``."""
        params: Any = self.params
        with tap(self.student, **tapped(self.student, self.features)) as taps:
            logits = self.student(batch.small)
        if not self.features:
            return self.pkd(logits, batch)
        guess = self.extra["regressor"](chosen(taps, self.features)[MIDDLE])
        hint = upsampled_mse(guess, self.taught(batch).features[MIDDLE])
        return self.pkd(logits, batch) | {"hint": params.beta * hint}
