"""Attention transfer on activations (Zagoruyko & Komodakis, ICLR 2017), across grids.

| symbol | shape | meaning |
|---|---|---|
| F | (N, C, H, W) | a level's activations |
| Q | (N, H W) | sum over c of F_c^2, flattened, divided by its L2 norm |
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from stillhouse.distill.losses.features import upsample


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """||Q_s - Q_t||^2, mean over the batch; the student's map is first brought to the teacher's grid [ours].

    Args:
        student: (N, C_s, h, w).
        teacher: (N, C_t, H, W); the channels need not agree.
    """
    energy = upsample(student.square().mean(dim=1, keepdim=True), teacher)
    q_s, q_t = (F.normalize(value.flatten(1), dim=1) for value in (energy, teacher.square().mean(dim=1)))
    return (q_s - q_t).square().sum(dim=1).mean()
