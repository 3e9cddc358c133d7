"""The API over a real ledger, with helpers that do the controller's part."""

import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Size
from stillhouse.service.app import create_app
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore

CATALOGUE = {
    "names": ["lcnet_050", "resnet18", "tf_efficientnet_lite0"],
    "image_sizes": ["32x32", "64x64"],
    "archs": {
        "lcnet_050": {
            "family": "cnn",
            "stems": ["stock"],
            "macs_per_class": 8,
            "params_per_class": 9,
            "cells": {
                "32x32|stock": {"macs": 10**6, "params": 1000},
                "64x64|stock": {"macs": 4 * 10**6, "params": 1000},
            },
        }
    },
    "methods": {
        "tas": {"teacher": True, "assistant": True, "knobs": []},
        "supervised": {"teacher": False, "assistant": False, "knobs": []},
    },
    "code": {},
    "weights": {"package": [], "hub": []},
}
SUMMARY: dict[str, Any] = {
    "classes": ["a", "b", "c"],
    "pictures": 90,
    "splits": {"train": 60, "val": 12, "test": 18},
    "notes": [],
    "faults": [],
    "curve": [
        {"fit": "squash", "size": size, "codec": "jpeg", "quality": quality, "mean_bytes": bytes_ * quality / 90}
        for size, bytes_ in (("32x32", 900.0), ("64x64", 2100.0))
        for quality in (50, 75, 90)
    ],
}


class Served:
    """An application over a fresh ledger, with helpers that do the controller's part."""

    def __init__(self, url: str, home: Path, **settings: Any) -> None:
        self.ledger, self.store = SqlLedger(url), DiskStore(home / "artifacts")
        self.ledger.publish_catalogue(CATALOGUE)
        self.settings = Settings.load(home=home, **settings)
        app = create_app(self.ledger, self.store, self.settings)
        self.http = TestClient(app, base_url="http://127.0.0.1").__enter__()  # one event loop for all requests

    def close(self) -> None:
        """Ends the application, which waits for the threads that still read, and then closes the ledger."""
        self.http.__exit__()
        self.ledger.close()

    def ready(self) -> str:
        dataset = self.http.post("/datasets", json={"builtin": "textures"}).json()["id"]
        self.ledger.end_dataset(dataset, "ready", summary=SUMMARY, reason=None, faults=())
        return str(dataset)

    def finished(self, tmp_path: Path) -> tuple[str, str, bytes]:
        job = self.http.post("/jobs", json={"dataset": self.ready(), "budget": {}}).json()["id"]
        content = b"onnx" * 1000
        (tmp_path / "model.onnx").write_bytes(content)
        candidate = Candidate("lcnet_050", Size(32, 32), Size(64, 64))
        self.ledger.add_trial(job, 0, candidate, Cost(macs=10))
        deployment = Deployment(
            id="mdl_1",
            job_id=job,
            trial_number=0,
            candidate=candidate,
            cost=Cost(10, 20, 30, 40.0, Size(32, 32), 1.5, 2.5, 50),
            precision="fp32",
            validation=Accuracy(9, 12),
            onnx_sha256=self.store.put(tmp_path / "model.onnx"),
            preprocess={"fit": "squash"},
        )
        self.ledger.add_deployment(deployment)
        self.ledger.set_test("mdl_1", Accuracy(12, 18), {})
        self.ledger.move_job(job, expect=("queued",), to="running")
        self.ledger.move_job(job, expect=("running",), to="done")
        return job, "mdl_1", content


Serve = Callable[..., Served]


@pytest.fixture
def serve(sql_url: str, tmp_path: Path) -> Iterator[Serve]:
    opened: list[Served] = []

    def start(**settings: Any) -> Served:
        opened.append(Served(sql_url, tmp_path / "home", **settings))
        return opened[-1]

    yield start
    for served in opened:
        served.close()


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve()


def problem(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= set(body)
    assert body["status"] == status
    return str(body["detail"])


def pictures() -> bytes:
    """A small ImageFolder zip of two classes."""
    buffer, rng = BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, count in (("train", 4), ("val", 2), ("test", 2)):
            for name in ("a", "b"):
                for number in range(count):
                    file = BytesIO()
                    Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(file, "png")
                    archive.writestr(f"{split}/{name}/{number}.png", file.getvalue())
    return buffer.getvalue()
