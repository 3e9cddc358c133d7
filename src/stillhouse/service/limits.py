"""Limits that a request may meet within its route: the bytes of its body, and the room on the server's disk.

Bytes are counted as they come: a length that is not declared cannot get around the cap.
"""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse.service.problems import full, problem
from stillhouse.service.room import disk_full


class BodyLimit:
    """Answers 413 to a body of more than ``most_bytes``.

    Args:
        app: The application behind it.
        most_bytes: Greatest size of a body.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int) -> None:
        self._app, self._most = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts what is received."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._most:
            answer = problem(Request(scope), 413, self._message())
            await answer(scope, receive, send)
            return
        seen, over = 0, False

        async def counted() -> Message:
            nonlocal seen, over
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                over = True
                return {"type": "http.disconnect"}
            return message

        async def gated(message: Message) -> None:
            if not over:
                await send(message)

        try:
            await self._app(scope, counted, gated)
        except ClientDisconnect:
            if not over:
                raise
        if over:
            answer = problem(Request(scope), 413, self._message())
            await answer(scope, receive, send)

    def _message(self) -> str:
        return f"a request's body may have at most {self._most} bytes; STILLHOUSE_MAX_UPLOAD_BYTES says how many"


class Room:
    """Answers 507 where anything in a route meets a full disk, so that it is counted and written down as such.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http" or started or not disk_full(error):
                raise
            await full(Request(scope), error)(scope, receive, send)
