"""One reading for all who wait: never one that began before they asked."""

import asyncio
import threading
import time
from collections.abc import Callable, Collection
from types import SimpleNamespace

import pytest

from stillhouse.search.errors import NotFoundError
from stillhouse.service.api.pulse import LIST_LOOK_S, LISTED_S, LOOK_S, RECALLED_S, STALE_S, Pulse
from stillhouse.service.db.lists import Mark
from stillhouse.service.db.memory import MemoryLedger


class Fixed(MemoryLedger):
    """A ledger whose marks are what a function says."""

    def __init__(self, read: Callable[[], Mark]) -> None:
        super().__init__()
        self._read = read

    def jobs_mark(self, tenant: str | None = None) -> Mark:  # noqa: ARG002
        return self._read()

    def job_marks(self, job_ids: Collection[str], **_: object) -> dict[str, Mark]:
        return {each: self._read() for each in job_ids}


def test_all_who_wait_share_the_next_reading() -> None:
    written, reads, gate = [0], [0], threading.Event()

    def read() -> tuple[int]:
        reads[0] += 1
        seen = written[0]
        gate.wait(5)
        time.sleep(0.01)
        return (seen,)

    async def work() -> list[tuple[object, ...]]:
        pulse = Pulse(MemoryLedger())
        first = asyncio.ensure_future(pulse.of_jobs(Fixed(read), tenant=None))
        while reads[0] == 0:
            await asyncio.sleep(0.001)
        written[0] = 1
        later = [asyncio.ensure_future(pulse.of_jobs(Fixed(read), tenant=None)) for _ in range(20)]
        await asyncio.sleep(0.01)
        gate.set()
        found = [await first, *(await asyncio.gather(*later))]
        return [*found, await pulse.of_jobs(Fixed(read), tenant=None)]

    found = asyncio.run(work())
    assert found == [(0,)] + [(1,)] * 21
    assert reads[0] == 3, "one, one for the twenty that came meanwhile, one for the last"


def test_a_reading_that_fails_is_told_to_all_and_forgotten() -> None:
    def broken() -> tuple[int]:
        raise OSError("gone")

    async def work() -> None:
        pulse = Pulse(MemoryLedger())
        tries = [pulse.of_jobs(Fixed(broken), tenant=None) for _ in range(5)]
        found = await asyncio.gather(*tries, return_exceptions=True)
        assert [type(each) for each in found] == [OSError] * 5
        assert await pulse.of_jobs(Fixed(lambda: (7,)), tenant=None) == (7,)
        with pytest.raises(OSError, match="gone"):
            await pulse.of_jobs(Fixed(broken), tenant=None)

    asyncio.run(work())


def test_no_wave_of_callers_breaks_it() -> None:
    counter, reads = [0], [0]

    def read() -> tuple[int]:
        reads[0] += 1
        seen = counter[0]
        time.sleep(0.0005)
        return (seen,)

    async def one(pulse: Pulse) -> None:
        for _ in range(50):
            counter[0] += 1
            written = counter[0]
            (seen,) = await pulse.of_jobs(Fixed(read), tenant=None)
            assert isinstance(seen, int) and seen >= written, "what was written before the call is in it"

    async def work() -> None:
        pulse = Pulse(MemoryLedger())
        await asyncio.gather(*(one(pulse) for _ in range(20)))
        await asyncio.sleep(0)
        assert pulse._waiting is not None and not pulse._waiting.asked and pulse._waiting.reader is None

    asyncio.run(work())
    assert reads[0] < 500, "a thousand calls share their readings"


def test_another_loop_begins_anew() -> None:
    pulse = Pulse(MemoryLedger())
    for value in (1, 2):
        assert asyncio.run(pulse.of_jobs(Fixed(lambda value=value: (value,)), tenant=None)) == (value,)  # type: ignore[misc]


def test_one_that_fails_does_not_fail_the_others() -> None:
    def broken() -> Mark:
        raise OSError("gone")

    async def work() -> list[object]:
        pulse = Pulse(MemoryLedger())
        asked = [Fixed(broken), Fixed(lambda: (2,)), Fixed(lambda: (3,))]
        reads = [pulse.of_jobs(ledger, tenant=str(number)) for number, ledger in enumerate(asked)]
        return await asyncio.gather(*reads, return_exceptions=True)

    first, *others = asyncio.run(work())
    assert isinstance(first, OSError)
    assert others == [(2,), (3,)]


def test_jobs_that_are_asked_for_together_are_read_at_once() -> None:
    asked: list[list[str]] = []

    class Many(Fixed):
        def job_marks(self, job_ids: Collection[str], **_: object) -> dict[str, Mark]:
            asked.append(sorted(job_ids))
            return {each: ("running", each) for each in job_ids if each != "gone"}

    async def work() -> list[object]:
        pulse, ledger = Pulse(MemoryLedger()), Many(lambda: ())
        reads = [pulse.of_job(ledger, name, tenant="t") for name in ("a", "b", "a", "gone")]
        return await asyncio.gather(*reads, return_exceptions=True)

    *found, gone = asyncio.run(work())
    assert found == [("running", "a"), ("running", "b"), ("running", "a")]
    assert isinstance(gone, NotFoundError)
    assert asked == [["a", "b", "gone"]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("stillhouse.service.api.pulse.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


class Counting(MemoryLedger):
    """Counts how often it is read, and says of its job and of all jobs what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.all, self.reads, self.looks = "done", 0, 0, 0

    def jobs_mark(self, tenant: str | None = None) -> Mark:  # noqa: ARG002
        self.looks += 1
        return (self.all,)

    def job_marks(self, job_ids: Collection[str], **_: object) -> dict[str, Mark]:
        self.reads += 1
        return {} if self.state == "gone" else dict.fromkeys(job_ids, (self.state, self.reads))


def test_the_mark_of_a_job_that_is_done_is_recalled_until_something_changes(clock: list[float]) -> None:
    ledger = Counting()

    async def work() -> None:
        pulse = Pulse(ledger)

        async def asked() -> int:
            await pulse.of_job(ledger, "job", tenant=None)
            await asyncio.sleep(0.02)  # a look in the background has ended
            return ledger.reads

        ledger.state = "running"
        assert [await asked(), await asked()] == [1, 2], "one that runs is read each time"
        ledger.state = "done"
        assert await asked() == 3
        assert await asked() == 4, "the first look is waited for, and sees a ledger that it does not know"
        assert [await asked(), await asked(), ledger.looks] == [4, 4, 1]
        pulse.forget()
        assert [await asked(), await asked()] == [5, 5]
        clock[0] += LOOK_S
        assert [await asked(), await asked(), ledger.looks] == [5, 5, 2]
        ledger.all = 1
        assert [await asked(), await asked()] == [5, 5], "not looked for so soon"
        clock[0] += LOOK_S
        assert await asked() == 5, "it is looked for while this is given"
        assert [await asked(), await asked()] == [6, 6]
        ledger.all = 2
        clock[0] += STALE_S
        assert await asked() == 7, "a look is waited for"
        clock[0] += RECALLED_S
        assert await asked() == 8, "whatever was seen"

    asyncio.run(work())


def test_what_was_read_before_a_change_is_not_recalled() -> None:
    ledger = Counting()

    async def work() -> None:
        pulse = Pulse(ledger)
        await pulse.of_jobs(ledger, tenant=None)

        class Changing(Counting):
            def job_marks(self, job_ids: Collection[str], **_: object) -> dict[str, Mark]:
                pulse.forget()
                return ledger.job_marks(job_ids)

        await pulse.of_job(Changing(), "job", tenant=None)
        await pulse.of_job(ledger, "job", tenant=None)
        assert ledger.reads == 2

    asyncio.run(work())


def test_a_job_that_is_gone_or_a_database_that_is_away_is_told(clock: list[float]) -> None:
    ledger = Counting()

    def away(tenant: str | None = None) -> Mark:
        raise OSError(f"away {tenant}")

    async def work() -> None:
        pulse = Pulse(ledger)
        for _ in range(2):
            await pulse.of_job(ledger, "job", tenant=None)
        ledger.state, ledger.all = "gone", 1
        clock[0] += STALE_S
        with pytest.raises(NotFoundError):
            await pulse.of_job(ledger, "job", tenant=None)
        ledger.state = "done"
        await pulse.of_job(ledger, "job", tenant=None)
        ledger.jobs_mark = away  # type: ignore[method-assign]
        clock[0] += STALE_S
        with pytest.raises(OSError, match="away"):
            await pulse.of_job(ledger, "job", tenant=None)

    asyncio.run(work())


def test_lists_are_given_the_last_mark_while_the_next_is_read(clock: list[float]) -> None:
    ledger = Counting()

    async def work() -> None:
        pulse = Pulse(ledger)

        async def asked() -> tuple[object, int]:
            (seen,) = await pulse.of_lists(ledger, tenant="t")
            await asyncio.sleep(0.02)  # a reading in the background has ended
            return seen, ledger.looks

        assert pulse.jobs_at_hand("t") is None
        assert [await asked(), await asked()] == [(0, 1)] * 2
        assert (pulse.jobs_at_hand("t"), pulse.jobs_at_hand("other")) == ((0,), None)
        ledger.all = 1
        clock[0] += 2 * LIST_LOOK_S
        assert pulse.jobs_at_hand("t") is None, "somebody must look"
        assert [await asked(), await asked()] == [(0, 2), (1, 2)]
        ledger.all = 2
        clock[0] += LISTED_S
        assert await asked() == (2, 3), "it is waited for"
        ledger.all = 3
        pulse.forget()
        assert pulse.jobs_at_hand("t") is None
        assert await asked() == (3, 4), "what was changed here is seen at once"

    asyncio.run(work())


def test_marks_are_at_hand_while_somebody_looks(clock: list[float]) -> None:
    ledger = Counting()

    async def work() -> None:
        pulse = Pulse(ledger)
        await pulse.of_lists(ledger, tenant=None)
        for _ in range(2):
            await pulse.of_job(ledger, "job", tenant=None)
        mark = await pulse.of_job(ledger, "job", tenant=None)
        clock[0] += LOOK_S - 0.01  # time enough for lists, and nearly for jobs
        await pulse.of_lists(ledger, tenant=None)
        clock[0] += 0.01 + LIST_LOOK_S
        assert (pulse.jobs_at_hand(None), pulse.job_at_hand(None, "job")) == (None, None)
        assert await pulse.of_lists(ledger, tenant=None) == (0,)
        assert await pulse.of_job(ledger, "job", tenant=None) == mark
        assert (pulse.jobs_at_hand(None), pulse.job_at_hand(None, "job")) == ((0,), mark), "both are being read"
        clock[0] += LISTED_S
        assert pulse.jobs_at_hand(None) is None
        clock[0] += STALE_S
        assert pulse.job_at_hand(None, "job") is None
        await asyncio.sleep(0.02)

    asyncio.run(work())


def test_a_list_is_not_given_a_mark_that_was_read_before_a_change() -> None:
    ledger = Counting()

    async def work() -> None:
        pulse = Pulse(ledger)

        class Changing(Counting):
            def jobs_mark(self, tenant: str | None = None) -> Mark:  # noqa: ARG002
                pulse.forget()
                return (0,)

        await pulse.of_lists(Changing(), tenant=None)
        assert pulse.jobs_at_hand(None) is None

    asyncio.run(work())


def test_a_database_that_goes_away_is_told_to_who_waits_for_a_list(clock: list[float]) -> None:
    ledger = Counting()

    def away(tenant: str | None = None) -> Mark:
        raise OSError(f"away {tenant}")

    async def work() -> None:
        pulse = Pulse(ledger)
        await pulse.of_lists(ledger, tenant=None)
        ledger.jobs_mark = away  # type: ignore[method-assign]
        clock[0] += 2 * LIST_LOOK_S
        assert await pulse.of_lists(ledger, tenant=None) == (0,)
        await asyncio.sleep(0.02)
        clock[0] += LISTED_S
        with pytest.raises(OSError, match="away"):
            await pulse.of_lists(ledger, tenant=None)

    asyncio.run(work())


def test_a_mark_is_at_hand_while_no_look_is_due(clock: list[float]) -> None:
    ledger = Counting()

    async def work() -> None:
        pulse = Pulse(ledger)
        for _ in range(2):  # the first look forgets, for it knows nothing yet
            await pulse.of_job(ledger, "job", tenant=None)
        mark = await pulse.of_job(ledger, "job", tenant=None)
        assert (pulse.job_at_hand(None, "job"), pulse.job_at_hand("t", "job")) == (mark, None)
        clock[0] += LOOK_S
        assert pulse.job_at_hand(None, "job") is None

    asyncio.run(work())


def test_it_is_settled_when_nothing_is_read_any_more(clock: list[float]) -> None:
    begun, reads = threading.Event(), [0]

    def read() -> Mark:
        if reads[0]:
            begun.set()
            time.sleep(0.1)
        reads[0] += 1
        return (reads[0],)

    async def work() -> None:
        pulse = Pulse(MemoryLedger())
        await pulse.of_lists(Fixed(read), tenant=None)
        clock[0] += 2 * LIST_LOOK_S
        await pulse.of_lists(Fixed(read), tenant=None)
        assert await asyncio.to_thread(begun.wait, 5)
        assert reads == [1]
        await pulse.settled()
        assert reads == [2]

    asyncio.run(work())
