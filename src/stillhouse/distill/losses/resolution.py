"""Losses between pooled features of the same pictures at two resolutions (after Feng et al., IEEE TIP 2021).

Of the paper only the abstract is known to us: it names a resolution-aware loss, a pair-wise constraint and the maximum
mean discrepancy. The forms here are ours (METHODS section 2).

| symbol | shape | meaning |
|---|---|---|
| f_s, f_t | (N, d) | pooled features of student and mentor |
| D | (N, N) | Euclidean distances of a batch's pictures, divided by their mean |
"""

from __future__ import annotations

import torch
from torch import Tensor

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the Gaussian kernels, in shares of the mean squared pair distance."""
EPSILON = 1e-12


def squared_distance(student: Tensor, mentor: Tensor) -> Tensor:
    """||f_t - f_s||^2, mean over the batch and, so that its weight means the same at any width, over d [ours]."""
    return (student - mentor).square().mean()


def pairwise(student: Tensor, mentor: Tensor) -> Tensor:
    """sum_ij (D_s - D_t)^2 / N^2: how far pictures lie from each other must agree."""
    return (_relative_distances(student) - _relative_distances(mentor)).square().mean()


def mmd(student: Tensor, mentor: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two batches (Gretton et al. 2012, biased), summed over five bandwidths."""
    both = torch.cat([student, mentor])
    squared = _squared_distances(both, both)
    count = len(both)
    mean = (squared.detach().sum() / (count * (count - 1))).clamp_min(EPSILON)
    kernel = torch.stack([torch.exp(-squared / (share * mean)) for share in BANDWIDTHS]).sum(0)
    n = len(student)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def _relative_distances(features: Tensor) -> Tensor:
    distances = (_squared_distances(features, features) + EPSILON).sqrt()
    return distances / distances.mean().clamp_min(EPSILON)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M); by differences of inner products, since cdist has no derivative at zero.

    Never in half precision: the differences would be lost, and autocast would take the product so.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
        squared = a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2 * a @ b.T
        return squared.clamp_min(0)
