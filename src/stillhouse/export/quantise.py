"""An exported file at a lower precision: int8 by calibration on pictures, fp16 by conversion.

Input and output stay what they are (uint8 pictures, float32 logits), so that one file takes the place of another.
In int8 the layers that hold weights (convolutions, linear layers) compute with uint8 activations and int8 weights,
one scale a channel. A clipping activation (ReLU, ReLU6) is quantised with the layer before it, so that the range of
8 bits is that of what is left after the clip (without it EfficientNet-lite lost 15 points on birds, with it 4).
What lies between stays float: the preprocessing, normalisations, other activation functions, and the products of
attention, whose ranges a few pictures do not tell (quantised, they cost EfficientViT its answers).
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, checker, helper, load_model
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from stillhouse.search.errors import StageError

WEIGHTED = ("Conv", "Gemm", "MatMul")
CLIPPING = ("Relu", "Clip")
BATCH = 16
REVISION = 2
"""Goes up when other files come out; the catalogue's checks are then made anew."""


def quantise(onnx: Path, out: Path, calibration: NDArray[np.uint8]) -> None:
    """Writes an int8 copy, with ranges of activations from calibration pictures.

    Args:
        onnx: An exported fp32 file.
        out: The file to write; it appears whole or not at all.
        calibration: (N, h, w, C) uint8 pictures of the size and colour that the file takes, N >= 1.

    Raises:
        StageError: Pictures of another shape, no layer with weights, or the quantiser cannot take the file.
    """
    model = _read(onnx)
    entry = model.graph.input[0]
    wanted = [place.dim_value for place in entry.type.tensor_type.shape.dim][1:]
    if not len(calibration) or list(calibration.shape[1:]) != wanted:
        raise StageError(
            f"calibration pictures must be (N, {', '.join(map(str, wanted))}) with N >= 1, but got {calibration.shape}"
        )
    constants = {tensor.name for tensor in model.graph.initializer}
    weighted = [node for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in constants]
    outputs = {node.output[0] for node in weighted}
    clipped = [node for node in model.graph.node if node.op_type in CLIPPING and node.input[0] in outputs]
    if not weighted:
        raise StageError(f"{onnx.name} has no layer with weights that could be quantised")
    about = {entry.key: entry.value for entry in model.metadata_props}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        fresh = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                model,
                fresh,
                _Pictures(entry.name, calibration),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=[node.name for node in (*weighted, *clipped)],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # the quantiser has no error type of its own
            raise StageError(f"{onnx.name} cannot be quantised: {type(error).__name__}: {error}") from error
        _write(_read(fresh), out, about, "int8")


def to_fp16(onnx: Path, out: Path) -> None:
    """Writes an fp16 copy: half the bytes; what fp16 cannot express stays fp32.

    Args:
        onnx: An exported fp32 file.
        out: The file to write; it appears whole or not at all.

    Raises:
        StageError: The converter cannot take the file.
    """
    model = _read(onnx)
    about = {entry.key: entry.value for entry in model.metadata_props}
    try:
        with _quiet():
            half = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
            half.topological_sort()
    except Exception as error:  # the converter has no error type of its own
        raise StageError(f"{onnx.name} cannot be converted to fp16: {type(error).__name__}: {error}") from error
    _write(half.model, out, about, "fp16")


# ---------------------------------------------------------------------------------------- helpers


class _Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Gives the calibrator its pictures in batches."""

    def __init__(self, name: str, pictures: NDArray[np.uint8]) -> None:
        self._batches = iter([{name: pictures[start : start + BATCH]} for start in range(0, len(pictures), BATCH)])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch; None after the last."""
        return next(self._batches, None)


def _read(path: Path) -> ModelProto:
    return load_model(path, load_external_data=False)


def _write(model: ModelProto, out: Path, about: dict[str, str], precision: str) -> None:
    helper.set_model_props(model, {**about, "precision": precision})
    checker.check_model(model)
    fresh = out.with_suffix(".tmp")
    fresh.write_bytes(model.SerializeToString())
    fresh.replace(out)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both converters warn of what was chosen on purpose: no preprocessing pass, weights that fp16 rounds to 0."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
