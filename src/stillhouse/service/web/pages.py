"""Pages: server-rendered shells that scripts fill from the API. Everything is served from here; there is no CDN."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from stillhouse import __version__
from stillhouse.search.domain import CHANNELS, COST_OBJECTIVES, Budget, Json
from stillhouse.search.errors import NotFoundError
from stillhouse.search.job import SAMPLERS, JobSpec
from stillhouse.service.api.context import Ctx
from stillhouse.service.api.datasets import BUILTIN

HERE = Path(__file__).parent
CHOICES: Mapping[str, tuple[str, ...]] = {
    "sampler": SAMPLERS,
    "objectives": COST_OBJECTIVES,
    "ablate": ("none", "best", "all"),
    "schedule": ("one_cycle", "cosine"),
    "colour": tuple(CHANNELS),
    "codec": ("jpeg", "webp"),
}
"""What a field of the search may hold, where the API's schema has no ``enum`` that says so."""
HINTS: Mapping[str, str] = {
    "sampler": "Who proposes candidates; auto takes what is expected to add most to the front per second.",
    "method": "How students are trained; tas goes through an assistant, supervised has no teacher.",
    "task": "What the networks learn to do.",
    "objectives": "Costs that the front is drawn over, beside accuracy.",
    "teacher": "A network of timm. Those with trained weights here are listed first.",
    "epochs": "Passes over the training pictures.",
    "ablate": "Which members of the front are also trained without a teacher and by plain distillation; the best on "
    "validation is kept.",
    "max_device_s": "The search stops once all workers together have spent so much.",
    "classes": "Take the first so many classes by name; empty takes all.",
    "teacher_checkpoint": "sha256 of weights kept here to start the teacher from.",
}
"""In the form's words, where a docstring speaks to programmers."""
_EXPLAINED = re.compile(r"^    (\w+(?:, \w+)*): ((?:.*\n?)(?:^ {8}.*\n?)*)", re.MULTILINE)
templates = Jinja2Templates(directory=HERE / "templates")
router = APIRouter(include_in_schema=False)


@router.get("/", response_class=HTMLResponse)
def index(request: Request) -> HTMLResponse:
    """All jobs."""
    return templates.TemplateResponse(request, "index.html", {"version": __version__})


@router.get("/ui/new", response_class=HTMLResponse)
def new_page(request: Request) -> HTMLResponse:
    """The form that starts a job; with ``?like=`` it is filled in from that one."""
    context = {"version": __version__, "builtin": BUILTIN, "known": known_of_forms()}
    return templates.TemplateResponse(request, "new.html", context)


def known_of_forms() -> dict[str, Json]:
    """What the API's schema does not say of a job's fields: the limits, what may be chosen, and what each field is."""
    return {
        "limits": [item.name for item in fields(Budget) if item.name != "device"],
        "choices": {name: list(values) for name, values in CHOICES.items()},
        "help": {**explained(Budget), **explained(JobSpec), **HINTS},
    }


def explained(cls: type) -> dict[str, str]:
    """The attributes of a class in the words of its docstring; empty where Python runs without docstrings."""
    attributes = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    found = {}
    for names, text in _EXPLAINED.findall(attributes):
        for name in names.split(", "):
            found[name] = " ".join(text.replace("``", "").split())
    return found


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
