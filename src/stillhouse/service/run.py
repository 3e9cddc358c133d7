"""One whole job in the foreground: data set in, front and ONNX files out.

Runs on the embedded platform (local engine, the ledger of STILLHOUSE_HOME). The same request gives the same job, so a
run that was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.check import check_request
from stillhouse.search.domain import LOCAL, Deployment, StagePlan, content_key
from stillhouse.search.errors import AwayError, DatasetError, InfeasibleError, StillhouseError, UserError
from stillhouse.search.job import UNMET, DatasetRecord, JobRecord, JobSpec
from stillhouse.search.pareto import deployment_front
from stillhouse.search.plan import ingest_plan, planner
from stillhouse.search.retry import retry
from stillhouse.search.space import Space
from stillhouse.search.states import LIVE
from stillhouse.service.digest import source_digest
from stillhouse.service.progress import Watcher
from stillhouse.service.report import model_file_name, write_front
from stillhouse.service.wiring import Platform

if TYPE_CHECKING:
    from stillhouse.search.controller import Controller

BUILTIN = "textures"
POLL_S = 0.25
AWAY_S = 120.0
"""How long a run waits for a database that does not answer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A finished job: what was trained, which of it is on the front, and the files of that and its family by id."""

    job: JobRecord
    deployments: tuple[Deployment, ...]
    front: tuple[Deployment, ...]
    files: Mapping[str, Path]


def run_job(platform: Platform, data: str, spec: JobSpec, *, out: Path, skip_faults: bool, watcher: Watcher) -> Outcome:
    """Ingests ``data``, runs the job that ``spec`` describes (its ``dataset`` is filled in), writes ``out``.

    Raises:
        UserError: Bad data, an unknown name, a budget nothing can meet.
        StillhouseError: The job failed; the message says why.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out must name a folder, but {out} is a file")
    if spec.budget.device != LOCAL:
        raise UserError(
            f"a device such as {spec.budget.device!r} takes its work from a server: start one (stillhouse up), and "
            "send the job there (stillhouse client jobs create)"
        )
    check_request(platform.ledger.catalogue() or {}, spec)
    plan = _ingest(platform, data, skip_faults)
    with platform.controller() as controller:
        dataset = _read(platform, controller, platform.ledger.add_dataset(Path(data).name, plan), watcher)
        job = _queue(platform, dataset, dataclasses.replace(spec, dataset=dataset.id))
        _drive(controller, watcher.job, lambda: _ended(platform, job.id), job.id)
    job = platform.ledger.job(job.id)
    if job.state != "done":
        reason = job.reason or f"the job was {job.state}"
        raise InfeasibleError(reason) if reason.startswith(UNMET) else StillhouseError(reason)
    return _write(platform, job, out)


def read_dataset(platform: Platform, data: str, *, skip_faults: bool, watcher: Watcher) -> DatasetRecord:
    """The data set that ``data`` names, read now if it was not before.

    Raises:
        DatasetError: It cannot be used.
    """
    plan = _ingest(platform, data, skip_faults)
    dataset = platform.ledger.add_dataset(Path(data).name, plan)
    if dataset.state == "ready":
        return dataset
    with platform.controller() as controller:
        return _read(platform, controller, dataset, watcher)


def _read(platform: Platform, controller: Controller, dataset: DatasetRecord, watcher: Watcher) -> DatasetRecord:
    _drive(controller, watcher.dataset, lambda: platform.ledger.dataset(dataset.id).state != "pending", dataset.id)
    dataset = platform.ledger.dataset(dataset.id)
    if dataset.state == "failed":
        raise DatasetError(dataset.reason or "the data set cannot be used", dataset.faults)
    watcher.ready(dataset)
    return dataset


def _ingest(platform: Platform, data: str, skip_faults: bool) -> StagePlan:
    code: Mapping[str, str] = (platform.ledger.catalogue() or {}).get("code", {})
    path = Path(data)
    if data == BUILTIN and not path.exists():
        return ingest_plan(BUILTIN, BUILTIN, skip_faults, code)
    if not path.exists():
        raise DatasetError(f"no file or folder {data!r}; give an ImageFolder zip or folder, or {BUILTIN!r}")
    return ingest_plan(str(path.resolve()), source_digest(path), skip_faults, code)


def _drive(controller: Controller, show: Callable[[str], None], ended: Callable[[], bool], subject: str) -> None:
    answered = time.monotonic()
    while True:
        try:
            controller.step(only=(subject,))
            show(subject)
            if ended():
                return
            answered = time.monotonic()
        except AwayError as error:
            if time.monotonic() - answered > AWAY_S:
                raise
            log.warning("%s; trying again", error)
        time.sleep(POLL_S)


def _ended(platform: Platform, job_id: str) -> bool:
    return platform.ledger.job(job_id).state not in LIVE


def _queue(platform: Platform, dataset: DatasetRecord, spec: JobSpec) -> JobRecord:
    """The job of this request: a new one, or the one that an earlier start of the same run made."""
    catalogue = platform.ledger.catalogue() or {}
    draft = JobRecord("draft", spec, "queued")
    planner(draft, dataset, catalogue)
    Space(Catalogue.from_json(catalogue), dataset.summary, spec).check()
    job = platform.ledger.add_job(spec, idempotency_key="run-" + content_key([spec.to_json(), catalogue["code"]]))
    return retry(platform.ledger, job)


def _write(platform: Platform, job: JobRecord, out: Path) -> Outcome:
    """Writes the ONNX files first and ``front.json`` last, so that what it names is there."""
    deployments = platform.ledger.deployments(job.id)
    front = deployment_front(deployments, job.spec.objectives, job.spec.budget)
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    trials = {member.trial_number for member in front}
    family = [item for item in deployments if item.trial_number in trials and not item.is_baseline]
    for member in (*front, *family):
        target = out / model_file_name(member)
        if target not in files.values():  # each picture quality of a network has the same file
            fresh = target.with_suffix(".tmp")
            shutil.copyfile(platform.store.path(member.onnx_sha256), fresh)
            fresh.replace(target)
        files[member.id] = target
    write_front(deployments, front, out, objectives=job.spec.objectives)
    return Outcome(job, tuple(deployments), tuple(front), files)
