"""API keys and the audit log in SQL, and their double in memory."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from sqlalchemy import select, update

from stillhouse.service.accounts import Accounts, Deed, Key
from stillhouse.service.db.records import as_text
from stillhouse.service.db.sessions import Sessions, insert_new, rows_changed
from stillhouse.service.db.tables import AuditRow, KeyRow


class SqlAccounts(Accounts):
    """``Accounts`` beside a ledger, in its database.

    Args:
        sessions: The database.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def add_key(self, key: Key, secret_hash: str) -> bool:
        """False when its id exists."""
        new = {
            "id": key.id,
            "name": as_text(key.name),
            "tenant": key.tenant,
            "scopes": list(key.scopes),
            "secret_hash": secret_hash,
            "created_at": key.created_at,
            "expires_at": key.expires_at,
            "revoked_at": key.revoked_at,
        }
        with self._sessions.write() as session:
            return insert_new(session, KeyRow, new)

    def all_keys(self) -> list[Key]:
        """All, oldest first."""
        with self._sessions.read() as session:
            return [_key(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id))]

    def any_key(self) -> bool:
        """True once a key was ever made."""
        with self._sessions.read() as session:
            return session.scalars(select(KeyRow.id).limit(1)).first() is not None

    def find(self, key_id: str) -> tuple[Key, str] | None:
        """The key with the hash of its secret."""
        with self._sessions.read() as session:
            row = session.get(KeyRow, key_id)
            return None if row is None else (_key(row), row.secret_hash)

    def revoke(self, key_id: str) -> bool:
        """False when there is no such key or it is revoked already."""
        change = update(KeyRow).where(KeyRow.id == key_id, KeyRow.revoked_at.is_(None))
        with self._sessions.write() as session:
            return rows_changed(session, change.values(revoked_at=time.time())) == 1

    def log(self, deed: Deed) -> None:
        """Appends to the audit log."""
        row = AuditRow(
            at=deed.at,
            key_id=deed.key_id,
            tenant=deed.tenant,
            method=deed.method,
            path=as_text(deed.path),
            status=deed.status,
            request_id=deed.request_id,
        )
        with self._sessions.write() as session:
            session.add(row)

    def deeds(self, *, tenant: str | None, before: int | None, limit: int) -> list[Deed]:
        """Those of a tenant, newest first."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        if tenant is not None:
            query = query.where(AuditRow.tenant == tenant)
        if before is not None:
            query = query.where(AuditRow.id < before)
        with self._sessions.read() as session:
            return [_deed(row) for row in session.scalars(query)]


class MemoryAccounts(Accounts):
    """``Accounts`` that live and die with their process; safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, tuple[Key, str]] = {}
        self._deeds: list[Deed] = []

    def add_key(self, key: Key, secret_hash: str) -> bool:
        """False when its id exists."""
        with self._lock:
            return self._keys.setdefault(key.id, (key, secret_hash)) == (key, secret_hash)

    def all_keys(self) -> list[Key]:
        """All, oldest first."""
        with self._lock:
            return sorted((key for key, _ in self._keys.values()), key=lambda key: (key.created_at, key.id))

    def any_key(self) -> bool:
        """True once a key was ever made."""
        with self._lock:
            return bool(self._keys)

    def find(self, key_id: str) -> tuple[Key, str] | None:
        """The key with the hash of its secret."""
        with self._lock:
            return self._keys.get(key_id)

    def revoke(self, key_id: str) -> bool:
        """False when there is no such key or it is revoked already."""
        with self._lock:
            if key_id not in self._keys or self._keys[key_id][0].revoked_at is not None:
                return False
            key, secret_hash = self._keys[key_id]
            self._keys[key_id] = replace(key, revoked_at=time.time()), secret_hash
            return True

    def log(self, deed: Deed) -> None:
        """Appends to the audit log."""
        with self._lock:
            self._deeds.append(replace(deed, id=len(self._deeds) + 1, path=as_text(deed.path)))

    def deeds(self, *, tenant: str | None, before: int | None, limit: int) -> list[Deed]:
        """Those of a tenant, newest first."""
        with self._lock:
            found = [deed for deed in reversed(self._deeds) if tenant is None or deed.tenant == tenant]
        return [deed for deed in found if before is None or deed.id < before][:limit]


def _key(row: KeyRow) -> Key:
    return Key(row.id, row.name, row.tenant, tuple(row.scopes), row.created_at, row.expires_at, row.revoked_at)


def _deed(row: AuditRow) -> Deed:
    return Deed(row.at, row.key_id, row.tenant, row.method, row.path, row.status, row.request_id, row.id)
