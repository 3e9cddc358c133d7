"""Runs a stage of the trainer: ingest, probe, teacher, targets, assistant, student."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from stillhouse.distill import methods, tasks, zoo
from stillhouse.distill.checkpoint import adopt_checkpoint, newest_checkpoint
from stillhouse.distill.data import textures
from stillhouse.distill.data.ingest import ingest
from stillhouse.distill.data.reader import Codec, Reader
from stillhouse.distill.data.store import PictureStore
from stillhouse.distill.data.views import ViewPolicy, Views
from stillhouse.distill.device import default_device
from stillhouse.distill.feed import Pictures
from stillhouse.distill.knowledge import outline
from stillhouse.distill.loop import Recipe, evaluate, large_store_size, train
from stillhouse.distill.memory import keep_freed_memory
from stillhouse.distill.method import Method
from stillhouse.distill.progress import Report
from stillhouse.distill.targets import Cache, write_targets
from stillhouse.distill.weights import load_checkpoint
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Fit, Json, Size, StageKind, StagePlan
from stillhouse.search.errors import UnknownNameError

T = TypeVar("T")

CHECKPOINTS = "checkpoints"
"""Folder of a training's checkpoints, in the stage's work folder."""

BUILTIN = {"textures": textures.write}
"""Data sets that ship with the package: name -> function that writes an ImageFolder."""

RATES = {"pretrained": 1e-3, "random": 3e-3, "assistant": 1e-3}
"""Peak learning rate of a CNN by what the network starts from."""

VIT_RATE = 1 / 5
"""A ViT's rate, as a share of a CNN's [ours; docs/log.md, 2026-11-25]."""


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
    keep_freed_memory()
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


def _probe(room: Room) -> Output:
    """Builds a network from random weights; a StageError says what it lacks of what will be read inside it."""
    spec, size = room.plan.spec, room.size("size")
    network = zoo.build(spec["arch"], classes=2, image_size=size)
    return Output({}, {"outline": outline(network, spec["features"]).to_json()})


def _teacher(room: Room) -> Output:
    size = room.size("size")
    network = _built(room, size, size, "stock")
    if room.plan.spec.get("checkpoint"):
        load_checkpoint(network, room.inputs["checkpoint"].files["weights"])
    pretrained = room.plan.spec["weights"] != "none" or "checkpoint" in room.inputs
    rate = RATES["pretrained" if pretrained else "random"]
    return _trained(room, network, "supervised", {}, size, rate)


def _assistant(room: Room) -> Output:
    size = room.size("size")
    return _taught(room, _built(room, size, size, "stock"), codec=None)


def _student(room: Room) -> Output:
    network = _built(room, room.size("image_size"), room.size("network_size"), room.plan.spec["stem"])
    return _taught(room, network, codec=_codec(room.plan.spec))


def _taught(room: Room, network: Network, *, codec: Codec | None) -> Output:
    """Trains a network by its plan's method, from the assistant among its inputs if there is one."""
    spec = room.plan.spec
    rate = RATES["random" if spec["weights"] == "none" else "pretrained"]
    large = room.size("large_size") if "large_size" in spec else network.image_size
    if "assistant" in room.inputs:
        zoo.adapt(network, zoo.load(room.inputs["assistant"].files["weights"]))
        rate = RATES["assistant"]
    return _trained(room, network, spec["method"], spec["knobs"], large, rate, codec=codec)


def _codec(spec: Mapping[str, Json]) -> Codec | None:
    given = spec.get("codec")
    return Codec(given["name"], given["quality"], given["share"], given.get("lowest", 100)) if given else None


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
        colour=spec.get("colour", "rgb"),
    )


def _trained(
    room: Room,
    network: Network,
    method_name: str,
    knobs: Mapping[str, Json],
    large: Size,
    rate: float,
    codec: Codec | None = None,
) -> Output:
    spec = room.plan.spec
    task = _pick("task", tasks.registry(), spec["task"])()
    kind: type[Method] = _pick("method", methods.registry(), method_name)
    cache = None
    if kind.needs.targets:
        cache = _told(room.inputs)
    method = kind(kind.params_from(knobs), task, network, None if cache is None else cache.outline, large)
    mentor = None
    if method.features and cache is not None and not cache.features:
        mentor = zoo.load(_mentor(room.inputs).files["weights"]).to(default_device()).requires_grad_(False)
    pictures = _pictures(room, network, codec=codec, cache=cache, mentor=mentor)
    recipe = Recipe(
        epochs=spec["epochs"],
        rate=rate * (VIT_RATE if network.family == "vit" else 1),
        seed=spec["seed"],
        schedule=spec.get("schedule", "one_cycle"),
        ema=spec.get("ema", 0.0),
        compile=spec.get("compile", False),
        until=spec.get("until"),
    )
    checkpoints = room.work / CHECKPOINTS
    if "resume" in room.inputs:
        earlier = room.inputs["resume"]
        adopt_checkpoint(earlier.files["checkpoint"], earlier.metrics["checkpoint"], checkpoints)
    began = time.monotonic()
    history = train(method, pictures, recipe, work=checkpoints, report=room.report)
    score = evaluate(network, task, pictures.val, pictures.val_labels)
    files = _left(room, network, checkpoints, finished=recipe.last == recipe.epochs)
    seconds = sum(row["seconds"] for row in history)
    return Output(
        files,
        {
            "val": {"correct": score.correct, "total": score.total},
            "history": history,
            "weights": spec["weights"],
            "images_per_s": len(pictures.labels) * len(history) / seconds,
            "seconds": time.monotonic() - began,
            **({} if "weights" in files else {"checkpoint": files["checkpoint"].name}),
        },
    )


def _left(room: Room, network: Network, checkpoints: Path, *, finished: bool) -> dict[str, Path]:
    """What a training leaves: weights at its end, before it a checkpoint to go on from."""
    if not finished:
        return {"checkpoint": newest_checkpoint(checkpoints)}
    weights = room.output("weights.safetensors")
    zoo.save(network, weights, list(room.store.classes[: room.plan.spec["classes"]]))
    return {"weights": weights}


def _pictures(
    room: Room, network: Network, *, codec: Codec | None, cache: Cache | None, mentor: Network | None
) -> Pictures:
    spec, store, fit = room.plan.spec, room.store, room.fit
    classes = spec["classes"]
    labels = store.labels("train", classes)
    return Pictures(
        train=store.array("train", large_store_size(room.size("store_size")), fit, classes),
        labels=labels,
        val=store.array("val", network.image_size, fit, classes, network.colour),
        val_labels=store.labels("val", classes),
        views=_views(room, len(labels)),
        view_count=spec["views"],
        codec=codec,
        cache=cache,
        mentor=mentor,
    )


def _views(room: Room, count: int) -> Views:
    spec = room.plan.spec
    return Views(room.store.digest, spec["seed"], ViewPolicy(mixup=spec.get("mixup", 0.0)), count)


def _told(inputs: Mapping[str, InputFiles]) -> Cache:
    """What the mentor said, of which each stage named ``targets...`` gives some views."""
    parts = [part for role, part in inputs.items() if role.startswith("targets")]
    ordered = sorted(parts, key=lambda part: int(part.metrics["first_view"]))
    return Cache.joined([Cache.open(part.files, part.metrics) for part in ordered])


def _mentor(inputs: Mapping[str, InputFiles]) -> InputFiles:
    """The network that targets come from: the assistant where there is one."""
    return inputs["assistant"] if "assistant" in inputs else inputs["teacher"]


def _targets(room: Room) -> Output:
    spec, store = room.plan.spec, room.store
    network = zoo.load(room.inputs["model"].files["weights"])
    pictures = store.array("train", large_store_size(room.size("store_size")), room.fit, spec["classes"])
    reader = Reader(
        pictures,
        _views(room, len(pictures)),
        network.image_size,
        view_count=spec["views"],
        device=default_device(),
        keep_bytes=0,
    )
    features, most = spec.get("features", ""), spec.get("feature_bytes", 0)
    folder, views = room.output("logits.npy").parent, range(*spec.get("part", (0, spec["views"])))
    files, figures = write_targets(
        network, reader, spec["views"], folder, features=features, most_bytes=most, report=room.report, views=views
    )
    return Output(files, figures)


def _pick(what: str, known: Mapping[str, type[T]], name: str) -> type[T]:
    if name not in known:
        raise UnknownNameError.among(what, name, known)
    return known[name]


_RUNNERS: dict[StageKind, Callable[[Room], Output]] = {
    StageKind.INGEST: _ingest,
    StageKind.PROBE: _probe,
    StageKind.TEACHER: _teacher,
    StageKind.TARGETS: _targets,
    StageKind.ASSISTANT: _assistant,
    StageKind.STUDENT: _student,
}
