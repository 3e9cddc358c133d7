"""Does a network work all the way, from building to int8? One cell, or the whole catalogue.

``python -m stillhouse.service.cell_check`` checks each architecture in each stem and writes the table
``search/catalogue_checks.json``. It goes on where it stopped, and begins anew when a library has another version or
the quantiser another revision. What is checked hardly depends on the size, so that one size stands for all; a network
with attention, which reads its grid as a whole, is checked at a second one. Weights start from random: a check says
that a network works, not how well.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable
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
from stillhouse.search.domain import Json, Size
from stillhouse.search.errors import StageError

STEPS = ("builds", "trains", "exports", "fp16", "int8")
CLASSES, PICTURES = 10, 32
TRAINING_STEPS, BATCH = 10, 16
LEAST_LIKENESS = {"fp16": 0.99, "int8": 0.6}
"""Least cosine between the logits of a file and of the fp32 file, each class's mean over the pictures taken off.

Random weights blow rounding errors up: the logits of a MobileNet v2 keep a likeness of 0.2 in int8. After a few steps
of training it is 0.95; hence those steps. The bound tells files that work from broken ones, which have 0.2 and less.
"""
LIBRARIES = ("timm", "torch", "onnx", "onnxscript", "onnxruntime")

_ATTENTION = re.compile("Attention|Attn|MLA|SHSA|XCA")


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
        """The network gives logits."""
        self.network = zoo.build(self.arch, classes=CLASSES, image_size=self.size, stem=self.stem).eval()
        with torch.no_grad():
            shape = tuple(self.network(torch.rand(2, 3, self.size.height, self.size.width)).shape)
        if shape != (2, CLASSES):
            raise StageError(f"logits must be (2, {CLASSES}), but are {shape}")

    def trains(self) -> None:
        """After some training steps the gradient of each parameter is finite."""
        network, pictures = self.network.train(), _tensor(_pictures(self.size))
        batch, labels = pictures[:BATCH], torch.arange(BATCH) % CLASSES
        optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        for _ in range(TRAINING_STEPS):
            optimiser.zero_grad()
            loss = F.cross_entropy(network(batch), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        without = [name for name, value in network.named_parameters() if value.grad is None]
        if without:
            raise StageError(f"{len(without)} parameters get no gradient ({', '.join(without[:3])})")
        if not all(bool(value.grad.isfinite().all()) for value in network.parameters() if value.grad is not None):
            raise StageError(f"a gradient is not finite after {TRAINING_STEPS} steps (loss {loss.item():.3g})")
        _settle(network, pictures)

    def exports(self) -> None:
        """The ONNX file says what the network says."""
        export(self.network, image_size=self.size, path=self.folder / "fp32.onnx", metadata={})
        check_parity(self.network, self.folder / "fp32.onnx", _pictures(self.size))

    def fp16(self) -> None:
        """The fp16 file runs and says nearly what the fp32 file says."""
        to_fp16(self.folder / "fp32.onnx", self.folder / "fp16.onnx")
        self._compare("fp16")

    def int8(self) -> None:
        """The int8 file runs and says much the same as the fp32 file."""
        quantise(self.folder / "fp32.onnx", self.folder / "int8.onnx", _pictures(self.size))
        self._compare("int8")

    def _compare(self, precision: str) -> None:
        pictures = _pictures(self.size, seed=1)
        wanted = logits_of(self.folder / "fp32.onnx", pictures, threads=1)
        found = logits_of(self.folder / f"{precision}.onnx", pictures, threads=1)
        if not np.isfinite(found).all():
            raise StageError("logits are not finite")
        likeness = self.likeness[precision] = _likeness(wanted, found)
        if not likeness >= LEAST_LIKENESS[precision]:
            raise StageError(
                f"the cosine with the logits of fp32 must be >= {LEAST_LIKENESS[precision]}, but is {likeness:.2f}"
            )


def check_cell(arch: str, size: Size, stem: str) -> Verdict:
    """Builds a network from random weights, trains it a little, exports it and lowers its precision, on this CPU.

    Args:
        arch: A timm name.
        size: Picture and network size.
        stem: As ``zoo`` knows them.
    """
    began = time.monotonic()
    passed, reasons = set(), {}
    torch.manual_seed(0)
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


def cells_of(arch: str) -> list[tuple[Size, str]]:
    """The (size, stem) that stand for all of an architecture.

    Raises:
        UnknownNameError, StageError: As ``zoo.build``.
    """
    network = catalogue.probe(arch)
    attends = any(_ATTENTION.search(type(module).__name__) for module in network.modules())
    patch = zoo.input_convolution(network).stride[0]
    found = []
    for stem in catalogue.stems_of(network):
        if network.family == "vit":
            found += [(Size(2 * patch, 2 * patch), stem), (Size(3 * patch, 4 * patch), stem)]
            continue
        side = 32 if stem == "stride1" else 64  # the same grid, so that either stem is checked in the same time
        found += [(Size(side, side), stem), *([(Size(36, 64), stem)] if attends else [])]
    return found


def write_table(path: Path = catalogue.CHECKS, say: Callable[[str], None] = print) -> None:
    """Checks the cells of the catalogue that the table lacks, and writes it after each.

    Args:
        path: The table.
        say: Gets a line a cell.
    """
    made_with = {name: version(name).partition("+")[0] for name in LIBRARIES} | {"quantise": str(REVISION)}
    cells = _kept(path, made_with)
    wanted = {
        f"{arch}|{stem}|{size}": (arch, size, stem) for arch in sorted(catalogue.ARCHS) for size, stem in cells_of(arch)
    }
    for key, cell in wanted.items():
        if key not in cells:
            cells[key] = check_cell(*cell).to_json()
            say(f"{key} {json.dumps(cells[key])}")
            _write(path, made_with, {key: cells[key] for key in wanted if key in cells})
    _write(path, made_with, {key: cells[key] for key in wanted})


# ---------------------------------------------------------------------------------------- helpers


def _pictures(size: Size, seed: int = 0) -> NDArray[np.uint8]:
    """(PICTURES, h, w, 3) uint8: smooth colours, which differ as photographs do and noise does not."""
    rng = torch.Generator().manual_seed(seed)
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
    torch.set_num_threads(1)
    write_table()
