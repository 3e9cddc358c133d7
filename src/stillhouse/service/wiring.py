"""Puts the parts together: settings -> ledger, store, engine, controller.

One controller works on one home folder and one database; a second one on either is refused.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants as hub

from stillhouse import __version__
from stillhouse.search.controller import Controller
from stillhouse.search.domain import Json
from stillhouse.search.errors import StillhouseError
from stillhouse.search.ports import ArtifactStore, Engine
from stillhouse.service.accounts import Accounts
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.db.sole import file_lock, only_controller
from stillhouse.service.engine.local import LocalEngine
from stillhouse.service.engine.ray import RayEngine, Share
from stillhouse.service.home import DiskHome
from stillhouse.service.observer import Telemetry
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore
from stillhouse.service.stores import open_store
from stillhouse.service.unneeded import Collector

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

    @contextmanager
    def controller(self) -> Iterator[Controller]:
        """A controller with its engine; the engine's processes end with it.

        Raises:
            ConflictError: Another controller works on this home or this database.
        """
        folder = self.settings.home
        refused = f"another Stillhouse already works on {folder}; stop it, use its API, or set another STILLHOUSE_HOME"
        with (
            closing(self.home) as home,
            file_lock(folder / "controller.lock", refused),
            only_controller(self.settings.database_url) as sole,
            closing(make_engine(self.settings)) as engine,
        ):
            yield Controller(
                self.ledger,  # only now: one that is refused publishes nothing
                engine,
                lease_s=self.settings.lease_s,
                max_attempts=self.settings.max_attempts,
                home=home,
                observer=Telemetry(),
                sole=sole,
            )


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings name; close it when done."""
    if settings.engine == "local":
        return LocalEngine(settings.home, slots=settings.slots, memory_bytes=settings.stage_memory_bytes)
    return RayEngine(
        settings.ray_url,
        settings.public_url or f"http://127.0.0.1:{settings.port}",
        share=Share(settings.ray_gpus_per_stage, settings.ray_cpus_per_stage),
        token=settings.ray_token.get_secret_value() if settings.ray_token else None,
    )


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
    installed = sorted(f"{each.name} {each.version}\n" for each in distributions())
    digest.update("".join(installed).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
