"""Fronts: of one job, and across the jobs of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from stillhouse.search.compare import in_doubt, ties
from stillhouse.search.domain import COST_OBJECTIVES, Budget, Deployment, Json
from stillhouse.search.errors import UserError
from stillhouse.search.growth import growth
from stillhouse.search.job import JobRecord, JobSpec
from stillhouse.search.pareto import deployment_front, picks
from stillhouse.service.api import examples
from stillhouse.service.api.context import Context, Ctx
from stillhouse.service.db.lists import JobFilter
from stillhouse.service.problems import documented
from stillhouse.service.report import front_entry, model_file_name

router = APIRouter(tags=["fronts"])
MOST_JOBS = 100
"""Whose fronts are laid over one another at once."""
Objective = Literal["macs", "params", "model_bytes", "image_bytes", "latency_ms", "memory_bytes"]
assert Objective.__args__ == COST_OBJECTIVES  # type: ignore[attr-defined] # noqa: S101 - a literal cannot be computed


@router.get("/jobs/{job_id}/pareto", responses={**examples.given(examples.FRONT), **documented(404, 422)})
async def get_front(job_id: str, request: Request, ctx: Ctx) -> Response:
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
    return await ctx.told(request, job_id, lambda: (_front(ctx, job_id), {}))


def _front(ctx: Context, job_id: str) -> dict[str, Json]:
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


@router.get("/pareto", responses={**examples.given(examples.ACROSS), **documented(404, 409, 422)})
def get_front_across_jobs(
    ctx: Ctx,
    dataset: Annotated[str | None, Query(description="Take all jobs of this data set.")] = None,
    job: Annotated[list[str], Query(description="Take these jobs; they must be of one data set.")] = [],  # noqa: B006
    objectives: Annotated[
        list[Objective], Query(description="Costs that the front is drawn over, beside accuracy.")
    ] = ["macs", "image_bytes"],  # noqa: B006
) -> dict[str, Json]:
    """The front across jobs: of the models that meet their own job's budget, those that no other beats.

    Jobs must tell the same classes apart (409), for accuracies of other classes cannot be compared. Models whose job
    did not measure one of the objectives are counted in ``unmeasured`` and take no part. Where not all are judged on
    pictures as sent, all are judged on pictures as they are.
    """
    jobs = _named(ctx, dataset, job)
    if len({(each.spec.dataset, each.spec.classes) for each in jobs}) > 1:
        raise HTTPException(409, "jobs must be of one data set and the same number of classes; name fewer jobs")
    fitting = [item for each in jobs for item in _fitting(each.spec, ctx.ledger.deployments(each.id))]
    measured = [item for item in fitting if all(getattr(item.cost, name) is not None for name in objectives)]
    coded = all(item.judged == "coded" for item in measured)
    if not coded:
        measured = [dataclasses.replace(item, details={**item.details, "judged": "plain"}) for item in measured]
    front = deployment_front(measured, objectives, Budget())
    return {
        "jobs": [each.id for each in jobs],
        "objectives": list(objectives),
        "judged": "coded" if coded else "plain",
        "models": len(measured),
        "unmeasured": len(fitting) - len(measured),
        "front": [{**_entry(member), "job": member.job_id} for member in front],
        "picks": {name: item.id for name, item in picks(front, objectives).items()},
    }


def _named(ctx: Context, dataset: str | None, job_ids: Sequence[str]) -> list[JobRecord]:
    if (dataset is None) == (not job_ids):
        raise UserError("give either 'dataset' or 'job' (which may be repeated)")
    if dataset is not None:
        ctx.ledger.dataset(dataset)
        job_ids = [line.id for line in ctx.ledger.job_lines(JobFilter(dataset=dataset), limit=MOST_JOBS + 1)]
    if len(job_ids) > MOST_JOBS:
        raise UserError(f"at most {MOST_JOBS} jobs can be laid over one another; name them by 'job'")
    return [ctx.ledger.job(each) for each in dict.fromkeys(job_ids)]


def _fitting(spec: JobSpec, deployments: Sequence[Deployment]) -> list[Deployment]:
    least = spec.budget.min_accuracy or 0.0
    return [item for item in deployments if item.chosen_share >= least and not spec.budget.excess(item.cost)]


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
    return {**entry, "trial": deployment.trial_number, "links": links(deployment)}


def links(deployment: Deployment) -> Mapping[str, str]:
    """Where a model's files are."""
    return {"onnx": f"/models/{deployment.id}/onnx", "bundle": f"/models/{deployment.id}/bundle"}
