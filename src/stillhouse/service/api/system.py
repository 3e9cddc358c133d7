"""Health and catalogue."""

from __future__ import annotations

import structlog
from fastapi import APIRouter
from starlette.exceptions import HTTPException

from stillhouse import __version__
from stillhouse.search.domain import Json
from stillhouse.service.api.context import Ctx
from stillhouse.service.problems import documented, traced

router = APIRouter(tags=["system"])
log = structlog.get_logger(__name__)


@router.get("/health", responses=documented(503))
def health(ctx: Ctx) -> dict[str, Json]:
    """Answers when the API and its database do; 503 when the database does not."""
    try:
        live = ctx.ledger.jobs("queued", "running")
    except Exception as error:
        log.error("the database does not answer", traceback=traced(error))
        raise HTTPException(503, "the database does not answer; the server's log has the details") from error
    return {"status": "ok", "version": __version__, "jobs_live": len(live)}


@router.get("/catalogue", responses=documented(503))
def catalogue(ctx: Ctx) -> dict[str, Json]:
    """What the workers can build: networks with their costs, methods with their knobs, weights."""
    return dict(ctx.catalogue())
