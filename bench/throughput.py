"""Throughput: a step of pixel distillation as its publication describes it, ours, and the limit that ours approaches.

``python bench/throughput.py`` times, on the originals of birds100, batch 64, classes 100, networks from random weights
(speed does not depend on them), one pair of networks after the other:

- ``plain`` (a): the published recipe (Guo et al., TPAMI 2024) as a PyTorch script would have it. A step opens the JPEGs
  with PIL, crops, flips and jitters at 224, resizes the same crop to the student's size; the teacher reads the large
  crops, then the student learns L_pkd + gamma * L_isrd by SGD. Its DataLoader has 2 workers or none, whichever is the
  faster in a trial before the rounds. A queue that is full when a round begins stands to its credit.
- ``ours`` (b): ``Trainer.step`` over ``Feed.batches``, whole epochs, the teacher's outputs from a cache that
  ``write_targets`` wrote, crops of all views kept. ``cold`` is its first epoch, when every crop is still made.
- ``limit`` (c): the same steps on the same batches, which lie ready in memory: no pictures, no teacher.
- ``live`` (a'): ours, but the teacher runs in each step. It says what the cache saves, and is measured like the rest.
- ``bare``: cross-entropy alone on batches in memory: the student's own forward and backward, nothing to distil.

All but plain keep freed memory in the process, as the product's stages do (``distill/memory.py``). Each variant lives
in a process of its own, and rounds alternate with one variant at work at a time (``_common.py``). So each has its own
peak memory; that of plain leaves out its DataLoader's workers. Ratios are taken within a round; the table has their
median, least and greatest.

The cache is filled for a share of the training pictures; its seconds and bytes are scaled to all of them and to the
views of a job (``JobSpec.views``). It has paid after ``fill / (epoch of live - epoch of ours)`` epochs. Crops are kept
only while they fit ``CROP_BYTES``; the table says whether those of all pictures and views would.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler

from _common import PlainPictures, alone, alternate, cpu, note, prepare, ratio, train_pictures
from stillhouse.distill import zoo
from stillhouse.distill.data.reader import CROP_BYTES, Reader
from stillhouse.distill.data.views import ViewPolicy, Views
from stillhouse.distill.device import default_device
from stillhouse.distill.feed import Feed, Pictures
from stillhouse.distill.knowledge import observe
from stillhouse.distill.loop import Recipe, Trainer
from stillhouse.distill.memory import keep_freed_memory
from stillhouse.distill.method import Batch
from stillhouse.distill.methods.pixel import Pixel, PixelParams
from stillhouse.distill.methods.supervised import Supervised
from stillhouse.distill.targets import Cache, write_targets
from stillhouse.distill.tasks.classification import Classification
from stillhouse.search.domain import Size
from stillhouse.search.job import JobSpec

DATA = Path(__file__).parents[2] / "shared" / "data" / "birds100.zip"
LARGE, CLASSES, BATCH = 224, 100, 64
TEMPERATURE, ALPHA = 4.0, 0.9
ENDLESS = 10**7
READY = 4
"""Batches that ``limit`` and ``bare`` go round."""


@dataclass(frozen=True)
class Pair:
    """Two networks.

    Attributes:
        gamma: The paper's for this ratio of sizes; it does not change the speed.
        pictures: Training pictures that ours uses; epochs of a fast student must be long, as real ones are.
        steps: Steps a round of ours, limit and bare for one of plain and live.
    """

    teacher: str
    student: str
    small: int
    gamma: float
    pictures: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.teacher}-{self.student}"


PAIRS = (
    Pair("resnet50", "resnet18", 56, 50.0, 512, 8),
    Pair("tf_efficientnet_lite0", "mobilenetv3_small_050", 64, 50.0, 1024, 32),
)


@dataclass(frozen=True)
class Setup:
    """What every process of a pair is told.

    Attributes:
        work: Folder with the extracted ``train`` pictures and with what ingest wrote.
        targets: Files of the cache by name; empty before it is filled.
        figures: What ``write_targets`` said of them.
    """

    pair: Pair
    work: Path
    threads: int
    steps: int
    views: int
    targets: dict[str, Path]
    figures: dict[str, Any]


# ------------------------------------------------------------------------------------------ plain


class Plain:
    """The published recipe, as a script would have it; nothing of Stillhouse is in it."""

    def __init__(self, setup: Setup) -> None:
        pair, self.setup = setup.pair, setup
        self.teacher = timm.create_model(pair.teacher, num_classes=CLASSES).eval()
        self.student = timm.create_model(pair.student, num_classes=CLASSES).train()
        first = self.student.get_submodule(self.student.pretrained_cfg["first_conv"])
        first.register_forward_hook(self._keep)
        with torch.no_grad():
            self.student(torch.zeros(2, 3, pair.small, pair.small))
        scale = math.ceil(LARGE / self.tapped.shape[-1])
        expand = nn.Conv2d(self.tapped.shape[1], 3 * scale**2, kernel_size=1, bias=False)
        self.decoder = nn.Sequential(expand, nn.PixelShuffle(scale), nn.PReLU(3))
        parameters = [*self.student.parameters(), *self.decoder.parameters()]
        self.optimiser = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.pictures = PlainPictures(setup.work / "train", LARGE, pair.small)
        trials = {workers: self._trial(workers) for workers in (2, 0)}
        self.workers = min(trials, key=lambda workers: trials[workers])
        self._open(self.workers)
        self.about = {"plain_workers": self.workers}

    def round(self) -> tuple[int, float]:
        began = time.perf_counter()
        for _ in range(self.setup.steps):
            self._step(*next(self.batches))
        seconds = time.perf_counter() - began
        self.taken += self.setup.steps
        self._settle()
        return self.setup.steps * BATCH, seconds

    def _keep(self, _module: nn.Module, _args: object, output: Tensor) -> None:
        self.tapped = output

    def _trial(self, workers: int) -> float:
        self._open(workers)
        self.round()
        return min(self.round()[1] for _ in range(2))

    def _open(self, workers: int) -> None:
        """Starts a loader of its own and waits until its queue is full."""
        sampler = RandomSampler(self.pictures, replacement=True, num_samples=ENDLESS)
        self.batches = iter(DataLoader(self.pictures, batch_size=BATCH, sampler=sampler, num_workers=workers))
        self.workers, self.taken, self.before = workers, 0, self.pictures.made.value
        self._settle()

    def _settle(self) -> None:
        """Waits until the workers have nothing to do: two batches a worker are made ahead."""
        ahead = self.before + BATCH * (self.taken + 2 * self.workers)
        while self.pictures.made.value < ahead:
            time.sleep(0.02)
        time.sleep(0.2 * bool(self.workers))

    def _step(self, large: Tensor, small: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            told = self.teacher(large)
        logits = self.student(small)
        soft, log_student = F.softmax(told / TEMPERATURE, dim=1), F.log_softmax(logits / TEMPERATURE, dim=1)
        distilled = TEMPERATURE**2 * F.kl_div(log_student, soft, reduction="batchmean")
        restored = self.decoder(self.tapped)[:, :, :LARGE, :LARGE]
        loss = (1 - ALPHA) * F.cross_entropy(logits, labels) + ALPHA * distilled
        loss = loss + self.setup.pair.gamma * F.l1_loss(restored, large)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


# ------------------------------------------------------------------------------------------- ours


def pictures_of(setup: Setup) -> Pictures:
    """The first training pictures of the store, with the cache where it is filled."""
    store, train = train_pictures(setup.work, LARGE)
    train = train[: setup.pair.pictures]
    return Pictures(
        train=train,
        labels=store.labels("train")[: setup.pair.pictures],
        val=train[:0],
        val_labels=store.labels("val")[:0],
        views=Views(store.digest, 0, ViewPolicy(), len(train)),
        view_count=setup.views,
        cache=Cache.open(setup.targets, setup.figures) if setup.targets else None,
    )


def teacher_of(setup: Setup) -> zoo.Network:
    network = zoo.build(setup.pair.teacher, classes=CLASSES, image_size=Size(LARGE, LARGE))
    return network.eval().requires_grad_(False)


class Ours:
    """The product's own step over its own feed, in the state that it reaches after the first epochs."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.pictures = setup, pictures_of(setup)
        self.trainer, self.feed = self._built()
        self.step(next(self._built()[1].batches(0)))  # the first step of all prepares the kernels
        self.epoch, self.per_epoch = 0, self.feed.steps(0)
        cold = [self._epoch() for _ in range(setup.views)]
        self._epoch()
        self.about = {"cold_images_per_s": cold[0][0] / cold[0][1]}

    def round(self) -> tuple[int, float]:
        epochs = max(1, round(self.setup.steps * self.setup.pair.steps / self.per_epoch))
        counts, seconds = zip(*(self._epoch() for _ in range(epochs)), strict=True)
        return sum(counts), sum(seconds)

    def step(self, batch: Batch) -> None:
        self.trainer.step(batch)

    def _epoch(self) -> tuple[int, float]:
        seen, began = 0, time.perf_counter()
        for batch in self.feed.batches(self.epoch):
            self.step(batch)
            seen += len(batch.labels)
        self.epoch += 1
        return seen, time.perf_counter() - began

    def _built(self, kind: type[Pixel | Supervised] = Pixel) -> tuple[Trainer, Feed]:
        keep_freed_memory()  # as every stage does
        pair, device = self.setup.pair, default_device()
        student = zoo.build(pair.student, classes=CLASSES, image_size=Size(pair.small, pair.small))
        student.to(device, memory_format=torch.channels_last)  # as ``loop.train`` does
        params = PixelParams(temperature=TEMPERATURE, alpha=ALPHA, gamma=pair.gamma)
        told = self.pictures.cache.outline if self.pictures.cache else None
        method = kind(params if kind is Pixel else kind.Params(), Classification(), student, told, Size(LARGE, LARGE))
        method.extra.to(device).train()
        student.train()
        feed = Feed(method, self.pictures, batch=BATCH, seed=0, device=device)
        return Trainer(method, Recipe(1, 1e-3, 0, batch=BATCH), ENDLESS, device), feed


class Limit(Ours):
    """Ours on batches that lie ready."""

    kind: type[Pixel | Supervised] = Pixel

    def __init__(self, setup: Setup) -> None:
        self.setup, self.pictures = setup, pictures_of(setup)
        self.trainer, feed = self._built(self.kind)
        self.batches: Iterator[Batch] = cycle(list(islice(feed.batches(0), READY)))
        self.about: dict[str, Any] = {}
        for _ in range(3):
            self.step(next(self.batches))

    def round(self) -> tuple[int, float]:
        steps = self.setup.steps * self.setup.pair.steps
        began = time.perf_counter()
        for batch in islice(self.batches, steps):
            self.step(batch)
        return steps * BATCH, time.perf_counter() - began


class Bare(Limit):
    """The student without any distillation."""

    kind = Supervised


class Live(Ours):
    """Ours, with the teacher in the loop."""

    def __init__(self, setup: Setup) -> None:
        self.teacher = teacher_of(setup).to(default_device())
        self.setup, self.pictures = setup, replace(pictures_of(setup), cache=None, view_count=1)
        self.trainer, self.feed = self._built()
        self.about: dict[str, Any] = {}
        self.step(deque(self.feed.batches(0), maxlen=1)[0])  # all batches, for the crops of the steps below

    def round(self) -> tuple[int, float]:
        seen, began = 0, time.perf_counter()
        for batch in islice(self.feed.batches(0), self.setup.steps):
            self.step(batch)
            seen += len(batch.labels)
        return seen, time.perf_counter() - began

    def step(self, batch: Batch) -> None:
        assert batch.large is not None
        self.trainer.step(replace(batch, taught=observe(self.teacher, batch.large, "")))


# ---------------------------------------------------------------------------------------- figures

VARIANTS = {"plain": Plain, "ours": Ours, "limit": Limit, "live": Live, "bare": Bare}


def fill(setup: Setup) -> tuple[dict[str, Path], dict[str, Any]]:
    """Writes the cache as the product does."""
    torch.set_num_threads(setup.threads)
    keep_freed_memory()
    pictures = pictures_of(setup)
    options: dict[str, Any] = {"view_count": setup.views, "device": default_device(), "keep_bytes": 0}
    reader = Reader(pictures.train, pictures.views, Size(LARGE, LARGE), **options)
    (folder := setup.work / setup.pair.name).mkdir()
    told: dict[str, Any] = {"features": "", "most_bytes": 0}
    return write_targets(teacher_of(setup), reader, setup.views, folder, report=lambda _: None, **told)


def row(setup: Setup, total: int, rounds: int) -> dict[str, Any]:
    """All figures of a pair of networks."""
    note(f"{setup.pair.name}: fills the cache")
    targets, figures = alone(fill, setup)
    setup = replace(setup, targets=targets, figures=figures)
    rates, about, memory = alternate(VARIANTS, setup, threads=setup.threads, rounds=rounds)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    scale = JobSpec.views * total / (setup.views * setup.pair.pictures)
    fill_s = figures["seconds"] * scale
    saved = total / middle["live"] - total / middle["ours"]
    return {
        "teacher": setup.pair.teacher,
        "student": setup.pair.student,
        "large": LARGE,
        "small": setup.pair.small,
        **{f"{name}_images_per_s": value for name, value in middle.items()},
        **about,
        **ratio("ratio_plain", rates, "ours", "plain"),
        **ratio("ratio_limit", rates, "ours", "limit"),
        "pays_after_epochs": fill_s / saved if saved > 0 else None,
        "cache_views": JobSpec.views,
        "cache_pictures": total,
        "cache_fill_s": fill_s,
        "cache_bytes": round(figures["bytes"] * scale),
        "crop_bytes": (crops := JobSpec.views * total * 3 * LARGE**2),
        "crops_kept": crops <= CROP_BYTES,
        "peak_memory_bytes": memory,
        "rounds": rounds,
        "threads": setup.threads,
        "batch": BATCH,
        "torch": torch.__version__,
        "cpu": cpu(),
    }


def table(rows: list[dict[str, Any]]) -> None:
    for found in rows:
        print(f"\n{found['teacher']} {found['large']} px -> {found['student']} {found['small']} px")
        for name in VARIANTS:
            memory = found["peak_memory_bytes"][name] / 2**20
            print(f"  {name:6}{found[f'{name}_images_per_s']:9.1f} images/s  {memory:7.0f} MiB")
        print(f"  cold  {found['cold_images_per_s']:9.1f} images/s")
        for to in ("plain", "limit"):
            middle, low, high = (found[f"ratio_{to}{end}"] for end in ("", "_low", "_high"))
            print(f"  ours / {to} {middle:.2f} ({low:.2f} to {high:.2f})")
        print(f"  for {found['cache_pictures']} pictures, {found['cache_views']} views:")
        pays = found["pays_after_epochs"]
        paid = "does not pay" if pays is None else f"pays after {pays:.1f} epochs"
        print(f"    cache filled in {found['cache_fill_s']:.0f} s, {found['cache_bytes'] / 2**20:.1f} MiB, {paid}")
        kept = "kept" if found["crops_kept"] else "not kept: a step costs what it does in the cold epoch"
        print(f"    large crops {found['crop_bytes'] / 2**20:.0f} MiB, {kept}")
    print(f"\n{rows[0]['cpu']}, {rows[0]['threads']} threads, batch {BATCH}, torch {rows[0]['torch']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the zip, with train/<class>/*.jpg in it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a round of plain and live; the others take more")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--views", type=int, default=2, help="views that are cached and kept in the run")
    parser.add_argument("--pair", choices=[pair.name for pair in PAIRS], help="this pair only")
    parser.add_argument("--quick", action="store_true", help="few pictures and rounds: does it run at all?")
    parser.add_argument("--json", action="store_true", help="one JSON list on stdout and nothing else")
    args = parser.parse_args()
    pairs = [pair for pair in PAIRS if args.pair in (None, pair.name)]
    rounds, views = (min(args.rounds, 2), 1) if args.quick else (args.rounds, args.views)
    if args.quick:
        pairs = [replace(pair, pictures=2 * BATCH, steps=4) for pair in pairs]
    with tempfile.TemporaryDirectory() as folder:
        note("extracts and ingests the pictures")
        total = alone(prepare, args.data, Path(folder), LARGE)
        pairs = [replace(pair, pictures=min(pair.pictures, total)) for pair in pairs]
        setups = [Setup(pair, Path(folder), args.threads, args.steps, views, {}, {}) for pair in pairs]
        rows = [row(setup, total, rounds) for setup in setups]
    print(json.dumps(rows, indent=1)) if args.json else table(rows)


if __name__ == "__main__":
    main()
