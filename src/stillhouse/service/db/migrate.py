"""Brings a database to the tables of this version, by Alembic.

``upgrade`` runs at every start. Two processes that start together are put in line by a lock that the
database itself holds, so the second finds the work done.
"""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from stillhouse.search.errors import UserError
from stillhouse.service.db.connect import WRITE, connect

_FOLDER = Path(__file__).parent / "migrations"
_POSTGRES_LOCK = 0x5711_1405E
"""Any number that no other user of the database locks by."""

_ONE_AT_A_TIME = threading.Lock()
"""Alembic keeps what it works on in globals of the process."""


def upgrade(url: str, revision: str = "head") -> None:
    """Brings the database to a revision (by default the newest); does nothing when it is there.

    Raises:
        UserError: The database was written by a newer version.
    """
    if revision != "head" or not _is_newest(url):
        _run(url, "upgrade", revision)


def downgrade(url: str, revision: str) -> None:
    """Takes the database back to a revision (``base`` is before the first); data of dropped tables is lost."""
    _run(url, "downgrade", revision)


def _is_newest(url: str) -> bool:
    """Whether the database is at the newest revision, which is the last of the files, named ``r0007_identity.py``."""
    newest = max(path.stem for path in (_FOLDER / "versions").glob("r*.py")).partition("_")[0].removeprefix("r")
    engine = connect(url)
    try:
        with engine.connect() as connection:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [newest]
    except DBAPIError:  # no such table, or a database that does not answer: whoever migrates finds out
        return False
    finally:
        engine.dispose()


def _run(url: str, name: str, revision: str) -> None:
    """Runs one Alembic command in one transaction, under the lock."""
    from alembic import command  # noqa: PLC0415 - a good part of what a start takes, and seldom needed
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util.exc import CommandError  # noqa: PLC0415

    engine = connect(url, foreign_keys=False)
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    try:
        with _ONE_AT_A_TIME, engine.execution_options(**WRITE).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _POSTGRES_LOCK})
            config.attributes["connection"] = connection
            getattr(command, name)(config, revision)
    except CommandError as error:
        raise UserError(
            f"the database cannot be migrated ({error}); if a newer Stillhouse wrote it, install that version"
        ) from error
    finally:
        engine.dispose()
