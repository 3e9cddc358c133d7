"""Losses on logits.

| symbol | shape | meaning |
|---|---|---|
| student, teacher | (N, K) | logits z_s, z_t |
| T | scalar | temperature |
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), mean over the batch (Hinton et al. 2015).

    The factor T^2 keeps the gradient's size as T changes; it is part of L_pkd in pixel distillation (Guo et al.,
    TPAMI 2024).
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence
