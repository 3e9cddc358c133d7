"""Runs a stage of the trainer: ingest, teacher, targets, assistant, student."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from stillhouse.distill import methods, tasks, zoo
from stillhouse.distill.data import textures
from stillhouse.distill.data.ingest import ingest
from stillhouse.distill.data.store import PictureStore
from stillhouse.distill.data.views import Views
from stillhouse.distill.loop import Pictures, Recipe, Report, evaluate, large_store_size, train
from stillhouse.distill.method import Method
from stillhouse.distill.targets import write_targets
from stillhouse.distill.weights import load_checkpoint
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Fit, Json, Size, StageKind, StagePlan
from stillhouse.search.errors import UnknownNameError

T = TypeVar("T")

BUILTIN = {"textures": textures.write}
"""Data sets that ship with the package: name -> function that writes an ImageFolder."""

RATES = {"pretrained": 1e-3, "random": 3e-3, "assistant": 1e-3}
"""Peak learning rate by what the network starts from."""


@dataclass(frozen=True)
class InputFiles:
    """What another stage left: files by name and figures."""

    files: Mapping[str, Path]
    metrics: Mapping[str, Json]


@dataclass(frozen=True)
class Output:
    """What this stage leaves."""

    files: Mapping[str, Path]
    metrics: Mapping[str, Json]


@dataclass(frozen=True)
class Room:
    """Where and with what a stage works.

    Attributes:
        plan: The stage.
        inputs: Results that it reads, by role.
        work: Its folder; persists from one attempt to the next, so checkpoints live there.
        cache: Folder of arrays derived from data sets.
        report: Takes progress; raises LeaseLostError to stop the stage.
    """

    plan: StagePlan
    inputs: Mapping[str, InputFiles]
    work: Path
    cache: Path
    report: Report

    @property
    def store(self) -> PictureStore:
        """The data set."""
        return open_store(self.inputs, self.cache)

    @property
    def fit(self) -> Fit:
        """How pictures are fitted."""
        return Fit(self.plan.spec["fit"])

    def size(self, name: str) -> Size:
        """A size of the plan."""
        return Size.parse(self.plan.spec[name])

    def output(self, name: str) -> Path:
        """Path of an output file."""
        folder = self.work / "out"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def run(
    plan: StagePlan,
    inputs: Mapping[str, InputFiles],
    work: Path,
    *,
    cache: Path,
    threads: int,
    report: Report,
) -> Output:
    """Runs one stage; what it had finished in an earlier attempt under ``work`` is not done again.

    Raises:
        DatasetError: The pictures cannot be used.
        StageError: A retry will not cure it; the message says why.
        LeaseLostError: ``report`` said to stop.
    """
    torch.set_num_threads(threads)
    return _RUNNERS[plan.kind](Room(plan, inputs, work, cache, report))


def open_store(inputs: Mapping[str, InputFiles], cache: Path) -> PictureStore:
    """The data set among a stage's inputs."""
    files = inputs["dataset"].files
    return PictureStore(files["pictures"], files["manifest"], cache)


def _ingest(room: Room) -> Output:
    spec = room.plan.spec
    source, out = Path(spec["source"]), room.work / "out"
    if spec["digest"] in BUILTIN:
        source = room.work / spec["digest"]
        BUILTIN[spec["digest"]](source)
    out.mkdir(parents=True, exist_ok=True)
    summary = ingest(source, out, skip_faults=spec["skip_faults"], report=room.report)
    return Output({"pictures": out / "pictures.bin", "manifest": out / "manifest.json"}, summary)


def _teacher(room: Room) -> Output:
    size = room.size("size")
    network = _built(room, size, size, "stock")
    if room.plan.spec.get("checkpoint"):
        load_checkpoint(network, room.inputs["checkpoint"].files["weights"])
    pretrained = room.plan.spec["weights"] != "none" or "checkpoint" in room.inputs
    rate = RATES["pretrained" if pretrained else "random"]
    return _trained(room, network, None, "supervised", {}, size, rate)


def _assistant(room: Room) -> Output:
    spec, size = room.plan.spec, room.size("size")
    network = _built(room, size, size, "stock")
    rate = RATES["random" if spec["weights"] == "none" else "pretrained"]
    return _trained(room, network, None, spec["method"], spec["knobs"], size, rate)


def _student(room: Room) -> Output:
    spec = room.plan.spec
    network = _built(room, room.size("image_size"), room.size("network_size"), spec["stem"])
    rate = RATES["random" if spec["weights"] == "none" else "pretrained"]
    assistant = None
    if "assistant" in room.inputs:
        assistant = zoo.load(room.inputs["assistant"].files["weights"])
        zoo.adapt(network, assistant)
        rate = RATES["assistant"]
    return _trained(room, network, assistant, spec["method"], spec["knobs"], room.size("large_size"), rate)


def _built(room: Room, image_size: Size, network_size: Size, stem: str) -> Network:
    spec = room.plan.spec
    torch.manual_seed(spec["seed"])
    return zoo.build(
        spec["arch"],
        classes=spec["classes"],
        image_size=image_size,
        network_size=network_size,
        stem=stem,
        weights=spec["weights"],
    )


def _trained(
    room: Room,
    network: Network,
    assistant: Network | None,
    method_name: str,
    knobs: Mapping[str, Json],
    large: Size,
    rate: float,
) -> Output:
    spec, store, fit = room.plan.spec, room.store, room.fit
    task = _pick("task", tasks.registry(), spec["task"])()
    kind: type[Method] = _pick("method", methods.registry(), method_name)
    method = kind(kind.params_from(knobs), task, network, assistant, large)
    classes = spec["classes"]
    targets = np.load(room.inputs["targets"].files["logits"], mmap_mode="r") if kind.needs.targets else None
    pictures = Pictures(
        train=store.array("train", large_store_size(large), fit, classes),
        labels=store.labels("train", classes),
        val=store.array("val", network.image_size, fit, classes),
        val_labels=store.labels("val", classes),
        views=Views(store.digest, spec["seed"]),
        view_count=spec["views"],
        targets=targets,
    )
    recipe = Recipe(epochs=spec["epochs"], rate=rate, seed=spec["seed"])
    began = time.monotonic()
    history = train(method, pictures, recipe, work=room.work / "checkpoints", report=room.report)
    score = evaluate(network, task, pictures.val, pictures.val_labels)
    weights = room.output("weights.safetensors")
    zoo.save(network, weights, list(store.classes[:classes]))
    seconds = sum(row["seconds"] for row in history)
    return Output(
        {"weights": weights},
        {
            "val": {"correct": score.correct, "total": score.total},
            "history": history,
            "weights": spec["weights"],
            "images_per_s": len(pictures.labels) * len(history) / seconds,
            "seconds": time.monotonic() - began,
        },
    )


def _targets(room: Room) -> Output:
    spec, store = room.plan.spec, room.store
    network = zoo.load(room.inputs["model"].files["weights"])
    pictures = store.array("train", large_store_size(room.size("size")), room.fit, spec["classes"])
    views = Views(store.digest, spec["seed"])
    began = time.monotonic()
    path = write_targets(network, pictures, views, spec["views"], room.output("logits.npy"), report=room.report)
    return Output({"logits": path}, {"views": spec["views"], "seconds": time.monotonic() - began})


def _pick(what: str, known: Mapping[str, type[T]], name: str) -> type[T]:
    if name not in known:
        raise UnknownNameError.among(what, name, known)
    return known[name]


_RUNNERS: dict[StageKind, Callable[[Room], Output]] = {
    StageKind.INGEST: _ingest,
    StageKind.TEACHER: _teacher,
    StageKind.TARGETS: _targets,
    StageKind.ASSISTANT: _assistant,
    StageKind.STUDENT: _student,
}
