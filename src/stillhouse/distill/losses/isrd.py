"""Input spatial representation distillation (ISRD; Guo et al., TPAMI 2024)."""

from __future__ import annotations

from torch import Tensor


def isrd(reconstruction: Tensor, large: Tensor) -> Tensor:
    """Mean |I'_large - I_large| over N, C, H and W.

    Args:
        reconstruction: The decoder's picture (N, C, H, W).
        large: The mean/std-normalised large crop (N, C, H, W).
    """
    if reconstruction.shape != large.shape:
        raise ValueError(f"shapes must be equal, but got {tuple(reconstruction.shape)} and {tuple(large.shape)}")
    return (reconstruction - large).abs().mean()
