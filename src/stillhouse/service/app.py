"""The API and the pages as one ASGI application. It reads and writes rows; the controller does the work."""

from __future__ import annotations

from fastapi import FastAPI

from stillhouse import __version__
from stillhouse.search.ports import ArtifactStore, Ledger
from stillhouse.service.api import datasets, estimates, events, jobs, models, system
from stillhouse.service.api.context import Context
from stillhouse.service.guard import LOOPBACK, Guard
from stillhouse.service.limits import BodyLimit
from stillhouse.service.problems import add_handlers
from stillhouse.service.settings import Settings
from stillhouse.service.web import pages


def create_app(ledger: Ledger, store: ArtifactStore, settings: Settings) -> FastAPI:
    """Builds the application over a ledger and a store."""
    app = FastAPI(
        title="Stillhouse",
        version=__version__,
        description="From labelled pictures and a budget to ONNX models that fit the device.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = Context(ledger, store, settings)
    for part in (datasets, estimates, jobs, events, models, system, pages):
        app.include_router(part.router)
    pages.mount(app)
    add_handlers(app)
    app.add_middleware(BodyLimit, most_bytes=settings.max_upload_bytes)
    app.add_middleware(Guard, hosts=LOOPBACK if settings.host in LOOPBACK else None)  # added last: it stands outermost
    return app
