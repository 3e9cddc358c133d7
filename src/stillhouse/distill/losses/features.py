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
    size = [int(side) for side in assistant.shape[-2:]]
    if list(student.shape[-2:]) != size:
        student = F.interpolate(student, size=size, mode="bilinear", align_corners=False)
    return F.mse_loss(student, assistant)
