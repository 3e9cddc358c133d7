"""What a trained network (teacher or assistant) tells about views, live or from the cache.

| symbol | meaning |
|---|---|
| N, K, d | batch, classes, width of the pooled feature |
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

from stillhouse.distill.taps import Taps, tap
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Json

LEVELS, BLOCKS = 3, 4
"""The last three levels, the last four blocks' attention maps [ours; Guo et al. leave it open]."""

FEATURES = ("", "levels", "native")
"""What a method may ask for beside logits and the pooled feature: nothing; levels; levels of a CNN and attention maps
of a ViT."""


@dataclass(frozen=True)
class Knowledge:
    """A mentor's outputs for a batch of views.

    Attributes:
        logits: (N, K) float32.
        pooled: (N, d): what its classifier reads.
        features: Levels (N, C_l, H_l, W_l) from fine to coarse, or attention maps (N, A, P, P); empty when not asked.
    """

    logits: Tensor
    pooled: Tensor
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Outline:
    """Shapes of a mentor's outputs, without the batch.

    Attributes:
        classes: K.
        pooled: d.
        features: One shape a feature.
        grid: (rows, columns) of a ViT's patches; None for a CNN.
    """

    classes: int
    pooled: int
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
        return cls(data["classes"], data["pooled"], shapes, None if grid is None else (grid[0], grid[1]))

    @property
    def feature_bytes(self) -> int:
        """Bytes of one view's features as float16."""
        return 2 * sum(int(torch.Size(shape).numel()) for shape in self.features)


def chosen(taps: Taps, features: str) -> Sequence[Tensor]:
    """What ``features`` names, of what was read inside a network."""
    if not features:
        return ()
    if features == "native" and taps.grid is not None:
        return taps.attention[-BLOCKS:]
    return taps.levels[-LEVELS:]


def tapped(network: Network, features: str) -> dict[str, bool]:
    """What ``tap`` must read of a network for ``chosen``."""
    attention = features == "native" and network.family == "vit"
    return {"attention": attention, "levels": bool(features) and not attention}


@torch.no_grad()
def observe(mentor: Network, pictures: Tensor, features: str) -> Knowledge:
    """Runs a mentor on views (N, 3, H, W); it is left in evaluation mode and otherwise as it was."""
    mentor.eval()
    with tap(mentor, pooled=True, **tapped(mentor, features)) as taps:
        logits = mentor(pictures)
    if taps.pooled is None:
        raise ValueError(f"{mentor.arch} has no classifier that reads a pooled feature")
    return Knowledge(logits.float(), taps.pooled.float(), tuple(value.float() for value in chosen(taps, features)))


def outline(mentor: Network, features: str) -> Outline:
    """The shapes of what ``observe`` gives."""
    device = next(mentor.parameters()).device
    size = mentor.image_size
    found = observe(mentor, torch.zeros(1, 3, size.height, size.width, device=device), features)
    shapes = tuple(tuple(int(side) for side in value.shape[1:]) for value in found.features)
    with tap(mentor, attention=True) as taps:
        grid = taps.grid
    return Outline(mentor.classes, int(found.pooled.shape[1]), shapes, grid)
