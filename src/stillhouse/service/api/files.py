"""Stored files as answers: by ranges, and not again to who has them."""

from __future__ import annotations

from typing import Any

from fastapi.responses import FileResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stillhouse.search.ports import ArtifactStore
from stillhouse.service.problems import documented, problem

SERVED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The sender has it: the ETag is among those it named."},
    **documented(400, 404, 416, 422),
}
"""What a route that answers with ``stored`` may say beside the file itself."""


class RangedFile(FileResponse):
    """A file of which ranges are served; one that it does not have is a problem document, as other errors are."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        refused, headers = 0, {}

        async def watched(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                refused = message["status"]
                headers.update(
                    {name.decode(): value.decode() for name, value in message["headers"] if name == b"content-range"}
                )
            if not refused:
                await send(message)

        await super().__call__(scope, receive, watched)
        if refused:
            request = Request(scope)
            wanted = request.headers.get("range", "")[:80]
            told = f"the range {wanted!r} must read like bytes=0-99 and begin within the file; HEAD gives its length"
            answer = problem(request, refused, told)
            answer.headers.update(headers)
            await answer(scope, receive, send)


def stored(store: ArtifactStore, sha256: str, media_type: str, name: str, known: str | None) -> Response:
    """A stored file, or word that the sender has it (RFC 9110, 13.1.2: before ranges, weak tags count as strong).

    Args:
        store: Holds it.
        sha256: Of the file.
        media_type: Its own.
        name: To save it by.
        known: What came as ``If-None-Match``.
    """
    etag = f'"{sha256}"'
    tags = [tag.strip().removeprefix("W/") for tag in (known or "").split(",")]
    if etag in tags or tags == ["*"]:
        return Response(status_code=304, headers={"ETag": etag})
    return RangedFile(store.path(sha256), media_type=media_type, filename=name, headers={"ETag": etag})
