"""Logit standardisation (Sun et al., CVPR 2024): both sets of logits as z-scores before the softmax."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-7


def standardised(logits: Tensor) -> Tensor:
    """(z - mean) / standard deviation over the classes (1 / K, as the paper defines it); (N, K) -> (N, K)."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True).sqrt() + EPSILON)
