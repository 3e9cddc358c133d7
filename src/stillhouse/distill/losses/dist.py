"""DIST: relations in place of exact probabilities (Huang et al., NeurIPS 2022).

| symbol | shape | meaning |
|---|---|---|
| student, teacher | (N, K) | logits z_s, z_t |
| p | (N, K) | softmax(z / T) |
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8


def pearson_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - Pearson's correlation of rows (R, C), mean over the rows."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return 1 - F.cosine_similarity(a, b, dim=1, eps=EPSILON).mean()


def inter_class(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the distance over classes, picture by picture."""
    return temperature**2 * pearson_distance((student / temperature).softmax(1), (teacher / temperature).softmax(1))


def intra_class(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the distance over the batch, class by class."""
    p_s, p_t = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return temperature**2 * pearson_distance(p_s.T, p_t.T)
