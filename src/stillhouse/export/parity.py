"""Do the ONNX file and the torch network say the same?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillhouse.export.measure import logits_of
from stillhouse.search.domain import Json
from stillhouse.search.errors import ParityError

TOLERANCE = {"fp32": 1e-3}
"""Largest difference of a logit by precision, relative to the greatest logit in size (at least 1)."""


@dataclass(frozen=True)
class Parity:
    """What was compared."""

    max_abs: float
    tolerance: float
    pictures: int

    def to_json(self) -> dict[str, Json]:
        """JSON form."""
        return {"max_abs": self.max_abs, "tolerance": self.tolerance, "pictures": self.pictures}


def check_parity(network: nn.Module, onnx: Path, pictures: NDArray[np.uint8], *, precision: str) -> Parity:
    """Compares logits on pictures (N, h, w, 3) uint8.

    Raises:
        ParityError: A logit differs by more than the precision allows, or a clear top class differs.
    """
    network.eval()
    device = next(network.parameters()).device
    with torch.no_grad():
        batch = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
        expected = network(batch).float().cpu().numpy()
    found = logits_of(onnx, pictures, threads=1)
    tolerance = TOLERANCE[precision] * max(1.0, float(np.abs(expected).max()))
    worst = float(np.abs(expected - found).max())
    ranked = np.sort(expected, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > 2 * tolerance
    differ = int(((expected.argmax(1) != found.argmax(1)) & clear).sum())
    if not worst <= tolerance or differ:
        raise ParityError(
            f"ONNX and torch must agree within {tolerance:.2g} ({precision}), but a logit differs by {worst:.3g} and "
            f"{differ} of {len(pictures)} pictures get another class"
        )
    return Parity(worst, tolerance, len(pictures))
