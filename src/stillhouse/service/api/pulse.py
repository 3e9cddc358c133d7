"""One reading of the ledger for all who ask for the same: their number must not be felt by the database."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from stillhouse.service.db.lists import Lists, Mark
from stillhouse.service.db.records import not_found

Read = Callable[[Sequence[str]], Mapping[str, Mark]]
"""Reads the marks of those named; those that are not there are left out."""
_MOST = 1024
"""Jobs that are remembered."""
LOOK_S, STALE_S, RECALLED_S = 0.5, 2.0, 60.0
"""What is recalled of jobs that are done is forgotten when anything changes in the ledger. That is looked for every
``LOOK_S`` while somebody asks; a look is waited for when the last one is ``STALE_S`` old. A change that two writers
raced past is missed by it, so nothing is recalled for longer than ``RECALLED_S``."""
LIST_LOOK_S, LISTED_S = 0.1, 0.5
"""What another process changed shows in lists within ``LISTED_S``. It is looked for every ``LIST_LOOK_S`` while
somebody asks, who is given the last mark: if one were read for each, all would wait for the database again and again.
"""


@dataclass
class _Waiting:
    """What is read next in one loop, by reader and name, all of it in one thread: many would wait for each other."""

    loop: asyncio.AbstractEventLoop
    asked: dict[tuple[Hashable, str], tuple[Read, asyncio.Future[Mark | None]]] = field(default_factory=dict)
    reader: asyncio.Task[None] | None = None


class Pulse:
    """Marks, each read once for all who wait for it. Who asks must be allowed to see what is read."""

    def __init__(self, ledger: Lists) -> None:
        self._ledger = ledger
        self._recent: dict[str, tuple[float, asyncio.Future[Mark]]] = {}
        self._waiting: _Waiting | None = None
        self._at_rest: dict[tuple[str | None, str], tuple[float, Mark]] = {}
        self._listed: dict[str | None, tuple[float, Mark]] = {}
        self._listing: dict[str | None, asyncio.Task[Mark]] = {}
        self._seen: Mark = ()
        self._looked_at = -math.inf
        self._looking: asyncio.Task[None] | None = None
        self._changes = 0

    def forget(self) -> None:
        """What is recalled: something may have been changed."""
        self._changes += 1
        self._at_rest.clear()
        self._listed.clear()

    async def of_job(self, ledger: Lists, job_id: str, *, tenant: str | None) -> Mark:
        """The mark of a job: fresh, or, of one that is done, recalled while the ledger is as it was.

        A request to this process that may have changed something has all forgotten at once.

        Args:
            ledger: As the tenant sees it.
            job_id: The job.
            tenant: Who asks.

        Raises:
            NotFoundError: No such job, or not of this tenant.
        """
        if self._recalled(tenant, job_id) is not None:
            await self._look()
        recalled = self._recalled(tenant, job_id)
        if recalled is not None:
            return recalled
        changes = self._changes
        mark = await self._fresh(("job", tenant), job_id, ledger.job_marks)
        if mark is None:
            raise not_found("job", job_id)
        if mark[0] == "done" and changes == self._changes:
            if len(self._at_rest) >= _MOST:
                self._at_rest.clear()
            self._at_rest[tenant, job_id] = time.monotonic(), mark
        return mark

    def _recalled(self, tenant: str | None, job_id: str) -> Mark | None:
        read_at, mark = self._at_rest.get((tenant, job_id), (-math.inf, ()))
        return mark if time.monotonic() - read_at < RECALLED_S else None

    async def _look(self) -> None:
        """Sees to it that changes are looked for."""
        age_s = time.monotonic() - self._looked_at
        if age_s >= STALE_S:
            await self._look_now()
        elif age_s >= LOOK_S and (self._looking is None or self._looking.done()):
            self._looking = asyncio.ensure_future(self._look_now())
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _look_now(self) -> None:
        began = time.monotonic()
        try:
            seen = await self.of_jobs(self._ledger, tenant=None)
        except BaseException:
            self.forget()  # who asks next waits for the database, and meets the error
            raise
        if seen != self._seen:
            self.forget()
        self._seen, self._looked_at = seen, began

    async def of_jobs(self, ledger: Lists, *, tenant: str | None) -> Mark:
        """The mark of all jobs that a tenant sees, fresh."""
        return await self._fresh(("jobs", tenant), "", lambda _: {"": ledger.jobs_mark()}) or ()

    async def of_lists(self, ledger: Lists, *, tenant: str | None) -> Mark:
        """The mark of all jobs that a tenant sees, at most ``LISTED_S`` old.

        What a request to this process may have changed is in it at once.
        """
        read_at, mark = self._listed.get(tenant, (-math.inf, ()))
        age_s = time.monotonic() - read_at
        if age_s >= LISTED_S:
            return await self._list(ledger, tenant)
        if age_s >= LIST_LOOK_S and tenant not in self._listing:
            task = self._listing[tenant] = asyncio.ensure_future(self._list(ledger, tenant))
            task.add_done_callback(lambda _: self._listing.pop(tenant).cancelled() or task.exception())
        return mark

    async def _list(self, ledger: Lists, tenant: str | None) -> Mark:
        began, changes = time.monotonic(), self._changes
        mark = await self.of_jobs(ledger, tenant=tenant)
        if changes == self._changes:
            if len(self._listed) >= _MOST:
                self._listed.clear()
            self._listed[tenant] = began, mark
        return mark

    def job_at_hand(self, tenant: str | None, job_id: str) -> Mark | None:
        """What ``of_job`` would give without reading anything; None where it would read."""
        looking = self._looking is not None and not self._looking.done()
        recent = time.monotonic() - self._looked_at < (STALE_S if looking else LOOK_S)
        return self._recalled(tenant, job_id) if recent else None

    def jobs_at_hand(self, tenant: str | None) -> Mark | None:
        """What ``of_lists`` would give without reading anything; None where it would read."""
        read_at, mark = self._listed.get(tenant, (-math.inf, ()))
        recent = time.monotonic() - read_at < (LISTED_S if tenant in self._listing else LIST_LOOK_S)
        return mark if recent else None

    async def settled(self) -> None:
        """Returns when nothing is being read any more."""
        reader = self._waiting.reader if self._waiting is not None else None
        tasks = [reader, self._looking, *self._listing.values(), *(read for _, read in self._recent.values())]
        ours = [task for task in tasks if task is not None and task.get_loop() is asyncio.get_running_loop()]
        await asyncio.gather(*ours, return_exceptions=True)

    async def _fresh(self, reader: Hashable, name: str, read: Read) -> Mark | None:
        """A mark whose reading began after this call: what the caller has written is in it.

        While one reading runs, all who come wait for the next one together, and what they ask one reader for is
        asked at once.
        """
        loop = asyncio.get_running_loop()
        if self._waiting is None or self._waiting.loop is not loop:
            self._waiting = _Waiting(loop)
        waiting = self._waiting
        if (reader, name) not in waiting.asked:
            waiting.asked[reader, name] = read, loop.create_future()
        future = waiting.asked[reader, name][1]
        if waiting.reader is None:
            waiting.reader = loop.create_task(self._read(waiting))
        return await asyncio.shield(future)

    async def _read(self, waiting: _Waiting) -> None:
        while waiting.asked:
            asked, waiting.asked = waiting.asked, {}
            readers = {reader: read for (reader, _), (read, _) in asked.items()}
            names = {reader: [name for each, name in asked if each == reader] for reader in readers}
            found = await run_in_threadpool(_each, [(read, names[reader]) for reader, read in readers.items()])
            told = dict(zip(readers, found, strict=True))
            for (reader, name), (_, future) in asked.items():
                marks = told[reader]
                if isinstance(marks, Exception):
                    future.set_exception(marks)
                    future.exception()  # who asked may have gone away
                else:
                    future.set_result(marks.get(name))
        waiting.reader = None

    async def mark(self, ledger: Lists, job_id: str, *, age_s: float) -> Mark:
        """The mark of a job, at most ``age_s`` old; raises NotFoundError."""
        now = time.monotonic()
        at, read = self._recent.get(job_id, (0.0, None))
        if read is None or now - at >= age_s or read.get_loop() is not asyncio.get_running_loop():
            if len(self._recent) >= _MOST:
                self._recent.clear()
            read = asyncio.ensure_future(run_in_threadpool(_one, ledger, job_id))
            self._recent[job_id] = now, read
        return await asyncio.shield(read)


def _each(asked: Sequence[tuple[Read, Sequence[str]]]) -> list[Mapping[str, Mark] | Exception]:
    found: list[Mapping[str, Mark] | Exception] = []
    for read, names in asked:
        try:
            found.append(read(names))
        except Exception as error:
            found.append(error)
    return found


def _one(ledger: Lists, job_id: str) -> Mark:
    marks = ledger.job_marks([job_id])
    if job_id not in marks:
        raise not_found("job", job_id)
    return marks[job_id]
