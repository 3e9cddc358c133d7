"""Two controllers on one database: the second is refused, and one whose lock is gone does not go on without it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from postgres import PostgresServer, administer
from served import CATALOGUE
from stillhouse.search.domain import StageKind, StagePlan
from stillhouse.search.errors import AwayError, ConflictError
from stillhouse.service import wiring
from stillhouse.service.db.connect import database_url
from stillhouse.service.db.sole import SessionLock, only_controller
from stillhouse.service.settings import Settings
from stillhouse.service.wiring import Platform


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_database_url"))


@pytest.fixture
def other_database(postgres_url: str) -> Iterator[str]:
    """A second one on the same server."""
    name = f"other_{os.urandom(6).hex()}"
    administer(postgres_url, f"CREATE DATABASE {name}")
    yield postgres_url.rsplit("/", 1)[0] + f"/{name}"
    administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def lock(postgres_database_url: str) -> Iterator[SessionLock]:
    lock = SessionLock(database_url(postgres_database_url))
    yield lock
    lock.close()


def cut(url: str) -> None:
    """Ends the session that holds the lock, as a restart of the server does."""
    holder = "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory') AND datname = current_database()"
    administer(url, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {holder}")  # noqa: S608


def platform(folder: Path, url: str) -> Platform:
    return Platform(Settings.load(home=folder, database_url=url, hub="off", slots=1))


def test_a_second_controller_is_refused_whatever_its_home(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it publishes nothing: its code may be another, and the one at work plans by what is published."""
    monkeypatch.setattr(wiring, "worker_catalogue", lambda settings: {**CATALOGUE, "by": settings.home.name})
    one, two = (platform(tmp_path / name, url) for name in ("one", "two"))
    told = r"already works on .*; stop it, use its API, or set STILLHOUSE_DATABASE_URL to another"
    with one.controller() as controller:
        assert controller.step()
        with pytest.raises(ConflictError, match=told):
            two.controller().__enter__()
        assert controller.step(), "the refused one has taken nothing from it"
        assert (one.ledger.catalogue() or {})["by"] == "one"
    with two.controller() as controller:
        assert controller.step()
    for each in (one, two):
        each.ledger.close()


def test_a_refusal_hides_the_password(postgres_database_url: str) -> None:
    secret = postgres_database_url.replace("stillhouse@", "stillhouse:S3cret@") + "?password=S3cret"
    with only_controller(secret), pytest.raises(ConflictError) as refused:
        only_controller(secret).__enter__()
    assert "S3cret" not in str(refused.value)


def test_a_file_has_one_controller_by_whatever_name(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.db").symlink_to(tmp_path / "ledger.db")
    with (
        only_controller(f"sqlite:///{tmp_path}/ledger.db") as sole,
        only_controller(f"sqlite:///{tmp_path}/other.db"),
        pytest.raises(ConflictError),
        only_controller(f"sqlite:///{tmp_path}/elsewhere/mine.db"),
    ):
        pass
    assert sole.held()


def test_each_database_of_a_server_has_its_own(postgres_database_url: str, other_database: str) -> None:
    with only_controller(postgres_database_url) as one, only_controller(other_database) as two:
        assert one.held() and two.held()


def test_a_session_that_was_cut_is_begun_anew(lock: SessionLock, postgres_database_url: str) -> None:
    assert lock.held() and lock.held()
    cut(postgres_database_url)
    with pytest.raises(AwayError, match="the database does not answer"):
        lock.held()
    assert lock.held()


def test_whoever_comes_first_has_it_until_he_goes(lock: SessionLock, postgres_database_url: str) -> None:
    other = SessionLock(database_url(postgres_database_url))
    assert lock.held() and not other.held() and lock.held()
    cut(postgres_database_url)
    assert other.held()
    with pytest.raises(AwayError):
        lock.held()
    assert not lock.held() and not lock.held()
    other.close()
    assert lock.held()


def test_the_server_soon_notices_a_machine_that_is_gone(lock: SessionLock) -> None:
    assert lock.held()
    assert lock._connection is not None
    shown = [lock._connection.execute(text(f"SHOW tcp_keepalives_{name}")).scalar_one() for name in ("idle", "count")]
    assert shown == ["10", "3"]


def test_what_the_url_says_of_the_connection_goes_first(postgres_database_url: str) -> None:
    lock = SessionLock(database_url(f"{postgres_database_url}?application_name=mine"))
    assert lock.held()
    assert lock._connection is not None
    assert lock._connection.execute(text("SHOW application_name")).scalar_one() == "mine"
    lock.close()


def test_a_controller_whose_lock_another_has_stands_by(
    postgres_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server lets go of everything; another controller is faster, and then goes."""
    monkeypatch.setattr(wiring, "worker_catalogue", lambda _: CATALOGUE)
    one = platform(tmp_path / "one", postgres_database_url)
    other = SessionLock(database_url(postgres_database_url))
    with one.controller() as controller:
        assert controller.step()
        cut(postgres_database_url)
        assert other.held()
        dataset = one.ledger.add_dataset("birds", StagePlan(StageKind.INGEST, {}))
        with pytest.raises(AwayError):
            controller.step()
        assert not controller.step()
        assert one.ledger.attempts(dataset.stage_key) == []
        other.close()
        assert controller.step()
        assert len(one.ledger.attempts(dataset.stage_key)) == 1
    one.ledger.close()


def test_a_server_that_starts_anew_is_asked_until_it_answers() -> None:
    server = PostgresServer()
    server.start()
    lock = SessionLock(database_url(server.url))

    def away() -> bool:
        try:
            lock.held()
        except AwayError:
            return True
        return False

    try:
        assert not away()
        server.kill()
        deadline = time.monotonic() + 10
        while not away():  # the session's process ends when it sees that its server has
            assert time.monotonic() < deadline
        assert away() and away()
        server.start()
        assert lock.held()
    finally:
        lock.close()
        server.close()
