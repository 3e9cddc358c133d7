"""Jobs: create, list, look at, cancel, try again, delete."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.check import check_request
from stillhouse.search.domain import Json
from stillhouse.search.errors import ConflictError, NotFoundError
from stillhouse.search.failpoints import passing
from stillhouse.search.job import JobRecord, StageRecord, TrialRecord
from stillhouse.search.retry import retry
from stillhouse.search.space import Space
from stillhouse.search.states import LIVE
from stillhouse.service.api import examples
from stillhouse.service.api.context import Context, Ctx
from stillhouse.service.api.paging import LINK, After, Limit, next_page, place_of
from stillhouse.service.db.lists import JobFilter, JobLine, Place
from stillhouse.service.problems import ReusedKeyError, documented
from stillhouse.service.room import lack_of_room
from stillhouse.service.schemas import JobRequest, job_json, line_json
from stillhouse.service.waiting import waiting

router = APIRouter(tags=["jobs"])
JobState = Literal["queued", "running", "done", "failed", "cancelled"]


@router.post(
    "/jobs", status_code=202, responses={**examples.given(examples.JOB, status=202), **documented(404, 422, 503)}
)
def create_job(
    body: JobRequest, ctx: Ctx, idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None
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
    try:
        job = ctx.ledger.add_job(spec, idempotency_key=idempotency_key)
    except ConflictError as error:  # the one conflict that another body cures, not another state
        raise ReusedKeyError(str(error)) from None
    passing("accept.after")
    return _shown(ctx, job)


@router.get("/jobs", responses={**examples.given(examples.JOBS, headers=LINK), **documented(422)})
async def list_jobs(
    request: Request,
    ctx: Ctx,
    state: Annotated[list[JobState], Query(description="Only in these states.")] = [],  # noqa: B006
    dataset: Annotated[str | None, Query(max_length=64, description="Only of this data set.")] = None,
    limit: Limit = 100,
    after: After = None,
) -> Response:
    """Jobs, newest first, without their trials, in pages: the ``Link`` header names the next one."""
    wanted, place = JobFilter(None, tuple(state), dataset), place_of(after)
    return await ctx.listed(request, lambda: _page(ctx, request, wanted, limit, place))


def _page(
    ctx: Context, request: Request, wanted: JobFilter, limit: int, place: Place | None
) -> tuple[Json, dict[str, str]]:
    lines = ctx.ledger.job_lines(wanted, limit=limit + 1, after=place)
    last = lines[limit - 1].place.cursor() if len(lines) > limit else None
    lack, ingest = lack_of_room(ctx.settings), cache(partial(_ingest, ctx))
    return [_line(ctx, line, ingest, lack) for line in lines[:limit]], next_page(request, last)


def _line(
    ctx: Context, line: JobLine, ingest: Callable[[str], Mapping[str, StageRecord]], lack: str | None
) -> dict[str, Json]:
    """A line as the list shows it; ``ingest`` gives the stage that reads a data set, which many lines share."""
    if line.state not in LIVE:
        return line_json(line, eta_s=None, waiting=None)
    trials = ctx.ledger.trials(line.id) if line.counts else []
    stages = _stages(ctx, trials)
    eta_s = ctx.forecast.eta_s(ctx.ledger.job(line.id), trials, stages) if line.state == "running" else None
    why = _waiting(ctx, line, trials, stages, ingest(line.spec["dataset"]), lack)
    return line_json(line, eta_s=eta_s, waiting=why)


@router.get("/jobs/{job_id}", responses={**examples.given(examples.JOB), **documented(404, 422)})
async def get_job(job_id: str, request: Request, ctx: Ctx) -> Response:
    """One job: state, reason, and each trial with its candidate, costs and progress."""
    return await ctx.told(request, job_id, lambda: (_shown(ctx, ctx.ledger.job(job_id)), {}))


@router.post("/jobs/{job_id}/cancel", responses={**examples.given(examples.JOB), **documented(404, 409, 422)})
def cancel_job(job_id: str, ctx: Ctx) -> dict[str, Json]:
    """Stops a job; what it finished stays. One that has ended is a 409."""
    if not ctx.ledger.move_job(job_id, expect=LIVE, to="cancelled"):
        raise ConflictError(
            f"only a queued or running job can be cancelled; this one is {ctx.ledger.job(job_id).state}"
        )
    return _shown(ctx, ctx.ledger.job(job_id))


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    responses={**examples.given(examples.JOB, status=202), **documented(404, 409, 422)},
)
def retry_job(job_id: str, ctx: Ctx) -> dict[str, Json]:
    """Sets a job going again that failed, was cancelled, or lacks comparisons: what failed is tried anew.

    What was finished is not done again. A job that lives or has nothing left to do is a 409, and so is one whose budget
    nothing can meet: start another one.
    """
    job = ctx.ledger.job(job_id)
    again = retry(ctx.ledger, job)
    if job.state in LIVE or again.state not in LIVE:
        why = f" ({job.reason})" if job.reason else ""
        raise ConflictError(f"there is nothing to try again: {job_id} is {job.state}{why}")
    return _shown(ctx, again)


@router.delete("/jobs/{job_id}", status_code=204, responses=documented(404, 409, 422))
def delete_job(job_id: str, ctx: Ctx) -> Response:
    """Forgets a job that has ended, with its trials, models and events. One that lives is a 409: cancel it first."""
    ctx.ledger.delete_job(job_id)
    return Response(status_code=204)


def _shown(ctx: Context, job: JobRecord) -> dict[str, Json]:
    trials = ctx.ledger.trials(job.id)
    dataset = ctx.ledger.dataset(job.spec.dataset)
    stages = _stages(ctx, trials)
    eta_s = ctx.forecast.eta_s(job, trials, stages)
    why = _waiting(ctx, job, trials, stages, _ingest(ctx, dataset.id), lack_of_room(ctx.settings))
    return job_json(job, trials, stages, dataset_name=dataset.name, eta_s=eta_s, waiting=why)


def _waiting(
    ctx: Context,
    job: JobRecord | JobLine,
    trials: Sequence[TrialRecord],
    stages: Mapping[str, StageRecord],
    ingest: Mapping[str, StageRecord],
    lack: str | None,
) -> str | None:
    live = {key: stages[key] for trial in trials if trial.at_work for key in trial.stages if key in stages}
    return waiting(job, {**live, **ingest}.values(), lack=lack, devices=ctx.ledger.devices, now=time.time())


def _ingest(ctx: Context, dataset: str) -> Mapping[str, StageRecord]:
    return ctx.ledger.stages([ctx.ledger.dataset(dataset).stage_key])


def _stages(ctx: Context, trials: list[TrialRecord]) -> dict[str, StageRecord]:
    return ctx.ledger.stages({key for trial in trials for key in trial.stages})
