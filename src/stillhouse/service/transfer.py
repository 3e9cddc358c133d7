"""Files between a client and the server, in pieces: what has come is not sent again after a break."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

from stillhouse.search.domain import Json
from stillhouse.search.errors import CorruptArtifactError, StillhouseError
from stillhouse.service.digest import file_digest

Sent = Callable[..., AbstractContextManager[httpx.Response]]
"""Sends a request; raises for an answer that is an error."""
Progress = Callable[[int, int], None]
"""Told bytes that are over, and all."""
PIECE_BYTES = 8 << 20
MOST_BREAKS = 5
"""How often in a row the line may break before that is an error."""


def send(sent: Sent, path: Path, progress: Progress | None = None) -> str:
    """Sends a file as a resumable upload; gives the upload's id.

    Args:
        sent: Sends a request.
        path: The file.
        progress: Told after each piece.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        offer = {"size": size, "sha256": file_digest(path)}
        upload = _answer(sent, "POST", "/uploads", json=offer)
        url, offset, breaks = f"/uploads/{upload['id']}", int(upload["offset"]), 0
        while offset < size:
            try:
                if breaks:  # how much came before the line broke
                    offset = int(_answer(sent, "GET", url)["offset"])
                if progress is not None:
                    progress(offset, size)
                file.seek(offset)
                headers = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
                told = _answer(sent, "PATCH", url, content=file.read(PIECE_BYTES), headers=headers)
                offset, breaks = int(told["offset"]), 0
            except httpx.TransportError:
                breaks = broken(breaks)
    if progress is not None:
        progress(size, size)
    return str(upload["id"])


def fetch(sent: Sent, url: str, path: Path, progress: Progress | None = None) -> Path:
    """Writes a file whose ETag is its sha256; it appears whole and checked, or not at all.

    Args:
        sent: Sends a request.
        url: Where it is.
        path: Where it goes. Until it is whole, what has come is kept beside it.
        progress: Told now and then.

    Raises:
        CorruptArtifactError: Other bytes came than the server stores.
    """
    with sent("HEAD", url) as answer:
        etag, size = answer.headers["etag"], int(answer.headers["content-length"])
    wanted, breaks = etag.strip('"'), 0
    part = path.with_name(f".{path.name}.{wanted[:16]}.part")
    while (have := part.stat().st_size if part.exists() else 0) < size:
        try:
            _append(sent, url, part, have, etag, size, progress)
            breaks = 0
        except httpx.TransportError:
            breaks = broken(breaks)
    found = file_digest(part)
    if found != wanted:
        part.unlink()
        raise CorruptArtifactError(f"{url}: sha256 {found} came, but {wanted} is stored")
    return part.replace(path)


def _append(sent: Sent, url: str, part: Path, have: int, etag: str, size: int, progress: Progress | None) -> None:
    # If-Range: should the file be another one by now, all of it comes, and its hash is found wrong at the end.
    headers = {"Range": f"bytes={have}-", "If-Range": etag, "Accept-Encoding": "identity"} if have else {}
    with sent("GET", url, headers=headers) as answer, part.open("ab" if answer.status_code == 206 else "wb") as file:
        if answer.headers.get("etag") != etag:
            raise StillhouseError(f"{url} has changed meanwhile; ask for it again")
        for chunk in answer.iter_bytes():
            file.write(chunk)
            if progress is not None:
                progress(min(file.tell(), size), size)


def broken(breaks: int) -> int:
    """Counts a break and waits a little; raises the error at hand when there were too many."""
    if breaks >= MOST_BREAKS:
        raise  # noqa: PLE0704 - called while an error is handled
    time.sleep(min(2**breaks / 4, 5.0))
    return breaks + 1


def _answer(sent: Sent, method: str, url: str, **parts: object) -> dict[str, Json]:
    with sent(method, url, **parts) as answer:
        body: dict[str, Json] = json.loads(answer.read())
    return body
