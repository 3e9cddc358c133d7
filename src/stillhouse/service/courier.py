"""Sends a training's newest checkpoint to where another machine finds it, beside the training."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from stillhouse.search.errors import LeaseLostError
from stillhouse.service.checkpoints import sorted_names
from stillhouse.service.claim import Claim, Order

LOOK_S = 0.5
"""How often it is looked for a new one."""

log = structlog.get_logger(__name__)


class Courier:
    """While it is open, each checkpoint that is the newest when ``checkpoint_every_s`` have passed is sent.

    What fails is told in the log and sent with the next: the training goes on. At the end what is on its way is given
    up, since a result follows.

    Args:
        claim: Takes the checkpoints.
        order: Says how often, and which one came from there.
        folder: Where the training writes them.
    """

    def __init__(self, claim: Claim, order: Order, folder: Path) -> None:
        self._claim, self._folder, self._every_s = claim, folder, order.checkpoint_every_s
        self._sent, self._stop = order.checkpoint or "", threading.Event()
        self._thread = threading.Thread(target=self._carry, name="courier", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _carry(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(LOOK_S):
            names = sorted_names(path.name for path in self._folder.glob("*.pt"))
            if not names or names[0] <= self._sent or time.monotonic() - last < self._every_s:
                continue
            try:
                if self._claim.send_checkpoint(self._folder / names[0], self._stop):
                    self._sent = names[0]
                    log.info("checkpoint sent", checkpoint=names[0])
            except FileNotFoundError:  # newer ones have come meanwhile
                continue
            except LeaseLostError:  # the heartbeat stops the training
                return
            except Exception as error:
                log.warning("a checkpoint could not be sent; the training goes on", why=repr(error))
            last = time.monotonic()
