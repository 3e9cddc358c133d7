"""Devices that latency and memory are measured on.

``local`` is the machine that stages run on. Any other has announced itself by name (``export/agent.py``), asks for work
again and again, and does the stages that name it, one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from stillhouse.search.domain import Json, content_key
from stillhouse.search.errors import UserError

AT_HAND_S = 15.0
"""A device that asked for work within so many seconds is there."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_DECIDE = ("cpu", "cores", "machine")


@dataclass(frozen=True)
class DeviceRecord:
    """A device as it last announced itself.

    Attributes:
        name: What jobs call it.
        runtime: What it runs models with, and its version.
        measure: Digest of the code that measures there.
        host: Facts about the machine (``export.measure.host_facts``).
        seen_at: Unix seconds when it last asked for work.
    """

    name: str
    runtime: str
    measure: str
    host: Mapping[str, Json] = field(default_factory=dict)
    seen_at: float = 0.0

    @property
    def code(self) -> str:
        """Digest of all that decides what is measured: figures of other hardware or another runtime are not its own."""
        facts = {name: self.host.get(name) for name in _DECIDE}
        return content_key([self.runtime, self.measure, facts])[:16]

    def at_hand(self, now: float) -> bool:
        """True when it asked for work lately."""
        return now - self.seen_at < AT_HAND_S


def check_name(name: str) -> None:
    """Raises UserError for what cannot be a device's name."""
    if not _NAME.fullmatch(name):
        raise UserError(
            "a device's name must have 1 to 64 of a-z, 0-9, dot, dash and underscore, with a letter or digit at both "
            f"ends, but got {name[:80]!r}"
        )
