"""Where networks run, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def default_device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half(device: torch.device) -> torch.dtype | None:
    """The type that a GPU computes in, bfloat16 where its hardware has it; None on CPU, where float32 it is."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Matrix products and convolutions in ``half``; nothing changes on CPU."""
    kind = half(device)
    return nullcontext() if kind is None else torch.autocast(device.type, dtype=kind)
