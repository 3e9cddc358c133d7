"""``stillhouse keys`` and ``stillhouse audit``: who may do what at the API, and what they did."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stillhouse.search.errors import NotFoundError, UserError
from stillhouse.search.owner import DEFAULT_TENANT
from stillhouse.service.accounts import READ, SCOPES, WRITE, Accounts, Deed, Key, create_key
from stillhouse.service.cli_messages import messages
from stillhouse.service.settings import Settings
from stillhouse.service.wiring import Platform

_UNITS = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}


def commands(messages: Callable[[], AbstractContextManager[None]]) -> typer.Typer:
    """The sub-commands; ``messages`` turns errors into a message and an exit code."""
    app = typer.Typer(help="Keys of the API. Once one was made, every request but for /health must send one.")

    @app.command()
    def create(
        name: Annotated[str, typer.Argument(help="What you know it by.")],
        tenant: Annotated[str, typer.Option(help="Whose data sets and jobs it opens.")] = DEFAULT_TENANT,
        scopes: Annotated[
            list[str] | None,
            typer.Option(help=f"{', '.join(SCOPES)}; repeatable; by default {READ},{WRITE}.", show_default=False),
        ] = None,
        expires_in: Annotated[str | None, typer.Option(help="Such as 12h, 30d or 8w; by default never.")] = None,
    ) -> None:
        """Make a key and show its secret, which is kept nowhere: this once."""
        with messages():
            now = time.time()
            expires_at = None if expires_in is None else now + _seconds(expires_in)
            given = [READ, WRITE] if scopes is None else [scope for text in scopes for scope in text.split(",")]
            wanted = [scope.strip() for scope in given if scope.strip()]
            accounts = Platform(Settings.load()).accounts
            key, secret = create_key(accounts, name, tenant=tenant, scopes=wanted, now=now, expires_at=expires_at)
            _log(accounts, "create", key)
            console = Console(stderr=True)
            console.print(f"{key.id} for tenant {key.tenant} ({', '.join(key.scopes)}); shown this once:", markup=False)
            typer.echo(secret)

    @app.command("list")
    def list_keys() -> None:
        """All keys, revoked ones too."""
        with messages():
            table = _table("id", "name", "tenant", "scopes", "made", "state")
            for key in Platform(Settings.load()).accounts.all_keys():
                table.add_row(key.id, key.name, key.tenant, ",".join(key.scopes), _time(key.created_at), _state(key))
            Console().print(table, markup=False)

    @app.command()
    def revoke(key: Annotated[str, typer.Argument(help="Its id, such as key_0123456789ab.")]) -> None:
        """Revoke a key at once. Revoking the last one does not open the server again."""
        with messages():
            accounts = Platform(Settings.load()).accounts
            found = accounts.find(key)
            if found is None or not accounts.revoke(key):
                raise NotFoundError(f"no key {key!r} that could be revoked; stillhouse keys list shows all")
            _log(accounts, "revoke", found[0])
            Console().print(f"{key} is revoked", markup=False)

    return app


def audit(messages: Callable[[], AbstractContextManager[None]]) -> Callable[..., None]:
    """The command ``audit``."""

    def command(
        tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
        last: Annotated[int, typer.Option(help="The last so many.", min=1)] = 50,
    ) -> None:
        """What was changed through the API, and with which key, oldest first."""
        with messages():
            found = Platform(Settings.load()).accounts.deeds(tenant=tenant, before=None, limit=last)
            table = _table("time", "tenant", "key", "method", "path", "status", "request")
            for deed in reversed(found):
                who, status = (deed.tenant, deed.key_id or "-"), str(deed.status or "-")
                table.add_row(_time(deed.at), *who, deed.method, deed.path, status, deed.request_id or "-")
            Console().print(table, markup=False)

    return command


def _log(accounts: Accounts, what: str, key: Key) -> None:
    """Who may enter is changed here and not by a request: the command stands in the place of method and address."""
    accounts.log(Deed(time.time(), None, key.tenant, "CLI", f"keys {what} {key.id}", 0, ""))


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,5})([hdw])", text)
    if match is None:
        raise UserError(f"--expires-in is written as hours, days or weeks, such as 12h, 30d or 8w, but got {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def _table(*headings: str) -> Table:
    """Nothing in it is cut short: ids are there to be copied."""
    table = Table(box=None)
    for heading in headings:
        table.add_column(heading, no_wrap=heading in ("id", "key", "request"), overflow="fold")
    return table


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {_time(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'valid until' if key.valid(time.time()) else 'expired'} {_time(key.expires_at)}"


app = typer.Typer()
app.add_typer(commands(messages), name="keys")
app.command("audit")(audit(messages))
