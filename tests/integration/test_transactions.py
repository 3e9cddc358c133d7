"""Long work is never inside a transaction: while a job runs, none stays open for longer than a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text

from at_once import AtOnce
from cluster import free_port
from faulty import Rig
from stillhouse.search.controller import Controller
from stillhouse.search.job import Epochs
from stillhouse.service import worker
from stillhouse.service.app import create_app
from stillhouse.service.store import DiskStore

MOST_S = 1.0
"""How long a transaction may be open; on a busy machine a process may have to wait in the middle of a short one."""
MOST_HERE_S = 10.0
"""The same where all parts share one interpreter: there a training or an export holds up everything else."""
LONG = Epochs(teacher=30, assistant=2, student=2)
"""So that a stage takes longer than that."""


@dataclass
class Watch:
    """How long transactions were open, by what was seen of them; and what was done while one was, which must not be."""

    seconds: dict[str, float] = field(default_factory=dict)
    inside: set[str] = field(default_factory=set)

    def note(self, what: str, seconds: float) -> None:
        self.seconds[what] = max(seconds, self.seconds.get(what, 0.0))

    def check(self, most_s: float) -> None:
        """Some were seen, and none was long."""
        assert self.seconds, "no transaction was seen"
        assert {what: seconds for what, seconds in self.seconds.items() if seconds > most_s} == {}
        assert self.inside == set()


class Asking:
    """Asks the API for what people look at, again and again, and sends it pictures."""

    def __init__(self, url: str, job: str, archive: Path) -> None:
        self._url, self._job, self._archive = url, job, archive
        self._stop, self.answered = threading.Event(), 0
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        paths = ("jobs", f"jobs/{self._job}", f"jobs/{self._job}/pareto", "datasets", "models")
        with httpx.Client(base_url=self._url, timeout=30) as http:
            while not self._stop.wait(0.1):
                answers = [http.get(f"/{path}") for path in paths]
                file = ("p.zip", BytesIO(self._archive.read_bytes()))
                answers.append(http.post("/datasets", files={"file": file}))
                self.answered += sum(answer.is_success for answer in answers)


# ----------------------------------------------------------------------------------------- SQLite


LONG_WORK = ((AtOnce, "submit"), (worker.Bench, "run"), (DiskStore, "put"), (DiskStore, "path"))


@contextmanager
def hooked(patch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Watches all transactions of this process, those still open at the end as well, and what is done inside one."""
    watch, began = Watch(), dict[int, tuple[int, float]]()

    def begin(connection: Connection) -> None:
        began[id(connection)] = threading.get_ident(), time.monotonic()

    def end(connection: Connection) -> None:
        if (known := began.pop(id(connection), None)) is not None:
            watch.note(f"of {threading.current_thread().name}", time.monotonic() - known[1])

    def looked_at(owner: type, name: str) -> None:
        work = getattr(owner, name)

        def looking(*given: Any, **named: Any) -> Any:
            if any(thread == threading.get_ident() for thread, _ in list(began.values())):
                watch.inside.add(f"{owner.__name__}.{name}")
            return work(*given, **named)

        patch.setattr(owner, name, looking)

    for owner, name in LONG_WORK:
        looked_at(owner, name)
    listeners = (("begin", begin), ("commit", end), ("rollback", end))
    for event_name, listener in listeners:
        event.listen(Engine, event_name, listener)
    try:
        yield watch
    finally:
        for event_name, listener in listeners:
            event.remove(Engine, event_name, listener)
        for _, since in began.values():
            watch.note("open at the end", time.monotonic() - since)


def test_on_sqlite_no_part_works_inside_a_transaction(
    archive: Path, tmp_path: Path, live: Callable[[FastAPI], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controller, API and stages run in this process, whose transactions all pass the hooks."""
    rig = Rig(tmp_path / "home", archive)
    rig.settings.make_folders()
    url = live(create_app(rig.ledger, DiskStore(rig.settings.artifacts), rig.settings))
    job = rig.accept()
    controller = Controller(rig.ledger, AtOnce(rig.home), lease_s=30, max_attempts=1)
    with hooked(monkeypatch) as watch, Asking(url, job, archive) as asking:
        while not rig.ended(job):
            controller.step()
    assert (rig.ledger.job(job).state, asking.answered > 10) == ("done", True)
    watch.check(MOST_HERE_S)
    rig.close()


# ------------------------------------------------------------------------------------- PostgreSQL


@contextmanager
def sampled(url: str) -> Iterator[Watch]:
    """Looks again and again at which transactions the server has open, whoever opened them."""
    watch, stop = Watch(), threading.Event()
    query = text(
        "SELECT left(query, 200), extract(epoch FROM clock_timestamp() - xact_start) FROM pg_stat_activity "
        "WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
    )
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")

    def look() -> None:
        with engine.connect() as connection:
            while not stop.wait(0.02):
                for what, seconds in connection.execute(query):
                    watch.note(what, float(seconds))
        engine.dispose()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


def test_on_postgresql_no_process_works_inside_a_transaction(
    archive: Path, tmp_path: Path, postgres_database_url: str
) -> None:
    """The service and its stages as they are started by their users; the server tells of their transactions."""
    port = free_port()
    rig = Rig(tmp_path / "home", archive, postgres_database_url, {"STILLHOUSE_PORT": str(port)})
    rig.start("up")
    rig.until(lambda: answers(port), "the API does not start")
    job = rig.accept(epochs=LONG)
    with sampled(postgres_database_url) as watch, Asking(f"http://127.0.0.1:{port}", job, archive) as asking:
        rig.until(lambda: rig.ended(job), "the job does not end")
    assert (rig.ledger.job(job).state, asking.answered > 50) == ("done", True), rig.logs()
    assert max(stage.seconds or 0.0 for stage in rig.stages().values()) > 2 * MOST_S, "no stage was long"
    watch.check(MOST_S)
    rig.stop()
    rig.close()


# ---------------------------------------------------------------------------------------- helpers


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready").is_success
    except httpx.TransportError:
        return False
