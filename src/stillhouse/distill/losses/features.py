"""Feature distillation across resolutions for CNNs (TAS stage 2; Guo et al., TPAMI 2024)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def upsampled_mse(student: Tensor, assistant: Tensor) -> Tensor:
    """MSE after bilinear upsampling of the student's map to the assistant's grid.

    Args:
        student: (N, C, h_l, w_l).
        assistant: (N, C, H_l, W_l); the architecture is the same, so only the grid differs.
    """
    if student.shape[:2] != assistant.shape[:2]:
        raise ValueError(f"batch and channels must agree, but got {tuple(student.shape)} and {tuple(assistant.shape)}")
    return F.mse_loss(upsample(student, assistant), assistant)


def upsample(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (N, C, h, w) brought bilinearly to the grid of ``like``, whose last two axes are (H, W)."""
    size = [int(side) for side in like.shape[-2:]]
    if list(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
