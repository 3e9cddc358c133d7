"""Fixtures for tests that need a database or a ledger."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from xdist.scheduler import LoadFileScheduling

from postgres import PostgresServer, administer
from stillhouse.search.ports import Ledger
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.engine.local import THREAD_VARIABLES

pytest_plugins = ["faulty", "served", "cluster", "bucket"]


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of pytest-xdist's workers: they have the processors together, and threads that wait for their
    turn spin. What starts stages gives those their share itself."""
    if config.getoption("numprocesses", None):
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """A file's tests go to one worker, and so do all that need a Ray cluster or a whole job to compare with: once is
    enough of either."""
    return _Scheduling(config, log)


class _Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        return "whole" if path.startswith(("tests/fault/", "tests/contract/test_engine_")) else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Wants a name of its own for every test: pytest-xdist runs one of those that share a name, and drops the rest."""
    names = [item.nodeid for item in items]
    assert len(names) == len(set(names)), "two tests have one name"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def sql_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database: the test runs on SQLite and on PostgreSQL."""
    url = str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_database_url"))
    upgrade(url)
    return url


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """An empty ledger: the test runs on every adapter."""
    if request.param == "memory":
        yield MemoryLedger()
        return
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_database_url")
    upgrade(url)
    sql = SqlLedger(url)
    yield sql
    sql.close()


Race = Callable[..., list[Any]]


@pytest.fixture
def race() -> Race:
    """Runs ``work(index)`` in threads that start together; returns their answers."""

    def run(work: Callable[[int], Any], threads: int = 8) -> list[Any]:
        gate = threading.Barrier(threads)

        def one(index: int) -> Any:
            gate.wait()
            return work(index)

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, range(threads)))

    return run


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, stopped at the end of the session."""
    server = PostgresServer(synchronous_commit="off")
    try:
        server.start()
        yield server.url
    finally:
        server.close()


@pytest.fixture
def postgres_database_url(postgres_url: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database for one test."""
    name = f"test_{os.urandom(6).hex()}"
    administer(postgres_url, f"CREATE DATABASE {name}")
    yield postgres_url.rsplit("/", 1)[0] + f"/{name}"
    administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def live() -> Iterator[Callable[[FastAPI], str]]:
    """Serves applications by real servers on free loopback ports; gives the base address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: FastAPI) -> str:
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(20)
