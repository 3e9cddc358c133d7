"""A PostgreSQL server of our own in a folder of its own, which a test may kill and start again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

ACCOUNTS = ("postgres", "nobody")
INITDB = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
}
"""No protection against a power cut, which tests do not cut; a killed server loses nothing."""


class PostgresServer:
    """Not running until ``start``; ``close`` stops it and removes its folder.

    Args:
        settings: More lines of its configuration.
    """

    def __init__(self, **settings: str) -> None:
        self._binaries = binaries()
        self._folder = Path(tempfile.mkdtemp(prefix="stillhouse-postgres-"))
        self._account = _account(self._folder)
        self._settings = {**SETTINGS, **settings}
        self._server: subprocess.Popen[bytes] | None = None
        command = [str(self._binaries / "initdb"), "-D", str(self._folder / "data"), "-U", "stillhouse", *INITDB]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **self._account)
        assert done.returncode == 0, done.stderr
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"postgresql://stillhouse@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        options = [
            word for name, value in (*self._settings.items(), ("port", self.port)) for word in ("-c", f"{name}={value}")
        ]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self._folder / "data"), *options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                **self._account,
            )
        deadline = time.monotonic() + 60
        while True:
            assert self._server.poll() is None, (self._folder / "log").read_text()
            try:
                administer(self.url, "SELECT 1")
            except Exception as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"PostgreSQL does not answer: {(self._folder / 'log').read_text()}") from error
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        assert self._server is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()

    def close(self) -> None:
        """Stops it and removes its folder."""
        if self._server is not None and self._server.poll() is None:
            self._server.terminate()
            try:
                self._server.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self._folder)


def administer(url: str, statement: str) -> None:
    """Runs one statement outside of any transaction."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def binaries() -> Path:
    """The newest server's folder; without one, CI fails and a developer's run skips."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]), reverse=True
    )
    on_path = shutil.which("postgres")
    if on_path is not None:
        found.append(Path(on_path))
    for program in found:
        if (program.parent / "initdb").exists():
            return program.parent
    missing = "no PostgreSQL server binaries (initdb, postgres) found; on Debian: apt-get install postgresql"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def _account(folder: Path) -> dict[str, object]:
    """What makes subprocess run as an ordinary user: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = next(known[name] for name in ACCOUNTS if name in known)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
