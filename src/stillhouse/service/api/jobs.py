"""Jobs: create, look at, cancel, and their fronts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.check import check_request
from stillhouse.search.compare import in_doubt, ties
from stillhouse.search.domain import Deployment, Json
from stillhouse.search.errors import ConflictError, NotFoundError
from stillhouse.search.growth import growth
from stillhouse.search.job import JobRecord, StageRecord, TrialRecord
from stillhouse.search.pareto import deployment_front, picks
from stillhouse.search.space import Space
from stillhouse.service.api.context import Context, Ctx
from stillhouse.service.problems import documented
from stillhouse.service.report import front_entry, model_file_name
from stillhouse.service.schemas import JobRequest, job_json

router = APIRouter(tags=["jobs"])


@router.post("/jobs", status_code=202, responses=documented(404, 422, 503))
def create_job(
    body: JobRequest, ctx: Ctx, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
) -> dict[str, Json]:
    """Starts a search. With an ``Idempotency-Key``, the same body gives the same job and another body 422.

    A budget that nothing can meet is refused at once when the data set has been read.
    """
    spec, catalogue = body.to_spec(), ctx.catalogue()
    dataset = ctx.ledger.dataset(spec.dataset)
    check_request(catalogue, spec)
    if spec.teacher_checkpoint is not None and not ctx.store.has(spec.teacher_checkpoint):
        raise NotFoundError(f"no artifact {spec.teacher_checkpoint!r} to start the teacher from")
    if dataset.state == "ready":
        Space(Catalogue.from_json(catalogue), dataset.summary, spec).check()
    return _shown(ctx, ctx.ledger.add_job(spec, idempotency_key=idempotency_key))


@router.get("/jobs")
def list_jobs(ctx: Ctx) -> list[dict[str, Json]]:
    """All jobs, newest first, without their trials."""
    names = {dataset.id: dataset.name for dataset in ctx.ledger.datasets()}
    shown = []
    for job in reversed(ctx.ledger.jobs()):
        trials = ctx.ledger.trials(job.id)
        stages = _stages(ctx, trials) if job.state == "running" else {}  # no other has progress to tell
        eta_s = ctx.forecast.eta_s(job, trials, stages)
        shown.append(job_json(job, trials, stages, dataset_name=names[job.spec.dataset], eta_s=eta_s))
    return [{name: value for name, value in job.items() if name != "trials"} for job in shown]


@router.get("/jobs/{job_id}", responses=documented(404, 422))
def get_job(job_id: str, ctx: Ctx) -> dict[str, Json]:
    """One job: state, reason, and each trial with its candidate, costs and progress."""
    return _shown(ctx, ctx.ledger.job(job_id))


@router.post("/jobs/{job_id}/cancel", responses=documented(404, 422))
def cancel_job(job_id: str, ctx: Ctx) -> dict[str, Json]:
    """Stops a job; what it finished stays."""
    if not ctx.ledger.move_job(job_id, expect=("queued", "running"), to="cancelled"):
        raise ConflictError(
            f"only a queued or running job can be cancelled; this one is {ctx.ledger.job(job_id).state}"
        )
    return _shown(ctx, ctx.ledger.job(job_id))


@router.get("/jobs/{job_id}/pareto", responses=documented(404, 422))
def get_front(job_id: str, ctx: Ctx) -> dict[str, Json]:
    """The front: models that no other of the job beats on validation accuracy and on every chosen cost at once.

    ``accuracy`` is the test split's once the job is done, the validation split's before; ``judged`` says whether the
    front is chosen by it (``plain``) or by that on pictures as sent (``coded``: ``accuracy_coded``). ``compared`` holds
    the front's networks trained in other ways (a job with ``ablate``), ``family`` the same networks at other precisions
    and picture qualities, ``others`` what other trials made. ``picks`` names the
    members to look at first: the ``knee``, and by objective the cheapest within one point of the most accurate.
    ``tied`` names, for a member that is not significantly better than the next cheaper one, that one; ``in_doubt`` are
    models off the front that none on it beats beyond the noise of the validation pictures. Both are empty until the job
    is done. ``progress`` has an entry for each trial that is done, in order of time: seconds since the job started,
    trials done by then, and the share of the present front's hypervolume (costs in octaves) that they had.
    """
    job = ctx.ledger.job(job_id)
    deployments = ctx.ledger.deployments(job_id)
    front = deployment_front(deployments, job.spec.objectives, job.spec.budget)
    members, compared = {member.id for member in front}, {member.trial_number for member in front}
    fitting = [item for item in deployments if not item.is_baseline and not job.spec.budget.excess(item.cost)]
    points = {_point(member) for member in front}
    rivals = [item for item in fitting if item.id in members or item.trial_number not in compared]
    done = job.state == "done"
    rest = [item for item in deployments if item.id not in members]
    return {
        "job": job.id,
        "state": job.state,
        "objectives": list(job.spec.objectives),
        "front": [_entry(member) for member in front],
        "picks": {name: item.id for name, item in picks(front, job.spec.objectives).items()},
        "tied": ties(front, job.spec.objectives) if done else {},
        "in_doubt": in_doubt(rivals, members, job.spec.objectives) if done else [],
        "judged": "coded" if job.spec.sends else "plain",
        "compared": [_entry(item) for item in rest if _point(item) in points],
        "family": [_entry(item) for item in rest if item.trial_number in compared and _point(item) not in points],
        "others": [_entry(item) for item in rest if item.trial_number not in compared],
        "progress": _progress(ctx, job),
    }


def _progress(ctx: Context, job: JobRecord) -> list[dict[str, Json]]:
    if job.started_at is None:
        return []
    known = len(ctx.ledger.dataset(job.spec.dataset).summary.get("classes", ())) or 2
    steps = growth(ctx.ledger.events(job.id), job.spec, started_at=job.started_at, classes=job.spec.classes or known)
    return [step.to_json() for step in steps]


def _point(item: Deployment) -> tuple[int, str, int | None]:
    """What the variants of one network, at one precision and picture quality, have in common."""
    return item.trial_number, item.precision, item.quality


def _entry(deployment: Deployment) -> dict[str, Json]:
    entry = front_entry(deployment, file=model_file_name(deployment))
    return {**entry, "trial": deployment.trial_number, "links": {"onnx": f"/models/{deployment.id}/onnx"}}


def _shown(ctx: Context, job: JobRecord) -> dict[str, Json]:
    trials = ctx.ledger.trials(job.id)
    name = ctx.ledger.dataset(job.spec.dataset).name
    stages = _stages(ctx, trials)
    return job_json(job, trials, stages, dataset_name=name, eta_s=ctx.forecast.eta_s(job, trials, stages))


def _stages(ctx: Context, trials: list[TrialRecord]) -> dict[str, StageRecord]:
    return ctx.ledger.stages({key for trial in trials for key in trial.stages})
