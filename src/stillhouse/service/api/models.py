"""Models: look at one, download its ONNX file."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import FileResponse

from stillhouse.search.domain import Json
from stillhouse.service.api.context import Ctx
from stillhouse.service.problems import documented
from stillhouse.service.report import front_entry, model_file_name

router = APIRouter(tags=["models"])


@router.get("/models/{model_id}", responses=documented(404, 422))
def get_model(model_id: str, ctx: Ctx) -> dict[str, Json]:
    """One model: what it is, what it costs, how accurate it is and how a picture must be prepared for it."""
    deployment = ctx.ledger.deployment(model_id)
    return {
        **front_entry(deployment, file=model_file_name(deployment)),
        "job": deployment.job_id,
        "sha256": deployment.onnx_sha256,
        "details": {name: value for name, value in deployment.details.items() if name != "right"},
    }


@router.head("/models/{model_id}/onnx", response_class=FileResponse, include_in_schema=False)
@router.get(
    "/models/{model_id}/onnx",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file."}, **documented(404, 422)},
)
def download_onnx(model_id: str, ctx: Ctx) -> FileResponse:
    """The ONNX file; ranges are served, and the ETag is its sha256."""
    deployment = ctx.ledger.deployment(model_id)
    return FileResponse(
        ctx.store.path(deployment.onnx_sha256),
        media_type="application/octet-stream",
        filename=model_file_name(deployment),
        headers={"ETag": f'"{deployment.onnx_sha256}"'},
    )
