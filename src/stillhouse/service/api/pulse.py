"""One reading of the ledger for all who ask for the same: their number must not be felt by the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from stillhouse.service.db.lists import Lists, Mark

_MOST = 1024
"""Jobs that are remembered."""
REST_S = 0.5
"""How long another process's change to a job that is done may stay unseen here."""


class Pulse:
    """Marks, each read once for all who wait for it. Who asks must be allowed to see what is read."""

    def __init__(self) -> None:
        self._reads: dict[str, tuple[float, asyncio.Future[Mark]]] = {}
        self._running: dict[tuple[object, ...], asyncio.Task[Mark]] = {}
        self._coming: dict[tuple[object, ...], asyncio.Task[Mark]] = {}
        self._still: dict[tuple[object, ...], tuple[float, Mark]] = {}

    def forget(self) -> None:
        """What is recalled of jobs that have ended: something may have been changed."""
        self._still.clear()

    async def of_job(self, key: tuple[object, ...], read: Callable[[], Mark]) -> Mark:
        """As ``fresh``, but for a job that is done: it is at rest, and its mark is recalled for ``REST_S``.

        Only a request can set it going again, and one to this process has it forgotten at once.
        """
        until, mark = self._still.get(key, (0.0, ()))
        if time.monotonic() < until:
            return mark
        mark = await self.fresh(key, read)
        if mark[0] == "done":
            if len(self._still) >= _MOST:
                self._still.clear()
            self._still[key] = time.monotonic() + REST_S, mark
        return mark

    async def fresh(self, key: tuple[object, ...], read: Callable[[], Mark]) -> Mark:
        """A mark whose reading began after this call: what the caller has written is in it.

        While one reading runs, all who come wait for the next one together.

        Args:
            key: Names what is read, and by whom.
            read: Reads it; may raise.
        """
        coming = _alive(self._coming.get(key))
        if coming is None:
            coming = self._coming[key] = asyncio.ensure_future(self._next(key, read))
        return await asyncio.shield(coming)

    async def _next(self, key: tuple[object, ...], read: Callable[[], Mark]) -> Mark:
        running = _alive(self._running.get(key))
        if running is not None:
            await asyncio.wait((running,))
        task = self._running[key] = self._coming.pop(key)  # who asks from here on waits for the one after it
        try:
            return await run_in_threadpool(read)
        finally:
            if self._running.get(key) is task:
                del self._running[key]

    async def mark(self, ledger: Lists, job_id: str, *, age_s: float) -> Mark:
        """The mark of a job, at most ``age_s`` old; raises NotFoundError."""
        now = time.monotonic()
        at, read = self._reads.get(job_id, (0.0, None))
        if read is None or now - at >= age_s or read.get_loop() is not asyncio.get_running_loop():
            if len(self._reads) >= _MOST:
                self._reads.clear()
            read = asyncio.ensure_future(run_in_threadpool(ledger.job_mark, job_id))
            self._reads[job_id] = now, read
        return await asyncio.shield(read)


def _alive(task: asyncio.Task[Mark] | None) -> asyncio.Task[Mark] | None:
    """The task, if it can still be waited for here."""
    here = task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()
    return task if here else None
