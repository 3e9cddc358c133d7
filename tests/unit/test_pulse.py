"""One reading for all who wait: never one that began before they asked."""

import asyncio
import threading
import time

import pytest

from stillhouse.service.api.pulse import Pulse


def test_all_who_wait_share_the_next_reading() -> None:
    written, reads, gate = [0], [0], threading.Event()

    def read() -> tuple[int]:
        reads[0] += 1
        seen = written[0]
        gate.wait(5)
        time.sleep(0.01)
        return (seen,)

    async def work() -> list[tuple[object, ...]]:
        pulse = Pulse()
        first = asyncio.ensure_future(pulse.fresh(("jobs",), read))
        while reads[0] == 0:
            await asyncio.sleep(0.001)
        written[0] = 1
        later = [asyncio.ensure_future(pulse.fresh(("jobs",), read)) for _ in range(20)]
        await asyncio.sleep(0.01)
        gate.set()
        found = [await first, *(await asyncio.gather(*later))]
        return [*found, await pulse.fresh(("jobs",), read)]

    found = asyncio.run(work())
    assert found == [(0,)] + [(1,)] * 21
    assert reads[0] == 3, "one, one for the twenty that came meanwhile, one for the last"


def test_a_reading_that_fails_is_told_to_all_and_forgotten() -> None:
    def broken() -> tuple[int]:
        raise OSError("gone")

    async def work() -> None:
        pulse = Pulse()
        tries = [pulse.fresh(("jobs",), broken) for _ in range(5)]
        found = await asyncio.gather(*tries, return_exceptions=True)
        assert [type(each) for each in found] == [OSError] * 5
        assert await pulse.fresh(("jobs",), lambda: (7,)) == (7,)
        with pytest.raises(OSError, match="gone"):
            await pulse.fresh(("jobs",), broken)

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
            (seen,) = await pulse.fresh(("jobs",), read)
            assert isinstance(seen, int) and seen >= written, "what was written before the call is in it"

    async def work() -> None:
        pulse = Pulse()
        await asyncio.gather(*(one(pulse) for _ in range(20)))
        assert pulse._running == pulse._coming == {}

    asyncio.run(work())
    assert reads[0] < 500, "a thousand calls share their readings"


def test_another_loop_begins_anew() -> None:
    pulse = Pulse()
    for value in (1, 2):
        assert asyncio.run(pulse.fresh(("jobs",), lambda value=value: (value,))) == (value,)  # type: ignore[misc]
