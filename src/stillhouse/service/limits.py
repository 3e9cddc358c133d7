"""A cap on the bytes of a request's body, counted as they come: a length that is not declared cannot get around it."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse.service.problems import problem


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
            answer = problem(Request(scope), 413, "Too large", self._message())
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
            answer = problem(Request(scope), 413, "Too large", self._message())
            await answer(scope, receive, send)

    def _message(self) -> str:
        return f"a request's body may have at most {self._most} bytes; STILLHOUSE_MAX_UPLOAD_BYTES says how many"
