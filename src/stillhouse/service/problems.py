"""Errors as problem documents (RFC 9457) that say what must hold, what came and what to do."""

from __future__ import annotations

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from stillhouse.search.domain import Json
from stillhouse.search.errors import DatasetError, NotFoundError, UserError

log = structlog.get_logger(__name__)


def problem(request: Request, status: int, title: str, detail: str, **more: Json) -> JSONResponse:
    """One problem document."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "instance": request.url.path}
    return JSONResponse({**body, **more}, status_code=status, media_type="application/problem+json")


def add_handlers(app: FastAPI) -> None:
    """Maps our errors, the framework's and unexpected ones."""

    @app.exception_handler(UserError)
    def user_error(request: Request, error: UserError) -> JSONResponse:
        status = 404 if isinstance(error, NotFoundError) else 422
        more = {"faults": list(error.faults)} if isinstance(error, DatasetError) else {}
        return problem(request, status, type(error).__name__.removesuffix("Error"), str(error), **more)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        parts = [f"{'.'.join(str(step) for step in entry['loc'])}: {entry['msg']}" for entry in error.errors()]
        return problem(request, 422, "Malformed request", "; ".join(parts))

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return problem(request, error.status_code, "HTTP error", str(error.detail))

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected error", path=request.url.path, exc_info=error)
        return problem(request, 500, "Internal error", "this is a fault of ours; the server's log has the details")
