"""Health and catalogue."""

from __future__ import annotations

from fastapi import APIRouter

from stillhouse import __version__
from stillhouse.search.domain import Json
from stillhouse.service.api.context import Ctx

router = APIRouter(tags=["system"])


@router.get("/health")
def health(ctx: Ctx) -> dict[str, Json]:
    """Answers when the API and its database do."""
    live = ctx.ledger.jobs("queued", "running")
    return {"status": "ok", "version": __version__, "jobs_live": len(live)}


@router.get("/catalogue")
def catalogue(ctx: Ctx) -> dict[str, Json]:
    """What the workers can build: networks with their costs, methods with their knobs, weights."""
    return dict(ctx.catalogue())
