"""From stored pictures to a step's batch: views at two sizes, labels, and what the mentor said of them.

The next batch is made in a thread while this one trains. A mentor whose features are not in the cache is run
here, on the very views that the student sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.distill.data.reader import Codec, Reader, ahead
from stillhouse.distill.data.views import Views
from stillhouse.distill.knowledge import Knowledge, observe
from stillhouse.distill.method import Batch, Method
from stillhouse.distill.targets import Cache
from stillhouse.distill.zoo import Network


@dataclass(frozen=True)
class Pictures:
    """What is trained and validated on.

    Attributes:
        train: (N, S, S, 3) uint8.
        labels: (N,) int64.
        val: (M, h, w, C) uint8 at the network's own picture size and colour.
        val_labels: (M,) int64.
        views: Draws the crops.
        view_count: Views a picture has; epoch e shows view e modulo this.
        codec: What the student's pictures go through in training; None for none.
        cache: What the mentor said of each view; None without a mentor.
        mentor: Run live for features that the cache does not keep; None when it is not needed.
    """

    train: NDArray[np.uint8]
    labels: NDArray[np.int64]
    val: NDArray[np.uint8]
    val_labels: NDArray[np.int64]
    views: Views
    view_count: int
    codec: Codec | None = None
    cache: Cache | None = None
    mentor: Network | None = None


class Feed:
    """Batches of one training.

    Args:
        method: Says what a batch must hold.
        pictures: Where it comes from.
        batch: Pictures a step.
        seed: Decides their order.
        device: Where tensors are put.
    """

    def __init__(self, method: Method, pictures: Pictures, *, batch: int, seed: int, device: torch.device) -> None:
        self.method, self.pictures, self.batch, self.seed, self.device = method, pictures, batch, seed, device
        cache = pictures.cache
        self._live = method.features if cache is not None and not cache.features else ""
        if self._live and pictures.mentor is None:
            raise ValueError(f"method {method.name} reads features that are not cached: it needs the mentor itself")
        common = {"view_count": pictures.view_count, "device": device}
        self._small = Reader(
            pictures.train,
            pictures.views,
            method.student.image_size,
            colour=method.student.colour,
            codec=pictures.codec,
            **common,  # type: ignore[arg-type]
        )
        self._large = None
        if method.reads_large or self._live:
            self._large = Reader(pictures.train, pictures.views, method.large, **common)  # type: ignore[arg-type]

    def steps(self, epoch: int) -> int:
        """Batches of an epoch."""
        return len(self._batches(epoch))

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's batches, each made while the one before it trains."""
        return map(self._taught, ahead(partial(self._make, epoch=epoch), self._batches(epoch)))

    def _make(self, indices: NDArray[np.int64], epoch: int) -> Batch:
        view, cache = epoch % self.pictures.view_count, self.pictures.cache
        small = self._small.read(indices, view)
        large = None if self._large is None else self._large.read(indices, view)
        taught: Knowledge | None = None
        if cache is not None:
            kept = bool(self.method.features) and not self._live
            taught = cache.read(view, indices, self.device, features=kept)
        return Batch(small, large, self._labels(indices, view), taught)

    def _labels(self, indices: NDArray[np.int64], view: int) -> Tensor:
        drawn, labels = self.pictures.views.draw(indices, view), self.pictures.labels
        own = torch.from_numpy(labels[indices]).to(self.device)
        if drawn.partner is None or drawn.own is None:
            return own
        others = torch.from_numpy(labels[drawn.partner]).to(self.device)
        share = torch.from_numpy(drawn.own).to(self.device)
        return self.method.task.mixed(own, others, share, self.method.student.classes)

    def _taught(self, batch: Batch) -> Batch:
        if not self._live or self.pictures.mentor is None or batch.large is None:
            return batch
        return replace(batch, taught=observe(self.pictures.mentor, batch.large, self._live))

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """Picture numbers by step. A last batch too small for batch statistics joins the one before it."""
        count = len(self.pictures.labels)
        order = np.random.default_rng([self.seed, epoch]).permutation(count)
        cuts = list(range(self.batch, count, self.batch))
        if cuts and count - cuts[-1] < max(2, self.batch // 8):
            cuts.pop()
        return [np.sort(part) for part in np.split(order, cuts)]
