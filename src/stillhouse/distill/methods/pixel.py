"""Vanilla pixel distillation, one stage: L = L_pkd + gamma * L_isrd (Guo et al., TPAMI 2024).

The teacher read the large crop, the student reads the small version of the same crop. The student's own input
convolution and a decoder give the large crop back (``isrd``); that loss reaches nothing else, since the tap
is the convolution's raw output and its input is the picture. A student that reads grey gives back the grey large
crop: of colours it knows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stillhouse.distill.data.views import to_grey
from stillhouse.distill.decoder import Decoder
from stillhouse.distill.knowledge import Outline
from stillhouse.distill.losses.isrd import isrd
from stillhouse.distill.method import Batch, knob
from stillhouse.distill.methods.logits import Logits, LogitsParams
from stillhouse.distill.taps import Taps, input_shape, tap
from stillhouse.distill.task import Task
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Size


@dataclass(frozen=True)
class PixelParams(LogitsParams):
    """gamma = 10 is the paper's for k = 2 on CUB; it takes 50 at k = 4."""

    gamma: float = knob(10.0, low=0.0, high=1000.0, search=(0.1, 50.0), help="weight of the reconstruction (ISRD)")


class Pixel(Logits):
    """L_pkd + gamma * L_isrd."""

    name: ClassVar[str] = "pixel"
    Params: ClassVar[type] = PixelParams

    def __init__(self, params: Any, task: Task, student: Network, mentor: Outline | None, large: Size) -> None:
        super().__init__(params, task, student, mentor, large)
        if params.gamma > 0:
            channels, *grid = input_shape(student)
            self.extra["decoder"] = Decoder(channels, (grid[0], grid[1]), large, student.channels)

    @property
    def reads_large(self) -> bool:
        """The large crop is what ISRD gives back."""
        params: Any = self.params
        return bool(params.gamma > 0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``task``, ``distillation`` and ``isrd``."""
        with tap(self.student, input=self.params.gamma > 0) as taps:
            logits = self.student(batch.small)
        return self.pkd(logits, batch) | self.reconstruction(taps, batch)

    def reconstruction(self, taps: Taps, batch: Batch) -> dict[str, Tensor]:
        """Gamma * L_isrd, or nothing at gamma = 0."""
        if not self.reads_large:
            return {}
        if taps.input is None or batch.large is None:
            raise ValueError("isrd needs the input tap and the large crop")
        picture = self.extra["decoder"](taps.input)
        large = to_grey(batch.large) if self.student.colour == "grey" else batch.large
        return {"isrd": self.params.gamma * isrd(picture, self.student.normalise(large))}
