"""The API and the pages as one ASGI application. It reads and writes rows; the controller does the work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from stillhouse import __version__
from stillhouse.search.ports import ArtifactStore, Ledger
from stillhouse.service.api import datasets, jobs, models, system
from stillhouse.service.api.context import Context
from stillhouse.service.limits import BodyLimit
from stillhouse.service.problems import add_handlers
from stillhouse.service.settings import Settings
from stillhouse.service.web import pages

SECURITY_HEADERS = {
    # plotly.js writes style attributes and draws its download picture from a blob; scripts come from here alone.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "testserver")


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
    for router in (datasets.router, jobs.router, models.router, system.router, pages.router):
        app.include_router(router)
    pages.mount(app)
    add_handlers(app)

    @app.middleware("http")
    async def headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    app.add_middleware(BodyLimit, most_bytes=settings.max_upload_bytes)
    if settings.host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    return app
