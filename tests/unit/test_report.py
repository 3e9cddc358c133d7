import json
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console

from stillhouse.search.domain import COST_OBJECTIVES, Accuracy, Candidate, Cost, Deployment, Size
from stillhouse.service.report import (
    UNITS,
    by_accuracy,
    front_entry,
    front_table,
    model_file_name,
    trained,
    write_front,
)

REQUIRED = {
    *("model", "arch", "image_size", "network_size", "stem", "macs", "params", "model_bytes", "image_bytes"),
    *("latency_ms", "latency_p95_ms", "accuracy", "accuracy_low", "accuracy_high", "precision", "preprocess", "file"),
}


def deployment(number, correct, *, test=None, image="64", network="128", details=None, arch="net_a.v2"):
    size = Size.parse(image)
    return Deployment(
        id=f"mdl_{number}",
        job_id="j",
        trial_number=number,
        candidate=Candidate(arch, size, Size.parse(network), "stride1"),
        cost=Cost(
            macs=12_345_678 * (number + 1),
            params=1_000_000,
            model_bytes=3_999_000,
            image_bytes=2100.5 / (number + 1),
            image_size=size,
            latency_ms=1.25,
            latency_p95_ms=1.5,
            memory_bytes=30_000_000,
        ),
        precision="fp32",
        validation=Accuracy(correct, 100),
        onnx_sha256="0" * 64,
        preprocess={"fit": "squash"},
        test=None if test is None else Accuracy(test, 200),
        details=details or {},
    )


DETAILS = {
    "method": "tas",
    "seed": 3,
    "measured": {
        "device": "gate-cam",
        "threads": 2,
        "runtime": "onnxruntime 1.22.0",
        "host": {"cpu": "Cortex-A53"},
    },
    "picture": {"codec": "jpeg", "quality": 90},
    "coded": {"correct": 150, "total": 200},
    "coded_val": {"correct": 70, "total": 100},
    "baselines": {"no_teacher": {"correct": 120, "total": 200}},
}


BEATEN = {
    "method": "logits",
    "variant": "plain_kd",
    "is_baseline": True,
    "baselines": {"distilled": {"correct": 140, "total": 200}, "no_teacher": {"correct": 120, "total": 200}},
}


def test_entry_of_a_tested_model():
    entry = front_entry(deployment(0, 90, test=160, details=DETAILS), file="a.onnx")
    assert set(entry) >= REQUIRED
    assert (entry["image_size"], entry["network_size"]) == (64, 128)
    assert (entry["accuracy"], entry["split"], entry["test_pictures"], entry["val_accuracy"]) == (0.8, "test", 200, 0.9)
    assert entry["accuracy_low"] < 0.8 < entry["accuracy_high"]
    assert (entry["accuracy_coded"], entry["codec"], entry["quality"]) == (0.75, "jpeg", 90)
    assert entry["baselines"]["no_teacher"]["accuracy"] == 0.6
    assert (entry["variant"], entry["note"]) == ("distilled", None)
    assert (entry["method"], entry["seed"], entry["latency_threads"]) == ("tas", 3, 2)
    assert {name: entry[f"latency_{name}"] for name in ("device", "cpu", "runtime")} == {
        "device": "gate-cam",
        "cpu": "Cortex-A53",
        "runtime": "onnxruntime 1.22.0",
    }
    assert (entry["file"], entry["preprocess"]) == ("a.onnx", {"fit": "squash"})
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_entry_of_a_model_that_was_not_tested():
    entry = front_entry(deployment(0, 90, image="48x64"), file=None)
    assert (entry["accuracy"], entry["split"], entry["test_pictures"]) == (0.9, "val", None)
    assert entry["image_size"] == [48, 64]
    assert (entry["accuracy_coded"], entry["baselines"], entry["file"]) == (None, {}, None)


def test_file_names_are_safe_and_differ():
    first = model_file_name(deployment(0, 90, arch="hub/a b"))
    assert first == "00-hub_a_b-64x64-128x128-stride1-fp32.onnx"
    assert first != model_file_name(deployment(1, 90, arch="hub/a b"))
    names = {
        model_file_name(deployment(0, 90, details={"variant": v})) for v in ("distilled", "no_teacher", "plain_kd")
    }
    assert len(names) == 3, "the variants of one trial have a file each"
    assert "00-net_a.v2-64x64-128x128-stride1-fp32-plain_kd.onnx" in names


def test_most_accurate_first_by_the_test_split():
    low, high, early = deployment(2, 99, test=100), deployment(3, 50, test=150), deployment(1, 10, test=100)
    assert by_accuracy([low, high, early]) == [high, early, low]


@pytest.mark.parametrize("objectives", [("macs",), ("macs", "image_bytes"), ("latency_ms", "params", "model_bytes")])
def test_writes_the_front_as_json_and_picture(tmp_path, objectives):
    front = [deployment(1, 80, test=150, details=BEATEN), deployment(0, 90, test=160, details=DETAILS)]
    variants = [deployment(1, 70, test=140, details={"variant": name}) for name in ("distilled", "no_teacher")]
    write_front([*front, *variants, deployment(2, 40)], front, tmp_path, objectives=objectives)
    entries = json.loads((tmp_path / "front.json").read_text(encoding="utf-8"))
    assert [entry["model"] for entry in entries] == ["mdl_0", "mdl_1"]
    assert [entry["file"] for entry in entries] == [model_file_name(member) for member in by_accuracy(front)]
    with Image.open(tmp_path / "front.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 700
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["front.json", "front.png"]


def test_a_failed_write_leaves_the_old_front(tmp_path):
    good, bad = deployment(0, 90, test=160), deployment(0, 90, test=160, details={"seed": float("nan")})
    write_front([good], [good], tmp_path, objectives=("macs",))
    before = (tmp_path / "front.json").read_bytes()
    with pytest.raises(ValueError, match="Out of range"):
        write_front([bad], [bad], tmp_path, objectives=("macs",))
    assert (tmp_path / "front.json").read_bytes() == before


def test_every_objective_has_a_unit():
    assert set(UNITS) == set(COST_OBJECTIVES)


def printed(front, width=80):
    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(front_table(front))
    return capture.get()


def test_table_fits_a_terminal_and_shows_how_each_network_was_trained():
    text = printed([deployment(0, 90, test=160, details=DETAILS), deployment(1, 80, test=150)])
    assert max(len(line) for line in text.splitlines()) <= 80
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "1 net_a.v2 64>128 stride1 12.3 3,999 90 2.10 1.25 80.0 74-85 75.0 distilled" in rows
    assert "2 net_a.v2 64>128 stride1 24.7 3,999 - 1.05 1.25 75.0 69-80 - distilled" in rows
    assert "60.0 53-67 no teacher" in rows, "the same network without a teacher stands below its model"
    assert "accuracy on 200 test pictures" in text
    assert " beat " not in text


def test_a_baseline_that_won_is_said_plainly():
    member = deployment(0, 90, test=160, details=BEATEN)
    text = printed([member, deployment(1, 80, test=150)])
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "1 net_a.v2 64>128 stride1 12.3 3,999 - 2.10 1.25 80.0 74-85 - plain KD" in rows
    assert {"70.0 63-76 distilled", "60.0 53-67 no teacher"} <= set(rows)
    assert "model 1: plain KD beat distilled on validation, and is what is shipped" in rows
    entry = front_entry(member, file=None)
    assert (entry["variant"], entry["method"], set(entry["baselines"])) == (
        "plain_kd",
        "logits",
        {"distilled", "no_teacher"},
    )
    assert entry["note"] == "plain KD beat distilled on validation, and is what is shipped"


def test_how_a_model_was_trained_in_words():
    assert trained(deployment(0, 90, details=DETAILS)) == "distilled (tas)"
    assert trained(deployment(0, 90, details=BEATEN)) == "plain KD"
    assert trained(deployment(0, 90, details={"method": "supervised", "variant": "no_teacher"})) == "no teacher"
    assert trained(deployment(0, 90)) == "distilled"


def test_table_without_test_figures_says_so():
    text = printed([deployment(0, 90)], width=100)
    assert "accuracy on 100 validation pictures" in text
    assert "teacher" not in text
    assert "no model meets the budget" in printed([])


def test_importing_the_report_does_not_load_matplotlib():
    code = "import sys, stillhouse.service.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
