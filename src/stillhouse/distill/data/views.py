"""Stateless views: the crop, flip and jitter of a picture as a pure function of its number.

==========  =======================================================================================
B           pictures in a batch
S           side of the stored pictures (H, W where not square)
h, w        sides of the rendered view
==========  =======================================================================================

A view depends on (dataset digest, seed, picture index, view number) and on nothing else: not on the batch that
the picture comes in, the process, or what was drawn before. So a teacher's outputs can be kept per view
(Shen & Xing 2021, "A Fast Knowledge Distillation Framework"), and teacher and student see the same crop at
their two sizes (Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent"). Mixup
(Zhang et al. 2018) is part of the view for the same reason: which picture is mixed in, which of its crops and how
much of it are drawn with the view, so the teacher's answer to the mixture can be kept too.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stillhouse.search.domain import Json, Size
from stillhouse.search.errors import UserError

_DRAWS = 11
_LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in 1/65536: 0.299, 0.587, 0.114 as Pillow rounds them."""
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class ViewPolicy:
    """How far a view may lie from its picture.

    Attributes:
        scale_min: Least share of the picture's area that a crop keeps.
        scale_max: Largest share.
        ratio: Least and largest aspect ratio of a crop, relative to the picture's own.
        flip: Mirrors half of the views left to right.
        brightness: Values are multiplied by a factor from 1 - brightness to 1 + brightness.
        contrast: Distances to mid grey are multiplied by a factor from 1 - contrast to 1 + contrast.
        mixup: Share of the views that are mixed with a view of another picture; the picture's own part of the
            mixture is uniform in [0.5, 1] [ours: the same mixtures as a uniform part, and a view stays its picture's].
    """

    scale_min: float = 0.5
    scale_max: float = 1.0
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    brightness: float = 0.2
    contrast: float = 0.2
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale_min <= self.scale_max <= 1:
            raise UserError(
                f"0 < scale_min <= scale_max <= 1 must hold, but got {self.scale_min} and {self.scale_max}; "
                "they are shares of the picture's area"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"0 < ratio[0] <= ratio[1] must hold, but got {self.ratio}; give (low, high)")
        for name in ("brightness", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"0 <= {name} < 1 must hold, but got {getattr(self, name)}; 0 turns it off")
        if not 0 <= self.mixup <= 1:
            raise UserError(f"0 <= mixup <= 1 must hold, but got {self.mixup}; it is the share of views that are mixed")

    def to_json(self) -> dict[str, Json]:
        """JSON form; ``from_json`` reads it back."""
        return {**asdict(self), "ratio": list(self.ratio)}

    @classmethod
    def from_json(cls, data: dict[str, Json]) -> ViewPolicy:
        """Reads what ``to_json`` wrote."""
        return cls(**{**data, "ratio": tuple(data["ratio"])})


@dataclass(frozen=True)
class ViewBatch:
    """The views of a batch; crops in shares of the picture's sides, so that they hold at every size.

    Attributes:
        top, left, height, width: The crop (B,), float64 in [0, 1].
        flip: Mirrored left to right (B,), bool.
        brightness, contrast: Factors (B,), float32.
        quality: Two uniform numbers a view, (B,) each in [0, 1): whether a codec is used, and at which quality.
        partner: Numbers (B,) of the pictures that are mixed in; None when none is.
        own: The picture's own part of the mixture (B,), float32; 1 where nothing is mixed in. None like ``partner``.
    """

    top: NDArray[np.float64]
    left: NDArray[np.float64]
    height: NDArray[np.float64]
    width: NDArray[np.float64]
    flip: NDArray[np.bool_]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    quality: tuple[NDArray[np.float64], NDArray[np.float64]]
    partner: NDArray[np.int64] | None = None
    own: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.top)


class Views:
    """Draws views.

    Args:
        digest: The data set's.
        seed: Another seed gives other views.
        policy: How far views may lie from their pictures.
        count: Pictures there are; needed to mix.
    """

    def __init__(self, digest: str, seed: int, policy: ViewPolicy | None = None, count: int = 0) -> None:
        self.policy, self.count = policy or ViewPolicy(), count
        if self.policy.mixup and count < 2:
            raise UserError(f"mixup needs at least 2 pictures, but got {count}; set mixup to 0")
        self._key = int.from_bytes(hashlib.sha256(f"views {digest} {seed}".encode()).digest()[:8], "little")

    def draw(self, indices: NDArray[np.int64], view: int) -> ViewBatch:
        """The ``view``-th view of each picture.

        Args:
            indices: Numbers (B,) of the pictures in store order.
            view: Number of the view, from 0.
        """
        draws = _uniform(self._key, indices, view)
        policy = self.policy
        area = policy.scale_min + (policy.scale_max - policy.scale_min) * draws[0]
        low, high = np.log(policy.ratio[0]), np.log(policy.ratio[1])
        aspect = np.exp(low + (high - low) * draws[1])
        # A crop near the whole area cannot have every aspect: the longer side is cut to the picture's.
        height, width = np.minimum(1.0, np.sqrt(area / aspect)), np.minimum(1.0, np.sqrt(area * aspect))
        return ViewBatch(
            top=(1 - height) * draws[2],
            left=(1 - width) * draws[3],
            height=height,
            width=width,
            flip=(draws[4] < 0.5) & policy.flip,
            brightness=(1 + policy.brightness * (2 * draws[5] - 1)).astype(np.float32),
            contrast=(1 + policy.contrast * (2 * draws[6] - 1)).astype(np.float32),
            quality=(draws[7], draws[8]),
            **self._mixture(indices, draws[9], draws[10]),
        )

    def _mixture(
        self, indices: NDArray[np.int64], which: NDArray[np.float64], much: NDArray[np.float64]
    ) -> dict[str, NDArray[Any]]:
        """``partner`` and ``own``. One number says both whether and how much: below ``mixup`` it is mixed."""
        if not self.policy.mixup:
            return {}
        step = 1 + np.minimum((which * (self.count - 1)).astype(np.int64), self.count - 2)
        own = np.where(much < self.policy.mixup, 1 - 0.5 * much / self.policy.mixup, 1.0)
        return {"partner": (indices + step) % self.count, "own": own.astype(np.float32)}


def render(pictures: torch.Tensor, batch: ViewBatch, size: Size) -> torch.Tensor:
    """``crop`` and ``jitter`` in one: (B, S, S, 3) uint8 -> (B, 3, h, w) float32 in [0, 1]; nothing is mixed in."""
    return jitter(crop(pictures, batch, size), batch)


def crop(pictures: torch.Tensor, batch: ViewBatch, size: Size) -> torch.Tensor:
    """Crops, resizes (antialiased bilinear) and flips.

    Args:
        pictures: (B, S, S, 3) uint8, contiguous.
        batch: The views (B).
        size: (h, w) of the result.

    Returns:
        (B, 3, h, w) uint8, channels last in memory, on the pictures' device.

    Raises:
        ValueError: Shapes or types that do not fit.
    """
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or len(pictures) != len(batch):
        raise ValueError(
            f"pictures must be uint8 of shape ({len(batch)}, S, S, 3), but got {pictures.dtype} {tuple(pictures.shape)}"
        )
    device = pictures.device
    channels_first = pictures.permute(0, 3, 1, 2)
    if device.type != "cpu":
        channels_first = channels_first.float()  # only the CPU resizes bytes
    shape = (len(batch), 3, size.height, size.width)
    resized = torch.empty(shape, dtype=channels_first.dtype, device=device, memory_format=torch.channels_last)
    rows, columns = (
        _edges(batch.top, batch.height, pictures.shape[1]),
        _edges(batch.left, batch.width, pictures.shape[2]),
    )
    for index, (top, bottom, left, right) in enumerate(np.concatenate([rows, columns], axis=1).tolist()):
        part = channels_first[index : index + 1, :, top:bottom, left:right]
        resized[index] = F.interpolate(part, (size.height, size.width), mode="bilinear", antialias=True)[0]
    flip = torch.from_numpy(batch.flip).to(device)
    resized[flip] = resized[flip].flip(-1)
    return resized if resized.dtype == torch.uint8 else resized.round_().clamp_(0, 255).to(torch.uint8)


def jitter(crops: torch.Tensor, batch: ViewBatch) -> torch.Tensor:
    """Changes brightness and contrast: (B, C, h, w) uint8 -> the same shape, float32 in [0, 1].

    Contrast turns about mid grey, not about the picture's own mean, so that it is the same at every size.
    """
    brightness = torch.from_numpy(batch.brightness).to(crops.device)[:, None, None, None]
    contrast = torch.from_numpy(batch.contrast).to(crops.device)[:, None, None, None]
    # ((x / 255) * brightness - 0.5) * contrast + 0.5, in two passes over the batch
    return crops.float().mul_(brightness * contrast / 255).add_(0.5 - 0.5 * contrast).clamp_(0, 1)


def to_grey(pictures: torch.Tensor) -> torch.Tensor:
    """Luma (ITU-R 601): (B, 3, any, any) RGB -> (B, 1, any, any); of bytes the very values of Pillow's convert("L")."""
    weights = torch.tensor(_LUMA, device=pictures.device).view(1, 3, 1, 1)
    if pictures.dtype != torch.uint8:
        return (pictures * (weights / (1 << 16)).to(pictures.dtype)).sum(1, keepdim=True)
    sums = (pictures.int() * weights).sum(1, keepdim=True)
    return ((sums + (1 << 15)) >> 16).to(torch.uint8)


def _edges(start: NDArray[np.float64], length: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    """First pixel and the one after the last (B, 2) of shares of a side; at least one pixel."""
    first = np.minimum(np.rint(start * side), side - 1)
    after = np.minimum(np.maximum(np.rint((start + length) * side), first + 1), side)
    return np.stack([first, after], axis=1).astype(np.int64)


def _uniform(key: int, indices: NDArray[np.int64], view: int) -> NDArray[np.float64]:
    """Uniform numbers (_DRAWS, B) in [0, 1), each a hash of (key, index, view, which draw).

    A counter put through SplitMix64's finaliser (Steele et al. 2014), once for each part of the counter.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(key) + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
        state = _mix(state + (np.uint64(view) + np.uint64(1)) * np.uint64(_GOLDEN))
        counters = (np.arange(1, _DRAWS + 1, dtype=np.uint64) * np.uint64(_GOLDEN))[:, None]
        bits = _mix(state[None, :] + counters)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
