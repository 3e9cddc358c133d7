"""What the benchmarks share: variants that take turns, each in a process of its own, and the pictures they read."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import statistics
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from stillhouse.distill.data.ingest import ingest
from stillhouse.distill.data.store import PictureStore
from stillhouse.distill.loop import large_store_size
from stillhouse.search.domain import Fit, Size

SPAWN = multiprocessing.get_context("spawn")


class Variant(Protocol):
    """One way of doing the work."""

    about: dict[str, Any]
    """Figures from when it got ready."""

    def round(self) -> tuple[int, float]:
        """Does a round's work: images, seconds."""
        ...


def alternate(
    variants: Mapping[str, Callable[[Any], Variant]], setup: object, *, threads: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any], dict[str, int]]:
    """Times variants in turn (a, b, c, a, b, c, ...), never two at once.

    A variant waits at a pipe for its turn; its OpenMP threads spin for a millisecond after the last one and then sleep.

    Returns:
        Images a second by variant and round; what the variants said of themselves; peak bytes of each process.
    """
    rates: dict[str, list[float]] = {name: [] for name in variants}
    about: dict[str, Any] = {}
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        for name, make in variants.items():
            pipes[name], there = SPAWN.Pipe()
            processes.append(SPAWN.Process(target=_serve, args=(there, make, setup, threads)))
            processes[-1].start()
            there.close()
            about |= pipes[name].recv()
            note(f"  {name} is ready")
        for number in range(rounds):
            for name, pipe in pipes.items():
                pipe.send(True)
                images, seconds = pipe.recv()
                rates[name].append(images / seconds)
            shown = ", ".join(f"{name} {found[-1]:.1f}" for name, found in rates.items())
            note(f"  round {number + 1} of {rounds}: {shown} images/s")
        for pipe in pipes.values():
            pipe.send(False)
        memory = {name: pipe.recv() for name, pipe in pipes.items()}
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join(10)
            process.kill()
    return rates, about, memory


def alone(function: Callable[..., Any], *args: object) -> Any:
    """Calls a function in a process of its own, so that its memory is not counted as another's."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        return pool.submit(function, *args).result()


def prepare(data: Path, work: Path, large: int) -> int:
    """Ingests a zip into a folder, and extracts its ``train`` pictures there; returns how many a job trains on."""
    with zipfile.ZipFile(data) as archive:
        archive.extractall(work, [name for name in archive.namelist() if name.startswith("train/")])
    ingest(data, work, skip_faults=False, report=lambda _: None)
    return len(train_pictures(work, large)[1])


def train_pictures(work: Path, large: int) -> tuple[PictureStore, NDArray[np.uint8]]:
    """The store of what ``prepare`` left, and its training pictures as a job with this large size reads them."""
    store = PictureStore(work / "pictures.bin", work / "manifest.json", work / "arrays")
    return store, store.array("train", large_store_size(Size(large, large)), Fit.SQUASH)


class PlainPictures(Dataset[tuple[Tensor, Tensor, int]]):
    """A data set as PyTorch scripts have it: opens, augments, resizes and normalises one picture at two sizes.

    ``made`` counts the pictures that its loader's workers made.
    """

    def __init__(self, folder: Path, large: int, small: int) -> None:
        self.samples = ImageFolder(str(folder)).samples
        self.large, self.small = large, small
        self.made = multiprocessing.Value("q", 0)
        cropped = transforms.RandomResizedCrop(large, scale=(0.5, 1.0))
        jittered = transforms.ColorJitter(brightness=0.2, contrast=0.2)
        self.augment = transforms.Compose([cropped, transforms.RandomHorizontalFlip(), jittered])
        normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.to_tensor = transforms.Compose([transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        path, label = self.samples[index]
        with Image.open(path) as image:
            large = self.augment(image.convert("RGB"))
        small = transforms.functional.resize(large, [self.small, self.small])
        item = self.to_tensor(large), self.to_tensor(small), label
        with self.made.get_lock():
            self.made.value += 1
        return item


def ratio(name: str, rates: Mapping[str, Sequence[float]], over: str, under: str) -> dict[str, float]:
    """One variant over another, round by round: median, least, greatest."""
    found = [a / b for a, b in zip(rates[over], rates[under], strict=True)]
    return {name: statistics.median(found), f"{name}_low": min(found), f"{name}_high": max(found)}


def cpu() -> str:
    """The processor's name and cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def note(text: str) -> None:
    """Tells a person how far it is; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def _serve(pipe: Connection, make: Callable[[Any], Variant], setup: object, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    variant = make(setup)
    pipe.send(variant.about)
    while pipe.recv():
        pipe.send(variant.round())
    scale = 1 if sys.platform == "darwin" else 1024
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)
