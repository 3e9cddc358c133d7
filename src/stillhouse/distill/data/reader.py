"""Views as tensors: cropped, coded as the device would send them, jittered, mixed; crops are kept while they fit.

A crop at a size is a pure function of (picture, view), and a training shows ``view_count`` views of each picture
over and over. So bytes after crop and codec are kept in one array (V, N, h, w, C), as long as it fits a limit; what is
left to do at each step is to turn bytes into floats. C is 3, or 1 where crops are turned to grey before the codec.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stillhouse.distill.data.codecs import as_image, encode, in_colour
from stillhouse.distill.data.views import ViewBatch, Views, crop, jitter, to_grey
from stillhouse.search.domain import CHANNELS, Size

A = TypeVar("A")
B = TypeVar("B")

CROP_BYTES = 2 << 30
"""Most bytes of crops that one reader keeps."""

SPREAD = (20, 5)
"""How far below and above the deployed quality the training's qualities are drawn [ours]: one student serves a
family of qualities, and none is learned by heart."""


@dataclass(frozen=True)
class Codec:
    """How the device sends pictures, as far as training is concerned.

    Attributes:
        name: ``jpeg`` or ``webp``.
        quality: The deployed quality; of several, the best.
        share: Share of the views that go through the codec; the others are seen as they are.
        lowest: The lowest deployed quality.
    """

    name: str
    quality: int
    share: float = 1.0
    lowest: int = 100

    def qualities(self, batch: ViewBatch) -> NDArray[np.int64]:
        """Quality of each view (B,); 0 where it is not coded."""
        used, level = batch.quality
        low, high = max(1, min(self.quality - SPREAD[0], self.lowest)), min(100, self.quality + SPREAD[1])
        return np.where(used < self.share, low + np.floor(level * (high - low + 1)), 0).astype(np.int64)


def ahead(make: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
    """``make`` of each item in order, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(make, items[0])
        for following in items[1:]:
            made, coming = coming.result(), pool.submit(make, following)
            yield made
        yield coming.result()


class Reader:
    """Reads views of stored pictures at one size.

    Args:
        pictures: (N, S, S, 3) uint8.
        views: Draws them.
        size: (h, w) of what is read.
        view_count: V; views from 0 to V - 1 are asked for.
        colour: ``rgb``, or ``grey`` for views as a monochrome camera gives them.
        codec: What small pictures go through; None for none.
        device: Where tensors are put.
        keep_bytes: Crops are kept in memory when all of them fit into this.
    """

    def __init__(
        self,
        pictures: NDArray[np.uint8],
        views: Views,
        size: Size,
        *,
        view_count: int,
        colour: str = "rgb",
        codec: Codec | None = None,
        device: torch.device | None = None,
        keep_bytes: int = CROP_BYTES,
    ) -> None:
        self.pictures, self.views, self.size, self.codec = pictures, views, size, codec
        self.colour = colour
        self.device = device or torch.device("cpu")
        shape = (view_count, len(pictures), size.height, size.width, CHANNELS[colour])
        self._kept: NDArray[np.uint8] | None = None
        if int(np.prod(shape, dtype=np.int64)) <= keep_bytes:
            self._kept, self._there = np.empty(shape, np.uint8), np.zeros(shape[:2], dtype=np.bool_)

    def read(self, indices: NDArray[np.int64], view: int) -> Tensor:
        """The ``view``-th view of each picture: (B, C, h, w) float32 in [0, 1], channels last in memory."""
        drawn = self.views.draw(indices, view)
        own = jitter(self._crops(indices, view, drawn), drawn)
        if drawn.partner is None or drawn.own is None:
            return own
        other = self.views.draw(drawn.partner, view)
        share = torch.from_numpy(drawn.own).to(self.device)[:, None, None, None]
        return torch.lerp(jitter(self._crops(drawn.partner, view, other), other), own, share)

    def _crops(self, indices: NDArray[np.int64], view: int, drawn: ViewBatch) -> Tensor:
        """(B, C, h, w) uint8."""
        if self._kept is None:
            return self._rendered(indices, drawn)
        missing = np.flatnonzero(~self._there[view, indices])
        if len(missing):
            wanted = indices[missing]
            fresh = self._rendered(wanted, self.views.draw(wanted, view))
            self._kept[view, wanted] = fresh.permute(0, 2, 3, 1).cpu().numpy()
            self._there[view, wanted] = True
        return torch.from_numpy(self._kept[view, indices]).to(self.device).permute(0, 3, 1, 2)

    def _rendered(self, indices: NDArray[np.int64], drawn: ViewBatch) -> Tensor:
        crops = crop(torch.from_numpy(self.pictures[indices]).to(self.device), drawn, self.size)
        crops = to_grey(crops) if self.colour == "grey" else crops
        if self.codec is None:
            return crops
        pictures = crops.permute(0, 2, 3, 1).cpu().numpy()
        sent = through_codec(pictures, self.codec.name, self.codec.qualities(drawn))
        return torch.from_numpy(sent).to(self.device).permute(0, 3, 1, 2)


def through_codec(pictures: NDArray[np.uint8], codec: str, qualities: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What the receiver sees of pictures (B, h, w, C) sent at qualities (B,); 0 leaves a picture as it is."""
    sent = pictures.copy()
    colour = "grey" if pictures.shape[-1] == 1 else "rgb"
    for index in np.flatnonzero(qualities):
        data = encode(as_image(pictures[index]), codec, int(qualities[index]))
        with Image.open(io.BytesIO(data), formats=("JPEG", "WEBP")) as image:
            sent[index] = np.asarray(in_colour(image.convert("RGB"), colour)).reshape(sent[index].shape)
    return sent
