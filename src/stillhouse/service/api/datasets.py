"""Data sets: upload a zip, name a built-in one, or name a folder that the server allows."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from stillhouse.search.domain import Json
from stillhouse.search.errors import DatasetError, UserError
from stillhouse.search.plan import ingest_plan
from stillhouse.service.api import examples
from stillhouse.service.api.context import Context, Ctx, told_bytes
from stillhouse.service.digest import source_digest
from stillhouse.service.problems import documented, explain
from stillhouse.service.schemas import DatasetRequest, dataset_json
from stillhouse.service.upload import receive_zip

router = APIRouter(tags=["datasets"])
BUILTIN = ("textures",)
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "An ImageFolder zip."},
                        "name": {"type": "string"},
                        "skip_faults": {"type": "boolean"},
                    },
                }
            },
            "application/json": {
                "schema": DatasetRequest.model_json_schema(),
                "examples": {"built in": {"value": {"builtin": "textures"}}},
            },
        },
    }
}


@router.post(
    "/datasets",
    status_code=202,
    openapi_extra=BODY,
    responses={**examples.given(examples.DATASET, status=202), **documented(413, 422, 503, 507)},
)
async def create_dataset(request: Request, ctx: Ctx) -> dict[str, Json]:
    """Takes a data set; it is read in the background. The same pictures give the same data set."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        await run_in_threadpool(ctx.catalogue)  # refuses before anything is kept
        ctx.check_room(told_bytes(request))
        space = await run_in_threadpool(ctx.space)

        def check(size: int) -> None:
            space(size)
            ctx.check_room()

        upload = await receive_zip(request, ctx.settings.uploads, check)
        skip = upload.fields.get("skip_faults", "").lower() in ("1", "true", "yes", "on")
        return await run_in_threadpool(add_dataset, ctx, upload.name, str(upload.path), upload.digest, skip)
    if kind != "application/json":
        raise DatasetError(
            f"send a zip as multipart/form-data or JSON as application/json, but the type is {kind[:80]!r}"
        )
    try:
        wanted = DatasetRequest.model_validate_json(await request.body(), strict=True)
    except ValidationError as error:
        raise DatasetError(explain(error.errors(), DatasetRequest)) from None
    return await run_in_threadpool(_named, ctx, wanted)


@router.get("/datasets", responses=examples.given(examples.DATASETS))
def list_datasets(ctx: Ctx) -> list[dict[str, Json]]:
    """All data sets, oldest first."""
    return [dataset_json(record) for record in ctx.ledger.datasets()]


@router.get("/datasets/{dataset_id}", responses={**examples.given(examples.DATASET), **documented(404, 422)})
def get_dataset(dataset_id: str, ctx: Ctx) -> dict[str, Json]:
    """One data set: state, faults, class histogram, size statistics, bytes-per-picture curve."""
    return dataset_json(ctx.ledger.dataset(dataset_id))


@router.delete("/datasets/{dataset_id}", status_code=204, responses=documented(404, 409, 422))
def delete_dataset(dataset_id: str, ctx: Ctx) -> Response:
    """Forgets a data set; one that is being read, or has jobs, is a 409: delete those first."""
    ctx.ledger.delete_dataset(dataset_id)
    return Response(status_code=204)


def _named(ctx: Context, wanted: DatasetRequest) -> dict[str, Json]:
    if (wanted.builtin is None) == (wanted.path is None):
        raise DatasetError("give either 'builtin' or 'path'")
    if wanted.builtin is not None:
        if wanted.builtin not in BUILTIN:
            raise DatasetError(f"built-in data sets are {', '.join(BUILTIN)}, but got {wanted.builtin!r}")
        return add_dataset(ctx, wanted.name or wanted.builtin, wanted.builtin, wanted.builtin, wanted.skip_faults)
    path = _allowed(ctx, str(wanted.path))
    return add_dataset(ctx, wanted.name or path.name, str(path), source_digest(path), wanted.skip_faults)


def _allowed(ctx: Context, text: str) -> Path:
    root = ctx.settings.allowed_folder
    if root is None:
        raise UserError("this server reads no folders; upload a zip, or set STILLHOUSE_ALLOWED_FOLDER on the server")
    try:
        path = (root / text).resolve()
        found = path.is_relative_to(root.resolve()) and path.exists()
    except (OSError, ValueError):  # too long for the file system, or with a NUL
        found = False
    if not found:
        raise DatasetError(f"no data set {text[:200]!r} under the folder that this server allows")
    return path


def add_dataset(ctx: Context, name: str, source: str, digest: str, skip_faults: bool) -> dict[str, Json]:
    """Stores a data set that is yet to be read."""
    plan = ingest_plan(source, digest, skip_faults, ctx.catalogue().get("code", {}))
    kept = Path(source)
    source_bytes = kept.stat().st_size if kept.parent == ctx.settings.uploads else 0
    return dataset_json(ctx.ledger.add_dataset(name, plan, source_bytes=source_bytes))
