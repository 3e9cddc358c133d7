"""Errors as problem documents (RFC 9457) that say what must hold, what came and what to do."""

from __future__ import annotations

import dataclasses
import difflib
import traceback
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from stillhouse.search.domain import Json
from stillhouse.search.errors import (
    AwayError,
    BudgetError,
    ConflictError,
    DatasetError,
    InfeasibleError,
    NotFoundError,
    QuotaError,
    StillhouseError,
    UnknownNameError,
    UserError,
)
from stillhouse.service.resumable import OffsetError
from stillhouse.service.room import NoRoomError, disk_full, lack_of_room

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"


class ReusedKeyError(UserError):
    """An ``Idempotency-Key`` that stands for another request."""


_IO_WORDS = "disk I/O error"
"""What SQLite says, too, when the file that its processes share cannot grow."""
_WAS_FULL = "the server's disk, or what may be used of it, was full; make room there, then send the request again"
KINDS: Mapping[str, tuple[str, type[StillhouseError] | None]] = {
    "request": ("The request cannot be met", UserError),
    "malformed": ("The request is malformed", None),
    "budget": ("A limit is malformed", BudgetError),
    "infeasible": ("Nothing can meet the budget", InfeasibleError),
    "dataset": ("The data set cannot be used", DatasetError),
    "unknown-name": ("A name is unknown", UnknownNameError),
    "not-found": ("There is no such thing", NotFoundError),
    "conflict": ("The present state forbids this", ConflictError),
    "upload-offset": ("The upload is elsewhere", OffsetError),
    "key-reused": ("The Idempotency-Key stands for another request", ReusedKeyError),
    "quota": ("The key has used up what it may have", QuotaError),
    "unknown-host": ("The server has another name", None),
    "cross-site": ("A page of another site asks", None),
    "away": ("The database does not answer", AwayError),
    "no-room": ("The disk has no room", NoRoomError),
}
"""Problem types by the last part of their address, ``/problems/NAME``: a title, and the error that is told so. What
these do not name is an ``about:blank``, whose title is the status's own. The page ``docs/problems.md`` tells of each.
"""
PREFIX = "/problems/"
_OF_ERRORS = {error: name for name, (_, error) in KINDS.items() if error is not None}
EXAMPLES: Mapping[int, tuple[str | None, str]] = {
    400: (None, "There was an error parsing the body"),
    401: (None, "this server asks for a key; send one: Authorization: Bearer KEY"),
    403: (None, "this needs a key with the scope write, but key_0123456789ab has read"),
    404: ("not-found", "no such job: 'job_0123456789ab'; ids are given when it is made, and listed by kind"),
    409: (
        "conflict",
        "costs are known once a data set is ready, but ds_0123456789ab is pending; wait until it is ready",
    ),
    413: (None, "a request's body may have at most 4294967296 bytes; STILLHOUSE_MAX_UPLOAD_BYTES says how many"),
    416: (None, "the range bytes=9- must begin below the file's 4000 bytes; ask for its length by HEAD"),
    422: ("budget", "min_accuracy must lie between 0 and 1 (0.9 means 90 %), but got 90.0"),
    429: (None, "too many requests; send the next one in 0.3 s"),
    503: (None, "no worker has published its catalogue yet; start the controller once"),
    507: ("no-room", "the disk has 900 MiB left, and at least 1024 MiB must be free; make room"),
}


class Problem(BaseModel):
    """A problem document."""

    model_config = ConfigDict(extra="forbid")

    type: Annotated[
        str,
        Field(
            description="A kind of problem, the same each time, for programs to go by; about:blank says no more than "
            "the status.",
            json_schema_extra={"enum": ["about:blank", *(PREFIX + name for name in KINDS)]},
        ),
    ]
    title: Annotated[str, Field(description="The kind in words.")]
    status: int
    detail: Annotated[str, Field(description="What must hold, what came, and what to do.")]
    instance: str
    faults: Annotated[list[str] | None, Field(description="One line a picture that cannot be used.")] = None


def problem(request: Request, status: int, detail: str, kind: str | None = None, **more: Json) -> JSONResponse:
    """One problem document; a ``kind`` is one of ``KINDS``."""
    instance = _clean(request.url.path)
    head = _head(status, kind)
    body = Problem(
        type=head["type"], title=head["title"], status=status, detail=_clean(detail), instance=instance, **more
    )
    return JSONResponse(body.model_dump(exclude_none=True), status_code=status, media_type=MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route's OpenAPI entry says about these errors, each with an example."""
    schema = Problem.model_json_schema()
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        kind, detail = EXAMPLES[status]
        example = {**_head(status, kind), "status": status, "detail": detail, "instance": "/jobs"}
        found[status] = {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
        }
    return found


def _head(status: int, kind: str | None) -> dict[str, str]:
    if kind is None:
        return {"type": "about:blank", "title": HTTPStatus(status).phrase}
    return {"type": PREFIX + kind, "title": KINDS[kind][0]}


def kind_of(error: StillhouseError) -> str:
    """The kind of the nearest of its classes that has one."""
    return next(_OF_ERRORS[each] for each in type(error).__mro__ if each in _OF_ERRORS)


def explain(errors: list[Any], body: object = None) -> str:
    """What pydantic complains about, each complaint headed by the field's name.

    Args:
        errors: As pydantic tells them.
        body: The model of the body, which knows the fields that there are.
    """
    places = ((".".join(str(step) for step in entry["loc"]) or "body", _said(entry, body)) for entry in errors)
    plain = ((place, message.removeprefix("Value error, ").replace("valid tuple", "list")) for place, message in places)
    return "; ".join(f"{place}: {message}" for place, message in plain)


def unknown(name: str, known: Iterable[str]) -> str:
    """That a name is none of those known, with the near ones, or all."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:80], names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}? known: " if close else "known: "
    return f"there is no such name here; {hint}{', '.join(names) or 'none'}"


def _said(entry: Mapping[str, Any], body: object) -> str:
    message: str = entry["msg"]
    if entry["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return message
    *steps, name = entry["loc"][1:] if entry["loc"][0] == "body" else entry["loc"]
    known = _fields(body, steps)
    return unknown(str(name), known) if known else message


def _fields(kind: object, steps: Iterable[object]) -> Iterable[str]:
    """Names of the fields that a body has at a place in it; none where it is not known."""
    for step in steps:
        fields = getattr(kind, "model_fields", {})
        if step not in fields:
            return ()
        kind = fields[step].annotation
    if dataclasses.is_dataclass(kind):
        return [item.name for item in dataclasses.fields(kind)]
    return list(getattr(kind, "model_fields", ()))


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
    answer = problem(request, 503, detail, "away")
    answer.headers["Retry-After"] = "5"
    return answer


def full(request: Request, error: BaseException) -> JSONResponse:
    """A 507: the disk is full, or as full as it may be."""
    log.error("the disk is full", path=request.url.path, error=str(error))
    lack = lack_of_room(request.app.state.context.settings)
    detail = str(error) if isinstance(error, NoRoomError) else lack or _WAS_FULL
    return problem(request, 507, detail, "no-room")


def add_handlers(app: FastAPI) -> None:
    """Maps our errors and the framework's; what nobody expected is the guard's."""

    @app.exception_handler(UserError)
    def user_error(request: Request, error: UserError) -> JSONResponse:
        status = status_of(error)
        more = {"faults": [_clean(fault) for fault in error.faults]} if isinstance(error, DatasetError) else {}
        answer = problem(request, status, str(error), kind_of(error), **more)
        if isinstance(error, OffsetError):
            answer.headers["Upload-Offset"] = str(error.offset)
        return answer

    app.add_exception_handler(AwayError, away)  # type: ignore[arg-type]  # it is given no other
    app.add_exception_handler(NoRoomError, full)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        field = getattr(request.scope.get("route"), "body_field", None)
        told = explain(list(error.errors()), None if field is None else field.field_info.annotation)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and any(tuple(each["loc"]) == ("body",) for each in error.errors()):
            told += f"; send JSON as application/json, for the content type is {kind[:80]!r}"
        return problem(request, 422, told, "malformed")

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code in (204, 304):
            return Response(status_code=error.status_code, headers=error.headers)
        detail, headers = str(error.detail), dict(error.headers or {})
        if error.status_code == 405:  # the framework names the methods of the first route with this address alone
            headers["Allow"] = ", ".join(sorted(_methods(app.routes, request.scope["path"])))
            detail = f"this address takes {headers['Allow']}, but got {request.method}; /openapi.json lists all routes"
        answer = problem(request, error.status_code, detail)
        answer.headers.update(headers)
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
