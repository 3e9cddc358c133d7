"""What happens to a job, as server-sent events that can be taken up where they broke off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from stillhouse.search.errors import NotFoundError
from stillhouse.search.states import LIVE
from stillhouse.service.api.context import Ctx
from stillhouse.service.problems import documented

router = APIRouter(tags=["jobs"])
POLL_S = 0.5
RETRY_MS = 1000
LIFE_S = 30.0
"""A stream ends after so long and the client comes back for more: a server that stops waits no longer for it."""


@dataclass(frozen=True)
class Place:
    """A job and the last of its events that the client has seen."""

    job_id: str
    after: int


def place(job_id: str, ctx: Ctx, last_event_id: Annotated[int, Header(ge=0, le=2**63 - 1)] = 0) -> Place:
    """Finds the place; answers before the stream begins: 404 without the job, 204 when nothing will follow."""
    ended = ctx.ledger.job(job_id).state not in LIVE
    if ended and not ctx.ledger.events(job_id, after=last_event_id):
        raise HTTPException(204)
    return Place(job_id, last_event_id)


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses={204: {"description": "The job has ended and all its events were seen."}, **documented(404, 422)},
)
async def stream_events(ctx: Ctx, at: Annotated[Place, Depends(place)]) -> AsyncIterator[ServerSentEvent]:
    """A job's events as they come: ``job`` and ``trial``, with the new state.

    Each has an id; a client that sends the last one seen as ``Last-Event-ID``, as browsers do by themselves, gets
    what came after it. The stream ends with the job, and from time to time: come back until 204.
    """
    after, stop = at.after, time.monotonic() + LIFE_S
    yield ServerSentEvent(retry=RETRY_MS)
    while True:
        try:
            # The state is read first: what an ended job had to say is then in the events.
            state, last, *_ = await ctx.pulse.mark(ctx.ledger, at.job_id, age_s=POLL_S)
            new = await run_in_threadpool(ctx.ledger.events, at.job_id, after=after) if last != after else []
        except NotFoundError:
            return  # it was deleted
        for event in new:
            after = event.id
            yield ServerSentEvent(id=str(event.id), event=event.kind, data={"at": event.at, **event.data})
        if state not in LIVE or time.monotonic() > stop:
            return
        await asyncio.sleep(POLL_S)
