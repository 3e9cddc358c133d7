"""Does a network work all the way, from building to int8? One cell, or the whole catalogue.

``python -m stillhouse.service.cell_check`` checks each architecture at each size in each stem, small sizes first, and
writes the table ``search/catalogue_checks.json``: five to forty seconds a cell on one core. It goes on where it
stopped, and begins anew when a library has another version or the quantiser another revision.

An architecture is trained for some steps from random weights, once; each of its cells starts from those, as students
start from ImageNet's, and is trained for one step. A check says that a network works, not how well.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from stillhouse.distill import catalogue, zoo
from stillhouse.export.measure import logits_of
from stillhouse.export.onnx import export
from stillhouse.export.parity import check_parity
from stillhouse.export.quantise import REVISION, quantise, to_fp16
from stillhouse.search.catalogue import by_pixels
from stillhouse.search.domain import Json, Size
from stillhouse.search.errors import StageError

STEPS = ("builds", "trains", "exports", "fp16", "int8")
CLASSES, PICTURES = 10, 16
BATCH = 4
"""Pictures of a cell's training step."""
SAMPLE_SIZES = (Size(64, 64), *catalogue.NETWORK_SIZES)
"""An architecture is trained at the first of these that it computes at."""
SAMPLE_STEPS = 10
MOST_GRADIENT = 1.0
"""Each number of a gradient is clipped to this: else a layer scale that begins at 1e-5 is at 1e5 after a few steps."""
LEAST_LIKENESS = {"fp16": 0.99, "int8": 0.6}
"""Least cosine between the logits of a file and of the fp32 file, each class's mean over the pictures taken off.

Random weights blow rounding errors up: the logits of a MobileNet v2 keep a likeness of 0.2 in int8. After a few steps
of training it is 0.95; hence those steps. The bound tells files that work from broken ones, which have 0.2 and less.
"""
TRIES = 6
"""Trainings from other random weights before a precision counts as failing: some leave a network as touchy as it was,
most of all where its last grid is a single place. A broken file is not alike by chance: with 16 pictures and ten
classes the likeness of strangers is 0 +- 0.1.
"""
LIBRARIES = ("timm", "torch", "onnx", "onnxscript", "onnxruntime")
REVISION_OF_CHECKS = 1
"""Goes up when cells are checked in another way."""

Cell = tuple[str, Size, str]
"""Architecture, size, stem."""


@dataclass(frozen=True)
class Verdict:
    """What became of one cell.

    Attributes:
        passed: The steps of ``STEPS`` that worked.
        reasons: Step that failed -> why. Steps after one that the others need are neither passed nor have a reason.
        likeness: Precision -> cosine with the fp32 file's logits, as ``LEAST_LIKENESS`` bounds it.
        seconds: The check took.
    """

    passed: frozenset[str]
    reasons: dict[str, str]
    likeness: dict[str, float]
    seconds: float

    def to_json(self) -> dict[str, Json]:
        """JSON form, as the table holds it."""
        reason = {"reason": "; ".join(f"{step}: {why}" for step, why in self.reasons.items())} if self.reasons else {}
        steps = {step: step in self.passed for step in STEPS}
        likeness = {name: round(value, 2) for name, value in self.likeness.items()}
        return {**steps, **reason, "likeness": likeness, "seconds": round(self.seconds, 1)}


@dataclass
class _Check:
    """The steps of one check; each leaves what the next ones need."""

    arch: str
    size: Size
    stem: str
    folder: Path
    network: zoo.Network = field(init=False)
    likeness: dict[str, float] = field(default_factory=dict)

    def builds(self) -> None:
        """The network takes over the weights of the architecture's sample, and gives logits."""
        torch.manual_seed(0)
        self.network = zoo.build(self.arch, classes=CLASSES, image_size=self.size, stem=self.stem)
        zoo.adapt(self.network, _sample(self.arch))
        _compute(self.network)

    def trains(self) -> None:
        """In a step of training the gradient of each parameter is finite."""
        pictures = _tensor(_pictures(self.size))
        loss = _train(self.network, pictures[:BATCH], steps=1, rate=0.01)
        gradients = {name: value.grad for name, value in self.network.named_parameters()}
        without = [name for name, gradient in gradients.items() if gradient is None]
        if without:
            raise StageError(f"{len(without)} parameters get no gradient ({', '.join(without[:3])})")
        if not all(bool(gradient.isfinite().all()) for gradient in gradients.values() if gradient is not None):
            raise StageError(f"a gradient is not finite (loss {loss:.3g})")
        _settle(self.network, pictures)

    def exports(self) -> None:
        """The ONNX file says what the network says."""
        export(self.network, image_size=self.size, path=self.folder / "fp32.onnx", metadata={})
        check_parity(self.network, self.folder / "fp32.onnx", _pictures(self.size))

    def fp16(self) -> None:
        """The fp16 file runs and says nearly what the fp32 file says."""
        self._lower("fp16", to_fp16)

    def int8(self) -> None:
        """The int8 file runs and says much the same as the fp32 file."""
        self._lower("int8", lambda onnx, out: quantise(onnx, out, _pictures(self.size)))

    def _lower(self, precision: str, convert: Callable[[Path, Path], None]) -> None:
        least = LEAST_LIKENESS[precision]
        for seed in range(TRIES):
            if seed:
                self.network = _trained(self.arch, self.size, self.stem, seed)
                self.exports()
            convert(self.folder / "fp32.onnx", self.folder / f"{precision}.onnx")
            wanted, found = (
                logits_of(self.folder / f"{name}.onnx", _pictures(self.size), threads=1) for name in ("fp32", precision)
            )
            if not np.isfinite(found).all():
                raise StageError("logits are not finite")
            self.likeness[precision] = max(_likeness(wanted, found), self.likeness.get(precision, -1.0))
            if self.likeness[precision] >= least:
                return
        raise StageError(
            f"the cosine with the logits of fp32 must be >= {least}, but is {self.likeness[precision]:.2f} at best "
            f"after {TRIES} trainings"
        )


def check_cell(arch: str, size: Size, stem: str) -> Verdict:
    """Builds a network, trains it for a step, exports it and lowers its precision, on this CPU.

    Args:
        arch: A timm name.
        size: Picture and network size.
        stem: As ``zoo`` knows them.
    """
    began = time.monotonic()
    passed, reasons = set(), {}
    with tempfile.TemporaryDirectory() as folder:
        check = _Check(arch, size, stem, Path(folder))
        for name in STEPS:
            step: Callable[[], None] = getattr(check, name)
            try:
                step()
                passed.add(name)
            except Exception as error:  # a network can fail in any way; each is a fact to report
                reasons[name] = _one_line(error)
                if name not in LEAST_LIKENESS:
                    break
    return Verdict(frozenset(passed), reasons, check.likeness, time.monotonic() - began)


def cells_of(arch: str) -> list[Cell]:
    """All cells of an architecture, small sizes first; at some it may fail to compute.

    Raises:
        UnknownNameError, StageError: As ``zoo.build``.
    """
    stems = catalogue.stems_of(catalogue.probe(arch))
    return [(arch, size, stem) for size in sorted(catalogue.NETWORK_SIZES, key=by_pixels) for stem in stems]


def key_of(arch: str, size: Size, stem: str) -> str:
    """The name of a cell in the table."""
    return f"{arch}|{stem}|{size}"


def check_cells(cells: list[Cell], processes: int) -> Iterator[tuple[Cell, Verdict]]:
    """Checks cells in as many processes of one thread each; gives each verdict when it is there, in their order."""
    if processes == 1:
        yield from ((cell, check_cell(*cell)) for cell in cells)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from zip(cells, pool.map(check_cell, *zip(*cells, strict=True)), strict=True)


def write_table(path: Path = catalogue.CHECKS, processes: int = 1, say: Callable[[str], None] = print) -> None:
    """Checks the cells of the catalogue that the table lacks, and writes it after each.

    Args:
        path: The table.
        processes: Check so many cells at once.
        say: Gets a line a cell.
    """
    made_with = {name: version(name).partition("+")[0] for name in LIBRARIES}
    made_with |= {"quantise": str(REVISION), "checks": str(REVISION_OF_CHECKS)}
    verdicts = _kept(path, made_with)
    wanted = {key_of(*cell): cell for arch in sorted(catalogue.ARCHS) for cell in cells_of(arch)}
    left = sorted((cell for key, cell in wanted.items() if key not in verdicts), key=lambda cell: by_pixels(cell[1]))
    for cell, verdict in check_cells(left, processes):
        key = key_of(*cell)
        verdicts[key] = verdict.to_json()
        say(f"{key} {json.dumps(verdicts[key])}")
        _write(path, made_with, {key: verdicts[key] for key in wanted if key in verdicts})
    _write(path, made_with, {key: verdicts[key] for key in wanted})


# ---------------------------------------------------------------------------------------- helpers


@functools.cache
def _sample(arch: str) -> zoo.Network:
    """The architecture after some steps of training: what its cells start from."""
    for size in SAMPLE_SIZES:
        try:
            _compute(zoo.build(arch, classes=CLASSES, image_size=size))
        except catalogue.TIMM_ERRORS:
            continue
        return _trained(arch, size, "stock", 0)
    raise StageError(f"{arch} computes at none of the sizes {', '.join(map(str, SAMPLE_SIZES))}")


def _trained(arch: str, size: Size, stem: str, seed: int) -> zoo.Network:
    """A network after some steps of training from random weights."""
    torch.manual_seed(seed)
    network = zoo.build(arch, classes=CLASSES, image_size=size, stem=stem)
    pictures = _tensor(_pictures(size))
    _train(network, pictures, steps=SAMPLE_STEPS, rate=0.05)
    network.zero_grad()
    _settle(network, pictures)
    return network


def _compute(network: zoo.Network) -> None:
    size = network.image_size
    with torch.no_grad():
        shape = tuple(network.eval()(torch.rand(2, 3, size.height, size.width)).shape)
    if shape != (2, CLASSES):
        raise StageError(f"logits must be (2, {CLASSES}), but are {shape}")


def _train(network: nn.Module, pictures: torch.Tensor, *, steps: int, rate: float) -> float:
    """Trains on pictures (n, 3, h, w) of as many classes as there are; the loss before the last step."""
    labels = torch.arange(len(pictures)) % CLASSES
    optimiser = torch.optim.SGD(network.train().parameters(), lr=rate, momentum=0.9)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(network(pictures), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_value_(network.parameters(), MOST_GRADIENT)
        optimiser.step()
    return loss.item()


def _pictures(size: Size) -> NDArray[np.uint8]:
    """(PICTURES, h, w, 3) uint8: smooth colours, which differ as photographs do and noise does not."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(PICTURES, 3, 5, 5, generator=rng)
    smooth = F.interpolate(coarse, size=(size.height, size.width), mode="bicubic").clamp(0, 1)
    return (smooth.permute(0, 2, 3, 1) * 255).byte().numpy()


def _tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _settle(network: nn.Module, pictures: torch.Tensor) -> None:
    """Sets the running statistics of batch norms to those of pictures: a few steps are too few for it."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        network.train()(pictures)


def _likeness(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    one, other = (logits - logits.mean(axis=0) for logits in (wanted, found))
    return float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other) + 1e-12))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, StageError) else f"{type(error).__name__}: {text}"


def _kept(path: Path, made_with: dict[str, str]) -> dict[str, Json]:
    """Verdicts of an earlier run with the same libraries and quantiser."""
    if not path.exists():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    kept: dict[str, Json] = table["cells"] if table["made_with"] == made_with else {}
    return kept


def _write(path: Path, made_with: dict[str, str], cells: dict[str, Json]) -> None:
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(cell)}" for key, cell in cells.items())
    fresh = path.with_suffix(".tmp")
    fresh.write_text(f'{{\n "made_with": {json.dumps(made_with)},\n "cells": {{\n{lines}\n }}\n}}\n', encoding="utf-8")
    fresh.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Checks the cells of the catalogue that the table of checks lacks.")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="check so many cells at once")
    torch.set_num_threads(1)
    write_table(processes=parser.parse_args().processes)
