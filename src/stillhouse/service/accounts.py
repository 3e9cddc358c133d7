"""API keys and the audit log: what they are, and what keeps them (adapters in ``service/db``).

A secret reads ``sth_<12 hex digits>_<43 characters>``: the digits are the key's public id, the rest holds 256 random
bits. So much chance needs no slow hash: SHA-256 is kept, compared in constant time, and the secret is shown once.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from stillhouse.search.errors import UserError
from stillhouse.search.owner import DEFAULT_TENANT
from stillhouse.service.db.lists import Lists

READ, WRITE, WORKER = "read", "write", "worker"
SCOPES = (READ, WRITE, WORKER)
"""``read`` looks, ``write`` changes, ``worker`` is for machines: what scrapes ``/metrics``, devices that measure.

None implies another.
"""
SECRET = re.compile(r"sth_(?P<id>[0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Key:
    """An API key as stored, but for its hash; times are Unix seconds."""

    id: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def valid(self, now: float) -> bool:
        """False once it is revoked or has expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True)
class Deed:
    """An entry of the audit log: a request that was let in and may have changed something.

    What ``stillhouse keys`` changed has the method ``CLI``, the command as its path, no status and no request.
    """

    at: float
    key_id: str | None
    tenant: str
    method: str
    path: str
    status: int
    request_id: str
    id: int = 0


class Accounts(Protocol):
    """Keeps API keys and the audit log."""

    def add_key(self, key: Key, secret_hash: str) -> bool:
        """False when its id exists."""

    def all_keys(self) -> list[Key]:
        """All, revoked ones too, oldest first."""

    def any_key(self) -> bool:
        """True once a key was ever made; revoking it does not open the server again."""

    def find(self, key_id: str) -> tuple[Key, str] | None:
        """The key with the hash of its secret."""

    def revoke(self, key_id: str) -> bool:
        """False when there is no such key or it is revoked already."""

    def log(self, deed: Deed) -> None:
        """Appends to the audit log; ``id`` is given here."""

    def deeds(self, *, tenant: str | None, before: int | None, limit: int) -> list[Deed]:
        """Those of a tenant (none named: of all) with an id less than ``before``, newest first."""


class ServiceLedger(Lists, Protocol):
    """A ledger with its accounts beside it."""

    accounts: Accounts


def create_key(
    accounts: Accounts, name: str, *, tenant: str, scopes: Iterable[str], now: float, expires_at: float | None
) -> tuple[Key, str]:
    """Makes a key; the secret is known to the caller alone.

    Raises:
        UserError: A malformed tenant, an unknown scope, no scope, no name, or an expiry that has passed.
    """
    wanted = set(scopes)
    if not _TENANT.fullmatch(tenant):
        raise UserError(f"a tenant is named by up to 64 of a-z, 0-9, '.', '_' and '-', but got {tenant!r}")
    if not wanted or wanted - set(SCOPES):
        raise UserError(f"scopes are one or more of {', '.join(SCOPES)}, but got {', '.join(sorted(wanted)) or 'none'}")
    if not name.strip() or not name.isprintable():
        raise UserError(f"a key needs a name to know it by, of printable characters, but got {name!r}")
    if expires_at is not None and expires_at <= now:
        raise UserError("a key must expire in the future")
    ordered = tuple(scope for scope in SCOPES if scope in wanted)
    while True:
        digits = secrets.token_hex(6)
        secret = f"sth_{digits}_{secrets.token_urlsafe(32)}"
        key = Key(f"key_{digits}", name.strip(), tenant, ordered, now, expires_at)
        if accounts.add_key(key, hashed(secret)):
            return key, secret


def known_key(accounts: Accounts, secret: str, *, now: float) -> Key | None:
    """The valid key with this secret, or None."""
    match = SECRET.fullmatch(secret)
    found = accounts.find(f"key_{match['id']}") if match else None
    if found is None:
        return None
    key, secret_hash = found
    return key if hmac.compare_digest(hashed(secret), secret_hash) and key.valid(now) else None


def hashed(secret: str) -> str:
    """What is stored in a secret's place."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True)
class Caller:
    """Who sends a request: a key, anybody at an open server, or a worker with its attempt's token.

    Attributes:
        tenant: Whose things they may see; None for what is no tenant's: health, and a worker's own attempt.
        key: Their key, if they have one.
        by_cookie: They signed in on a page.
    """

    tenant: str | None = DEFAULT_TENANT
    key: Key | None = None
    by_cookie: bool = False

    @property
    def key_id(self) -> str | None:
        """Id of their key."""
        return None if self.key is None else self.key.id
