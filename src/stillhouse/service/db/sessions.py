"""Short transactions on one database, from any thread and after any fork."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from sqlalchemy import CursorResult, Engine, UpdateBase, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from stillhouse.search.domain import Json
from stillhouse.search.errors import AwayError
from stillhouse.service.db.connect import WRITE, connect
from stillhouse.service.db.tables import Base, KeyRow


class Sessions:
    """Opens sessions for one transaction each.

    Args:
        url: ``sqlite:////folder/file.db`` or ``postgresql://user:password@host/name``.

    Raises:
        UserError: The URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._open()

    def _open(self) -> None:
        self._engine: Engine = connect(self._url)
        self._writing = self._engine.execution_options(**WRITE)
        # READ COMMITTED shows each statement what is committed then: to begin and to end a transaction around reads
        # would change nothing but the number of messages.
        alone = {"isolation_level": "AUTOCOMMIT"} if self._engine.dialect.name == "postgresql" else {}
        self._reading = self._engine.execution_options(**alone)
        self._pid = os.getpid()

    def _after_fork(self) -> None:
        """Leaves the parent's connections alone: two processes on one socket or file would break both."""
        if self._pid != os.getpid():
            self._engine.dispose(close=False)
            self._open()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Only reads, each statement what is committed when it begins; AwayError when the database does not answer."""
        self._after_fork()
        with away(), Session(self._reading, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes: committed at the end, rolled back on an error.

        Raises:
            AwayError: The database does not answer: what was to be written may have been, or not.
        """
        self._after_fork()
        with away(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Closes the connections; a later use opens new ones."""
        self._engine.dispose(close=self._pid == os.getpid())


@contextmanager
def away() -> Iterator[None]:
    """Tells what the database cannot do now (refused, dropped, locked, disk full) from what is wrong with a call."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise AwayError(f"the database does not answer: {error.orig}") from error


def insert_new(session: Session, table: type[Base], values: Mapping[str, Json]) -> bool:
    """Inserts a row unless a unique key is taken; False when it was. Waits for a racing writer."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    return rows_changed(session, insert(table).values(**values).on_conflict_do_nothing()) == 1


def lock_key(session: Session, key_id: str) -> None:
    """Puts what one API key makes in line until it is committed, so that its quotas hold in a race."""
    session.execute(select(KeyRow.id).where(KeyRow.id == key_id).with_for_update())


def rows_changed(session: Session, statement: UpdateBase) -> int:
    """Runs an INSERT or UPDATE; returns how many rows it wrote."""
    # No session here holds a row that it then updates by statement; an INSERT's count is dropped unless asked for.
    options = {"synchronize_session": False, "preserve_rowcount": True}
    return cast("CursorResult[Any]", session.execute(statement, execution_options=options)).rowcount
