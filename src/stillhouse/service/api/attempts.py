"""What a worker needs that holds no more than its attempt's token: its order, its lease, its files.

Each route is opened by the attempt's own token, and only while the attempt is open; that of its log for some minutes
more, so that the log tells of the end. These routes are for workers; no other key opens them, and they open nothing
else.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as ApiPath
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from stillhouse.search.domain import Json, StageResult
from stillhouse.search.errors import CorruptArtifactError, NotFoundError, StageError, StillhouseError, UserError
from stillhouse.search.job import AttemptRecord
from stillhouse.service.api.context import Context, Ctx
from stillhouse.service.api.files import RangedFile
from stillhouse.service.checkpoints import sha256_in
from stillhouse.service.claim import LOG_BYTES, Order, order_of
from stillhouse.service.logs import redact
from stillhouse.service.problems import documented
from stillhouse.service.schemas import STRICT
from stillhouse.service.settings import Settings

log = structlog.get_logger(__name__)
router = APIRouter(tags=["attempts"], prefix="/attempts/{attempt_id}")
REFUSED = documented(401, 404, 409)
FILE = {200: {"content": {"application/octet-stream": {}}, "description": "The file."}, **REFUSED, **documented(416)}
LOG_AFTER_S = 600.0
"""Seconds after its end that an attempt may still send its log."""
Again = Annotated[bool, Field(strict=True, description="An earlier call may have done it, whose answer was lost.")]
_TEXT = {"content": {"text/plain": {"schema": {"type": "string", "maxLength": LOG_BYTES}}}}
_LOST = "attempt {id} is {state}: it no longer holds its stage; stop without a result"


class Heartbeat(BaseModel):
    """How far an attempt is."""

    model_config = STRICT

    progress: dict[str, Json] = Field(default_factory=dict)


class Commit(BaseModel):
    """What an attempt leaves: artifacts by name (sha256), figures, and the seconds that it took."""

    model_config = STRICT

    artifacts: dict[str, str]
    metrics: dict[str, Json]
    seconds: Annotated[float, Field(ge=0)]
    again: Again = False


class Failure(BaseModel):
    """Why an attempt cannot be done, with a line for each fault."""

    model_config = STRICT

    reason: str
    faults: list[str] = Field(default_factory=list)
    again: Again = False


class GivenBack(BaseModel):
    """Why an attempt cannot go on now, and how long its stage shall wait."""

    model_config = STRICT

    reason: str
    wait_s: Annotated[float, Field(ge=0, le=3600)]


def named(attempt_id: Annotated[str, ApiPath(description="The attempt.")], request: Request) -> AttemptRecord:
    """The attempt whose token the gate has found in the request."""
    attempt: AttemptRecord = request.state.attempt
    if attempt.id != attempt_id:
        raise HTTPException(401, "this token is of another attempt")
    return attempt


Named = Annotated[AttemptRecord, Depends(named)]


def holder(attempt: Named) -> AttemptRecord:
    """As ``named``; raises a 409 when the attempt is no longer open."""
    if attempt.state != "open":
        raise HTTPException(409, _LOST.format(id=attempt.id, state=attempt.state))
    return attempt


Holder = Annotated[AttemptRecord, Depends(holder)]


def ordered(attempt: Holder, ctx: Ctx) -> Order:
    """What the attempt is to do."""
    settings = ctx.settings
    return order_of(ctx.ledger, attempt, lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s)


Ordered = Annotated[Order, Depends(ordered)]


@router.get("", responses=REFUSED)
def get_order(order: Ordered, attempt: Holder, ctx: Ctx) -> dict[str, Json]:
    """The attempt's plan, the results that it reads, the terms of its lease, and a checkpoint to go on from."""
    kept = ctx.checkpoints.newest(attempt.stage_key)
    return replace(order, checkpoint=kept, checkpoint_every_s=ctx.settings.checkpoint_every_s).to_json()


@router.get("/source", response_class=FileResponse, responses={**FILE, **documented(422)})
def get_source(order: Ordered) -> RangedFile:
    """The zip that an ingest stage reads."""
    if order.source is None:
        raise NotFoundError("this attempt reads no pictures that lie on the server")
    if not order.source.is_file():
        raise UserError(
            "a worker on another machine can read an uploaded zip, but no folder of the server; upload the data set "
            "as a zip, or ingest it with the local engine"
        )
    return RangedFile(order.source, media_type="application/octet-stream")


@router.get("/artifacts/{sha256}", response_class=FileResponse, responses={**FILE, **documented(422)})
def get_artifact(sha256: str, order: Ordered, ctx: Ctx) -> RangedFile:
    """A file that the attempt's plan names; there are no others."""
    if sha256 not in order.readable:
        raise NotFoundError(f"no such artifact among the attempt's inputs: {sha256[:64]!r}")
    try:
        return RangedFile(ctx.store.path(sha256), media_type="application/octet-stream")
    except CorruptArtifactError as error:
        raise UserError(str(error)) from error


@router.put(
    "/artifacts/{sha256}",
    status_code=204,
    dependencies=[Depends(holder)],
    responses={**REFUSED, **documented(413, 422)},
)
async def put_artifact(sha256: str, request: Request, ctx: Ctx) -> Response:
    """Keeps a file under the sha256 of its bytes, which is checked."""
    async with _received(request, ctx.settings.uploads) as (path, found):
        if found != sha256:
            raise UserError(f"the body must hash to {sha256[:64]!r}, but hashes to {found}; send it again")
        await run_in_threadpool(ctx.store.put, path)
    return Response(status_code=204)


@router.get("/checkpoints/{name}", response_class=StreamingResponse, responses=FILE)
def get_checkpoint(name: str, attempt: Holder, ctx: Ctx) -> StreamingResponse:
    """The checkpoint that the order names."""
    return StreamingResponse(ctx.checkpoints.read(attempt.stage_key, name), media_type="application/octet-stream")


@router.put("/checkpoints/{name}", status_code=204, responses={**REFUSED, **documented(413, 422)})
async def put_checkpoint(
    name: Annotated[str, ApiPath(description="checkpoint-EPOCH-SHA256.pt, of six and of 64 digits.")],
    attempt: Holder,
    request: Request,
    ctx: Ctx,
) -> Response:
    """Keeps the stage's newest checkpoint for an attempt on another machine; the older one goes."""
    expected = sha256_in(name)
    if expected is None:
        raise UserError(f"a checkpoint must be named checkpoint-EPOCH-SHA256.pt, but got {name[:100]!r}")
    async with _received(request, ctx.settings.uploads) as (path, found):
        if found != expected:
            raise UserError(f"the body must hash to {expected!r}, but hashes to {found}; send it again")
        await run_in_threadpool(ctx.checkpoints.keep, attempt.stage_key, name, path)
    return Response(status_code=204)


@router.put("/log", status_code=204, responses={**REFUSED, **documented(413)}, openapi_extra={"requestBody": _TEXT})
async def put_log(attempt: Named, request: Request, ctx: Ctx) -> Response:
    """Keeps the end of the attempt's log, for ``GET /jobs/{job_id}/trials/{number}/log``; the last one sent counts."""
    if attempt.ended_at is not None and time.time() - attempt.ended_at > LOG_AFTER_S:
        raise HTTPException(409, f"attempt {attempt.id} ended more than {LOG_AFTER_S:g} s ago; its log is closed")
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > LOG_BYTES:
            raise HTTPException(413, f"a log may have {LOG_BYTES:,} bytes; send its end")
    await run_in_threadpool(_keep_log, ctx.settings, attempt.id, bytes(text))
    return Response(status_code=204)


def _keep_log(settings: Settings, attempt_id: str, text: bytes) -> None:
    """Writes it beside the logs of attempts on this machine, whole or not at all."""
    for folder in (settings.uploads, settings.logs):
        folder.mkdir(parents=True, exist_ok=True)
    fresh = settings.uploads / f"{os.urandom(8).hex()}.tmp"
    try:
        fresh.write_text(redact(text.decode("utf-8", "replace")), encoding="utf-8")
        fresh.replace(settings.logs / f"{attempt_id}.log")
    finally:
        fresh.unlink(missing_ok=True)


@router.post("/renew", status_code=204, responses=REFUSED)
def renew(body: Heartbeat, attempt: Holder, ctx: Ctx) -> Response:
    """Heartbeat with the latest progress."""
    held = ctx.ledger.renew(attempt.id, attempt.token, lease_s=ctx.settings.lease_s, progress=body.progress)
    return _ended(held, attempt)


@router.post("/commit", status_code=204, responses={**REFUSED, **documented(422)})
def commit(body: Commit, attempt: Named, ctx: Ctx) -> Response:
    """Ends the stage with a result whose artifacts have been sent; sent again, it is told that it was done."""
    if body.again and attempt.state == "done":
        return Response(status_code=204)
    holder(attempt)
    for name, sha256 in body.artifacts.items():
        if not ctx.store.has(sha256):
            raise UserError(f"artifact {name!r} must be sent before it is committed, but {sha256[:64]!r} is not stored")
    try:
        result = StageResult(body.artifacts, body.metrics)
        held = ctx.ledger.commit(attempt.id, attempt.token, result, seconds=body.seconds)
    except StageError as error:
        raise UserError(str(error)) from error
    _drop_checkpoint(held, attempt, ctx)
    return _ended(held, attempt)


@router.post("/fail", status_code=204, responses=REFUSED)
def fail(body: Failure, attempt: Named, ctx: Ctx) -> Response:
    """Ends the stage for a fault that a retry will not cure; sent again, it is told that it was done."""
    if body.again and attempt.state == "failed":
        return Response(status_code=204)
    holder(attempt)
    held = ctx.ledger.fail(attempt.id, attempt.token, body.reason, faults=body.faults)
    _drop_checkpoint(held, attempt, ctx)
    return _ended(held, attempt)


@router.post("/give-back", status_code=204, responses={**REFUSED, **documented(422)})
def give_back(body: GivenBack, attempt: Holder, ctx: Ctx) -> Response:
    """Ends the attempt for what is not its stage's doing (a full disk): it is tried again later, and this is no try."""
    held = ctx.ledger.lose(attempt.id, max_attempts=None, wait_s=body.wait_s, reason=body.reason)
    return _ended(held, attempt)


def _drop_checkpoint(held: bool, attempt: AttemptRecord, ctx: Context) -> None:
    """Nobody goes on from a stage that has ended. What cannot be removed now goes when what is unneeded does."""
    if held:
        try:
            ctx.checkpoints.drop(attempt.stage_key)
        except (OSError, StillhouseError) as error:
            log.warning("a checkpoint was not removed", stage=attempt.stage_key, why=str(error))


def _ended(held: bool, attempt: AttemptRecord) -> Response:
    if not held:
        raise HTTPException(409, _LOST.format(id=attempt.id, state="lost"))
    return Response(status_code=204)


@asynccontextmanager
async def _received(request: Request, folder: Path) -> AsyncIterator[tuple[Path, str]]:
    """A file with the request's body, and its sha256; removed at the end."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    fresh, digest = folder / f"{os.urandom(8).hex()}.tmp", hashlib.sha256()
    try:
        with fresh.open("wb") as handle:
            async for chunk in request.stream():
                digest.update(chunk)
                await run_in_threadpool(handle.write, chunk)
        yield fresh, digest.hexdigest()
    finally:
        fresh.unlink(missing_ok=True)
