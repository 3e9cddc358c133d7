"""Query parameters that a route does not know are refused: passed over, they would seem to have been heeded."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError

from stillhouse.service.problems import unknown


async def known_query(request: Request) -> None:  # not in a thread: it does nothing that waits
    """For every route of the API: raises RequestValidationError for what it does not know."""
    if not request.url.query:
        return
    known = set(_names(request.scope["route"].dependant))
    others = [name for name in dict.fromkeys(request.query_params) if name not in known]
    if others:
        raise RequestValidationError(
            [{"type": "unknown", "loc": ("query", name[:80]), "msg": unknown(name, known)} for name in others]
        )


def _names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _names(inner)
