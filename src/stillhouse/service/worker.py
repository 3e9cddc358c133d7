"""One process, one attempt: claims a stage, does its work under a lease, commits once.

Run by the engine (``run_attempt``, ``run_remote``) or by hand (``stillhouse stage run ATTEMPT``). This is the one
place where the trainer and the shipper meet. ``python -m stillhouse.service.worker`` prints the catalogue of what
this machine's code can do, as JSON.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from stillhouse.search.errors import DatasetError, LeaseLostError, StillhouseError, UserError
from stillhouse.search.failpoints import passing
from stillhouse.service import logs, tracing
from stillhouse.service.claim import LOG_BYTES, Claim, LocalClaim, Order
from stillhouse.service.courier import Courier
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.own_networks import own_networks
from stillhouse.service.remote import RemoteClaim
from stillhouse.service.room import disk_full
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore
from stillhouse.service.stores import open_store

FULL_PAUSE_S = 10.0
"""Seconds that a stage waits which met a full disk."""
FOREIGN_PAUSE_S = 60.0
"""Seconds that a stage waits which met a machine with other code."""
CALIBRATION, COMPARED = 128, 256
"""Training pictures that int8 is calibrated on, and validation pictures that a lower precision is compared on."""

log = structlog.get_logger(__name__)


@dataclass
class Lease:
    """The attempt's right to its stage, renewed in the background with the latest progress."""

    claim: Claim
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
            raise LeaseLostError(f"attempt {self.claim.attempt_id} lost its lease")
        self.progress = dict(progress)

    def __enter__(self) -> Lease:
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=self.heartbeat_s + 5)

    def _beat(self) -> None:
        renewed, pause_s = time.monotonic(), 0.0  # the first at once: the attempt was opened with a longer lease
        while not self._stop.wait(pause_s):
            pause_s = self.heartbeat_s
            try:
                held = self.claim.renew(self.progress)
            except Exception as error:  # who keeps the lease may be away for a while; the lease says for how long
                log.warning("heartbeat failed", attempt=self.claim.attempt_id, error=repr(error))
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
            size, fit = Size.parse(spec["image_size"]), Fit(spec["fit"])
            pictures = store.array("val", size, fit, spec["classes"], self._colour)[:32]
        else:
            torch.manual_seed(0)
            network = zoo.build(
                spec["arch"],
                classes=spec["classes"],
                image_size=Size.parse(spec["image_size"]),
                network_size=Size.parse(spec["network_size"]),
                stem=spec["stem"],
                colour=self._colour,
            )
        return export_stage.run_export(network, spec, pictures=pictures, class_names=names, work=self.work)

    def _convert(self) -> tuple[Mapping[str, Path], Mapping[str, Json]]:
        spec, onnx = self.plan.spec, self.inputs["onnx"].files["onnx"]
        calibration: np.ndarray | None = None
        pictures: np.ndarray | None = None
        if "dataset" in self.inputs:
            store, size, fit = self._store(), Size.parse(spec["image_size"]), Fit(spec["fit"])
            classes, colour = spec["classes"], self._colour
            calibration = store.sample("train", size, fit, CALIBRATION, classes=classes, colour=colour)
            pictures = store.array("val", size, fit, classes, colour)[:COMPARED]
        return export_stage.run_conversion(onnx, spec, calibration=calibration, pictures=pictures, work=self.work)

    def _measure(self) -> tuple[Mapping[str, Path], Mapping[str, Json]]:
        spec = self.plan.spec
        onnx = self.inputs["onnx"].files["onnx"]
        if spec["split"] is None:
            return export_stage.run_measure(spec, onnx, pictures=None, coded={}, labels=None, work=self.work)
        store, size, fit = self._store(), Size.parse(spec["image_size"]), Fit(spec["fit"])
        split, classes, colour = spec["split"], spec["classes"], self._colour
        timed = self.inputs.get("timed")
        return export_stage.run_measure(
            spec,
            onnx,
            timed={} if timed is None else timed.metrics,
            pictures=store.array(split, size, fit, classes, colour),
            coded={
                quality: store.coded(split, size, fit, spec["codec"], quality, classes, colour)
                for quality in spec["qualities"]
            },
            labels=store.labels(split, classes),
            work=self.work,
        )

    @property
    def _colour(self) -> str:
        colour: str = self.plan.spec.get("colour", "rgb")
        return colour

    def _store(self) -> PictureStore:
        return distill_stage.open_store(self.inputs, self.cache)


def _trace() -> None:
    """Turns tracing on where it can be: an attempt does not fail for want of it."""
    try:
        tracing.configure("worker")
    except UserError as error:
        log.warning("no traces", why=str(error))


def run_attempt(attempt_id: str, threads: int, home: str) -> None:
    """Does one attempt beside the database; every outcome is in the ledger when it returns."""
    logs.configure()
    _trace()
    settings = Settings(home=Path(home))
    claim = LocalClaim(
        SqlLedger(settings.database_url),
        open_store(settings),
        attempt_id,
        lease_s=settings.lease_s,
        heartbeat_s=settings.heartbeat_s,
        log=str(settings.logs / f"{attempt_id}.log"),
    )
    try:
        _work(claim, claim.order(), settings, threads)
    finally:
        tracing.close()


def run_remote(attempt_id: str, url: str, token: str, settings: Settings) -> None:
    """Does one attempt with the API's address and the attempt's token alone.

    Raises:
        NotFoundError: The API knows no such attempt.
        LeaseLostError: The lease is lost already, or the API did not answer for as long as a lease lasts.
    """
    _trace()
    store, uploads = DiskStore(settings.artifacts), settings.uploads
    try:
        with (
            RemoteClaim(url, attempt_id, token, store=store, uploads=uploads, patience_s=settings.lease_s) as claim,
            logs.tail(LOG_BYTES) as written,
        ):
            try:
                _work_apart(claim, settings)
            finally:
                claim.send_log(written.kept())
    finally:
        tracing.close()


def _work_apart(claim: RemoteClaim, settings: Settings) -> None:
    order = claim.order()
    foreign = _foreign(order.plan)
    if foreign:
        log.error("this machine cannot do it", attempt=claim.attempt_id, why=foreign)
        claim.give_back(foreign, wait_s=FOREIGN_PAUSE_S)
    else:
        _work(claim, order, settings, order.threads)


def _foreign(plan: StagePlan) -> str | None:
    """Why this machine's code must not do a stage: it is not the code in the stage's key. None when it is."""
    own = _code().get(str(plan.kind), "")
    if plan.code in ("", own):
        return None
    return (
        f"the worker {socket.gethostname()} runs other code than the controller ({plan.kind} {own}, not {plan.code}); "
        "install the same versions of stillhouse, torch, timm, onnx and onnxruntime there, or restart the controller "
        "if it is the older one"
    )


def _work(claim: Claim, order: Order, settings: Settings, threads: int) -> None:
    """Does one attempt under its lease, and says so in the log and the job's trace."""
    plan, started = order.plan, time.monotonic()
    lease, work = Lease(claim, order.lease_s, order.heartbeat_s), settings.work / plan.key
    bound = logs.named(claim.attempt_id, plan, order.asker)
    told = {f"stillhouse.{name}": value for name, value in bound.items()}
    with (
        structlog.contextvars.bound_contextvars(**bound),
        tracing.span("stage", told, job=order.asker.job) as span,
        lease,
    ):
        log.info("attempt begins", threads=threads)
        outcome = _attempt(lease, order, Bench(plan, {}, work, settings.cache, threads, lease), started)
        log.info("attempt ends", outcome=outcome, seconds=round(time.monotonic() - started, 3))
        if span is not None:
            span.set_attribute("stillhouse.outcome", outcome)
    if outcome in ("done", "failed"):
        shutil.rmtree(work, ignore_errors=True)


def _attempt(lease: Lease, order: Order, empty: Bench, started: float) -> str:
    """The work, from its files to its commit; returns what came of it: done, failed, lost or given back.

    Raises:
        Exception: Any that is not ours, once the ledger knows of it.
    """
    claim = lease.claim
    try:
        with _only_worker(empty.work):
            bench = dataclasses.replace(empty, plan=claim.fetch_source(order), inputs=_inputs(order, claim))
            checkpoints = empty.work / distill_stage.CHECKPOINTS
            claim.fetch_checkpoint(order, checkpoints)
            with Courier(claim, order, checkpoints):
                files, metrics = bench.run()
            lease.report({})
            result = StageResult({name: claim.put(path) for name, path in files.items()}, metrics)
            passing("commit.before")
            held = claim.commit(result, seconds=time.monotonic() - started)
            passing("commit.after")
            return "done" if held else "lost"
    except LeaseLostError:
        log.warning("lease lost; stopping without a result")
        return "lost"
    except Exception as error:
        if disk_full(error):
            log.warning("the disk is full; giving the attempt back", error=str(error))
            claim.give_back(f"the disk is full ({error}); make room, and it goes on by itself", wait_s=FULL_PAUSE_S)
            return "given back"
        if not isinstance(error, StillhouseError):
            log.exception("unexpected error")
            claim.fail(f"unexpected {type(error).__name__}: {error} (log: {claim.log})")
            raise
        log.error("the stage failed", reason=str(error))
        held = claim.fail(str(error), faults=error.faults if isinstance(error, DatasetError) else ())
        return "failed" if held else "lost"


@contextmanager
def _only_worker(work: Path) -> Iterator[None]:
    """Makes the folder; waits until no other process of this machine works in it; removes what that left unfinished.

    An attempt that lost its lease may live on for a moment. The kernel frees the lock of a process that dies.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for unfinished in work.rglob("*.tmp"):
            unfinished.unlink(missing_ok=True)
        yield


def _inputs(order: Order, claim: Claim) -> dict[str, InputFiles]:
    plan = order.plan
    for role, key in plan.inputs.items():
        if role not in order.results:
            raise StillhouseError(f"stage {plan.key} reads {role} from stage {key}, which is not done")
    inputs = {role: _files(result, claim) for role, result in order.results.items()}
    checkpoint = plan.spec.get("checkpoint")
    if checkpoint:
        inputs["checkpoint"] = InputFiles({"weights": claim.path(checkpoint)}, {})
    return inputs


def _files(result: StageResult, claim: Claim) -> InputFiles:
    return InputFiles({name: claim.path(sha) for name, sha in result.artifacts.items()}, result.metrics)


def catalogue(home: Path | None = None) -> dict[str, Json]:
    """What this code can do: the static catalogue, its methods with their knobs, digests of its code.

    Args:
        home: Folder with the networks that its user added; None leaves them out.
    """
    static = json.loads(distill_catalogue.PATH.read_text(encoding="utf-8"))
    checks = json.loads(distill_catalogue.CHECKS.read_text(encoding="utf-8"))
    lacking, excluded = distill_catalogue.lacking(checks), distill_catalogue.excluded(checks)
    shipped = {name: entry | {"lacks": lacking.get(name, {})} for name, entry in static["archs"].items()}
    archs = {**(own_networks(home) if home else {}), **shipped}
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
    return {
        **static,
        "archs": archs,
        "excluded": {**{name: entry["excluded"] for name, entry in archs.items() if entry.get("excluded")}, **excluded},
        "tasks": sorted(tasks.registry()),
        "methods": methods,
        "code": _code(),
        "weights": zoo.weights_offered(),
    }


def _code() -> dict[str, str]:
    """Digest by stage kind of the code that does it."""
    return {**distill_catalogue.code_digests(), **export_stage.code_digests()}


if __name__ == "__main__":
    json.dump(catalogue(Path(sys.argv[1])), sys.stdout)
