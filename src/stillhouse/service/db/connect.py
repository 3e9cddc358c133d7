"""Database engines for the two dialects that are supported, set up so that compare-and-set is sound.

SQLite: WAL (readers do not wait for the writer), foreign keys on, and a write transaction takes the
write lock at its start (``BEGIN IMMEDIATE``): one that read first and locked later could fail in the
middle, without waiting. PostgreSQL: psycopg, READ COMMITTED, where an ``UPDATE ... WHERE state = ...``
that waited for another writer looks at the row again before it changes it.
"""

from __future__ import annotations

import importlib.util
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from stillhouse.search.errors import UserError

BUSY_TIMEOUT_S = 10.0
"""How long a SQLite connection waits for another process's write lock."""

IDLE_S, PROBE_S, PROBES = 10, 5, 3
SILENT_S = IDLE_S + PROBE_S * PROBES
"""After so long without a sign of life a connection to PostgreSQL is taken for broken."""
_PATIENCE = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": IDLE_S,
    "keepalives_interval": PROBE_S,
    "keepalives_count": PROBES,
    "tcp_user_timeout": SILENT_S * 1000,
}
"""libpq's options, which by themselves would wait for a quarter of an hour for a machine that has vanished."""

WRITE = {"stillhouse_write": True}
"""Execution options of an engine or connection whose transactions write."""


def database_url(text: str) -> URL:
    """Reads a database URL and settles its driver.

    Raises:
        UserError: Not a URL, a database that is not supported, or its driver is not installed.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        raise UserError(
            "the database URL must read sqlite:////folder/file.db or postgresql://user:password@host/name, "
            f"but got {text!r}"
        ) from None
    name = url.get_backend_name()
    if name in ("postgresql", "postgres"):
        if importlib.util.find_spec("psycopg") is None:
            raise UserError("a PostgreSQL database needs the driver psycopg: pip install 'stillhouse[postgres]'")
        return url.set(drivername="postgresql+psycopg")
    if name != "sqlite":
        raise UserError(f"the database must be SQLite or PostgreSQL, but got {name!r}")
    if not url.database or url.database == ":memory:":
        raise UserError("a SQLite database must be a file that several processes can open: sqlite:////folder/file.db")
    return url.set(drivername="sqlite+pysqlite")


def patience(url: URL, **more: str | int) -> dict[str, str | int]:
    """Arguments, and more, of a connection to PostgreSQL that notices a cut network; what the URL says goes before."""
    return {name: value for name, value in {**_PATIENCE, **more}.items() if name not in url.query}


def connect(text: str, *, foreign_keys: bool = True) -> Engine:
    """Makes an engine; opens no connection yet. The folder of a SQLite file is made.

    Args:
        text: The database URL.
        foreign_keys: SQLite only: False while tables are rebuilt by a migration.

    Raises:
        UserError: As ``database_url``.
    """
    url = database_url(text)
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_pre_ping=True, connect_args=patience(url))
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        _set_wal(connection)

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("stillhouse_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _set_wal(connection: sqlite3.Connection) -> None:
    """Turns WAL on; it is kept in the file, so this is real work only once.

    SQLite does not wait out a lock here as it does elsewhere, so we do.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
            continue
        break  # a file system without shared memory keeps its journal: slower, still correct
