"""What routes answer, as examples for the OpenAPI document; shortened where lists go on."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from stillhouse.search.domain import Json


def given(
    example: Json, *, status: int = 200, media: str = "application/json", headers: Mapping[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """A route's good answer with its example, as an entry of ``responses``."""
    entry: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {media: {"example": example}},
    }
    return {status: entry | ({"headers": dict(headers)} if headers else {})}


DATASET: Json = {
    "id": "ds_0123456789ab",
    "name": "birds.zip",
    "state": "ready",
    "reason": None,
    "faults": [],
    "summary": {"classes": ["jay", "wren"], "pictures": 900, "splits": {"train": 600, "val": 150, "test": 150}},
    "created_at": 1790000000.0,
}
DATASETS: Json = [DATASET]
UPLOAD: Json = {"id": "upl_0123456789abcdef0123456789abcdef", "offset": 8388608, "size": 52428800}
TRIAL: Json = {
    "number": 0,
    "state": "done",
    "reason": None,
    "candidate": {"arch": "lcnet_050", "image_size": "32x32", "network_size": "64x64", "stem": "stock", "knobs": {}},
    "cost": {"macs": 4000000, "params": 300000, "image_bytes": 900.0, "latency_ms": 1.5},
    "val_accuracy": 0.83,
    "epochs": 12,
    "stages_done": 6,
    "stages": 6,
    "running": None,
}
TRIALS: Json = [TRIAL]
LINE: Json = {
    "id": "job_0123456789ab",
    "state": "done",
    "reason": None,
    "dataset_name": "birds.zip",
    "spec": {"dataset": "ds_0123456789ab", "budget": {"max_macs": 60000000, "device": "local"}, "trials": 8},
    "created_at": 1790000000.0,
    "started_at": 1790000001.0,
    "finished_at": 1790003600.0,
    "eta_s": None,
    "counts": {"done": 8},
    "trials_ended": 8,
    "trials_wanted": 8,
    "best_accuracy": 0.83,
    "waiting": None,
}
JOBS: Json = [LINE]
JOB: Json = {**LINE, "trials": TRIALS}
LOG: Json = "== student 3f9a0c12b4de, attempt att_0123456789ab: done ==\nepoch 1: loss 2.1\n"
ENTRY: Json = {
    "model": "mdl_0123456789ab",
    "trial": 0,
    "arch": "lcnet_050",
    "image_size": 32,
    "network_size": 64,
    "precision": "int8",
    "macs": 4000000,
    "image_bytes": 900.0,
    "latency_ms": 1.5,
    "accuracy": 0.81,
    "accuracy_low": 0.77,
    "accuracy_high": 0.84,
    "split": "test",
    "quality": 75,
    "file": "00-lcnet_050-32x32-64x64-stock-int8.onnx",
    "links": {"onnx": "/models/mdl_0123456789ab/onnx", "bundle": "/models/mdl_0123456789ab/bundle"},
}
FRONT: Json = {
    "job": "job_0123456789ab",
    "state": "done",
    "objectives": ["macs", "image_bytes"],
    "front": [ENTRY],
    "picks": {"knee": "mdl_0123456789ab", "macs": "mdl_0123456789ab", "image_bytes": "mdl_0123456789ab"},
    "tied": {},
    "in_doubt": [],
    "judged": "coded",
    "compared": [],
    "family": [],
    "others": [],
    "progress": [{"at": 310.0, "trials": 1, "hypervolume": 1.0}],
}
ACROSS: Json = {
    "jobs": ["job_0123456789ab", "job_ba9876543210"],
    "objectives": ["macs", "image_bytes"],
    "judged": "coded",
    "models": 61,
    "unmeasured": 0,
    "front": [{**ENTRY, "job": "job_0123456789ab"}],
    "picks": {"knee": "mdl_0123456789ab"},
}
MODEL: Json = {**ENTRY, "job": "job_0123456789ab", "sha256": "ab" * 32, "details": {"method": "tas", "seed": 0}}
MODELS: Json = [MODEL]
DEVICES: Json = [
    {
        "name": "local",
        "measured_at": 1790000000.0,
        "host": {"cpu": "a CPU", "cores": 8, "machine": "x86_64", "system": "Linux 6.1"},
        "runtime": "onnxruntime 1.22.0 CPUExecutionProvider",
        "threads": 1,
        "seen_at": None,
        "at_hand": True,
    },
    {
        "name": "gate-cam",
        "measured_at": None,
        "host": {"cpu": "Cortex-A53", "cores": 4, "machine": "aarch64", "system": "Linux 6.1"},
        "runtime": "onnxruntime 1.22.0 CPUExecutionProvider",
        "threads": None,
        "seen_at": 1790000000.0,
        "at_hand": True,
    },
]
WORK: Json = {"attempt": {"id": "att_0123456789ab", "token": "a-secret-of-this-attempt"}, "poll_s": 1.0}
HEALTH: Json = {"status": "ok", "version": "0.1.0"}
METRICS: Json = """# HELP stillhouse_jobs Jobs in the ledger by state.
# TYPE stillhouse_jobs gauge
stillhouse_jobs{state="running"} 2.0
"""
LIVE: Json = {"status": "ok", "version": "0.1.0"}
READY: Json = {"status": "ready", "database": True, "catalogue": True}
CATALOGUE: Json = {
    "names": ["lcnet_050"],
    "archs": {"lcnet_050": {"stems": ["stock"], "lacks": {"stock": {"fp16": "logits are not finite"}}}},
    "excluded": {"xcit_nano_12_p8_224": {"stock": "builds: its stem is no convolution"}},
    "methods": {"tas": {"teacher": True, "assistant": True, "knobs": []}},
}
ESTIMATE: Json = {"fits": 41, "candidates": 350, "binds": "max_macs", "reason": None}
