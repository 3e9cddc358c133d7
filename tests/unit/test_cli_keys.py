"""``stillhouse keys`` and ``audit``, and a server that does not start without a key where others can reach it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse.search.errors import UserError
from stillhouse.service import cli, cli_serve
from stillhouse.service.accounts import Deed, create_key, known_key
from stillhouse.service.buckets import Buckets, network
from stillhouse.service.db.accounts import MemoryAccounts
from stillhouse.service.settings import Settings
from stillhouse.service.wiring import Platform

RUN = CliRunner()


@pytest.fixture(autouse=True)
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return Platform(Settings.load())


def test_a_key_is_made_listed_and_revoked(platform: Platform) -> None:
    made = RUN.invoke(cli.app, ["keys", "create", "anna", "--tenant", "lab", "--scopes", "write,read"])
    secret = made.stdout.strip()
    assert re.fullmatch(r"sth_[0-9a-f]{12}_\S{43}", secret), "the secret stands alone on standard output"
    key = known_key(platform.accounts, secret, now=time.time())
    assert key is not None
    assert (key.name, key.tenant, key.scopes) == ("anna", "lab", ("read", "write"))
    listed = RUN.invoke(cli.app, ["keys", "list"]).stdout
    assert all(word in listed for word in (key.id, "anna", "lab", "read,write", "valid"))
    assert secret not in listed
    assert RUN.invoke(cli.app, ["keys", "revoke", key.id]).exit_code == 0
    assert known_key(platform.accounts, secret, now=time.time()) is None
    assert "revoked" in RUN.invoke(cli.app, ["keys", "list"]).stdout
    assert RUN.invoke(cli.app, ["keys", "revoke", key.id]).exit_code == 2


@pytest.mark.parametrize(
    ("options", "scopes"),
    [
        ([], ("read", "write")),
        (["--scopes", "read", "--scopes", "write"], ("read", "write")),
        (["--scopes", "write,worker", "--scopes", "read"], ("read", "write", "worker")),
        (["--scopes", "worker"], ("worker",)),
    ],
)
def test_scopes_are_collected(options: list[str], scopes: tuple[str, ...], platform: Platform) -> None:
    assert RUN.invoke(cli.app, ["keys", "create", "alice", *options]).exit_code == 0
    (key,) = platform.accounts.all_keys()
    assert key.scopes == scopes


def test_an_expiry(platform: Platform) -> None:
    secret = RUN.invoke(cli.app, ["keys", "create", "short", "--expires-in", "2h"]).stdout.strip()
    now = time.time()
    assert known_key(platform.accounts, secret, now=now + 7100) is not None
    assert known_key(platform.accounts, secret, now=now + 7300) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scopes", "admin"], "read, write, worker"),
        (["--scopes", ""], "got none"),
        (["--tenant", "../x"], "a tenant is named by"),
        (["--tenant", "A"], "a tenant is named by"),
        (["--expires-in", "soon"], "12h, 30d or 8w"),
        (["--expires-in", "0h"], "in the future"),
    ],
)
def test_what_no_key_can_be(options: list[str], message: str, platform: Platform) -> None:
    done = RUN.invoke(cli.app, ["keys", "create", "x", *options])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
    assert not platform.accounts.any_key()


def test_names_are_printable() -> None:
    for name in ("", " ", "a\nb", "\x1b[31m"):
        with pytest.raises(UserError, match="name"):
            create_key(MemoryAccounts(), name, tenant="a", scopes=["read"], now=0.0, expires_at=None)


def test_making_and_revoking_keys_is_written_down(platform: Platform) -> None:
    assert RUN.invoke(cli.app, ["keys", "create", "anna", "--tenant", "lab"]).exit_code == 0
    (key,) = platform.accounts.all_keys()
    assert RUN.invoke(cli.app, ["keys", "revoke", key.id]).exit_code == 0
    assert RUN.invoke(cli.app, ["keys", "revoke", key.id]).exit_code == 2
    assert RUN.invoke(cli.app, ["keys", "create", "x", "--scopes", "admin"]).exit_code == 2
    found = platform.accounts.deeds(tenant="lab", before=None, limit=9)
    assert [(deed.method, deed.path) for deed in found] == [
        ("CLI", f"keys revoke {key.id}"),
        ("CLI", f"keys create {key.id}"),
    ]
    assert f"keys create {key.id}" in RUN.invoke(cli.app, ["audit"]).stdout


def test_the_audit_log_is_shown(platform: Platform) -> None:
    for number, tenant in enumerate("aab"):
        platform.accounts.log(Deed(0.0, "key_1", tenant, "POST", f"/jobs/{number}", 202, "f" * 32))
    shown = RUN.invoke(cli.app, ["audit", "--tenant", "a"]).stdout
    assert shown.index("/jobs/0") < shown.index("/jobs/1")
    assert "/jobs/2" not in shown
    assert "/jobs/1" not in RUN.invoke(cli.app, ["audit", "--last", "1"]).stdout


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])  # noqa: S104 - it is refused
def test_no_public_server_without_a_key(host: str, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setenv("STILLHOUSE_HOST", host)
    monkeypatch.setattr("stillhouse.service.wiring.worker_catalogue", lambda _: {"weights": {"hub": []}})
    monkeypatch.setattr(cli_serve, "serve_app", lambda _, settings: started.append(settings.host))
    done = RUN.invoke(cli.app, ["serve"])
    assert (done.exit_code, started) == (2, [])
    assert "stillhouse keys create NAME" in " ".join(done.stderr.split())
    for expires_at in (None, 1.0):
        key, _ = create_key(platform.accounts, "n", tenant="a", scopes=["read"], now=0.0, expires_at=expires_at)
        if expires_at is None:
            assert platform.accounts.revoke(key.id)
        for command in ("serve", "up"):
            done = RUN.invoke(cli.app, [command])
            assert (done.exit_code, started) == (2, [])
            assert "revoked or have expired" in " ".join(done.stderr.split())
    create_key(platform.accounts, "n", tenant="a", scopes=["read"], now=0.0, expires_at=None)
    assert RUN.invoke(cli.app, ["serve"]).exit_code == 0
    assert started == [host]


def test_a_bucket_fills_again() -> None:
    now = [0.0]
    buckets = Buckets(2.0, 3, lambda: now[0])
    assert [buckets.take("a") for _ in range(3)] == [0.0] * 3
    assert buckets.take("a") == pytest.approx(0.5)
    now[0] = 0.5
    assert (buckets.take("a"), buckets.take("b")) == (0.0, 0.0)
    now[0] = 100.0
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.5)]


def test_buckets_do_not_grow_without_end() -> None:
    buckets = Buckets(1.0, 2, lambda: 0.0)
    for number in range(25_000):
        buckets.take(str(number))
    assert len(buckets._left) <= 10_000


@pytest.mark.parametrize(
    ("address", "holder"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::/64"), ("testclient", "testclient"), ("", "")],
)
def test_one_sender_is_one_network(address: str, holder: str) -> None:
    assert network(address) == holder
