"""Attention-map distillation across resolutions for ViTs (TAS stage 2; Guo et al., TPAMI 2024).

| symbol | meaning |
|---|---|
| A | heads |
| p = g_h g_w, P = G_h G_w | patches of the student and of the assistant |
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int]


def upsampled_attention_mse(student: Tensor, assistant: Tensor, student_grid: Grid, assistant_grid: Grid) -> Tensor:
    """MSE of attention maps after the student's are brought to the assistant's grid.

    Args:
        student: (N, A, p, p), prefix tokens dropped.
        assistant: (N, A, P, P).
        student_grid: (g_h, g_w).
        assistant_grid: (G_h, G_w).
    """
    return F.mse_loss(upsample_attention(student, student_grid, assistant_grid), assistant)


def upsample_attention(attention: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Maps (N, A, p, p) to (N, A, P, P): queries' and keys' axes are unfolded to 2-D and upsampled bilinearly.

    A query's attention is spread over more keys, so it is scaled by p / P and a row keeps its sum (ours; the
    paper does not say).
    """
    if grid == target:
        return attention
    n, heads, p, _ = attention.shape
    if p != grid[0] * grid[1]:
        raise ValueError(f"a {grid[0]} x {grid[1]} grid has {grid[0] * grid[1]} patches, but the maps have {p}")
    large = target[0] * target[1]
    keys = F.interpolate(attention.reshape(n * heads, p, *grid), size=target, mode="bilinear", align_corners=False)
    by_key = keys.reshape(n * heads, p, large).transpose(1, 2).reshape(n * heads, large, *grid)
    queries = F.interpolate(by_key, size=target, mode="bilinear", align_corners=False)
    return queries.reshape(n, heads, large, large).transpose(2, 3) * (p / large)
