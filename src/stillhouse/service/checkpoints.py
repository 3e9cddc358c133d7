"""Checkpoints of trainings on machines that may vanish: the newest of each stage, kept where the next machine finds it.

A stage's process writes its checkpoints to its own disk. One on another machine also sends the newest from time to time
(``courier.py``), and the next attempt at the stage goes on from there. A file's name says its epoch and the sha256 of
its bytes (``CHECKPOINT``), so the newest is known without reading any, and one that came damaged is
not taken. What is kept here is a shortcut and no truth: a stage without it begins anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from stillhouse.search.domain import CHECKPOINT
from stillhouse.search.errors import NotFoundError

CHUNK_BYTES = 1 << 20


class Checkpoints(Protocol):
    """The newest checkpoint of each stage, by the stage's key."""

    def keep(self, stage: str, name: str, path: Path) -> None:
        """Keeps a file as the stage's newest, atomically, unless a newer one is kept; older ones go."""

    def newest(self, stage: str) -> str | None:
        """Name of the stage's newest; None when none is kept."""

    def read(self, stage: str, name: str) -> Iterator[bytes]:
        """Its bytes, in pieces.

        Raises:
            NotFoundError: It is not kept, or no longer: told before the first piece.
        """

    def size(self, stage: str) -> int:
        """Bytes that are kept of the stage."""

    def drop(self, stage: str) -> None:
        """Forgets the stage's."""

    def stages(self) -> Iterator[str]:
        """Keys of the stages of which one is kept."""


class DiskCheckpoints(Checkpoints):
    """``Checkpoints`` in one folder, shared by any number of processes.

    Args:
        root: The folder; made with the first file.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def keep(self, stage: str, name: str, path: Path) -> None:
        """Keeps a copy, synced before it gets its name."""
        folder = self._root / stage
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{os.urandom(8).hex()}.tmp"
        try:
            with path.open("rb") as source, fresh.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
                target.flush()
                os.fsync(target.fileno())
            fresh.replace(folder / name)
        finally:
            fresh.unlink(missing_ok=True)
        for old in sorted_names(each.name for each in folder.iterdir())[1:]:
            (folder / old).unlink(missing_ok=True)

    def newest(self, stage: str) -> str | None:
        """Name of the stage's newest."""
        folder = self._root / stage
        names = sorted_names(each.name for each in folder.iterdir()) if folder.is_dir() else []
        return names[0] if names else None

    def read(self, stage: str, name: str) -> Iterator[bytes]:
        """The file's bytes; one that is replaced meanwhile is read to its end."""
        if not CHECKPOINT.fullmatch(name):
            raise not_kept(stage, name)
        try:
            handle = (self._root / stage / name).open("rb")
        except FileNotFoundError:
            raise not_kept(stage, name) from None

        def pieces() -> Iterator[bytes]:
            with handle:
                while piece := handle.read(CHUNK_BYTES):
                    yield piece

        return pieces()

    def size(self, stage: str) -> int:
        """Bytes of the stage's files."""
        folder = self._root / stage
        return sum(each.stat().st_size for each in folder.iterdir()) if folder.is_dir() else 0

    def drop(self, stage: str) -> None:
        """Removes the stage's folder."""
        shutil.rmtree(self._root / stage, ignore_errors=True)

    def stages(self) -> Iterator[str]:
        """Names of the folders."""
        if self._root.is_dir():
            yield from sorted(each.name for each in self._root.iterdir())


def sha256_in(name: str) -> str | None:
    """The sha256 that a checkpoint's name says; None for another name."""
    match = CHECKPOINT.fullmatch(name)
    return None if match is None else match[2]


def sorted_names(names: Iterable[str]) -> list[str]:
    """Those that checkpoints have, newest first."""
    return sorted((name for name in names if CHECKPOINT.fullmatch(name)), reverse=True)


def not_kept(stage: str, name: str) -> NotFoundError:
    """The error of a checkpoint that is not kept."""
    return NotFoundError(f"no such checkpoint of stage {stage}: {name[:100]!r}; a newer one may have come")
