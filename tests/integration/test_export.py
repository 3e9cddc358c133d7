"""From a torch network to an ONNX file that a plain onnxruntime script reads the same way."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stillhouse.distill import zoo
from stillhouse.export import stage
from stillhouse.export.measure import logits_of, open_session, predict, preprocess_statement, probe
from stillhouse.export.onnx import export
from stillhouse.export.parity import check_parity
from stillhouse.search.domain import Fit, Size
from stillhouse.search.errors import ParityError, StageError

SIZE, CLASSES = Size(24, 32), ["ant", "bee", "cat"]


class Small(nn.Module):
    """Upsamples inside, as students with a larger network size do."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x * 2 - 1, size=(48, 64), mode="bilinear", align_corners=False)
        x = F.relu(self.norm(self.convolution(x)))
        return self.head(x.mean((2, 3)) * 10)


def spec_of(**more: object) -> dict[str, object]:
    sizes = {"image_size": str(SIZE), "network_size": "48x64"}
    return {"arch": "small", **sizes, "stem": "stock", "precision": "fp32", "fit": "squash", **more}


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (37, SIZE.height, SIZE.width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def exported(network: Small, pictures: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    work = tmp_path_factory.mktemp("export")
    files, metrics = stage.run_export(network, spec_of(), pictures=pictures, class_names=CLASSES, work=work)
    return files["onnx"], metrics


def reference(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255).numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 37])
def test_any_batch_gives_torchs_logits(
    count: int, exported: tuple[Path, dict], network: Small, pictures: np.ndarray
) -> None:
    found = logits_of(exported[0], pictures[:count], threads=1)
    assert np.allclose(found, reference(network, pictures[:count]), atol=1e-4)


def test_the_file_says_what_it_is(exported: tuple[Path, dict]) -> None:
    path, metrics = exported
    session = open_session(path, 1)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == CLASSES
    assert json.loads(about["preprocess"]) == metrics["preprocess"]
    assert (about["arch"], about["image_size"], about["precision"]) == ("small", str(SIZE), "fp32")
    entry = session.get_inputs()[0]
    assert (entry.name, entry.type, entry.shape[1:]) == ("pictures", "tensor(uint8)", [24, 32, 3])
    assert isinstance(entry.shape[0], str), "the batch is dynamic"
    assert session.get_outputs()[0].name == "logits"
    assert metrics["model_bytes"] == path.stat().st_size
    assert metrics["parity"]["pictures"] == 37
    assert metrics["parity"]["max_abs"] <= metrics["parity"]["tolerance"]
    assert str(Path(__file__).parent).encode() not in path.read_bytes(), "no path of this machine in the file"


def test_a_plain_script_gets_the_same_answers(
    exported: tuple[Path, dict], pictures: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "pictures.npy", pictures)
    code = (
        "import sys, json, numpy, onnxruntime; s = onnxruntime.InferenceSession(sys.argv[1]);"
        "x = numpy.load(sys.argv[2]); print(json.dumps(s.run(None, {'pictures': x})[0].argmax(1).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported[0]), str(tmp_path / "pictures.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == predict(exported[0], pictures, threads=1).tolist()


def test_tampered_weights_fail_parity(
    exported: tuple[Path, dict], network: Small, pictures: np.ndarray, tmp_path: Path
) -> None:
    model = onnx.load(exported[0])
    weight = next(entry for entry in model.graph.initializer if "head.weight" in entry.name)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.1, weight.name))
    onnx.save(model, tmp_path / "tampered.onnx")
    with pytest.raises(ParityError, match=r"must agree within .*, but a logit differs by"):
        check_parity(network, tmp_path / "tampered.onnx", pictures)


class Unexportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3))
        return self.head(means) * float(np.asarray(means.tolist()).sum())


def test_a_network_that_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    network = Unexportable().train()
    with pytest.raises(StageError, match="cannot be exported to ONNX"):
        export(network, image_size=SIZE, path=tmp_path / "model.onnx", metadata={})
    assert not list(tmp_path.iterdir())
    assert network.training, "left as it was found"


def test_external_data_is_refused(exported: tuple[Path, dict], tmp_path: Path) -> None:
    model = onnx.load(exported[0])
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    with pytest.raises(StageError, match="cannot be loaded by onnxruntime"):
        open_session(tmp_path / "model.onnx", 1)


def test_a_probe_measures_in_a_process_without_torch(exported: tuple[Path, dict]) -> None:
    found = probe(exported[0], threads=1)
    assert 0 < found.latency_ms <= found.latency_p95_ms
    assert found.memory_bytes > 0
    assert found.runs >= 50
    assert found.threads == 1
    assert len(found.cores) <= 1
    assert onnxruntime.__version__ in found.runtime
    assert found.host["cores"]
    code = "import stillhouse.export.measure, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_measure_counts_right_answers(exported: tuple[Path, dict], pictures: np.ndarray, tmp_path: Path) -> None:
    labels = predict(exported[0], pictures, threads=1)
    wrong = labels.copy()
    wrong[:7] = (wrong[:7] + 1) % 3
    spec = {"split": "test", "latency": False, "threads": 1, "codec": "jpeg", "qualities": [90, 50]}
    noise = 255 - pictures
    coded = {90: noise, 50: pictures}
    files, metrics = stage.run_measure(spec, exported[0], pictures=pictures, coded=coded, labels=wrong, work=tmp_path)
    assert metrics["accuracy"] == {"correct": 30, "total": 37}
    expected = int((predict(exported[0], noise, threads=1) == wrong).sum())
    assert metrics["coded"]["90"]["accuracy"] == {"correct": expected, "total": 37}
    assert metrics["coded"]["50"] == {"accuracy": metrics["accuracy"], "right": metrics["right"]}
    assert np.unpackbits(np.frombuffer(bytes.fromhex(metrics["right"]), dtype=np.uint8), count=37).sum() == 30
    assert np.array_equal(np.load(files["predictions"]), labels)
    assert "latency_ms" not in metrics


@pytest.mark.parametrize("fit", list(Fit))
def test_the_chain_before_the_graph_is_stated(fit: Fit) -> None:
    statement = preprocess_statement(SIZE, fit)
    assert (statement["height"], statement["width"], statement["fit"]) == (24, 32, str(fit))
    assert statement["fill"] == (128 if fit is Fit.LETTERBOX else None)
    assert "24x32 (height x width)" in statement["steps"][-1]
    assert "BILINEAR" in statement["steps"][-1]


def test_the_statement_of_grey_says_when_colours_go() -> None:
    colour, grey = preprocess_statement(SIZE, Fit.CROP), preprocess_statement(SIZE, Fit.CROP, "grey")
    assert grey["steps"] == [*colour["steps"], "convert to L (ITU-R 601 luma)"]
    assert (colour["colour"], grey["colour"]) == ("RGB", "grey")
    assert {name: value for name, value in grey.items() if name not in ("steps", "colour")} == {
        name: value for name, value in colour.items() if name not in ("steps", "colour")
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_grey_student_exports_with_one_channel_at_every_precision(tmp_path: Path) -> None:
    network = zoo.build("lcnet_035", classes=3, image_size=SIZE, network_size=Size(32, 48), colour="grey").eval()
    spec = {**network.spec(), "precision": "fp32", "fit": "squash"}
    grey = np.random.default_rng(2).integers(0, 256, (32, SIZE.height, SIZE.width, 1), dtype=np.uint8)
    files, metrics = stage.run_export(network, spec, pictures=grey, class_names=CLASSES, work=tmp_path)
    assert metrics["preprocess"]["colour"] == "grey"
    for precision in ("fp32", "fp16", "int8"):
        path = files["onnx"]
        if precision != "fp32":
            (tmp_path / precision).mkdir()
            made, _ = stage.run_conversion(
                path, spec | {"precision": precision}, calibration=None, pictures=None, work=tmp_path / precision
            )
            path = made["onnx"]
        entry = open_session(path, 1).get_inputs()[0]
        assert (entry.type, entry.shape[1:]) == ("tensor(uint8)", [SIZE.height, SIZE.width, 1])
        assert logits_of(path, grey, threads=1).shape == (32, 3)
    assert probe(files["onnx"], threads=1).latency_ms > 0


@pytest.mark.parametrize(
    ("arch", "stem"), [("mobilenetv3_small_050", "stride1"), ("vit_tiny_patch16_224", "half_patch")]
)
def test_real_students_export(arch: str, stem: str, tmp_path: Path) -> None:
    network = zoo.build(arch, classes=3, image_size=Size(32, 32), network_size=Size(48, 48), stem=stem)
    spec = {**network.spec(), "precision": "fp32", "fit": "squash"}
    files, metrics = stage.run_export(network, spec, pictures=None, class_names=CLASSES, work=tmp_path)
    assert metrics["parity"]["max_abs"] <= metrics["parity"]["tolerance"]
    assert files["onnx"].stat().st_size == pytest.approx(4 * sum(p.numel() for p in network.parameters()), rel=0.1)


@pytest.mark.parametrize("arch", ["mobileone_s0", "repvgg_a0"])
def test_merged_students_say_what_their_branches_say(arch: str, tmp_path: Path) -> None:
    network = zoo.build(arch, classes=3, image_size=Size(32, 32)).train()
    with torch.no_grad():
        network(torch.rand(8, 3, 32, 32))  # so that running statistics are not those of a fresh network
    spec = {**network.spec(), "precision": "fp32", "fit": "squash"}
    files, metrics = stage.run_export(network, spec, pictures=None, class_names=CLASSES, work=tmp_path)
    assert metrics["parity"]["max_abs"] <= metrics["parity"]["tolerance"]
    _, params = zoo.macs_params(arch, classes=3, network_size=Size(32, 32))
    assert files["onnx"].stat().st_size == pytest.approx(4 * params, rel=0.02)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert sum(node.op_type == "Conv" for node in onnx.load(files["onnx"]).graph.node) < convolutions / 1.5
