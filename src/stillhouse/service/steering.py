"""The controller with its engine, and the locks that it holds: what a command that only looks has no need of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from stillhouse.search.controller import Controller
from stillhouse.search.ports import Engine, Ledger
from stillhouse.service.db.sole import file_lock, only_controller
from stillhouse.service.engine.local import LocalEngine
from stillhouse.service.engine.ray import RayEngine, Share
from stillhouse.service.home import DiskHome
from stillhouse.service.observer import Telemetry
from stillhouse.service.settings import Settings


@contextmanager
def steering(settings: Settings, home: DiskHome, ledger: Callable[[], Ledger]) -> Iterator[Controller]:
    """A controller with its engine; the engine's processes end with it.

    Args:
        settings: Name the engine, the database and the home folder.
        home: The disk under the home folder; closed at the end.
        ledger: Opens the ledger, once the locks are held: a controller that is refused publishes nothing.

    Raises:
        ConflictError: Another controller works on this home or this database.
    """
    folder = settings.home
    refused = f"another Stillhouse already works on {folder}; stop it, use its API, or set another STILLHOUSE_HOME"
    with (
        closing(home),
        file_lock(folder / "controller.lock", refused),
        only_controller(settings.database_url) as sole,
        closing(make_engine(settings)) as engine,
    ):
        yield Controller(
            ledger(),
            engine,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
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
