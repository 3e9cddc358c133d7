"""Lists in pages: how many lines, from where, and the ``Link`` header that names the next page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request

from stillhouse.service.db.lists import Place

Limit = Annotated[int, Query(ge=1, le=1000, description="Most lines of a page.")]
After = Annotated[
    str | None, Query(max_length=200, description="Where the last page ended; the Link header names the next page.")
]
LINK: Mapping[str, Any] = {
    "Link": {"description": 'Address of the next page, rel="next"; absent on the last.', "schema": {"type": "string"}}
}

LIST_AGE_S = 1.0
"""Seconds that a list is given again: what trials have reached and ETAs move on without a mark."""


def place_of(after: str | None) -> Place | None:
    """The place that a cursor names; raises UserError for what is none."""
    return None if after is None else Place.parse(after)


def next_page(request: Request, after: str | None) -> dict[str, str]:
    """The header that names the page after this place; none after the last."""
    if after is None:
        return {}
    url = request.url.include_query_params(after=after)
    return {"Link": f'<{url.path}?{url.query}>; rel="next"'}
