"""The audit log of a tenant's own doings."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Query, Request

from stillhouse.search.domain import Json
from stillhouse.service.accounts import Accounts, Caller
from stillhouse.service.problems import documented

router = APIRouter(tags=["system"])


@router.get("/audit", responses=documented(422))
def list_deeds(
    request: Request,
    before: Annotated[int | None, Query(ge=1, le=2**62, description="Only entries with a smaller id.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100,
) -> list[dict[str, Json]]:
    """What the tenant's keys changed, newest first: when, which key, what, with which status."""
    caller: Caller = request.state.caller
    accounts: Accounts = request.app.state.context.ledger.accounts
    return [dataclasses.asdict(deed) for deed in accounts.deeds(tenant=caller.tenant, before=before, limit=limit)]
