"""Decoupled knowledge distillation (Zhao et al., CVPR 2022).

| symbol | shape | meaning |
|---|---|---|
| student, teacher | (N, K) | logits z_s, z_t |
| target | (N,) | the true class |
| b | (N, 2) | probability of the true class, and of all others together |
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def target_class_kl(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
    """TCKD: T^2 KL(b_t || b_s), mean over the batch."""
    log_s, log_t = (_binary(value / temperature, target) for value in (student, teacher))
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def other_class_kl(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
    """NCKD: T^2 KL over the classes that are not the true one, mean over the batch."""
    rest = ~F.one_hot(target, student.shape[1]).bool()
    shape = (len(student), student.shape[1] - 1)
    log_s, log_t = ((value / temperature)[rest].reshape(shape).log_softmax(1) for value in (student, teacher))
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def _binary(logits: Tensor, target: Tensor) -> Tensor:
    """Log b (N, 2)."""
    log_p = logits.log_softmax(1)
    own = F.one_hot(target, logits.shape[1]).bool()
    others = log_p.masked_fill(own, -torch.inf).logsumexp(1)
    return torch.stack([log_p[own], others], dim=1)
