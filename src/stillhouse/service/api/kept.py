"""Answers kept as long as what they tell has not changed: most readers ask for the same few again and again."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from stillhouse.search.domain import Json
from stillhouse.service.db.lists import Mark

log = structlog.get_logger(__name__)

MOST_BYTES = 64 << 20
"""Of all answers together, packed, with what each takes beside."""
_OWN_BYTES = 1024
"""What an answer takes beside its key and body."""
_LEVEL = 1


@dataclass
class _Entry:
    """One answer; its lock lets one thread make it while the others wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    told: tuple[Mark, float, bytes, Mapping[str, str]] | None = None
    """Its mark, until when it is given again, the packed body, the headers: one value, so that it is read whole."""
    size: int = 0
    """Bytes that it is counted with."""


class Kept:
    """Answers by what was asked, the least recently used forgotten first.

    Args:
        most_bytes: Of all of them.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[object, ...], _Entry] = OrderedDict()
        self._renewed: dict[tuple[object, ...], asyncio.Task[Response]] = {}

    async def given(
        self,
        request: Request,
        key: tuple[object, ...],
        mark: Mark,
        make: Callable[[], tuple[Json, Mapping[str, str]]],
        *,
        age_s: float = math.inf,
    ) -> Response:
        """As ``answer``, which is called in a thread where one must be made.

        One whose mark still holds and that has aged is given once more, for another ``age_s`` at most, while a thread
        makes it anew: nobody waits for what all ask for.
        """
        full = (request.state.caller.tenant, *key)
        with self._lock:
            entry = self._entries.get(full)
            if entry is not None:
                self._entries.move_to_end(full)
        if entry is not None and entry.told is not None:
            known, until, packed, headers = entry.told
            late_s = time.monotonic() - until
            if known == mark and late_s < 0:
                return _response(request, packed, headers)
            if known == mark and late_s < age_s:
                if full not in self._renewed:
                    self._renew(full, run_in_threadpool(self.answer, request, key, mark, make, age_s=age_s))
                return _response(request, packed, headers)
        return await run_in_threadpool(self.answer, request, key, mark, make, age_s=age_s)

    def _renew(self, full: tuple[object, ...], made: Coroutine[None, None, Response]) -> None:
        task = self._renewed[full] = asyncio.ensure_future(made)

        def done(_: asyncio.Task[Response]) -> None:
            del self._renewed[full]
            if not task.cancelled() and task.exception() is not None:
                log.warning("an answer was not made anew; who asks next meets the error", error=repr(task.exception()))

        task.add_done_callback(done)

    def answer(
        self,
        request: Request,
        key: tuple[object, ...],
        mark: Mark,
        make: Callable[[], tuple[Json, Mapping[str, str]]],
        *,
        age_s: float = math.inf,
    ) -> Response:
        """The kept answer, or a fresh one.

        Args:
            request: Says who asks, and whether a packed body may be sent.
            key: What was asked; by which tenant is added here.
            mark: Read before what is told; another mark makes the answer anew.
            make: Gives the body and headers.
            age_s: Seconds after which it is made anew whatever the mark.
        """
        key = (request.state.caller.tenant, *key)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.told is None or entry.told[0] != mark or time.monotonic() >= entry.told[1]:
                body, headers = make()
                fresh = gzip.compress(dumped(body), _LEVEL, mtime=0)
                entry.told = mark, time.monotonic() + age_s, fresh, headers
                self._count(key, entry, _OWN_BYTES + len(repr(key)) + len(fresh))
            _, _, packed, headers = entry.told
        return _response(request, packed, headers)

    def _count(self, key: tuple[object, ...], entry: _Entry, size: int) -> None:
        with self._lock:
            if self._entries.get(key) is not entry:
                return  # forgotten meanwhile
            self._bytes += size - entry.size
            entry.size = size
            while self._bytes > self._most and len(self._entries) > 1:
                self._bytes -= self._entries.popitem(last=False)[1].size


def _response(request: Request, packed: bytes, headers: Mapping[str, str]) -> Response:
    told = {"Vary": "Accept-Encoding", **headers}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(packed, media_type="application/json", headers={"Content-Encoding": "gzip", **told})
    return Response(gzip.decompress(packed), media_type="application/json", headers=told)


def dumped(body: Json) -> bytes:
    """JSON as it is sent."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
