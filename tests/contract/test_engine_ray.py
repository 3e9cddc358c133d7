"""What the engine of a Ray cluster promises beyond the verbs: room, tokens, dead nodes, a head that starts anew."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import structlog
from fastapi import FastAPI

from cluster import TOKEN, Cluster, until
from served import Served, pictures
from stillhouse.search.controller import Controller
from stillhouse.search.errors import StillhouseError
from stillhouse.search.job import AttemptRecord
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.engine.ray import RayEngine, Share

SLEEP = f"{sys.executable} -c 'import time; time.sleep(600)'"


@pytest.fixture
def make() -> Iterator[Callable[..., RayEngine]]:
    engines: list[RayEngine] = []

    def start(url: str, **given: object) -> RayEngine:
        engines.append(RayEngine(url, "http://127.0.0.1:1", **given))  # type: ignore[arg-type]
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def attempt(name: str) -> AttemptRecord:
    return AttemptRecord(f"att_{name}_{time.time_ns()}", "0" * 64, "token", "open", 0.0)


@pytest.mark.parametrize(
    ("share", "resources", "slots"),
    [
        (Share(), {"GPU": 2.0, "CPU": 8.0}, 2),
        (Share(gpus=0.1), {"GPU": 1.0, "CPU": 64.0}, 10),
        (Share(gpus=0.5, cpus=3), {"GPU": 4.0, "CPU": 8.0}, 2),
        (Share(gpus=0, cpus=2), {"CPU": 5.0}, 2),
        (Share(), {"CPU": 8.0}, 0),
        (Share(), {}, 0),
        (Share(gpus=2), {"GPU": 1.0, "CPU": 8.0}, 0),
    ],
)
def test_how_many_attempts_a_node_holds(share: Share, resources: dict[str, float], slots: int) -> None:
    assert share.slots(resources) == slots


class Head(httpx.BaseTransport):
    """A head with two nodes, one of them dead, and these jobs."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, str | None]] = []
        self.status, self.asked = 200, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.status != 200:
            return httpx.Response(self.status, text="said\nby the head")
        if request.url.path == "/api/jobs/":
            return httpx.Response(200, json=self.jobs)
        nodes = [{"state": state, "resources_total": {"GPU": 3.0, "CPU": 8.0}} for state in ("ALIVE", "DEAD")]
        return httpx.Response(200, json={"data": {"result": {"result": nodes}}})


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    found, client = Head(), httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **given: client(transport=found, **given))
    return found


def test_jobs_of_others_take_room_and_dead_nodes_give_none(head: Head, make: Callable[..., RayEngine]) -> None:
    head.jobs = [
        {"type": "SUBMISSION", "submission_id": "att_1", "status": "RUNNING"},
        {"type": "SUBMISSION", "submission_id": "another's", "status": "PENDING"},
        {"type": "SUBMISSION", "submission_id": "att_2", "status": "FAILED"},
        {"type": "DRIVER", "submission_id": None, "status": "RUNNING"},
    ]
    engine = make("http://head")
    assert engine.capacity() == 3 - 2
    assert (engine.running("att_1"), engine.running("att_2"), engine.running("att_3")) == (True, False, False)


def test_a_head_that_says_nothing_has_ended_nothing(head: Head, make: Callable[..., RayEngine]) -> None:
    now = [0.0]
    head.jobs = [{"type": "SUBMISSION", "submission_id": "att_1", "status": "RUNNING"}]
    engine = make("http://head", clock=lambda: now[0])
    with structlog.testing.capture_logs() as told:
        assert (engine.capacity(), engine.running("att_2")) == (2, False)
        head.status = 503
        assert (engine.capacity(), engine.running("att_2")) == (2, False)  # asked once a second
        for _ in range(2):
            now[0] += 2
            assert (engine.capacity(), engine.running("att_1"), engine.running("att_2")) == (0, True, True)
        with pytest.raises(StillhouseError, match="503: by the head"):
            engine.submit(attempt("away"))
        engine.cancel("att_1")
        head.status, head.jobs = 200, []
        now[0] += 2
        assert (engine.capacity(), engine.running("att_1")) == (3, False)
    assert [line["event"].partition(";")[0] for line in told] == [
        "the Ray head does not answer", "a job was not stopped", "the Ray head answers again",
    ]  # fmt: skip


def test_the_head_is_asked_once_a_second(head: Head, make: Callable[..., RayEngine]) -> None:
    engine = make("http://head", clock=lambda: 0.0)
    for _ in range(100):
        engine.capacity()
        engine.running("att_1")
    assert head.asked == 2


# ----------------------------------------------------------------------------------- a real cluster


def test_capacity_is_what_the_nodes_have(cluster: Cluster, make: Callable[..., RayEngine]) -> None:
    for share, slots in ((Share(), 2), (Share(gpus=0.5), 4), (Share(gpus=0, cpus=2), 2), (Share(gpus=2), 0)):
        assert make(cluster.url, token=TOKEN, share=share).capacity() == slots


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_cluster_with_a_token_takes_no_other(
    cluster: Cluster, make: Callable[..., RayEngine], token: str | None
) -> None:
    engine = make(cluster.url, token=token)
    assert engine.capacity() == 0
    with pytest.raises(StillhouseError, match="STILLHOUSE_RAY_TOKEN"):
        engine.submit(attempt("refused"))


def test_a_dead_node_takes_its_attempt_with_it(cluster: Cluster, make: Callable[..., RayEngine]) -> None:
    engine, attempts = make(cluster.url, token=TOKEN, command=SLEEP + " #"), [attempt(name) for name in "ab"]
    for one in attempts:
        engine.submit(one)

    def nodes() -> list[str | None]:
        return [cluster.node_of(one.id) for one in attempts]

    until(lambda: None not in nodes(), "they were not started")
    assert len(set(nodes())) == 2
    cluster.kill_node()
    until(lambda: [engine.running(one.id) for one in attempts].count(True) == 1, "its death was not seen", 40)
    until(lambda: engine.capacity() == 0, "the dead node still counts")
    for one in attempts:
        engine.cancel(one.id)
    until(lambda: not any(engine.running(one.id) for one in attempts), "it goes on")


def test_a_head_that_starts_anew_loses_no_work(
    cluster: Cluster, sqlite_url: str, live: Callable[[FastAPI], str], tmp_path: Path
) -> None:
    """A real stage: its job is gone with the head, and is started again from the ledger."""
    upgrade(sqlite_url)
    served = Served(sqlite_url, tmp_path / "home")
    url = live(served.http.app)  # type: ignore[arg-type]
    dataset = served.http.post("/datasets", files={"file": ("p.zip", pictures())}).json()["id"]
    engine = RayEngine(cluster.url, url, token=TOKEN)
    controller = Controller(served.ledger, engine, lease_s=30, max_attempts=1)

    def ended() -> bool:
        controller.step()
        return served.ledger.dataset(dataset).state != "pending"

    controller.step()
    (first,) = served.ledger.open_attempts()
    assert engine.running(first.id)
    cluster.kill_head()
    until(lambda: engine.capacity() == 0, "the head is not missed")
    controller.step()
    assert [one.id for one in served.ledger.open_attempts()] == [first.id]
    cluster.whole()
    controller = Controller(served.ledger, engine, lease_s=30, max_attempts=1)  # started anew as well
    until(ended, "the stage was not done", 120)
    assert served.ledger.dataset(dataset).state == "ready", served.ledger.dataset(dataset).reason
    assert served.ledger.attempt(first.id).state == "lost"
    engine.close()
    served.close()
