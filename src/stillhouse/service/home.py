"""The disk under the home folder: what dead processes have left on it, what nobody needs any more.

Whatever is written here gets its name last (a temporary name, a sync, a rename), so what a killed process leaves behind
is a temporary file that nobody reads, or the work folder of a stage that is done.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.search.errors import StillhouseError
from stillhouse.search.ports import Home, Ledger
from stillhouse.service.room import lack_of_room
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore
from stillhouse.service.unneeded import Collector, Sum

STALE_S = 3600.0
"""A temporary file that was not written to for so long belongs to nobody."""
COLLECT_S = 3600.0
"""How often it is looked for what nobody needs any more."""
PAUSE_S = 0.01
"""How long that pauses after each piece, so that others have the interpreter and the database's lock."""
CLOSE_S = 2.0
"""How long is waited for the piece that it is at, when the home is closed."""
log = logging.getLogger(__name__)


class DiskHome(Home):
    """A ``Home`` on a local disk; close it when done.

    What nobody needs is collected in a thread of its own: a bucket may take minutes to answer, and nobody waits for it.

    Args:
        settings: Where it is, and how much of it must stay free.
        ledger: Says which stages are done.
        store: Its artifacts.
        collector: Finds and removes what nobody needs any more; None removes nothing of that kind.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, store: DiskStore, collector: Collector | None = None
    ) -> None:
        self._settings, self._ledger, self._store, self._collector = settings, ledger, store, collector
        self._begun, self._closed = -math.inf, threading.Event()
        self._collecting: threading.Thread | None = None

    def lack(self) -> str | None:
        """Why nothing may be started now; None when there is room."""
        return lack_of_room(self._settings)

    def tidy(self) -> None:
        """Removes temporary files of dead processes and work folders of stages that are done.

        Begins to collect what nobody needs, if that is due and the last time has ended.
        """
        self._store.tidy()
        folders = [folder for folder in _listed(self._settings.work) if folder.is_dir()]
        stages = self._ledger.stages(folder.name for folder in folders)
        for folder in folders:
            if folder.name in stages and stages[folder.name].state == "done":
                shutil.rmtree(folder, ignore_errors=True)
        for path in (*self._settings.uploads.glob("*.tmp"), *self._settings.cache.rglob("*.tmp")):
            if _age_s(path) > STALE_S:
                path.unlink(missing_ok=True)
        if self._collector is not None:
            self._begin(self._collector)

    def close(self) -> None:
        """Ends the collecting after the piece that it is at; one that hangs is left to end with the process."""
        self._closed.set()
        if self._collecting is not None:
            self._collecting.join(CLOSE_S)

    def _begin(self, collector: Collector) -> None:
        """Collects once an hour, and never twice at a time."""
        going = self._collecting is not None and self._collecting.is_alive()
        if going or self._closed.is_set() or time.monotonic() - self._begun < COLLECT_S:
            return
        self._begun = time.monotonic()
        thread = threading.Thread(target=self._collect, args=(collector,), name="collector", daemon=True)
        thread.start()
        self._collecting = thread  # only now can it be waited for: another thread may close the home at any time

    def _collect(self, collector: Collector) -> None:
        found = Sum()
        try:
            for removed in collector.run(older_than_s=self._settings.keep_unused_days * 86_400.0):
                found.add(removed)
                if self._closed.wait(PAUSE_S):
                    break
        except (OSError, StillhouseError) as error:  # nothing is lost: the next time begins anew
            log.warning("what is no longer needed could not all be removed: %s", error)
        except Exception:
            log.exception("what is no longer needed could not all be removed")
        if found:
            log.info("removed what is no longer needed: %s", found)


@contextmanager
def kept_tidy(home: DiskHome, *, every_s: float = 60.0) -> Iterator[None]:
    """The home is tidied in the background: where no controller works in it, nobody else does."""
    stop = threading.Event()

    def tidy() -> None:
        while not stop.is_set():
            try:
                home.tidy()
            except (OSError, StillhouseError) as error:
                log.warning("the home could not be tidied; trying again in %g s: %s", every_s, error)
            except Exception:
                log.exception("the home could not be tidied; trying again in %g s", every_s)
            stop.wait(every_s)

    thread = threading.Thread(target=tidy, name="tidy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        home.close()
        thread.join(CLOSE_S)


def _listed(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
