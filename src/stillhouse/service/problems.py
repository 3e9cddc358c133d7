"""Errors as problem documents (RFC 9457) that say what must hold, what came and what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from stillhouse.search.domain import Json
from stillhouse.search.errors import AwayError, ConflictError, DatasetError, NotFoundError, QuotaError, UserError
from stillhouse.service.room import NoRoomError, disk_full, lack_of_room

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
_IO_WORDS = "disk I/O error"
"""What SQLite says, too, when the file that its processes share cannot grow."""
_WAS_FULL = "the server's disk, or what may be used of it, was full; make room there, then send the request again"
EXAMPLES: Mapping[int, tuple[str, str]] = {
    400: ("Bad Request", "There was an error parsing the body"),
    401: ("Unauthorized", "this server asks for a key; send one: Authorization: Bearer KEY"),
    403: ("Forbidden", "this needs a key with the scope write, but key_0123456789ab has read"),
    404: ("NotFound", "no such job: 'job_0123456789ab'; ids are given when it is made, and listed by kind"),
    409: (
        "Conflict",
        "costs are known once a data set is ready, but ds_0123456789ab is pending; wait until it is ready",
    ),
    413: ("Too large", "a request's body may have at most 4294967296 bytes; STILLHOUSE_MAX_UPLOAD_BYTES says how many"),
    422: ("Budget", "min_accuracy must lie between 0 and 1 (0.9 means 90 %), but got 90.0"),
    429: ("Too Many Requests", "too many requests; send the next one in 0.3 s"),
    503: ("Service Unavailable", "no worker has published its catalogue yet; start the controller once"),
    507: ("Insufficient Storage", "the disk has 900 MiB left, and at least 1024 MiB must be free; make room"),
}


class Problem(BaseModel):
    """A problem document."""

    model_config = ConfigDict(extra="forbid")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    faults: list[str] | None = None


def problem(request: Request, status: int, title: str, detail: str, **more: Json) -> JSONResponse:
    """One problem document."""
    body = Problem(title=_clean(title), status=status, detail=_clean(detail), instance=_clean(request.url.path), **more)
    return JSONResponse(body.model_dump(exclude_none=True), status_code=status, media_type=MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route's OpenAPI entry says about these errors, each with an example."""
    schema = Problem.model_json_schema()
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        title, detail = EXAMPLES[status]
        example = {"type": "about:blank", "title": title, "status": status, "detail": detail, "instance": "/jobs"}
        found[status] = {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
        }
    return found


def explain(errors: list[Any]) -> str:
    """What pydantic complains about, each complaint headed by the field's name."""
    places = ((".".join(str(step) for step in entry["loc"]) or "body", entry["msg"]) for entry in errors)
    plain = ((place, message.removeprefix("Value error, ").replace("valid tuple", "list")) for place, message in places)
    return "; ".join(f"{place}: {message}" for place, message in plain)


def traced(error: BaseException) -> str:
    """The traceback as plain text: without the values of variables, which may be secret."""
    return "".join(traceback.format_exception(error))


def status_of(error: UserError) -> int:
    """The HTTP status of a request that cannot be met."""
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, ConflictError):
        return 409
    if isinstance(error, QuotaError):
        return 429 if error.passes else 403
    return 422


def away(request: Request, error: AwayError) -> JSONResponse:
    """A 503; what the error says of the database is for the operator's log. A 507 where its disk is full."""
    if disk_full(error) or (_IO_WORDS in str(error) and lack_of_room(request.app.state.context.settings) is not None):
        return full(request, error)
    log.error("the database does not answer", path=request.url.path, error=str(error))
    detail = "the database does not answer now; nothing is lost, send the request again"
    answer = problem(request, 503, HTTPStatus(503).phrase, detail)
    answer.headers["Retry-After"] = "5"
    return answer


def full(request: Request, error: BaseException) -> JSONResponse:
    """A 507: the disk is full, or as full as it may be."""
    log.error("the disk is full", path=request.url.path, error=str(error))
    lack = lack_of_room(request.app.state.context.settings)
    detail = str(error) if isinstance(error, NoRoomError) else lack or _WAS_FULL
    return problem(request, 507, HTTPStatus(507).phrase, detail)


def add_handlers(app: FastAPI) -> None:
    """Maps our errors and the framework's; what nobody expected is the guard's."""

    @app.exception_handler(UserError)
    def user_error(request: Request, error: UserError) -> JSONResponse:
        status = status_of(error)
        more = {"faults": [_clean(fault) for fault in error.faults]} if isinstance(error, DatasetError) else {}
        return problem(request, status, type(error).__name__.removesuffix("Error"), str(error), **more)

    app.add_exception_handler(AwayError, away)  # type: ignore[arg-type]  # it is given no other
    app.add_exception_handler(NoRoomError, full)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem(request, 422, "Malformed request", explain(list(error.errors())))

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code in (204, 304):
            return Response(status_code=error.status_code, headers=error.headers)
        answer = problem(request, error.status_code, HTTPStatus(error.status_code).phrase, str(error.detail))
        answer.headers.update(error.headers or {})
        if error.status_code == 405:  # the framework names the methods of the first route with this address alone
            answer.headers["Allow"] = ", ".join(sorted(_methods(app.routes, request.scope["path"])))
        return answer


def _methods(routes: Iterable[BaseRoute], path: str) -> set[str]:
    found: set[str] = set()
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            found |= _methods(inner.routes, path)
        elif isinstance(route, Route) and route.path_regex.match(path):
            found |= route.methods or set()
    return found


def _clean(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
