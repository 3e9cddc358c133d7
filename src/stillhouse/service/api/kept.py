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
from functools import partial

import structlog
from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from stillhouse.search.domain import Json
from stillhouse.service.db.lists import Mark

log = structlog.get_logger(__name__)

MOST_BYTES = 64 << 20
"""Of all answers together, packed, with what each takes beside."""
_OWN_BYTES = 1024
"""What an answer takes beside its key and body."""
_LEVEL = 1
_MAKERS = 2
"""Answers that are made at once. It is the interpreter that they wait for, so more would make each later, and hold up
whoever asks for what is kept."""

Make = Callable[[], tuple[Json, Mapping[str, str]]]
"""Gives the body and headers of an answer."""
_Key = tuple[str | None, str, bytes]
"""Of which tenant's view, and the address: path and query."""


@dataclass(frozen=True)
class _Told:
    """What is given: for which mark, until when, until when while it is made anew, the packed body, the headers."""

    mark: Mark
    until: float
    at_most: float
    packed: bytes
    headers: Mapping[str, str]


@dataclass
class _Entry:
    """One answer; its lock lets one thread make it while the others wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    told: _Told | None = None
    size: int = 0
    """Bytes that it is counted with."""
    at_hand: Callable[[], Mark | None] = lambda: None
    """The mark, where nobody has to wait for it."""
    route: object = None
    """The route that gives it."""


class Kept:
    """Answers by address and tenant, the least recently used forgotten first.

    Args:
        most_bytes: Of all of them.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._renewed: dict[_Key, asyncio.Task[Response]] = {}
        self._makers = CapacityLimiter(_MAKERS)

    def at_once(self, request: Request) -> Response | None:
        """The kept answer where nothing has to be read or made for it; its route is noted in the request's scope."""
        entry = self._entries.get(_key(request))
        told = None if entry is None else entry.told
        if entry is None or told is None or entry.at_hand() != told.mark:
            return None
        if time.monotonic() >= (told.at_most if _key(request) in self._renewed else told.until):
            return None
        with self._lock:
            if _key(request) in self._entries:
                self._entries.move_to_end(_key(request))
        request.scope["route"] = entry.route
        return _response(request, told)

    async def given(
        self,
        request: Request,
        mark: Mark,
        make: Make,
        *,
        age_s: float = math.inf,
        at_hand: Callable[[], Mark | None] = lambda: None,
    ) -> Response:
        """As ``answer``, which is called in a thread where one must be made.

        One whose mark still holds and that has aged is given once more, for another ``age_s`` at most, while a thread
        makes it anew: nobody waits for what all ask for.

        Args:
            request: Says what is asked for, by whom, and whether a packed body may be sent.
            mark: Read before what is told; another mark makes the answer anew.
            make: Gives the body and headers.
            age_s: Seconds after which it is made anew whatever the mark.
            at_hand: Gives the mark where nobody has to wait for it, so that ``at_once`` can give the answer.
        """
        key = _key(request)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.at_hand, entry.route = at_hand, request.scope.get("route")
        told = entry.told
        if told is not None and told.mark == mark:
            now = time.monotonic()
            if now < told.until:
                return _response(request, told)
            if now < told.at_most:
                if key not in self._renewed:
                    self._renew(key, self.made(partial(self.answer, request, mark, make, age_s=age_s)))
                return _response(request, told)
        return await self.made(partial(self.answer, request, mark, make, age_s=age_s))

    async def made(self, answer: Callable[[], Response]) -> Response:
        """What a thread makes, few at once."""
        return await to_thread.run_sync(answer, limiter=self._makers)

    async def settled(self) -> None:
        """Returns when nothing is being made anew any more."""
        await asyncio.gather(*self._renewed.values(), return_exceptions=True)

    def _renew(self, key: _Key, made: Coroutine[None, None, Response]) -> None:
        task = self._renewed[key] = asyncio.ensure_future(made)

        def done(_: asyncio.Task[Response]) -> None:
            del self._renewed[key]
            if not task.cancelled() and task.exception() is not None:
                log.warning("an answer was not made anew; who asks next meets the error", error=repr(task.exception()))

        task.add_done_callback(done)

    def answer(self, request: Request, mark: Mark, make: Make, *, age_s: float = math.inf) -> Response:
        """The kept answer, or a fresh one; see ``given``."""
        key = _key(request)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            told = entry.told
            if told is None or told.mark != mark or time.monotonic() >= told.until:
                body, headers = make()
                packed = gzip.compress(dumped(body), _LEVEL, mtime=0)
                now = time.monotonic()
                told = entry.told = _Told(mark, now + age_s, now + 2 * age_s, packed, headers)
                self._count(key, entry, _OWN_BYTES + len(repr(key)) + len(packed))
        return _response(request, told)

    def _count(self, key: _Key, entry: _Entry, size: int) -> None:
        with self._lock:
            if self._entries.get(key) is not entry:
                return  # forgotten meanwhile
            self._bytes += size - entry.size
            entry.size = size
            while self._bytes > self._most and len(self._entries) > 1:
                self._bytes -= self._entries.popitem(last=False)[1].size


class AtOnce:
    """Gives what is kept and known to hold before the router is reached: most answers, and the router takes longest.

    Args:
        app: The application behind it.
        kept: The answers.
    """

    def __init__(self, app: ASGIApp, *, kept: Kept) -> None:
        self._app, self._kept = app, kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes on."""
        known = scope["type"] == "http" and scope["method"] == "GET"
        answer = self._kept.at_once(Request(scope)) if known else None
        await (answer or self._app)(scope, receive, send)


def _key(request: Request) -> _Key:
    return request.state.caller.tenant, request.scope["path"], request.scope["query_string"]


def _response(request: Request, told: _Told) -> Response:
    headers = {"Vary": "Accept-Encoding", **told.headers}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(told.packed, media_type="application/json", headers={"Content-Encoding": "gzip", **headers})
    return Response(gzip.decompress(told.packed), media_type="application/json", headers=headers)


def dumped(body: Json) -> bytes:
    """JSON as it is sent."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
