"""One process, one attempt: claims a stage, does its work under a lease, commits once.

Run by the engine (``run_attempt``) or by hand (``stillhouse stage run ATTEMPT``). This is the one place
where the trainer and the shipper meet. ``python -m stillhouse.service.worker`` prints the catalogue of what
this machine's code can do, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog
import torch
from torch import nn

from stillhouse.distill import catalogue as distill_catalogue
from stillhouse.distill import stage as distill_stage
from stillhouse.distill import tasks, zoo
from stillhouse.distill.data.store import PictureStore
from stillhouse.distill.methods import registry
from stillhouse.distill.stage import InputFiles
from stillhouse.export import stage as export_stage
from stillhouse.search.domain import Fit, Json, Size, StageKind, StagePlan, StageResult
from stillhouse.search.errors import DatasetError, LeaseLostError, StillhouseError
from stillhouse.search.job import AttemptRecord
from stillhouse.search.ports import ArtifactStore, Ledger
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.own_networks import own_networks
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore

CALIBRATION, COMPARED = 128, 256
"""Training pictures that int8 is calibrated on, and validation pictures that a lower precision is compared on."""

log = structlog.get_logger(__name__)


@dataclass
class Lease:
    """The attempt's right to its stage, renewed in the background with the latest progress."""

    ledger: Ledger
    attempt: AttemptRecord
    lease_s: float
    heartbeat_s: float
    progress: Mapping[str, Json] = field(default_factory=dict)
    lost: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)

    def report(self, progress: Mapping[str, Json]) -> None:
        """Keeps the progress for the next heartbeat.

        Raises:
            LeaseLostError: Another attempt has, or may have, taken over.
        """
        if self.lost:
            raise LeaseLostError(f"attempt {self.attempt.id} lost its lease")
        self.progress = dict(progress)

    def __enter__(self) -> Lease:
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=self.heartbeat_s + 5)

    def _beat(self) -> None:
        renewed = time.monotonic()
        while not self._stop.wait(self.heartbeat_s):
            try:
                held = self.ledger.renew(
                    self.attempt.id, self.attempt.token, lease_s=self.lease_s, progress=self.progress
                )
            except Exception as error:  # the database may be away for a while; the lease says for how long
                log.warning("heartbeat failed", attempt=self.attempt.id, error=repr(error))
                if time.monotonic() - renewed > self.lease_s:
                    self.lost = True
                    return
                continue
            if not held:
                self.lost = True
                return
            renewed = time.monotonic()


@dataclass(frozen=True)
class Bench:
    """What one attempt works with."""

    plan: StagePlan
    inputs: Mapping[str, InputFiles]
    work: Path
    cache: Path
    threads: int
    lease: Lease

    def run(self) -> tuple[Mapping[str, Path], Mapping[str, Json]]:
        """Does the stage's work; returns files by name and figures."""
        if self.plan.kind is StageKind.EXPORT:
            return self._export()
        if self.plan.kind is StageKind.MEASURE:
            return self._measure()
        located = dataclasses.replace(self.plan, spec={**self.plan.spec, **self.plan.hints})
        output = distill_stage.run(
            located, self.inputs, self.work, cache=self.cache, threads=self.threads, report=self.lease.report
        )
        return output.files, output.metrics

    def _export(self) -> tuple[Mapping[str, Path], Mapping[str, Json]]:
        spec = self.plan.spec
        if "onnx" in self.inputs:
            return self._convert()
        torch.set_num_threads(self.threads)
        network: nn.Module
        pictures: np.ndarray | None = None
        names = [str(number) for number in range(spec["classes"])]
        if "model" in self.inputs:
            store = self._store()
            network = zoo.load(self.inputs["model"].files["weights"])
            names = list(store.classes[: spec["classes"]])
            pictures = store.array("val", Size.parse(spec["image_size"]), Fit(spec["fit"]), spec["classes"])[:32]
        else:
            torch.manual_seed(0)
            network = zoo.build(
                spec["arch"],
                classes=spec["classes"],
                image_size=Size.parse(spec["image_size"]),
                network_size=Size.parse(spec["network_size"]),
                stem=spec["stem"],
            )
        return export_stage.run_export(network, spec, pictures=pictures, class_names=names, work=self.work)

    def _convert(self) -> tuple[Mapping[str, Path], Mapping[str, Json]]:
        spec, onnx = self.plan.spec, self.inputs["onnx"].files["onnx"]
        calibration: np.ndarray | None = None
        pictures: np.ndarray | None = None
        if "dataset" in self.inputs:
            store, size, fit = self._store(), Size.parse(spec["image_size"]), Fit(spec["fit"])
            shown = store.array("train", size, fit, spec["classes"])
            calibration = shown[:: max(1, len(shown) // CALIBRATION)][:CALIBRATION]
            pictures = store.array("val", size, fit, spec["classes"])[:COMPARED]
        return export_stage.run_conversion(onnx, spec, calibration=calibration, pictures=pictures, work=self.work)

    def _measure(self) -> tuple[Mapping[str, Path], Mapping[str, Json]]:
        spec = self.plan.spec
        onnx = self.inputs["onnx"].files["onnx"]
        if spec["split"] is None:
            return export_stage.run_measure(spec, onnx, pictures=None, coded={}, labels=None, work=self.work)
        store, size, fit = self._store(), Size.parse(spec["image_size"]), Fit(spec["fit"])
        split, classes = spec["split"], spec["classes"]
        return export_stage.run_measure(
            spec,
            onnx,
            pictures=store.array(split, size, fit, classes),
            coded={
                quality: store.coded(split, size, fit, spec["codec"], quality, classes) for quality in spec["qualities"]
            },
            labels=store.labels(split, classes),
            work=self.work,
        )

    def _store(self) -> PictureStore:
        return distill_stage.open_store(self.inputs, self.cache)


def run_attempt(attempt_id: str, threads: int, home: str) -> None:
    """Does one attempt from claim to commit; every outcome is in the ledger when it returns."""
    settings = Settings(home=Path(home))
    ledger, store = SqlLedger(settings.database_url), DiskStore(settings.artifacts)
    attempt = ledger.attempt(attempt_id)
    plan = ledger.stages([attempt.stage_key])[attempt.stage_key].plan
    lease = Lease(ledger, attempt, settings.lease_s, settings.heartbeat_s)
    work = settings.work / plan.key
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with structlog.contextvars.bound_contextvars(attempt=attempt_id, stage=plan.key[:12], kind=str(plan.kind)), lease:
        try:
            bench = Bench(plan, _inputs(plan, ledger, store), work, settings.cache, threads, lease)
            files, metrics = bench.run()
            lease.report({})
            result = StageResult({name: store.put(path) for name, path in files.items()}, metrics)
            held = ledger.commit(attempt_id, attempt.token, result, seconds=time.monotonic() - started)
        except LeaseLostError:
            log.warning("lease lost; stopping without a result")
            return
        except StillhouseError as error:
            faults = error.faults if isinstance(error, DatasetError) else ()
            ledger.fail(attempt_id, attempt.token, str(error), faults=faults)
            held = True
        except Exception as error:
            log.exception("unexpected error")
            where = settings.logs / f"{attempt_id}.log"
            ledger.fail(attempt_id, attempt.token, f"unexpected {type(error).__name__}: {error} (log: {where})")
            raise
    if held:
        shutil.rmtree(work, ignore_errors=True)


def _inputs(plan: StagePlan, ledger: Ledger, store: ArtifactStore) -> dict[str, InputFiles]:
    stages = ledger.stages(plan.inputs.values())
    inputs: dict[str, InputFiles] = {}
    for role, key in plan.inputs.items():
        result = stages[key].result
        if result is None:
            raise StillhouseError(f"stage {plan.key} reads {role} from stage {key}, which is {stages[key].state}")
        inputs[role] = _files(result, store)
    resume = plan.hints.get("resume")
    earlier = ledger.stages([resume]).get(resume) if resume else None
    if earlier is not None and earlier.result is not None:
        inputs["resume"] = _files(earlier.result, store)
    checkpoint = plan.spec.get("checkpoint")
    if checkpoint:
        inputs["checkpoint"] = InputFiles({"weights": store.path(checkpoint)}, {})
    return inputs


def _files(result: StageResult, store: ArtifactStore) -> InputFiles:
    return InputFiles({name: store.path(sha) for name, sha in result.artifacts.items()}, result.metrics)


def catalogue(home: Path | None = None) -> dict[str, Json]:
    """What this code can do: the static catalogue, its methods with their knobs, digests of its code.

    Args:
        home: Folder with the networks that its user added; None leaves them out.
    """
    static = json.loads(distill_catalogue.PATH.read_text(encoding="utf-8"))
    archs = {**(own_networks(home) if home else {}), **static["archs"]}
    methods = {
        name: {
            "teacher": method.needs.targets,
            "assistant": method.needs.starts_from_assistant,
            "features": method.needs.features,
            "features_by": method.needs.features_by,
            "knobs": method.describe(),
        }
        for name, method in registry().items()
    }
    code = {**distill_catalogue.code_digests(), **export_stage.code_digests()}
    return {
        **static,
        "archs": archs,
        "tasks": sorted(tasks.registry()),
        "methods": methods,
        "code": code,
        "weights": zoo.weights_offered(),
    }


if __name__ == "__main__":
    json.dump(catalogue(Path(sys.argv[1])), sys.stdout)
