"""The API and the pages as one ASGI application. It reads and writes rows; the controller does the work."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import Depends, FastAPI

from stillhouse import __version__
from stillhouse.search.ports import ArtifactStore
from stillhouse.service.accounts import ServiceLedger
from stillhouse.service.api import (
    agents,
    attempts,
    audit,
    datasets,
    estimates,
    events,
    fronts,
    jobs,
    models,
    system,
    trials,
    uploads,
)
from stillhouse.service.api.context import Context
from stillhouse.service.api.kept import AtOnce
from stillhouse.service.api.query import known_query
from stillhouse.service.buckets import Buckets
from stillhouse.service.gate import Gate
from stillhouse.service.guard import Guard
from stillhouse.service.limits import BodyLimit, Room
from stillhouse.service.metrics import RequestMetrics
from stillhouse.service.openapi import describe
from stillhouse.service.problems import add_handlers
from stillhouse.service.resumable import Uploads
from stillhouse.service.settings import LOOPBACK, Settings
from stillhouse.service.web import pages, sign_in

_SWITCH_S = 0.0005
"""How long a thread may hold the interpreter while another waits for it. A query gives it up and asks for it back many
times; at Python's 5 ms each such time is felt by whoever waits for the query, or for the event loop."""


def create_app(ledger: ServiceLedger, store: ArtifactStore, settings: Settings) -> FastAPI:
    """Builds the application over a ledger and a store."""
    app = FastAPI(
        title="Stillhouse",
        version=__version__,
        description="From labelled pictures and a budget to ONNX models that fit the device.",
        docs_url=None,
        redoc_url=None,
        lifespan=_until_settled,
    )
    app.state.context = Context.whole(ledger, store, settings)
    Uploads(settings.uploads, most_bytes=settings.max_upload_bytes).clean()
    for part in (datasets, uploads, estimates, jobs, fronts, trials, events, models, attempts, agents, audit, system):
        app.include_router(part.router, dependencies=[Depends(known_query)])
    for page in (pages, sign_in):
        app.include_router(page.router)
    pages.mount(app)
    add_handlers(app)
    describe(app)
    app.add_middleware(AtOnce, kept=app.state.context.kept)
    app.add_middleware(Room)
    app.add_middleware(BodyLimit, most_bytes=settings.max_upload_bytes)
    app.add_middleware(
        Gate,
        ledger=ledger,
        always_keyed=settings.host not in LOOPBACK,
        buckets=Buckets(settings.requests_per_s, settings.request_burst),
        routes=lambda: app.routes,
        sign_in=sign_in.sign_in_page,
        changed=app.state.context.pulse.forget,
    )
    app.add_middleware(RequestMetrics)
    app.add_middleware(Guard, hosts=settings.hosts)  # added last: it stands outermost
    return app


@contextlib.asynccontextmanager
async def _until_settled(app: FastAPI) -> AsyncIterator[None]:
    """Who closes the ledger next must not take it away from a thread that still reads."""
    yield
    await app.state.context.kept.settled()
    await app.state.context.pulse.settled()


def serve_app(app: FastAPI, settings: Settings) -> None:
    """Serves it until the process is told to stop."""
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()  # what was imported stays: looking through it again and again held every answer up by 100 ms
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,  # what it says goes through ours, which hides secrets
        log_level="warning",
        timeout_graceful_shutdown=3,
    )
