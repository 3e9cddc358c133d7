"""What ``stillhouse client`` shows of answers on a terminal of 80 columns."""

from contextlib import nullcontext

import pytest

from stillhouse.service import cli_data
from stillhouse.service.cli_client import DEED_COLUMNS, DEVICE_COLUMNS, JOB_COLUMNS, MODEL_COLUMNS, TRIAL_COLUMNS
from stillhouse.service.cli_server import Server

NAMES = ("lcnet_050", "mobilenetv4_conv_small_050", "tf_efficientnet_lite0")


@pytest.fixture
def table(capsys, monkeypatch):
    """The lines of a table below its head, each a list of cells; what is folded into further lines is joined."""
    monkeypatch.setenv("COLUMNS", "80")

    def shown(lines, columns):
        Server("http://127.0.0.1", None, False, nullcontext).listed(lines, columns)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
        assert all(len(line) <= 80 for line in lines)
        rule = next(at for at, line in enumerate(lines) if set(line.strip()) == {"─"})
        head, body, starts = lines[:rule], lines[rule + 1 :], [0]
        for title in columns:  # a title may stand on two lines
            after = starts[-1]
            starts.append(min(at for line in head if (at := line.find(title.split()[0], after)) >= 0))
        starts = starts[1:]
        rows = []
        for line in body:
            cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
            if cells[0]:
                rows.append(cells)
            else:  # goes on with the line above
                rows[-1] = [above + cell for above, cell in zip(rows[-1], cells, strict=True)]
        return rows

    return shown


def model(arch, **changes):
    found = {"model": "mdl_0123456789ab", "arch": arch, "image_size": "64x64", "precision": "fp32", "macs": 70_540_000}
    return found | {"image_bytes": 1973.4, "latency_ms": 12.3456, "accuracy": 0.6667, "split": "test", **changes}


@pytest.mark.parametrize("split", ["test", "val"])
def test_models(table, split):
    figures = ["64x64", "fp32", "70.5", "1,973", "12.35", "66.7%" if split == "test" else "66.7% val"]
    rows = table([model(arch, split=split) for arch in NAMES], MODEL_COLUMNS)
    assert rows == [["mdl_0123456789ab", arch, *figures] for arch in NAMES]


def test_a_model_of_which_little_is_known(table):
    ((*_, macs, sent, latency, accuracy),) = table(
        [model("lcnet_050", macs=None, image_bytes=None, latency_ms=None)], MODEL_COLUMNS
    )
    assert (macs, sent, latency, accuracy) == ("-", "-", "-", "66.7%")


def test_jobs_and_trials(table):
    job = {"id": "job_0123456789ab", "state": "running", "dataset_name": "faces", "trials_ended": 2, "trials_wanted": 9}
    lines = [{**job, "best_accuracy": 0.338, "eta_s": 1234.5}, {**job, "best_accuracy": None, "eta_s": None}]
    start = ["job_0123456789ab", "running", "faces", "2 of 9"]
    assert table(lines, JOB_COLUMNS) == [[*start, "33.8%", "1,234 s"], [*start, "-", "-"]]
    candidate = {"arch": "tf_efficientnet_lite0", "image_size": "32x32"}
    trial = {"number": 12, "state": "training", "candidate": candidate, "val_accuracy": 0.0375, "reason": None}
    cells = ["12", "training", "tf_efficientnet_lite0", "32x32", "3.8%", "5 of 11", "-"]
    assert table([{**trial, "stages_done": 5, "stages": 11}], TRIAL_COLUMNS) == [cells]


def test_devices_and_deeds(table, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_796_000_012.0)
    host = {"cpu": "Cortex-A53", "cores": 4, "machine": "aarch64"}
    board = {
        "name": "gate-cam",
        "at_hand": True,
        "seen_at": 1_796_000_000.0,
        "host": host,
        "runtime": "onnxruntime 1.22",
    }
    local = {"name": "local", "at_hand": True, "seen_at": None, "host": None, "runtime": None}
    (first, second) = table([board, local], DEVICE_COLUMNS)
    assert [cell.replace(" ", "") for cell in first] == [
        *("gate-cam", "True", "12sago", "Cortex-A53", "4", "aarch64", "onnxruntime1.22")
    ]
    assert second == ["local", "True", "-", "-", "-", "-", "-"]
    deed = {"id": 7, "at": 1_796_000_000.0, "key_id": None, "method": "POST", "path": "/jobs", "status": 201}
    ((number, at, *_),) = table([{**deed, "request_id": "3d1195b5"}], DEED_COLUMNS)
    assert (number, at.replace(" ", "")) == ("7", "2026-11-3000:53:20Z")


SUMMARY = {
    "classes": [f"s{number}" for number in range(40)],
    "pictures": 4000,
    "splits": {"train": 2400, "val": 800, "test": 800},
    "sizes": {"height": {"min": 48, "median": 96.0, "max": 112}, "width": {"min": 64, "median": 92.0, "max": 92}},
    "grey": True,
    "notes": ["val cut from train"],
    "faults": ["a.jpg: cut short"],
    "curve": [
        {"colour": colour, "fit": fit, "size": "32x32", "codec": codec, "quality": quality, "mean_bytes": bytes_}
        for fit, colour, codec, quality, bytes_ in (
            ("squash", "rgb", "jpeg", 50, 1467.5),
            ("squash", "rgb", "webp", 50, 216.4),
            ("squash", "grey", "jpeg", 50, 1.0),
            ("crop", "rgb", "jpeg", 50, 2.0),
        )
    ],
}
DATASET = {"id": "ds_1", "name": "faces", "state": "ready", "reason": None, "faults": [], "summary": SUMMARY}


def test_a_data_set():
    assert cli_data._lines(DATASET) == [
        "ds_1  faces: ready",
        "4,000 grey pictures (2,400 train, 800 val, 800 test), 48x64 to 112x92 px, median 96x92",
        "40 classes: s0, s1, s2, s3, s4, ...",
        "note: val cut from train",
        "fault: a.jpg: cut short",
    ]
    assert cli_data._curve(SUMMARY) == [{"size": "32x32", "jpeg 50": "1,468", "webp 50": "216"}]
    assert cli_data._lines({**DATASET, "state": "pending", "summary": {}}) == ["ds_1  faces: pending"]
