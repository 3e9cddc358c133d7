"""Pages: server-rendered shells that scripts fill from the API. Everything is served from here; there is no CDN."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from stillhouse import __version__
from stillhouse.search.errors import NotFoundError
from stillhouse.service.api.context import Ctx
from stillhouse.service.api.datasets import BUILTIN

HERE = Path(__file__).parent
templates = Jinja2Templates(directory=HERE / "templates")
router = APIRouter(include_in_schema=False)


@router.get("/", response_class=HTMLResponse)
def index(request: Request) -> HTMLResponse:
    """All jobs."""
    return templates.TemplateResponse(request, "index.html", {"version": __version__})


@router.get("/ui/new", response_class=HTMLResponse)
def new_page(request: Request) -> HTMLResponse:
    """The form that starts a job; with ``?like=`` it is filled in from that one."""
    context = {"version": __version__, "builtin": BUILTIN}
    return templates.TemplateResponse(request, "new.html", context)


@router.get("/ui/jobs/{job_id}", response_class=HTMLResponse)
def job_page(job_id: str, request: Request, ctx: Ctx) -> HTMLResponse:
    """One job: its trials and its front."""
    try:
        job = ctx.ledger.job(job_id)
    except NotFoundError:
        return templates.TemplateResponse(request, "missing.html", {"version": __version__}, status_code=404)
    context = {"version": __version__, "job": job, "dataset": ctx.ledger.dataset(job.spec.dataset)}
    return templates.TemplateResponse(request, "job.html", context)


@router.get("/static/plotly.min.js")
def plotly() -> FileResponse:
    """The plotly.js that ships in the plotly wheel."""
    path = Path(str(resources.files("plotly").joinpath("package_data", "plotly.min.js")))
    return FileResponse(path, media_type="text/javascript", headers={"Cache-Control": "public, max-age=86400"})


def mount(app: FastAPI) -> None:
    """Serves scripts and styles; after the routes, so that plotly.js is found first."""
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
