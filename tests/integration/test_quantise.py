"""Int8 and fp16 copies of an exported file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from stillhouse.export.measure import logits_of, open_session
from stillhouse.export.onnx import export
from stillhouse.export.quantise import quantise, to_fp16
from stillhouse.search.domain import Size
from stillhouse.search.errors import StageError

SIZE = Size(24, 32)


class Plain(nn.Module):
    """Each kind of layer that holds weights, and a product of two activations, which holds none."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.hidden = nn.Linear(64, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.relu(self.convolution(x * 2 - 1)).flatten(2).mT
        tokens = torch.relu(self.hidden(tokens))
        scores: torch.Tensor = self.head((tokens.mT @ tokens / 100).mean(1) + tokens.mean(1))
        return scores


class Weightless(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 200, (40, 1, 1, 3))
    return (colours + rng.integers(0, 56, (40, SIZE.height, SIZE.width, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    export(Plain(), image_size=SIZE, path=path, metadata={"arch": "plain", "precision": "fp32"})
    return path


def precision_of(path: Path) -> str:
    about: str = open_session(path, 1).get_modelmeta().custom_metadata_map["precision"]
    return about


def exact(path: Path, pictures: np.ndarray) -> np.ndarray:
    """Logits (N, K) by kernels that do not saturate, as those of x86 without VNNI do."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: pictures})
    return np.asarray(logits)


def test_int8_says_nearly_the_same_with_a_quarter_of_the_bytes(
    fp32: Path, pictures: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "int8.onnx"
    quantise(fp32, out, pictures[:20])
    wanted, found = (logits_of(path, pictures[20:], threads=1) for path in (fp32, out))
    assert np.abs(exact(out, pictures[20:]) - wanted).max() < 0.05 * np.ptp(wanted)
    assert np.abs(found - wanted).max() < 0.2 * np.ptp(wanted), "kernels may saturate"
    assert precision_of(out) == "int8"
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]
    model = onnx.load(out)
    stored = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert stored == {onnx.TensorProto.INT8}, "all weights"
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert any("DequantizeLinear" not in name for node in products for name in node.input), "not that of activations"


def test_fp16_says_the_same_with_half_of_the_bytes(fp32: Path, pictures: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "fp16.onnx"
    to_fp16(fp32, out)
    wanted, found = (logits_of(path, pictures, threads=1) for path in (fp32, out))
    assert np.abs(found - wanted).max() < 0.01 * np.ptp(wanted)
    assert found.dtype == np.float32
    assert precision_of(out) == "fp16"
    assert out.stat().st_size < 0.7 * fp32.stat().st_size
    assert onnx.load(out).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize("shape", [(0, 24, 32, 3), (4, 32, 24, 3)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...], fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"must be \(N, 24, 32, 3\) with N >= 1, but got"):
        quantise(fp32, tmp_path / "int8.onnx", np.zeros(shape, np.uint8))
    assert not list(tmp_path.iterdir())


def test_a_file_without_weights_is_refused(pictures: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(Weightless(), image_size=SIZE, path=path, metadata={})
    with pytest.raises(StageError, match=r"model\.onnx has no layer with weights"):
        quantise(path, tmp_path / "int8.onnx", pictures)


def test_the_callers_logging_stays_as_it_was(
    fp32: Path, pictures: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    quantise(fp32, tmp_path / "int8.onnx", pictures)
    assert not caplog.records
    logging.getLogger("any").warning("heard")
    assert caplog.messages == ["heard"]
