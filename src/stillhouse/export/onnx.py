"""A trained network as one ONNX file with its preprocessing inside.

Input ``pictures``: uint8 (N, h, w, C), N dynamic; C is 3 for RGB, 1 for grey. Output ``logits``: float32 (N, K). The
graph permutes, divides by 255 and runs the network, which normalises (and upsamples) by itself. Branches that only
training needs (RepVGG, MobileOne, RepViT ...) are merged into one convolution each.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from stillhouse import __version__
from stillhouse.search.domain import CHANNELS, Size
from stillhouse.search.errors import StageError

INPUT, OUTPUT = "pictures", "logits"


@dataclass(frozen=True)
class ExportInfo:
    """What was written."""

    path: Path
    model_bytes: int
    opset: int


class Deployed(nn.Module):
    """The network as the device calls it: uint8 NHWC in, logits out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, K) of pictures (N, h, w, C) uint8."""
        logits: Tensor = self.network(pictures.permute(0, 3, 1, 2).float() / 255)
        return logits


def export(
    network: nn.Module, *, image_size: Size, path: Path, metadata: Mapping[str, str], colour: str = "rgb"
) -> ExportInfo:
    """Exports a network that takes float pictures (N, C, h, w) in [0, 1]; the file appears whole or not at all.

    Args:
        network: Left as it was found; a copy is exported.
        image_size: (h, w) of the pictures.
        path: The .onnx file.
        metadata: Goes into the file's metadata properties.
        colour: Of the pictures: ``rgb`` (C = 3) or ``grey`` (C = 1).

    Raises:
        StageError: The exporter cannot express the network.
    """
    shape = (2, image_size.height, image_size.width, CHANNELS[colour])
    example = torch.zeros(shape, dtype=torch.uint8, device=_device(network))
    with example.device:  # so that merged convolutions are made where the network lies
        deployed = Deployed(reparameterize_model(network)).eval()
    _out_of_place(deployed)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                deployed,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"pictures": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        if program is None:
            raise StageError("the ONNX exporter returned nothing")
        model = program.model_proto
    except StageError:
        raise
    except Exception as error:  # the exporter has no error type of its own
        raise StageError(f"the network cannot be exported to ONNX: {type(error).__name__}: {error}") from error
    _describe(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(model.SerializeToString())
    fresh.replace(path)
    return ExportInfo(path, path.stat().st_size, max(entry.version for entry in model.opset_import if not entry.domain))


def _out_of_place(network: nn.Module) -> None:
    """Has no module write into its input: the exporter takes such an activation apart and puts it together again.

    The graph is the same, and an export of LCNet takes half the time.
    """
    modules: Iterator[Any] = network.modules()
    for module in modules:
        if getattr(module, "inplace", False):
            module.inplace = False


def _describe(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    model.producer_name, model.producer_version = "stillhouse", __version__
    model.doc_string = ""
    for node in model.graph.node:  # source lines of the exporting machine: bytes that no device reads
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))


def model_metadata(
    spec: Mapping[str, object], class_names: list[str], preprocess: Mapping[str, object]
) -> dict[str, str]:
    """The metadata properties of a model: what it is, what it tells apart, how a picture must be prepared."""
    about = {name: str(spec[name]) for name in ("arch", "image_size", "network_size", "stem", "precision")}
    return about | {"classes": json.dumps(class_names), "preprocess": json.dumps(preprocess)}


def _device(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns of its own deprecations; neither is news to the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
