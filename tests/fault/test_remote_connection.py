"""Workers on other machines whose connections to the API break and hang: all is done once, and no file differs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from apart import ApartEngine
from cluster import free_port
from faulty import LEASE_S, Faulty, Reference, Rig
from proxy import Cut, Proxy
from served import Served
from stillhouse.search.controller import Controller
from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.job import AttemptRecord
from stillhouse.service.remote import RemoteClaim
from stillhouse.service.store import DiskStore

ARTIFACTS = rb"/attempts/\w+/artifacts/"


@dataclass
class Far:
    """A job whose workers reach the API through the proxy; the controller is in this process."""

    rig: Rig
    proxy: Proxy
    engine: ApartEngine
    node: Path
    job: str

    def check(self, reference: Reference) -> None:
        """The job is done as in a quiet run, and nothing is left on either machine, or on the way."""
        self.rig.until(lambda: self.rig.ended(self.job), f"the job does not end\n{self.said()}", 200)
        open_still = [one.id for one in self.rig.ledger.open_attempts()]
        assert open_still == []
        self.rig.until(lambda: self.engine.capacity() == 1, "a worker goes on")
        self.engine.close()
        for home in (self.rig.home, self.node):
            assert left_in(home) == [], self.said()
        self.rig.check(self.job, reference.outcome)
        assert not list((self.node / "work").iterdir())
        assert not (self.node / "stillhouse.db").exists()

    def begun(self, kind: StageKind) -> bool:
        """True from the first attempt on: that may be over within a second, and who looks then must not miss it."""
        return any(stage.plan.kind is kind and stage.attempts for stage in self.rig.stages().values())

    def said(self) -> str:
        """The end of each worker's log."""
        return "\n".join(path.read_text()[-1500:] for path in sorted(self.node.glob("logs/*.log")))


@pytest.fixture
def far(faulty: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Far]]:
    """Starts the API, the proxy before it, and the controller with its workers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in the quiet run
    stop, opened = threading.Event(), list[Far]()

    def start(*cuts: Cut) -> Far:
        port, node = free_port(), tmp_path / "node"
        rig = faulty(STILLHOUSE_PORT=str(port), STILLHOUSE_CHECKPOINT_EVERY_S="0")
        rig.start("serve")
        rig.until(lambda: answers(port), "the API does not start")
        proxy = Proxy(port)
        proxy.cuts += cuts
        engine = ApartEngine(node, f"http://127.0.0.1:{proxy.port}")
        opened.append(Far(rig, proxy, engine, node, rig.accept()))
        controller = Controller(rig.ledger, engine, lease_s=LEASE_S, max_attempts=5)
        thread = threading.Thread(target=controller.run, args=(stop,))
        thread.start()
        threads.append(thread)
        return opened[-1]

    threads: list[threading.Thread] = []
    yield start
    stop.set()
    for thread in threads:
        thread.join()
    for one in opened:
        one.engine.close()
        one.proxy.close()


def test_connections_break_in_the_middle_of_answers_and_uploads(far: Callable[..., Far], reference: Reference) -> None:
    """What was fetched half is fetched again, what was sent half is sent again, what was done is not done again."""
    cuts = [
        Cut(rb"GET /attempts/\w+ HTTP", answer=True, after=100),
        Cut(rb"GET /attempts/\w+/source", answer=True, after=20_000),
        Cut(rb"GET " + ARTIFACTS, answer=True, after=20_000, times=2),
        Cut(rb"PUT " + ARTIFACTS, after=5_000),
        Cut(rb"PUT " + ARTIFACTS, after=70_000),
        Cut(rb"PUT " + ARTIFACTS, answer=True),
        Cut(rb"POST /attempts/\w+/renew", answer=True, times=3),
        Cut(rb"POST /attempts/\w+/commit", times=1),
        Cut(rb"POST /attempts/\w+/commit", answer=True, times=3),
    ]
    here = far(*cuts)
    here.rig.until(lambda: here.begun(StageKind.TEACHER), "no teacher is trained")
    here.proxy.refusing = True
    here.proxy.drop()
    time.sleep(1.5)
    here.proxy.refusing = False
    here.check(reference)
    assert [cut for cut in cuts if cut.done < cut.times] == []
    assert here.rig.attempts().keys() == {"done"}, "nothing had to be tried again"


def test_connections_hang_for_longer_than_the_lease(far: Callable[..., Far], reference: Reference) -> None:
    """The late worker cannot be reached: it finds its lease gone by itself, and another attempt does its stage."""
    here = far()
    here.engine.deaf = True
    here.rig.until(lambda: here.begun(StageKind.TEACHER), "no teacher is trained")
    here.proxy.delay_s = 2 * LEASE_S
    here.rig.until(lambda: here.rig.attempts()["lost"] == 1, "the late one was not given up", 8 * LEASE_S)
    here.proxy.delay_s = 0.0
    here.check(reference)
    assert here.rig.attempts()["lost"] == 1


def test_an_end_whose_answer_was_lost_is_known_for_done(
    served: Served, live: Callable[[FastAPI], str], tmp_path: Path
) -> None:
    proxy = Proxy(int(live(served.http.app).rsplit(":", 1)[1]))  # type: ignore[arg-type]
    attempts = [opened(served, number) for number in range(4)]
    with ExitStack() as stack:

        def dialled(attempt: AttemptRecord) -> RemoteClaim:
            store, url = DiskStore(tmp_path / "apart"), f"http://127.0.0.1:{proxy.port}"
            claim = RemoteClaim(url, attempt.id, attempt.token, store=store, uploads=tmp_path / "u", patience_s=10)
            return stack.enter_context(claim)

        done, failed, back, lost = map(dialled, attempts)
        proxy.cuts += [Cut(name, answer=True) for name in (b"/commit", b"/fail", b"/give-back")]
        assert done.commit(StageResult({}, {"by": "it"}), seconds=1)
        assert failed.fail("why")
        back.give_back("full", wait_s=1)
        proxy.cuts.append(Cut(b"/commit"))
        assert served.ledger.lose(lost.attempt_id, max_attempts=3)
        assert not lost.commit(StageResult(), seconds=1), "another may hold it"
        assert not done.commit(StageResult(), seconds=1), "it was told so before"
    assert all(cut.done for cut in proxy.cuts)
    assert [served.ledger.attempt(each.id).state for each in attempts] == ["done", "failed", "lost", "lost"]
    proxy.close()


# ---------------------------------------------------------------------------------------- helpers


def opened(served: Served, number: int) -> AttemptRecord:
    stage = served.ledger.ensure_stage(StagePlan(StageKind.TEACHER, {"n": number}))
    attempt = served.ledger.open_attempt(stage.key, lease_s=30, threads=1)
    assert attempt is not None
    return attempt


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/live").is_success
    except httpx.TransportError:
        return False


def left_in(home: Path) -> list[Path]:
    """What is there for a moment only."""
    return [path for path in home.rglob("*") if "tmp" in path.suffix or path.parent.name == "tmp"]
