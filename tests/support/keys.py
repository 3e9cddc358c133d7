"""Keys for tests, and all that a server can be asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from starlette.routing import BaseRoute, Mount

from served import Served
from stillhouse.service.accounts import SCOPES, create_key


def make_key(served: Served, *scopes: str, tenant: str = "default", expires_in_s: float | None = None) -> str:
    now = time.time()
    expires_at = None if expires_in_s is None else now + expires_in_s
    accounts = served.ledger.accounts
    return create_key(accounts, "n", tenant=tenant, scopes=scopes or SCOPES, now=now, expires_at=expires_at)[1]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def every_route(routes: list[BaseRoute], *, fill: bool = True) -> Iterator[tuple[str, str]]:
    """(method, address) of all that can be asked for, also where the OpenAPI document is silent."""
    for route in routes:
        if isinstance(route, Mount):
            continue  # styles and scripts
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from every_route(included.routes, fill=fill)
            continue
        for method in sorted(getattr(route, "methods", None) or ()):
            path: str = route.path  # type: ignore[attr-defined]
            yield method, re.sub(r"\{[^}]+\}", "x1", path) if fill else path
