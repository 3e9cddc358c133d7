"""What ``stillhouse client`` shows of answers on a terminal of 80 columns."""

from contextlib import nullcontext

import pytest

from stillhouse.service import cli_data
from stillhouse.service.api import examples
from stillhouse.service.cli_server import Server
from stillhouse.service.cli_shown import (
    DEED_COLUMNS,
    DEVICE_COLUMNS,
    JOB_COLUMNS,
    MODEL_COLUMNS,
    TRIAL_COLUMNS,
    front_lines,
    job_lines,
    model_lines,
)

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
    found = {
        "model": "mdl_0123456789ab",
        "arch": arch,
        "image_size": 64,
        "network_size": [72, 96],
        "precision": "fp32",
        "macs": 70_540_000,
    }
    return found | {"image_bytes": 1973.4, "latency_ms": 12.3456, "accuracy": 0.6667, "split": "test", **changes}


@pytest.mark.parametrize("split", ["test", "val"])
def test_models(table, split):
    figures = ["64>72x96", "fp32", "70.5", "1,973", "12.3", "66.7%" if split == "test" else "66.7% val"]
    rows = table([model(arch, split=split, accuracy_coded=0.6) for arch in NAMES], MODEL_COLUMNS)
    assert rows == [["mdl_0123456789ab", arch, *figures, "60.0%"] for arch in NAMES]


def test_a_model_of_which_little_is_known(table):
    ((*_, macs, picture, latency, accuracy, sent),) = table(
        [model("lcnet_050", macs=None, image_bytes=None, latency_ms=None)], MODEL_COLUMNS
    )
    assert (macs, picture, latency, accuracy, sent) == ("-", "-", "-", "66.7%", "-")


def test_jobs_and_trials(table):
    job = {"id": "job_0123456789ab", "state": "running", "dataset_name": "faces", "trials_ended": 2, "trials_wanted": 9}
    lines = [{**job, "best_accuracy": 0.338, "eta_s": 1234.5}, {**job, "best_accuracy": None, "eta_s": None}]
    start = ["job_0123456789ab", "running", "faces", "2 of 9"]
    assert table(lines, JOB_COLUMNS) == [[*start, "33.8%", "1,234 s"], [*start, "-", "-"]]
    candidate = {"arch": "tf_efficientnet_lite0", "image_size": "32x32", "network_size": "36x64"}
    trial = {"number": 12, "state": "training", "candidate": candidate, "val_accuracy": 0.0375, "reason": None}
    cells = ["12", "training", "tf_efficientnet_lite0", "32>36x64", "3.8%", "5 of 11", "-"]
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


SPEC = {
    "budget": {"max_macs": 60_000_000, "max_image_size": "32x32", "device": "gate-cam"},
    "method": "tas",
    "teacher": "lcnet_050",
    "teacher_size": 64,
    "epochs": {"teacher": 3, "assistant": 2, "student": 1},
    "sampler": "auto",
    "objectives": ["macs", "image_bytes"],
    "seed": 7,
}


def test_a_job():
    times = {"started_at": 1_796_000_000.0, "finished_at": 1_796_000_052.4}
    assert list(job_lines({**examples.JOB, **times, "dataset_name": "faces", "spec": SPEC})) == [
        "job_0123456789ab  faces: done, 8 of 8 trials, best 83.0% on validation",
        "limits: max_macs 60,000,000, max_image_size 32x32; device gate-cam",
        "training: tas, teacher lcnet_050 at 64 px; epochs 3 teacher, 2 assistant, 1 student",
        "search: auto, over macs, image_bytes; seed 7",
        "started 2026-11-30 00:53:20Z, took 52 s",
    ]


def test_a_job_that_waits_and_one_that_failed():
    spec = {**SPEC, "budget": {"device": "local"}}
    job = {**examples.JOB, "dataset_name": "faces", "spec": spec, "best_accuracy": None, "started_at": None}
    waits, failed = job_lines({**job, "waiting": "no worker"}), job_lines({**job, "reason": "nothing fits"})
    assert [line for line in waits if line.startswith(("waiting", "limits", "started"))] == [
        *("waiting: no worker", "limits: none; device local")
    ]
    assert "reason: nothing fits" in failed
    by_labels = job_lines({**job, "spec": {**SPEC, "method": "supervised"}})
    assert "training: supervised; epochs 1 student" in by_labels


def test_a_model_with_all_its_figures():
    bounds = {"accuracy_low": 0.59, "accuracy_high": 0.74}
    coded = {"accuracy_coded": 0.6, "accuracy_coded_low": 0.5, "accuracy_coded_high": 0.7, "codec": "webp"}
    device = {"latency_device": "gate-cam", "latency_cpu": "Cortex-A53", "latency_runtime": "onnxruntime 1.22"}
    found = model("lcnet_050", **bounds, **coded, **device, latency_p95_ms=13.0, latency_threads=2, memory_bytes=21e6)
    found |= {"job": "job_1", "trial": 3, "variant": "no_teacher", "stem": "stock", "params": 1_500_000, "quality": 75}
    found |= {"model_bytes": 3_045_000, "test_pictures": 600, "note": "no teacher beat distilled", "file": "a.onnx"}
    found |= {"baselines": {"plain_kd": {"accuracy": 0.6, **bounds}}, "sha256": "abc"}
    assert list(model_lines({**found, "preprocess": {"steps": ["decode", "convert to RGB"]}})) == [
        "mdl_0123456789ab  lcnet_050 64>72x96 stock fp32",
        "job job_1, trial 3, no teacher",
        "70.5 M MACs, 1.50 M parameters, 3,045,000 bytes of model, 1,973 bytes per picture",
        "accuracy 66.7% (59.0% to 74.0%) on 600 test pictures",
        "accuracy 60.0% (50.0% to 70.0%) as sent, webp at quality 75",
        "accuracy 60.0% (59.0% to 74.0%) of the same network, plain KD",
        "latency 12.35 ms, p95 13 on gate-cam, Cortex-A53, onnxruntime 1.22, 2 threads; peak memory 21.0 MB",
        "note: no teacher beat distilled",
        "before the model: decode; convert to RGB",
        "a.onnx  sha256 abc",
    ]


def test_a_model_of_a_job_that_is_not_done():
    figures = {"job": "job_1", "trial": 0, "file": "a.onnx", "sha256": "abc", "latency_ms": None}
    lines = list(model_lines(model("lcnet_050", split="val", **figures)))
    assert "accuracy 66.7% on validation" in lines
    assert not [line for line in lines if line.startswith("latency")]


def test_what_of_a_front_to_look_at_first():
    front = {"judged": "coded", "picks": {"knee": "mdl_1", "image_bytes": "mdl_2"}, "tied": {"mdl_1": "mdl_2"}}
    assert list(front_lines(front)) == [
        "drawn by accuracy on pictures as sent, through the codec (sent)",
        "best trade-off: mdl_1",
        "least image bytes within 1 point of the best: mdl_2",
        "mdl_1 is not significantly better on validation than the cheaper mdl_2",
    ]
