"""Artifacts on the local disk, by the sha256 of their bytes: ``root/ab/cdef...``.

A file is copied beside its place, synced, then renamed: it is there whole or not at all, and it is never
written again (mode 0444). A copy is locked while it is written, and the kernel frees the lock of a dead process: a copy
that nobody locks is rubbish. A file's time is when it was last put: one that is put again while it is removed is there
afterwards.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from stillhouse.search.errors import CorruptArtifactError, NotFoundError
from stillhouse.search.failpoints import passing
from stillhouse.search.ports import Artifact, ArtifactStore
from stillhouse.service.digest import file_digest

_CHUNK_BYTES = 1 << 20
_MOMENT_S = 10.0
CLAIM = "ledger"
"""Name of the file that says which ledger a store or a home belongs to."""
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
        """Stores a copy, atomically; returns its sha256. A copy found damaged is replaced, any other counts as put now.

        Raises:
            OSError: The file cannot be read, or the disk is full.
        """
        descriptor, name = tempfile.mkstemp(dir=self._root / "tmp")
        copy = Path(name)
        try:
            with path.open("rb") as source, os.fdopen(descriptor, "wb") as target:
                fcntl.flock(target, fcntl.LOCK_EX)
                sha256 = _copy(source, target)
                os.fchmod(target.fileno(), 0o444)
                target.flush()
                os.fsync(target.fileno())
            passing("put.before")
            place = self._place(sha256)
            if not (_touched(place) and _holds(place, sha256)):
                place.parent.mkdir(exist_ok=True)
                copy.replace(place)
                _sync_folder(place.parent)
        finally:
            copy.unlink(missing_ok=True)
        passing("put.after")
        return sha256

    def tidy(self) -> None:
        """Removes the unfinished copies of processes that died."""
        for copy in (self._root / "tmp").iterdir():
            try:
                with copy.open("rb") as handle:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # One that was made this moment may not have its lock yet, or be closed and about to be renamed.
                    if time.time() - copy.stat().st_mtime > _MOMENT_S:
                        copy.unlink(missing_ok=True)
            except (BlockingIOError, FileNotFoundError):
                continue

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
            found = file_digest(place)
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
        return is_sha256(sha256) and self._place(sha256).is_file()

    def owner(self) -> str | None:
        """Name of the ledger that this store belongs to; None while it belongs to none."""
        return owner_of(self._root / CLAIM)

    def claim(self, ledger: str) -> str:
        """As ``owner``; a store that belongs to none is this ledger's from now on."""
        return claimed(self._root / CLAIM, ledger)

    def listed(self) -> Iterator[Artifact]:
        """All files, folder by folder."""
        for folder in sorted(self._root.glob("[0-9a-f][0-9a-f]")):
            with os.scandir(folder) as entries:
                for entry in entries:
                    sha256 = folder.name + entry.name
                    if is_sha256(sha256):
                        try:
                            known = entry.stat()
                        except FileNotFoundError:
                            continue
                        yield Artifact(sha256, known.st_size, known.st_mtime)

    def remove(self, sha256: str, *, before: float) -> int:
        """Removes a file unless it was put at this time or later; returns its bytes, or 0 if it stays."""
        if not self.has(sha256):
            return 0
        size = remove_older(self._place(sha256), before=before, aside=self._root / "tmp")
        with self._lock:
            self._checked.discard(sha256)
        return size

    def _place(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256[2:]


def is_sha256(text: str) -> bool:
    """True for 64 hex digits in lower case."""
    return _SHA256.fullmatch(text) is not None


def owner_of(path: Path) -> str | None:
    """What a file says; None when it is missing."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def claimed(path: Path, ledger: str) -> str:
    """What a file says; it is made with this name when it is missing. Of several at once one makes it."""
    if not path.exists():
        fresh = path.with_name(f"{os.urandom(8).hex()}.tmp")
        try:
            fresh.write_text(ledger, encoding="utf-8")
            with suppress(FileExistsError):
                path.hardlink_to(fresh)
        finally:
            fresh.unlink(missing_ok=True)
    return path.read_text(encoding="utf-8").strip()


def remove_older(path: Path, *, before: float, aside: Path) -> int:
    """Removes a file unless it was written or touched at this time (Unix seconds) or later.

    An old one is moved away and its time read again: who wants to keep it has touched it by then, or finds it gone
    and writes it anew.

    Args:
        path: The file.
        before: The time.
        aside: Folder on the same disk whose temporary files are swept.

    Returns:
        The bytes that it had; 0 when it was left, or is not there.
    """
    away = aside / f"{os.urandom(8).hex()}.tmp"
    try:
        if path.stat().st_mtime >= before:
            return 0
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)  # so that it is nobody's leftover while it is away
            path.rename(away)
            known = away.stat()
            if known.st_mtime >= before:
                away.replace(path)
                return 0
            away.unlink(missing_ok=True)
    except FileNotFoundError:  # another process was first
        return 0
    return known.st_size


def _touched(place: Path) -> bool:
    """Makes a file one that was put now; False when there is none, or it is not ours to touch."""
    try:
        os.utime(place)
    except (FileNotFoundError, PermissionError):
        return False
    return True


def _holds(place: Path, sha256: str) -> bool:
    try:
        return file_digest(place) == sha256
    except FileNotFoundError:  # it is being removed, and may come back: the same bytes are written over it
        return False


def _copy(source: BinaryIO, target: BinaryIO) -> str:
    """Copies all bytes; returns their sha256."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
