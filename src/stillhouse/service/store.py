"""Artifacts on the local disk, by the sha256 of their bytes: ``root/ab/cdef...``.

A file is copied beside its place, synced, then renamed: it is there whole or not at all, and it is never
written again (mode 0444).
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

from stillhouse.search.errors import CorruptArtifactError, NotFoundError
from stillhouse.search.ports import ArtifactStore

_CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DiskStore(ArtifactStore):
    """An ``ArtifactStore`` under one folder, shared by any number of processes.

    Args:
        root: The folder; made when it is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._checked: set[str] = set()
        (root / "tmp").mkdir(parents=True, exist_ok=True)

    def put(self, path: Path) -> str:
        """Stores a copy, atomically; returns its sha256. A copy found damaged is replaced.

        Raises:
            OSError: The file cannot be read, or the disk is full.
        """
        descriptor, name = tempfile.mkstemp(dir=self._root / "tmp")
        copy = Path(name)
        try:
            with path.open("rb") as source, os.fdopen(descriptor, "wb") as target:
                sha256 = _copy(source, target)
                os.fchmod(target.fileno(), 0o444)
                target.flush()
                os.fsync(target.fileno())
            place = self._place(sha256)
            if not (place.exists() and _digest(place) == sha256):
                place.parent.mkdir(exist_ok=True)
                copy.replace(place)
                _sync_folder(place.parent)
        finally:
            copy.unlink(missing_ok=True)
        return sha256

    def path(self, sha256: str) -> Path:
        """A read-only file with these bytes; its hash is checked at its first use in this process.

        Raises:
            NotFoundError: Not stored.
            CorruptArtifactError: The bytes do not match.
        """
        if not self.has(sha256):
            raise NotFoundError(f"no such artifact: {sha256!r}; an artifact is named by 64 hex digits (its sha256)")
        place = self._place(sha256)
        with self._lock:
            checked = sha256 in self._checked
        if not checked:
            found = _digest(place)
            if found != sha256:
                raise CorruptArtifactError(
                    f"the bytes of {place} must hash to {sha256}, but hash to {found}: the disk or another program "
                    "changed them; put the same file again to heal it, or delete it and run its stage again"
                )
            with self._lock:
                self._checked.add(sha256)
        return place

    def has(self, sha256: str) -> bool:
        """True when stored."""
        return _SHA256.fullmatch(sha256) is not None and self._place(sha256).is_file()

    def _place(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256[2:]


def _copy(source: BinaryIO, target: BinaryIO) -> str:
    """Copies all bytes; returns their sha256."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
