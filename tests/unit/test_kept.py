"""Answers that are kept: given again while the mark holds, made once however many ask, forgotten past a size."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from stillhouse.service.api.kept import _MAKERS, AtOnce, Kept


def request(encoding: str = "gzip", tenant: str | None = None, *, path: str = "/", query: str = "") -> Request:
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "state": {}}
    scope |= {"headers": [(b"accept-encoding", encoding.encode())]}
    found = Request(scope)
    found.state.caller = SimpleNamespace(tenant=tenant)
    return found


class Maker:
    def __init__(self, body: Any = "x", seconds: float = 0.0) -> None:
        self.body, self.seconds, self.made = body, seconds, 0

    def __call__(self) -> tuple[Any, dict[str, str]]:
        time.sleep(self.seconds)
        self.made += 1
        return self.body, {"Link": "next"}


def test_an_answer_is_given_again_until_its_mark_changes() -> None:
    kept, make = Kept(), Maker({"a": "ä"})
    for mark, made in ((1, 1), (1, 1), (2, 2), (1, 3)):
        answer = kept.answer(request("identity"), (mark,), make)
        assert (answer.body, answer.headers["link"]) == ('{"a":"ä"}'.encode(), "next")
        assert make.made == made
    kept.answer(request(path="/other"), (1,), make)
    assert make.made == 4


def test_tenants_do_not_share_answers() -> None:
    kept = Kept()
    for tenant in ("one", "two", None):
        assert kept.answer(request("identity", tenant), (1,), Maker(tenant)).body == (
            f'"{tenant}"'.encode() if tenant else b"null"
        )


def test_an_answer_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("stillhouse.service.api.kept.time.monotonic", lambda: now[0])
    kept, make = Kept(), Maker()
    for at, made in ((100.0, 1), (100.9, 1), (101.1, 2)):
        now[0] = at
        kept.answer(request(), (1,), make, age_s=1.0)
        assert make.made == made


def test_of_many_who_ask_at_once_one_makes_it() -> None:
    kept, make, gate = Kept(), Maker(seconds=0.05), threading.Barrier(8)

    def ask(_: int) -> None:
        gate.wait()
        kept.answer(request(), (1,), make)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert make.made == 1


def test_the_oldest_are_forgotten_past_the_size() -> None:
    kept, makers = Kept(most_bytes=100), [Maker(str(number) * 40) for number in range(6)]
    for number, make in enumerate(makers):
        kept.answer(request(path=f"/{number}"), (1,), make)
    kept.answer(request(path="/5"), (1,), makers[5])
    kept.answer(request(path="/0"), (1,), makers[0])
    assert (makers[5].made, makers[0].made) == (1, 2)


def test_what_an_answer_takes_beside_its_body_counts() -> None:
    kept = Kept(most_bytes=50_000)
    for number in range(200):
        kept.answer(request(query=f"x={number}"), (1,), Maker([]))
    assert len(kept._entries) < 50, "small answers are forgotten too"
    assert kept._bytes == sum(entry.size for entry in kept._entries.values())


async def given(kept: Kept, key: str, make: Maker) -> None:
    await kept.given(request(path=f"/{key}"), (1,), make)


def test_the_least_recently_used_is_forgotten_first() -> None:
    kept, make = Kept(most_bytes=3600), Maker()
    for key in ("a", "b", "c", "a", "d"):  # three fit
        asyncio.run(given(kept, key, make))
    before = make.made
    asyncio.run(given(kept, "a", make))
    assert make.made == before
    asyncio.run(given(kept, "b", make))
    assert make.made == before + 1


def test_what_is_known_to_hold_is_given_before_the_router() -> None:
    mark: list[tuple[int, ...] | None] = [(1,)]
    kept, make, now = Kept(), Maker(), [100.0]

    async def first(asked: Request) -> None:
        await kept.given(asked, (1,), make, age_s=1.0, at_hand=lambda: mark[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillhouse.service.api.kept.time.monotonic", lambda: now[0])
        assert kept.at_once(request()) is None, "nothing is kept yet"
        asked = request(tenant="one", query="limit=1")
        asked.scope["route"] = "the route"
        asyncio.run(first(asked))
        again = request("identity", "one", query="limit=1")
        answer = kept.at_once(again)
        assert answer is not None and (answer.body, answer.headers["link"]) == (b'"x"', "next")
        assert again.scope["route"] == "the route", "requests are counted by it"
        for other in (request(tenant="two", query="limit=1"), request(tenant="one"), request(tenant="one", path="/x")):
            assert kept.at_once(other) is None
        for told in ((2,), None):
            mark[0] = told
            assert kept.at_once(again) is None, "it changed, or somebody must look"
        mark[0], now[0] = (1,), 101.0
        assert kept.at_once(again) is None, "it has aged"
    assert make.made == 1


def test_what_has_aged_is_given_before_the_router_while_it_is_made_anew() -> None:
    kept, now, going_on = Kept(), [100.0], threading.Event()

    def slow() -> tuple[Any, dict[str, str]]:
        assert going_on.wait(10)
        return "new", {}

    async def work() -> None:
        await kept.given(request(), (1,), lambda: ("old", {}), age_s=1.0, at_hand=lambda: (1,))
        now[0] += 1.5
        assert kept.at_once(request()) is None, "somebody must have it made anew"
        await kept.given(request(), (1,), slow, age_s=1.0, at_hand=lambda: (1,))
        answer = kept.at_once(request("identity"))
        assert answer is not None and answer.body == b'"old"'
        now[0] += 0.6
        assert kept.at_once(request()) is None, "twice its age is the most"
        going_on.set()
        await asyncio.gather(*kept._renewed.values())
        answer = kept.at_once(request("identity"))
        assert answer is not None and answer.body == b'"new"'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillhouse.service.api.kept.time.monotonic", lambda: now[0])
        asyncio.run(work())


@pytest.mark.parametrize(("method", "passed"), [("GET", 0), ("POST", 1), ("HEAD", 1)])
def test_only_what_looks_is_given_before_the_router(method: str, passed: int) -> None:
    kept, calls, sent = Kept(), [0], []

    async def app(*_: object) -> None:
        calls[0] += 1

    async def send(message: Any) -> None:
        sent.append(message)

    async def work() -> None:
        asked = request()
        await kept.given(asked, (1,), Maker(), at_hand=lambda: (1,))
        await AtOnce(app, kept=kept)({**asked.scope, "method": method}, None, send)  # type: ignore[arg-type]

    asyncio.run(work())
    assert (calls[0], bool(sent)) == (passed, not passed)


def test_few_are_made_at_once() -> None:
    kept, now, most, lock = Kept(), [0], [0], threading.Lock()

    def make() -> tuple[Any, dict[str, str]]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return "x", {}

    async def work() -> None:
        await asyncio.gather(*(kept.given(request(path=f"/{number}"), (1,), make) for number in range(8)))

    asyncio.run(work())
    assert most[0] == _MAKERS
