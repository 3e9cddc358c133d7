"""What every request and answer passes: who may ask, and the headers that tell browsers what they may do.

A page of another site must not make a browser act here. Two checks see to it: the ``Host`` must be a name of
this machine while the server listens on loopback, or one that the operator named (against DNS rebinding), and a
request that changes something must not come from another site's page. Browsers say so in ``Sec-Fetch-Site``, or,
where the connection is not encrypted, in ``Origin``; other clients send neither. Each request gets an id, which stands
in the answer, in the log and in the audit log.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit
from uuid import uuid4

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse.service.problems import problem, traced

log = structlog.get_logger(__name__)

SECURITY_HEADERS = {
    # plotly.js writes style attributes and draws its download picture from a blob; scripts come from here alone.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none at all, a form of ours would send no Origin
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[^\[\]:]+))(?::\d+)?")
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Refuses what must not be asked, adds the security headers, and turns an unexpected error into a problem.

    Args:
        app: The application behind it.
        hosts: Names that ``Host`` may give; None takes any.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, started = Request(scope), False
        request.state.request_id = uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request.state.request_id)

        async def secured(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-Id"] = request.state.request_id
                if not request.scope["path"].startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-store")  # it differs by key
            await send(message)

        refusal = self._refusal(request)
        if refusal is not None:
            await problem(request, *refusal)(scope, receive, secured)
            return
        try:
            await self._app(scope, receive, secured)
        except ClientDisconnect:
            log.info("client went away", path=request.url.path)
        except Exception as error:
            if started:
                raise
            log.error("unexpected error", path=request.url.path, traceback=traced(error))
            detail = "this is a fault of ours; the server's log has the details"
            await problem(request, 500, detail)(scope, receive, secured)

    def _refusal(self, request: Request) -> tuple[int, str, str | None] | None:
        if self._hosts is not None:
            match = _HOST.fullmatch(request.headers.get("host", ""))
            host = (match["v6"] or match["name"]).lower() if match else None
            if host not in self._hosts:
                known = ", ".join(sorted(self._hosts))
                return 400, f"this server answers to {known} only; use one of these in the address", "unknown-host"
        # No database takes a NUL in a text to look for.
        if "\0" in request.scope["path"]:
            return 404, "no address here has a NUL", None
        if b"%00" in request.scope["query_string"]:
            return 400, "a query must hold no NUL (%00)", None
        if request.method not in SAFE and _from_elsewhere(request):
            return 403, "a page of another site may not change anything here", "cross-site"
        return None


def _from_elsewhere(request: Request) -> bool:
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
