"""Do the ONNX file and the torch network, or two files of one network, say the same?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillhouse.export.measure import logits_of
from stillhouse.search.domain import Json
from stillhouse.search.errors import ParityError

TOLERANCE = 1e-3
"""Largest difference of a logit in fp32, relative to the greatest logit in size (at least 1)."""

LEAST_AGREEMENT = {"fp16": 0.95, "int8": 0.5}
"""Least share of pictures that a copy of lower precision gives the same class as the original. What it costs in
accuracy is measured; this finds copies that are broken."""


@dataclass(frozen=True)
class Parity:
    """What was compared.

    Attributes:
        max_abs: Largest difference of a logit.
        pictures: Compared pictures.
        tolerance: Largest difference allowed; None where the classes alone are compared.
        agreement: Share of pictures that get the same class.
    """

    max_abs: float
    pictures: int
    tolerance: float | None = None
    agreement: float = 1.0

    def to_json(self) -> dict[str, Json]:
        """JSON form."""
        return asdict(self)


def check_copy(original: Path, copy: Path, pictures: NDArray[np.uint8], *, precision: str) -> Parity:
    """Compares a file of lower precision with the one it was made from, on pictures (N, h, w, C) uint8.

    Raises:
        ParityError: Too many pictures get another class, or a logit is not finite.
    """
    expected, found = (logits_of(onnx, pictures, threads=1) for onnx in (original, copy))
    agreement, least = float((expected.argmax(1) == found.argmax(1)).mean()), LEAST_AGREEMENT[precision]
    if agreement < least or not np.isfinite(found).all():
        raise ParityError(
            f"the {precision} file must give at least {least:.0%} of pictures the class that fp32 gives, but does so "
            f"for {agreement:.0%} of {len(pictures)}"
        )
    return Parity(float(np.abs(expected - found).max()), len(pictures), agreement=agreement)


def check_parity(network: nn.Module, onnx: Path, pictures: NDArray[np.uint8]) -> Parity:
    """Compares logits of a network and its fp32 file on pictures (N, h, w, C) uint8.

    Raises:
        ParityError: A logit differs by more than the tolerance, or a clear top class differs.
    """
    network.eval()
    device = next(network.parameters()).device
    with torch.no_grad():
        batch = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
        expected = network(batch).float().cpu().numpy()
    found = logits_of(onnx, pictures, threads=1)
    tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    worst = float(np.abs(expected - found).max())
    ranked = np.sort(expected, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > 2 * tolerance
    differ = int(((expected.argmax(1) != found.argmax(1)) & clear).sum())
    if not worst <= tolerance or differ:
        raise ParityError(
            f"ONNX and torch must agree within {tolerance:.2g}, but a logit differs by {worst:.3g} and "
            f"{differ} of {len(pictures)} pictures get another class"
        )
    agreement = float((expected.argmax(1) == found.argmax(1)).mean())
    return Parity(worst, len(pictures), tolerance, agreement)
