"""Puts the parts together: settings -> ledger, store, engine, controller.

One controller works on one home folder and one database; a second one on either is refused.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from huggingface_hub import constants as hub

from stillhouse import __version__
from stillhouse.search.domain import Json
from stillhouse.search.errors import StillhouseError
from stillhouse.search.ports import ArtifactStore
from stillhouse.service.accounts import Accounts
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.home import DiskHome
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore
from stillhouse.service.stores import open_store
from stillhouse.service.unneeded import Collector

if TYPE_CHECKING:
    from stillhouse.search.controller import Controller

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Platform:
    """The parts that every door works with."""

    settings: Settings

    @cached_property
    def _tables(self) -> SqlLedger:
        """The ledger, migrated."""
        self.settings.home.mkdir(parents=True, exist_ok=True)
        upgrade(self.settings.database_url)
        return SqlLedger(self.settings.database_url)

    @cached_property
    def ledger(self) -> SqlLedger:
        """The ledger, migrated, with this machine's catalogue published."""
        ledger = self._tables
        ledger.publish_catalogue(published(worker_catalogue(self.settings), self.settings))
        return ledger

    @property
    def accounts(self) -> Accounts:
        """API keys and the audit log; opening them asks no worker for its catalogue."""
        return self._tables.accounts

    @cached_property
    def store(self) -> ArtifactStore:
        """The artifact store."""
        return open_store(self.settings)

    @property
    def collector(self) -> Collector:
        """Removes what nobody needs any more; opening it asks no worker for its catalogue."""
        return Collector(self.settings, self._tables, self.store)

    @property
    def home(self) -> DiskHome:
        """The disk under the home folder; close it when done."""
        return DiskHome(self.settings, self._tables, DiskStore(self.settings.artifacts), self.collector)

    def controller(self) -> AbstractContextManager[Controller]:
        """A controller with its engine; the engine's processes end with it.

        Raises:
            ConflictError: Another controller works on this home or this database.
        """
        from stillhouse.service.steering import steering  # noqa: PLC0415 - Optuna and engines are for this alone

        return steering(self.settings, self.home, lambda: self.ledger)


def published(catalogue: Mapping[str, Json], settings: Settings) -> Mapping[str, Json]:
    """The catalogue with hub weights only if the hub answers now: a plan must not name what cannot be had."""
    offered = catalogue["weights"]["hub"] if settings.hub == "auto" and hub_answers() else []
    return {**catalogue, "weights": {**catalogue["weights"], "hub": offered}}


def hub_answers(timeout_s: float = 2.0) -> bool:
    """True when the model hub that timm loads from takes a connection."""
    if hub.HF_HUB_OFFLINE:
        return False
    address = urlsplit(hub.ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def worker_catalogue(settings: Settings) -> Mapping[str, Json]:
    """What the worker's code can do, asked from a process of its own (it imports torch) and kept by code digest."""
    kept = settings.cache / f"catalogue-{_digest()}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "stillhouse.service.worker", str(settings.home)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StillhouseError(f"the worker does not start:\n{done.stderr.strip()[-2000:]}")
        fresh = kept.with_suffix(f".{os.urandom(8).hex()}.tmp")
        fresh.write_text(done.stdout, encoding="utf-8")
        fresh.replace(kept)
    data: dict[str, Json] = json.loads(kept.read_text(encoding="utf-8"))
    return data


def _digest() -> str:
    sources = sorted((*PACKAGE.glob("distill/**/*.py"), *PACKAGE.glob("export/*.py"), PACKAGE / "service/worker.py"))
    sources += [PACKAGE / "search/catalogue.json", PACKAGE / "search/catalogue_checks.json"]
    digest = sha256(__version__.encode())
    # The folders' names hold name and version; to read the metadata of a few hundred packages takes a quarter second.
    installed = sorted({path.name for folder in sys.path for path in Path(folder).glob("*.dist-info")})
    digest.update("\n".join(installed).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
