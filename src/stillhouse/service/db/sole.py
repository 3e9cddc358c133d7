"""One controller works on one database, whichever home it has: two would declare each other's attempts lost.

PostgreSQL: an advisory lock of a session, which the server keeps per database. The session is a connection of its own,
and the lock ends with it, however that ends: at once when the process dies, after ``SILENT_S`` when its machine or the
network does. So one who was cut off must look before each step whether the lock is still his.

SQLite: a lock on a file beside the database's. The kernel frees it when the process ends, and not before.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from sqlalchemy import URL, Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from stillhouse.search.errors import ConflictError
from stillhouse.search.ports import Sole
from stillhouse.service.db.connect import IDLE_S, PROBE_S, PROBES, database_url, patience
from stillhouse.service.db.sessions import away

KEY = int.from_bytes(sha256(b"stillhouse controller").digest()[:8], "big", signed=True)
"""The advisory lock: any number of 64 bits that no other user of the database locks by."""
_THEIRS = {"tcp_keepalives_idle": IDLE_S, "tcp_keepalives_interval": PROBE_S, "tcp_keepalives_count": PROBES}
"""The server's end: by its own settings it would hold the lock of a machine that is gone for two hours."""


@contextmanager
def only_controller(url: str) -> Iterator[Sole]:
    """Holds the database for one controller; gives what tells it whether that still is so.

    Raises:
        ConflictError: Another controller works on it.
        AwayError: The database does not answer.
    """
    where = database_url(url)
    shown = where.set(query={}).render_as_string(hide_password=True)
    refused = (
        f"one controller works on a database, but another one already works on {shown}; stop it, use its API, or set "
        "STILLHOUSE_DATABASE_URL to another"
    )
    if where.get_backend_name() == "sqlite":
        file = Path(str(where.database)).resolve()  # by whatever name it was called
        with file_lock(file.with_name(f"{file.name}.controller.lock"), refused):
            yield Sole()
        return
    lock = SessionLock(where)
    try:
        if not lock.held():
            raise ConflictError(refused)
        yield lock
    finally:
        lock.close()


@contextmanager
def file_lock(path: Path, refused: str) -> Iterator[None]:
    """Holds a lock on a file, which is made if need be; ConflictError with this message when another holds it."""
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(refused) from None
        yield


class SessionLock(Sole):
    """The advisory lock on a PostgreSQL database, held by one connection that nothing else uses.

    Args:
        url: Of the database, with its driver.
    """

    def __init__(self, url: URL) -> None:
        options = patience(url, application_name="stillhouse controller")
        self._engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=options)
        self._connection: Connection | None = None
        self._mine = False

    def held(self) -> bool:
        """True while the lock is ours; else it is asked for, and whoever has it is not waited for."""
        try:
            with away():
                if self._connection is None:
                    self._connection = self._connect()
                if self._mine:
                    self._connection.execute(text("SELECT 1"))  # while the session lives, the lock is held
                else:
                    took = self._connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": KEY})
                    self._mine = bool(took.scalar_one())
        except BaseException:
            self._drop()  # the lock went with the session, or goes now: the next one begins anew
            raise
        return self._mine

    def close(self) -> None:
        """Gives the lock up; a later call of ``held`` asks for it again."""
        if self._connection is not None and self._mine:
            with suppress(DBAPIError):  # said, not left to the server's noticing, so that the next one can have it now
                self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": KEY})
        self._drop()

    def _drop(self) -> None:
        connection, self._connection, self._mine = self._connection, None, False
        if connection is not None:
            with suppress(DBAPIError):  # it may be broken already
                connection.close()

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        try:
            for name, value in _THEIRS.items():
                connection.execute(text("SELECT set_config(:name, :value, false)"), {"name": name, "value": str(value)})
        except BaseException:
            connection.close()
            raise
        return connection
