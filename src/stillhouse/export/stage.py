"""Runs a stage of the shipper: export, conversion to a lower precision, measurement."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stillhouse.export.measure import predict, preprocess_statement, probe
from stillhouse.export.onnx import export, model_metadata
from stillhouse.export.parity import check_copy, check_parity
from stillhouse.export.quantise import quantise, to_fp16
from stillhouse.search.domain import CHANNELS, Accuracy, Fit, Json, Size

Result = tuple[dict[str, Path], dict[str, Json]]
Pictures = NDArray[np.uint8]
MOST_TOLD = 20_000
"""Up to so many pictures the figures say which are told right, one bit each, so that models are compared in pairs."""


def run_export(
    network: nn.Module,
    spec: Mapping[str, Json],
    *,
    pictures: Pictures | None,
    class_names: list[str],
    work: Path,
) -> Result:
    """Exports a network and checks the file against it.

    Args:
        network: Takes float pictures (N, C, h, w) in [0, 1].
        spec: The stage's spec.
        pictures: (N, h, w, C) uint8 to compare on; None draws noise (an untrained network, exported for its costs).
        class_names: Labels by output index; they go into the file.
        work: Folder for the file.

    Raises:
        StageError: The network cannot be exported.
        ParityError: The file says something else than the network.
    """
    began = time.monotonic()
    size, fit = Size.parse(spec["image_size"]), Fit(spec["fit"])
    colour = spec.get("colour", "rgb")
    preprocess = preprocess_statement(size, fit, colour)
    path = work / "model.onnx"
    metadata = model_metadata(spec, class_names, preprocess)
    info = export(network, image_size=size, path=path, metadata=metadata, colour=colour)
    parity = check_parity(network, path, _noise(spec) if pictures is None else pictures)
    return {"onnx": path}, {
        "model_bytes": info.model_bytes,
        "opset": info.opset,
        "parity": parity.to_json(),
        "preprocess": preprocess,
        "seconds": time.monotonic() - began,
    }


def run_conversion(
    onnx: Path,
    spec: Mapping[str, Json],
    *,
    calibration: Pictures | None,
    pictures: Pictures | None,
    work: Path,
) -> Result:
    """Makes a file of a lower precision from an exported one, and checks it against that.

    Args:
        onnx: The fp32 file.
        spec: The stage's spec; ``precision`` is ``int8`` or ``fp16``.
        calibration: (N, h, w, C) uint8 that the ranges of activations are read on; None draws noise (an untrained
            network, converted for its costs).
        pictures: (N, h, w, C) uint8 to compare the two files on; None compares nothing.
        work: Folder for the file.

    Raises:
        StageError: The file cannot be converted.
        ParityError: The copy says something else.
    """
    began = time.monotonic()
    size, fit = Size.parse(spec["image_size"]), Fit(spec["fit"])
    path = work / "model.onnx"
    if spec["precision"] == "int8":
        quantise(onnx, path, _noise(spec) if calibration is None else calibration)
    else:
        to_fp16(onnx, path)
    parity = None if pictures is None else check_copy(onnx, path, pictures, precision=spec["precision"])
    return {"onnx": path}, {
        "model_bytes": path.stat().st_size,
        "parity": None if parity is None else parity.to_json(),
        "preprocess": preprocess_statement(size, fit, spec.get("colour", "rgb")),
        "seconds": time.monotonic() - began,
    }


def run_measure(
    spec: Mapping[str, Json],
    onnx: Path,
    *,
    pictures: Pictures | None,
    coded: Mapping[int, Pictures],
    labels: NDArray[np.int64] | None,
    work: Path,
    timed: Mapping[str, Json] | None = None,
) -> Result:
    """Measures an ONNX file: latency and memory if asked for, accuracy if pictures are given.

    Args:
        spec: The stage's spec.
        onnx: The file.
        pictures: (N, h, w, C) uint8, brought to size by the deployed chain.
        coded: The same after the codec that ``image_bytes`` is measured with, by its quality.
        labels: (N,).
        work: Folder for the predictions.
        timed: Figures of the stage that measured latency and memory on another device.
    """
    files: dict[str, Path] = {}
    metrics: dict[str, Json] = {**(timed or {}), "model_bytes": onnx.stat().st_size, "split": spec["split"]}
    if spec["latency"]:
        metrics |= probe(onnx, threads=spec["threads"]).figures()
    if pictures is not None and labels is not None:
        predictions = predict(onnx, pictures, threads=spec["threads"])
        files["predictions"] = work / "predictions.npy"
        np.save(files["predictions"], predictions)
        metrics |= _told_right(predictions, labels)
        metrics["coded"] = {
            str(quality): _told_right(predict(onnx, sent, threads=spec["threads"]), labels)
            for quality, sent in coded.items()
        }
    return files, metrics


def code_digests() -> dict[str, str]:
    """Digest by stage kind of the sources and libraries that decide its result."""
    libraries = ("torch", "onnx", "onnxruntime")
    # Without what follows a plus: torch 2.14.1+cpu and +cu128 are built from the same sources.
    digest = hashlib.sha256("".join(f"{name} {version(name).split('+')[0]}\n" for name in libraries).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name != "agent.py":  # it calls what measures, and decides nothing
            digest.update(path.read_bytes())
    return dict.fromkeys(("export", "measure"), digest.hexdigest()[:16])


def _told_right(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, Json]:
    """The accuracy and, of not too many pictures, which are told right."""
    right = predictions == labels
    accuracy = Accuracy(int(right.sum()), len(labels))
    found: dict[str, Json] = {"accuracy": {"correct": accuracy.correct, "total": accuracy.total}}
    return found | ({"right": np.packbits(right).tobytes().hex()} if len(labels) <= MOST_TOLD else {})


def _noise(spec: Mapping[str, Json]) -> Pictures:
    size, channels = Size.parse(spec["image_size"]), CHANNELS[spec.get("colour", "rgb")]
    return np.random.default_rng(0).integers(0, 256, (4, size.height, size.width, channels), dtype=np.uint8)
