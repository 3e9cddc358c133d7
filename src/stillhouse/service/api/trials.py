"""A job's trials in pages, and the logs of their attempts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse

from stillhouse.search.domain import Json
from stillhouse.search.errors import NotFoundError
from stillhouse.search.job import AttemptRecord, StageRecord
from stillhouse.service.api import examples
from stillhouse.service.api.context import Context, Ctx
from stillhouse.service.api.paging import LINK, Limit, next_page
from stillhouse.service.problems import documented
from stillhouse.service.schemas import trial_json

router = APIRouter(tags=["jobs"], prefix="/jobs/{job_id}/trials")
TrialState = Literal["costing", "training", "paused", "done", "failed", "infeasible", "stopped"]
READ_BYTES = 1 << 20
"""Of the end of one log."""


@router.get("", responses={**examples.given(examples.TRIALS, headers=LINK), **documented(404, 422)})
async def list_trials(
    job_id: str,
    request: Request,
    ctx: Ctx,
    state: Annotated[list[TrialState], Query(description="Only in these states.")] = [],  # noqa: B006
    limit: Limit = 100,
    after: Annotated[int, Query(ge=-1, le=2**31 - 1, description="Number that the last page ended with.")] = -1,
) -> Response:
    """Trials of a job in order of number: candidate, costs, accuracy, and what runs for each."""

    def make() -> tuple[Json, dict[str, str]]:
        return _page(ctx, job_id, request, state, limit, after)

    return await ctx.told(request, job_id, make)


def _page(
    ctx: Context, job_id: str, request: Request, states: Collection[str], limit: int, after: int
) -> tuple[Json, dict[str, str]]:
    trials = ctx.ledger.trial_page(job_id, states=states, limit=limit + 1, after=after)
    last = str(trials[limit - 1].number) if len(trials) > limit else None
    stages = ctx.ledger.stages({key for trial in trials[:limit] for key in trial.stages})
    return [trial_json(trial, stages) for trial in trials[:limit]], next_page(request, last)


@router.get(
    "/{number}/log",
    response_class=PlainTextResponse,
    responses={**examples.given(examples.LOG, media="text/plain"), **documented(404, 422)},
)
def get_log(
    job_id: str,
    number: int,
    ctx: Ctx,
    tail: Annotated[int, Query(ge=1, le=10_000, description="Last lines of each attempt's log.")] = 100,
    attempt: Annotated[str | None, Query(description="Only of this attempt.")] = None,
) -> str:
    """What the attempts at a trial's stages wrote, in order; of each the last lines, below a line that names it.

    Stages that trials share (the teacher's, an assistant's) are told with each. An attempt on another machine sends the
    end of its log when it ends.
    """
    trials = ctx.ledger.trial_page(job_id, states=(), limit=1, after=number - 1) if 0 <= number < 2**31 else []
    if not trials or trials[0].number != number:
        ctx.ledger.job(job_id)
        raise NotFoundError(f"no such trial of {job_id}: {number}; GET /jobs/{job_id}/trials lists them")
    stages = ctx.ledger.stages(trials[0].stages)
    tries = [(stage, each) for key, stage in stages.items() for each in ctx.ledger.attempts(key)]
    if attempt is not None:
        tries = [(stage, each) for stage, each in tries if each.id == attempt]
        if not tries:
            raise NotFoundError(f"no such attempt at a stage of trial {number}: {attempt[:80]!r}")
    parts = [_head(stage, each) + _tail(ctx.settings.logs / f"{each.id}.log", tail) for stage, each in tries]
    return "\n".join(parts) or "nothing was tried yet\n"


def _head(stage: StageRecord, attempt: AttemptRecord) -> str:
    return f"== {stage.plan.kind} {stage.key[:12]}, attempt {attempt.id}: {attempt.state} ==\n"


def _tail(path: Path, lines: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - READ_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return "(no log here: it is on another machine and has not been sent, or it was removed)\n"
    kept = text.splitlines()[-lines:]
    return "".join(f"{line}\n" for line in kept)
