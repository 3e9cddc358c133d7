"""Health, devices and catalogue."""

from __future__ import annotations

import time

import structlog
from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from stillhouse import __version__
from stillhouse.search.devices import DeviceRecord
from stillhouse.search.domain import LOCAL, Json
from stillhouse.search.errors import NotFoundError
from stillhouse.service.api import examples
from stillhouse.service.api.context import Ctx
from stillhouse.service.metrics import MEDIA_TYPE, exposition
from stillhouse.service.problems import documented, traced
from stillhouse.service.room import lack_of_room

router = APIRouter(tags=["system"])
log = structlog.get_logger(__name__)


@router.get("/health", responses={**examples.given(examples.HEALTH), **documented(503)})
def health(ctx: Ctx) -> dict[str, Json]:
    """Answers when the API and its database do; 503 when the database does not."""
    try:
        ctx.ledger.jobs_mark()
    except Exception as error:
        raise _gone(error) from error
    return {"status": "ok", "version": __version__}


@router.get("/health/live", responses=examples.given(examples.LIVE))
async def health_live() -> dict[str, Json]:
    """Answers while the process does: one that does not should be started again."""
    return {"status": "ok", "version": __version__}


@router.get("/health/ready", responses={**examples.given(examples.READY), **documented(503)})
def health_ready(ctx: Ctx) -> dict[str, Json]:
    """Answers when jobs can be taken; 503 with the reason while they cannot.

    That is while the database does not answer, no worker has told what it can do, or the disk has no room.
    """
    try:
        known = ctx.ledger.catalogue() is not None
    except Exception as error:
        raise _gone(error) from error
    if not known:
        raise HTTPException(503, "no worker has published its catalogue yet; start the controller once")
    lack = lack_of_room(ctx.settings)
    if lack is not None:
        raise HTTPException(503, lack)
    return {"status": "ready", "database": True, "catalogue": True}


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={**examples.given(examples.METRICS, media="text/plain"), **documented(403)},
)
def get_metrics(ctx: Ctx) -> Response:
    """Counts, times and states for Prometheus, of all tenants together; a key needs the scope ``worker``."""
    return Response(exposition(ctx.ledger, ctx.settings), media_type=MEDIA_TYPE)


@router.get("/devices", responses=examples.given(examples.DEVICES))
def list_devices(ctx: Ctx) -> list[dict[str, Json]]:
    """Devices that latency and memory can be measured on.

    ``local`` is the machine that stages run on, with the host's facts as last measured. The others announced themselves
    (``stillhouse agent``); ``at_hand`` tells whether one asked for work lately.
    """
    at, metrics = ctx.ledger.last_host() or (None, {})
    facts = {name: metrics.get(name) for name in ("host", "runtime", "threads")}
    here = {"name": LOCAL, "measured_at": at, **facts, "seen_at": None, "at_hand": True}
    now = time.time()
    return [here, *(_device(device, now) for device in ctx.ledger.devices())]


@router.delete("/devices/{device}", status_code=204, responses=documented(404, 422))
def forget_device(device: str, ctx: Ctx) -> Response:
    """Forgets a device; what it measured stays. One whose agent runs announces itself again at once."""
    if not ctx.ledger.forget_device(device):
        raise NotFoundError(f"no device {device[:64]!r}; GET /devices lists them")
    return Response(status_code=204)


@router.get("/catalogue", responses={**examples.given(examples.CATALOGUE), **documented(503)})
def catalogue(ctx: Ctx) -> dict[str, Json]:
    """What the workers can build: networks with their costs, methods with their knobs, weights.

    ``lacks`` of a network names by stem the precisions that its files fail in, and why: no such files are made of it;
    cells (``size|stem``) that differ from their stem stand there as well. ``excluded`` names networks that are no
    candidates, or not in these stems and cells, and why.
    """
    return dict(ctx.catalogue())


def _device(device: DeviceRecord, now: float) -> dict[str, Json]:
    known = {"name": device.name, "measured_at": None, "host": dict(device.host), "runtime": device.runtime}
    return {**known, "threads": None, "seen_at": device.seen_at, "at_hand": device.at_hand(now)}


def _gone(error: Exception) -> HTTPException:
    log.error("the database does not answer", traceback=traced(error))
    return HTTPException(503, "the database does not answer; the server's log has the details")
