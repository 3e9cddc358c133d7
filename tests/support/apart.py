"""Workers that know the API's address and their attempt's token alone, each a process of this machine.

They are forked from a server that has torch loaded, so that a job of many short stages takes no longer for them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from stillhouse.search.job import AttemptRecord
from stillhouse.service import logs
from stillhouse.service.engine.local import LocalEngine
from stillhouse.service.settings import Settings


class ApartEngine(LocalEngine):
    """Starts one worker at a time.

    Args:
        home: The workers' own, not that of the API.
        url: Address at which they reach the API.

    Attributes:
        deaf: Nothing is cancelled, as on a node that is cut off.
    """

    def __init__(self, home: Path, url: str) -> None:
        super().__init__(home, slots=1, target="apart:work", preload=("stillhouse.service.worker", "apart"))
        self._orders, self._url, self.deaf = home / "orders", url, False
        self._orders.mkdir()

    def submit(self, attempt: AttemptRecord) -> None:
        """Starts the attempt's process, as on a machine that has nothing yet."""
        for stored in self._home.glob("artifacts/[0-9a-f][0-9a-f]"):
            shutil.rmtree(stored)
        (self._orders / attempt.id).write_text(json.dumps([attempt.token, self._url]))
        super().submit(attempt)

    def cancel(self, attempt_id: str) -> None:
        """Ends the attempt's process, if it can be reached."""
        if not self.deaf:
            super().cancel(attempt_id)


def work(attempt_id: str, _: int, home: str) -> None:
    """What a worker's process does."""
    from stillhouse.service.worker import run_remote

    order = Path(home) / "orders" / attempt_id
    token, url = json.loads(order.read_text())
    order.unlink()
    logs.configure()
    nowhere = "postgresql://nobody@127.0.0.1:1/none"  # it must not be looked at
    run_remote(attempt_id, url, token, Settings.load(home=Path(home), hub="off", database_url=nowhere))
