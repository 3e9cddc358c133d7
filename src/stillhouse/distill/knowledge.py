"""What a trained network (teacher or assistant) tells about views, live or from the cache.

| symbol | meaning |
|---|---|
| N, K | batch, classes |
| d | width of the pooled feature, which is what the classifier reads |
| C_l, H_l, W_l | channels and grid of level l |
| A, P | heads, patches |

The network that teaches is called the mentor: a method does not hold it, it reads ``Knowledge`` and is told its
shapes by an ``Outline``. So no gradient and no batch statistic of a mentor can change in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from stillhouse.distill.device import autocast
from stillhouse.distill.taps import Taps, tap
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Json
from stillhouse.search.errors import StageError

LEVELS, BLOCKS = 3, 4
"""The last three levels, the last four blocks' attention maps [ours; Guo et al. leave it open]."""

FEATURES = ("", "levels", "native", "pooled")
"""What a method may ask for beside logits: nothing; levels; levels of a CNN and attention maps of a ViT; the pooled
feature."""


@dataclass(frozen=True)
class Knowledge:
    """A mentor's outputs for a batch of views.

    Attributes:
        logits: (N, K) float32.
        features: Levels (N, C_l, H_l, W_l) from fine to coarse, or attention maps (N, A, P, P), or the pooled feature
            (N, d); empty when not asked.
    """

    logits: Tensor
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Outline:
    """Shapes of a mentor's outputs, without the batch.

    Attributes:
        classes: K.
        features: One shape a feature.
        grid: (rows, columns) of a ViT's patches; None for a CNN.
    """

    classes: int
    features: tuple[tuple[int, ...], ...] = ()
    grid: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Json]:
        """JSON form; ``from_json`` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Outline:
        """Reads what ``to_json`` wrote."""
        grid = data["grid"]
        shapes = tuple(tuple(shape) for shape in data["features"])
        return cls(data["classes"], shapes, None if grid is None else (grid[0], grid[1]))

    @property
    def feature_bytes(self) -> int:
        """Bytes of one view's features as float16."""
        return 2 * sum(int(torch.Size(shape).numel()) for shape in self.features)


def chosen(taps: Taps, features: str) -> Sequence[Tensor]:
    """What ``features`` names, of what was read inside a network."""
    if not features:
        return ()
    if features == "pooled":
        return [] if taps.pooled is None else [taps.pooled]
    if features == "native" and taps.grid is not None:
        return taps.attention[-BLOCKS:]
    return taps.levels[-LEVELS:]


def tapped(network: Network, features: str) -> dict[str, bool]:
    """What ``tap`` must read of a network for ``chosen``."""
    attention = features == "native" and network.family == "vit"
    pooled = features == "pooled"
    return {"attention": attention, "levels": bool(features) and not attention and not pooled, "pooled": pooled}


@torch.no_grad()
def observe(mentor: Network, pictures: Tensor, features: str) -> Knowledge:
    """Runs a mentor on views (N, C, H, W); it is left in evaluation mode and otherwise as it was."""
    mentor.eval()
    with tap(mentor, **tapped(mentor, features)) as taps, autocast(pictures.device):
        logits = mentor(pictures)
    return Knowledge(logits.float(), tuple(value.float() for value in chosen(taps, features)))


def outline(mentor: Network, features: str) -> Outline:
    """The shapes of what ``observe`` gives.

    Raises:
        StageError: The network has no such features.
    """
    device = next(mentor.parameters()).device
    size = mentor.image_size
    found = observe(mentor, torch.zeros(1, mentor.channels, size.height, size.width, device=device), features)
    least = {"": 0, "pooled": 1}.get(features, LEVELS)
    if len(found.features) < least:
        raise StageError(
            f"{least} feature levels must be there, but {mentor.arch} gives {len(found.features)}; "
            "take a method that reads logits only, or another network"
        )
    shapes = tuple(tuple(int(side) for side in value.shape[1:]) for value in found.features)
    with tap(mentor, attention=True) as taps:
        grid = taps.grid
    return Outline(mentor.classes, shapes, grid)
