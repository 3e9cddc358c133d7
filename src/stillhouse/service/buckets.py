"""How many requests a second: a token bucket for each key, attempt or network, in the memory of this process."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

_MOST = 10_000
"""Buckets that are remembered before those that are full again are forgotten."""


class Buckets:
    """Buckets that hold ``burst`` requests and gain ``per_s`` a second.

    Args:
        per_s: Requests a second.
        burst: Requests at once.
        clock: Seconds that only grow.
    """

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> float:
        """Takes one request out; returns 0, or the seconds until there is one."""
        now = self._clock()
        if len(self._left) >= _MOST and name not in self._left:
            self._forget(now)
        left = self._now(name, now)
        if left < 1:
            return (1 - left) / self._per_s
        self._left[name] = (left - 1, now)
        return 0.0

    def _now(self, name: str, now: float) -> float:
        left, since = self._left.get(name, (float(self._burst), now))
        return min(self._burst, left + (now - since) * self._per_s)

    def _forget(self, now: float) -> None:
        """Drops the full ones, which say nothing; all of them where none is."""
        self._left = {name: kept for name, kept in self._left.items() if self._now(name, now) < self._burst}
        if len(self._left) >= _MOST:
            self._left.clear()


def network(address: str) -> str:
    """What one sender holds: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))
