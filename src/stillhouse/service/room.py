"""Room on the home's disk: how much there must be, and what tells that there was none."""

from __future__ import annotations

import errno
import shutil

from stillhouse.search.errors import StillhouseError
from stillhouse.service.settings import Settings

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL_WORDS = ("no space left on device", "quota exceeded", "disk is full")


class NoRoomError(StillhouseError):
    """There is too little room on the home's disk for what was asked; the message says how much there must be."""


def lack_of_room(settings: Settings, more_bytes: int = 0) -> str | None:
    """Why nothing may be started in this home now; None when there is room.

    Args:
        settings: Where it is, and how much of it must stay free.
        more_bytes: What is about to be written there.
    """
    if not settings.home.is_dir():  # nothing was begun here yet
        return None
    free = shutil.disk_usage(settings.home).free
    if free >= settings.least_free_bytes + more_bytes:
        return None
    if free >= settings.least_free_bytes:
        return (
            f"the disk of {settings.home} has {free / 2**20:.0f} MiB left; {more_bytes / 2**20:.1f} MiB more would not "
            f"leave the {settings.least_free_bytes / 2**20:.0f} MiB that must be free (STILLHOUSE_LEAST_FREE_BYTES); "
            "make room, then send it again"
        )
    return (
        f"the disk of {settings.home} has {free / 2**20:.0f} MiB left, and at least "
        f"{settings.least_free_bytes / 2**20:.0f} MiB must be free (STILLHOUSE_LEAST_FREE_BYTES); make room, and what "
        "waits goes on by itself"
    )


def disk_full(error: BaseException) -> bool:
    """True for an error that comes of a full disk or a used-up quota, however it was wrapped."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, NoRoomError) or (isinstance(cause, OSError) and cause.errno in _FULL):
            return True
        if any(words in str(cause).lower() for words in _FULL_WORDS):  # libraries in Rust and C++ tell it in words only
            return True
        cause = cause.__cause__ or cause.__context__
    return False
