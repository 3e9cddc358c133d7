"""Fixtures for tests that need a database or a ledger."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine, make_url, text

from stillhouse.search.ports import Ledger
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.db.migrate import upgrade

ACCOUNTS = ("postgres", "nobody")


pytest_plugins = ["served"]


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
    binaries = _postgres_binaries()
    folder = Path(tempfile.mkdtemp(prefix="stillhouse-postgres-"))
    account = _server_account(folder)
    data = folder / "data"
    _run([str(binaries / "initdb"), "-D", str(data), "-U", "stillhouse", *INITDB], account)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(data), *options], stdout=log, stderr=log, cwd=folder, **account
        )
    try:
        url = f"postgresql://stillhouse@127.0.0.1:{port}/postgres"
        _await_postgres(url, server, folder / "log")
        yield url
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder)


@pytest.fixture
def postgres_database_url(postgres_url: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database for one test."""
    name = f"test_{os.urandom(6).hex()}"
    _administer(postgres_url, f"CREATE DATABASE {name}")
    yield postgres_url.rsplit("/", 1)[0] + f"/{name}"
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


INITDB = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")


def _administer(url: str, statement: str) -> None:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _postgres_binaries() -> Path:
    """The newest server's folder; without one, CI fails and a developer's run skips."""
    candidates = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]), reverse=True
    )
    on_path = shutil.which("postgres")
    if on_path is not None:
        candidates.append(Path(on_path))
    for program in candidates:
        if (program.parent / "initdb").exists():
            return program.parent
    missing = "no PostgreSQL server binaries (initdb, postgres) found; on Debian: apt-get install postgresql"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def _server_account(folder: Path) -> dict[str, object]:
    """What makes subprocess run as an ordinary user: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = next(known[name] for name in ACCOUNTS if name in known)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _run(command: list[str], account: dict[str, object]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **account)
    assert done.returncode == 0, done.stderr


def _await_postgres(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    port = make_url(url).port
    while True:
        assert server.poll() is None, log.read_text()
        try:
            _administer(url, "SELECT 1")
        except Exception as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not answer on port {port}: {log.read_text()}") from error
            time.sleep(0.1)
        else:
            return


@pytest.fixture
def live() -> Iterator[Callable[[FastAPI], str]]:
    """Serves applications by real servers on free loopback ports; gives the base address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: FastAPI) -> str:
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
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
