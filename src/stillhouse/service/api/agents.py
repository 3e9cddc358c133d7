"""What a device that measures asks for: its next attempt, whose token then opens the routes under ``/attempts``."""

from __future__ import annotations

import time
from typing import Annotated

import structlog
from fastapi import APIRouter
from fastapi import Path as ApiPath
from pydantic import BaseModel, Field

from stillhouse.search.devices import DeviceRecord, check_name
from stillhouse.search.domain import LOCAL, Json
from stillhouse.search.errors import ConflictError, UserError
from stillhouse.search.job import AttemptRecord
from stillhouse.service.api import examples
from stillhouse.service.api.context import Ctx
from stillhouse.service.db.lists import Lists
from stillhouse.service.problems import documented
from stillhouse.service.schemas import STRICT

router = APIRouter(tags=["devices"], prefix="/agents/{device}")
log = structlog.get_logger(__name__)
POLL_S = 1.0
"""Seconds after which a device without work shall ask again."""

Fact = Annotated[str, Field(max_length=500)] | int | float | None


class Announcement(BaseModel):
    """What a device is: its figures are kept apart by it."""

    model_config = STRICT

    runtime: Annotated[str, Field(min_length=1, max_length=200, description="What runs models, and its version.")]
    measure: Annotated[str, Field(min_length=1, max_length=64, description="Digest of the code that measures.")]
    host: Annotated[dict[str, Fact], Field(max_length=32, description="Facts about the machine.")]


@router.put("", responses={**examples.given(examples.WORK), **documented(403, 409, 422)})
def ask_for_work(
    device: Annotated[str, ApiPath(description="The device's name.")], body: Announcement, ctx: Ctx
) -> dict[str, Json]:
    """Announces a device, and gives the attempt that it is to do now; null when there is none.

    Asked again before the attempt has ended, the answer is the same attempt. A key needs the scope ``worker``.
    """
    check_name(device)
    if device == LOCAL:
        raise UserError(f"{LOCAL!r} is the machine that stages run on; take another name")
    new = DeviceRecord(device, body.runtime, body.measure, body.host)
    _check_same(ctx.ledger, new)
    ctx.ledger.see_device(new)
    attempt = _open_attempt(ctx.ledger, new)
    return {
        "attempt": None if attempt is None else {"id": attempt.id, "token": attempt.token},
        "poll_s": POLL_S,
    }


def _check_same(ledger: Lists, new: DeviceRecord) -> None:
    """Two machines under one name would throw each other's figures away without an end."""
    known = next((each for each in ledger.devices() if each.name == new.name), None)
    if known is None or known.code == new.code:
        return
    if known.host != new.host and known.at_hand(time.time()):
        raise ConflictError(
            f"another machine ({known.host.get('cpu')}, {known.host.get('cores')} cores) asks for work as "
            f"{new.name!r}; stop its agent, or take another name"
        )
    log.info("a device has changed; what it measured before counts no more", device=new.name, runtime=new.runtime)


def _open_attempt(ledger: Lists, device: DeviceRecord) -> AttemptRecord | None:
    """The device's open attempt; one for what the device was before is given up."""
    opened = ledger.open_attempts()
    plans = {key: stage.plan for key, stage in ledger.stages({each.stage_key for each in opened}).items()}
    for attempt in opened:
        plan = plans.get(attempt.stage_key)
        if plan is None or plan.device != device.name:
            continue
        if plan.code == device.code:
            return attempt
        ledger.lose(attempt.id, max_attempts=None, reason=f"{device.name} is another machine now, or runs other code")
    return None
