"""Resumable uploads of data sets.

::

    POST  /uploads {size, sha256}          -> id, offset (the same offer gives the same upload, wherever it is)
    PATCH /uploads/{id}  Upload-Offset: n  bytes from n on; as often as needed
    HEAD  /uploads/{id}                    -> Upload-Offset: where to go on after a break
    POST  /uploads/{id}/complete {name}    -> the data set
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from stillhouse.search.domain import Json
from stillhouse.search.errors import UserError
from stillhouse.search.failpoints import passing
from stillhouse.service.api import examples
from stillhouse.service.api.context import Ctx, told_bytes
from stillhouse.service.api.datasets import add_dataset
from stillhouse.service.problems import documented
from stillhouse.service.resumable import Offer, Uploads
from stillhouse.service.schemas import STRICT

router = APIRouter(tags=["datasets"], prefix="/uploads")
BYTES = {
    "requestBody": {
        "required": True,
        "content": {"application/offset+octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
ANSWER = examples.given(examples.UPLOAD)


class UploadRequest(BaseModel):
    """What is to come."""

    model_config = STRICT

    size: Annotated[int, Field(strict=True, description="Bytes of the zip.", examples=[52428800])]
    sha256: Annotated[str, Field(description="sha256 of the zip, 64 hex digits.", examples=["ab" * 32])]


class CompleteRequest(BaseModel):
    """The data set that the upload is to be."""

    model_config = STRICT

    name: Annotated[str | None, Field(description="How to call it.", examples=["birds.zip"])] = None
    skip_faults: Annotated[bool, Field(strict=True, description="Leave unreadable pictures out and go on.")] = False


def uploads_of(ctx: Ctx) -> Uploads:
    """The server's offers."""
    return Uploads(ctx.settings.uploads, most_bytes=ctx.settings.max_upload_bytes)


@router.post("", status_code=201, responses={**examples.given(examples.UPLOAD, status=201), **documented(422, 507)})
def create_upload(body: UploadRequest, response: Response, ctx: Ctx) -> dict[str, Json]:
    """Offers a zip that will be sent in pieces. The same offer gives the same upload, with what has come of it.

    Until it is completed, deleted, or left for a day, it counts with its whole size as what the key has uploaded.
    """
    uploads, owner = uploads_of(ctx), ctx.owner

    def check(offered: int, missing: int) -> None:
        ctx.check_room(missing)
        used = 0 if owner.key is None else ctx.ledger.dataset_bytes(owner.key)
        owner.check_dataset_bytes(used + offered, body.size)

    offer = uploads.offer(body.size, body.sha256, owner=owner.tenant, key=owner.key, check=check)
    response.headers["Location"] = f"/uploads/{offer.id}"
    return _told(uploads, offer, response)


@router.head("/{upload_id}", include_in_schema=False)
@router.get("/{upload_id}", responses={**ANSWER, **documented(404, 422)})
def get_upload(upload_id: str, response: Response, ctx: Ctx) -> dict[str, Json]:
    """How much of an upload has come: ``offset``, and the header ``Upload-Offset``, which ``HEAD`` gives too."""
    uploads = uploads_of(ctx)
    return _told(uploads, uploads.find(upload_id, owner=ctx.owner.tenant), response)


@router.patch("/{upload_id}", openapi_extra=BYTES, responses={**ANSWER, **documented(404, 409, 413, 422, 507)})
async def append_to_upload(
    upload_id: str,
    request: Request,
    response: Response,
    ctx: Ctx,
    upload_offset: Annotated[int, Header(ge=0, description="Where these bytes go: the upload's offset.")],
) -> dict[str, Json]:
    """Takes further bytes. What came before a break is kept; a wrong offset is a 409 that names the right one.

    Where the disk has no room for them it is a 507, and nothing of what this request brought is kept.
    """
    uploads = uploads_of(ctx)
    offer = await run_in_threadpool(uploads.find, upload_id, owner=ctx.owner.tenant)
    ctx.check_room(told_bytes(request))
    async with contextmanager_in_threadpool(uploads.opened(offer, upload_offset)) as file:
        async for chunk in request.stream():
            if file.tell() + len(chunk) > offer.size:
                raise UserError(f"the upload was offered with {offer.size} bytes, but more came")
            ctx.check_room()
            await run_in_threadpool(file.write, chunk)
            passing("piece.after")
    return _told(uploads, offer, response)


@router.post(
    "/{upload_id}/complete",
    status_code=202,
    responses={**examples.given(examples.DATASET, status=202), **documented(404, 409, 422, 503, 507)},
)
def complete_upload(upload_id: str, body: CompleteRequest, ctx: Ctx) -> dict[str, Json]:
    """Makes a data set of an upload that has come whole: its hash is checked, then it is read in the background."""
    uploads = uploads_of(ctx)
    offer = uploads.find(upload_id, owner=ctx.owner.tenant)
    ctx.catalogue()
    path = uploads.complete(offer)
    made = add_dataset(ctx, body.name or "upload.zip", str(path), offer.sha256, body.skip_faults)
    passing("dataset.after")
    uploads.drop(offer)
    return made


@router.delete("/{upload_id}", status_code=204, responses=documented(404, 422))
def delete_upload(upload_id: str, ctx: Ctx) -> Response:
    """Forgets an upload and what has come of it."""
    uploads = uploads_of(ctx)
    uploads.drop(uploads.find(upload_id, owner=ctx.owner.tenant))
    return Response(status_code=204)


def _told(uploads: Uploads, offer: Offer, response: Response) -> dict[str, Json]:
    offset = uploads.offset(offer)
    response.headers.update({"Upload-Offset": str(offset), "Upload-Length": str(offer.size)})
    response.headers["Cache-Control"] = "no-store"
    return {"id": offer.id, "offset": offset, "size": offer.size}
