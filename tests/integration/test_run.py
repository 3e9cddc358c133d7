"""The whole job by the command line, on small pictures: real processes, real ledger, real ONNX files."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageOps

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Size
from stillhouse.service.client import Client

CLASSES = ("checks", "rings", "stripes")
KEYS = {
    "model", "arch", "image_size", "network_size", "stem", "macs", "params", "model_bytes", "image_bytes", "latency_ms",
    "latency_p95_ms", "accuracy", "accuracy_low", "accuracy_high", "precision", "preprocess", "file",
}  # fmt: skip


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
    y, x = np.mgrid[0:60, 0:80].astype(float)
    period, phase = rng.uniform(6, 10), rng.uniform(0, 6)
    wave = {
        "checks": np.sin(x / period * 6 + phase) * np.sin(y / period * 6),
        "rings": np.sin(np.hypot(x - 40, y - 30) / period * 6 + phase),
        "stripes": np.sin((x + y) / period * 6 + phase),
    }[kind]
    grey = np.clip(128 + 90 * wave + rng.normal(0, 12, wave.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6), ("test", 10)):
        for kind in CLASSES:
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                picture(kind, rng).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared") / "home"


@pytest.fixture
def home(shared_home: Path, tmp_path: Path) -> Path:
    """An empty one, but for what an earlier test's worker told of its code, where there was one: to ask takes long."""
    cache = tmp_path / "home" / "cache"
    cache.mkdir(parents=True)
    for told in shared_home.glob("cache/catalogue-*.json"):
        shutil.copy(told, cache)
    return cache.parent


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "stillhouse.service.cli", *(str(word) for word in words)]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "STILLHOUSE_HOME": str(home), "STILLHOUSE_HUB": "off"}


def stillhouse(home: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), env=environment(home), capture_output=True, text=True, timeout=400, check=False
    )


def small_run(data: Path, out: Path, *more: object) -> list[object]:
    return [
        "run", data, "--out", out, "--max-macs", "60e6", "--max-image-size", 32, "--max-model-bytes", "4e6",
        "--max-latency-ms", 100, "--trials", 2, "--teacher", "lcnet_050", "--teacher-size", 64, "--epochs", "2,2,2",
        "--views", 2, "--archs", "lcnet_035", "--objectives", "macs,latency_ms", *more,
    ]  # fmt: skip


def replay(entry: dict, out: Path, data: Path) -> float:
    """What a user's own script does with an entry of front.json: Pillow, numpy and onnxruntime alone."""
    session = onnxruntime.InferenceSession(out / entry["file"], providers=["CPUExecutionProvider"])
    assert entry["preprocess"]["fit"] == "squash"
    size = (entry["preprocess"]["width"], entry["preprocess"]["height"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    right = []
    for label, name in enumerate(names):
        for path in sorted((data / "test" / name).iterdir()):
            shown = ImageOps.exif_transpose(Image.open(path)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
            grey = entry["preprocess"]["colour"] == "grey"
            array = np.asarray(shown.convert("L"))[None, :, :, None] if grey else np.asarray(shown)[None]
            right.append(int(session.run(None, {"pictures": array})[0].argmax()) == label)
    return float(np.mean(right))


def finished(home: Path) -> dict[str, int]:
    """Attempts by stage key."""
    with sqlite3.connect(home / "stillhouse.db") as connection:
        return dict(
            connection.execute("select stage_key, count(*) from attempts where state = 'done' group by stage_key")
        )


def faulty(tmp_path: Path, pictures: Path, what: str) -> Path:
    path = tmp_path / f"{what}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        if what == "empty":
            return path
        for kind in CLASSES[: 1 if what == "one-class" else 3]:
            for file in sorted((pictures / "train" / kind).iterdir())[:8]:
                archive.write(file, f"{kind}/{file.name}")
        if what == "text-as-jpg":
            archive.writestr("rings/notes.jpg", "not a picture")
    return path


@pytest.mark.parametrize(
    ("what", "expected"),
    [("empty", "holds nothing"), ("one-class", "class"), ("text-as-jpg", "rings/notes.jpg")],
)
def test_bad_pictures_get_one_message_and_leave_nothing(
    what: str, expected: str, pictures: Path, shared_home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = stillhouse(shared_home, *small_run(faulty(tmp_path, pictures, what), out))
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--max-macs", "1000"), "max_macs"),
        (("--max-image-bytes", "1"), "max_image_bytes"),
        (("--max-latency-ms", "0.0001"), "max_latency_ms"),
        (("--teacher", "resnet5000"), "resnet5000"),
        (("--archs", "lcnet_03"), "did you mean lcnet_035"),
        (("--method", "magic"), "magic"),
        (("--max-macs", "-1"), "max_macs"),
        (("--epochs", "1"), "teacher,assistant,student"),
        (("--classes", "9"), "classes"),
        (("--knob", "gama=1"), "gamma"),
    ],
)
def test_bad_requests_get_one_message_and_leave_nothing(
    more: tuple[str, ...], expected: str, pictures: Path, shared_home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = stillhouse(shared_home, *small_run(pictures, out, *more))
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_run_gives_models_that_meet_the_budget_and_do_what_they_say(
    pictures: Path, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = stillhouse(home, *small_run(pictures, out, "--ablate", "true"))
    assert done.returncode == 0, done.stdout + done.stderr
    front = json.loads((out / "front.json").read_text())
    assert front
    for entry in front:
        assert set(entry) >= KEYS
        assert entry["macs"] <= 60e6
        assert entry["image_size"] == 32
        assert entry["model_bytes"] == (out / entry["file"]).stat().st_size <= 4e6
        assert entry["latency_ms"] <= 100
        assert entry["accuracy_low"] <= entry["accuracy"] <= entry["accuracy_high"]
        assert replay(entry, out, pictures) == pytest.approx(entry["accuracy"], abs=1e-9)
        assert entry["arch"] in done.stdout
        assert {entry["variant"], *entry["baselines"]} == {"distilled", "no_teacher", "plain_kd"}
        assert (entry["note"] is None) == (entry["variant"] == "distilled")
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in out.iterdir() if path.suffix == ".tmp"]

    before = finished(home)
    again = stillhouse(home, *small_run(pictures, out, "--ablate", "true"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert finished(home) == before, "the same command finds everything done"
    assert set(before.values()) == {1}


def tinted(root: Path, rng: np.random.Generator) -> Path:
    """Pictures whose hue is drawn at random: only their grey tells the classes apart."""
    for split, count in (("train", 20), ("val", 6), ("test", 10)):
        for kind in CLASSES:
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                grey = np.asarray(picture(kind, rng)).astype(float)
                Image.fromarray((grey * rng.uniform(0.4, 1.0, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    return root


def test_a_grey_run_gives_models_of_one_channel_that_do_what_they_say(home: Path, tmp_path: Path) -> None:
    data, out = tinted(tmp_path / "tinted", np.random.default_rng(5)), tmp_path / "out"
    done = stillhouse(home, *small_run(data, out, "--colour", "grey", "--trials", 1))
    assert done.returncode == 0, done.stdout + done.stderr
    front = json.loads((out / "front.json").read_text())
    assert front
    for entry in front:
        (size,) = {entry["preprocess"]["height"], entry["preprocess"]["width"]}
        session = onnxruntime.InferenceSession(out / entry["file"], providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape[1:] == [size, size, 1]
        assert entry["preprocess"]["steps"][-1].startswith("convert to L")
        assert replay(entry, out, data) == pytest.approx(entry["accuracy"], abs=1e-9)
        network = Size.parse(str(entry["network_size"]))
        wanted = Catalogue.load().costs(entry["arch"], network, entry["stem"], len(CLASSES), "grey")
        assert (entry["macs"], entry["params"]) == wanted
    with sqlite3.connect(home / "stillhouse.db") as connection:
        specs = [
            json.loads(plan)["spec"] | {"kind": kind}
            for kind, plan in connection.execute("select kind, plan from stages")
        ]
    grey = {spec["kind"] for spec in specs if "colour" in spec}
    assert grey == {"student", "export", "measure"}
    assert {"teacher", "assistant", "targets"} <= {spec["kind"] for spec in specs}


def test_a_killed_run_goes_on_and_repeats_no_finished_stage(pictures: Path, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = small_run(pictures, out, "--seed", 3, "--trials", 1)
    process = subprocess.Popen(
        command(*words), env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        try:
            if len(finished(home)) >= 4:
                break
        except sqlite3.OperationalError:
            pass  # the ledger is not there yet
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished(home)
    assert len(before) >= 4
    assert not (out / "front.json").exists()

    done = stillhouse(home, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    after = finished(home)
    assert {key: after[key] for key in before} == before
    assert set(after.values()) == {1}
    assert json.loads((out / "front.json").read_text())


def test_the_service_takes_a_zip_and_a_job_and_gives_models(pictures: Path, home: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "pictures"), "zip", pictures))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        command("up"),
        env={**environment(home), "STILLHOUSE_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            dataset = until_it_answers(lambda: client.upload(archive))["id"]
            search = {
                "trials": 1, "teacher": "lcnet_050", "teacher_size": 64, "archs": ["lcnet_035"], "views": 1,
                "epochs": {"teacher": 1, "assistant": 1, "student": 1},
            }  # fmt: skip
            job = client.create_job(dataset, {"max_flops": 120e6, "max_image_size": 32}, search)
            assert client.wait(job["id"], timeout_s=200)["state"] == "done"
            (entry,) = client.front(job["id"])["front"]
            client.download(entry["model"], tmp_path / entry["file"])
        assert entry["macs"] <= 60e6
        assert replay(entry, tmp_path, pictures) == pytest.approx(entry["accuracy"], abs=1e-9)
    finally:
        server.terminate()
        assert server.wait(30) == 0


def until_it_answers(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        try:
            return call()
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)
