"""Models: list them, look at one, download its ONNX file or its bundle."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse

from stillhouse.search.domain import PRECISIONS, Deployment, Json
from stillhouse.service.api import examples
from stillhouse.service.api.context import Ctx
from stillhouse.service.api.files import SERVED, stored
from stillhouse.service.api.fronts import links
from stillhouse.service.api.paging import LINK, After, Limit, next_page, place_of
from stillhouse.service.bundles import Bundles
from stillhouse.service.db.lists import ModelFilter
from stillhouse.service.problems import documented
from stillhouse.service.report import front_entry, model_file_name

router = APIRouter(tags=["models"])
Precision = Literal["fp32", "fp16", "int8"]
assert Precision.__args__ == PRECISIONS  # type: ignore[attr-defined] # noqa: S101 - a literal cannot be computed
HIDDEN = frozenset({"right"})
"""Details that are only for comparing models."""
Known = Annotated[
    str | None, Header(alias="If-None-Match", description="ETags that the sender has; the file is not sent again.")
]


@router.get("/models", responses={**examples.given(examples.MODELS, headers=LINK), **documented(422)})
async def list_models(
    request: Request,
    ctx: Ctx,
    job: Annotated[str | None, Query(max_length=64, description="Only of this job.")] = None,
    dataset: Annotated[str | None, Query(max_length=64, description="Only of this data set's jobs.")] = None,
    arch: Annotated[str | None, Query(max_length=200, description="Only of this network.")] = None,
    precision: Annotated[Precision | None, Query(description="Only at this precision.")] = None,
    limit: Limit = 50,
    after: After = None,
) -> Response:
    """Models of all jobs, newest first, in pages: the ``Link`` header names the next one."""
    wanted, place = ModelFilter(None, dataset, job, arch, precision), place_of(after)

    def make() -> tuple[Json, dict[str, str]]:
        page = ctx.ledger.model_page(wanted, limit=limit + 1, after=place)
        last = page[limit - 1][0].cursor() if len(page) > limit else None
        return [_told(model) for _, model in page[:limit]], next_page(request, last)

    return await ctx.listed(request, make)


@router.get("/models/{model_id}", responses={**examples.given(examples.MODEL), **documented(404, 422)})
def get_model(model_id: str, ctx: Ctx) -> dict[str, Json]:
    """One model: what it is, what it costs, how accurate it is and how a picture must be prepared for it."""
    return _told(ctx.ledger.deployment(model_id))


@router.head("/models/{model_id}/onnx", response_class=FileResponse, include_in_schema=False)
@router.get(
    "/models/{model_id}/onnx",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file."},
        **SERVED,
    },
)
def download_onnx(model_id: str, ctx: Ctx, known: Known = None) -> Response:
    """The ONNX file; ranges are served, and the ETag is its sha256."""
    deployment = ctx.ledger.deployment(model_id)
    return stored(ctx.store, deployment.onnx_sha256, "application/octet-stream", model_file_name(deployment), known)


@router.head("/models/{model_id}/bundle", response_class=FileResponse, include_in_schema=False)
@router.get(
    "/models/{model_id}/bundle",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/zip": {}}, "description": "The zip."},
        **SERVED,
    },
)
def download_bundle(model_id: str, ctx: Ctx, known: Known = None) -> Response:
    """A zip with the ONNX file, labels, preprocessing, a model card, an example, and pictures with their outputs.

    It is made at the first request and then kept; ranges are served, and the ETag is its sha256.
    """
    deployment = ctx.ledger.deployment(model_id)
    sha256 = Bundles(ctx.ledger, ctx.store, ctx.settings).sha256(deployment)
    name = model_file_name(deployment).removesuffix(".onnx") + ".zip"
    return stored(ctx.store, sha256, "application/zip", name, known)


def _told(deployment: Deployment) -> dict[str, Json]:
    return {
        **front_entry(deployment, file=model_file_name(deployment)),
        "job": deployment.job_id,
        "trial": deployment.trial_number,
        "sha256": deployment.onnx_sha256,
        "links": links(deployment),
        "details": {name: value for name, value in deployment.details.items() if name not in HIDDEN},
    }
