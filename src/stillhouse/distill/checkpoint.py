"""Checkpoints that survive a kill at any moment.

Written to a temporary name, synced, renamed, and the folder synced; the name carries the sha256 of the bytes, so a torn
or rotten file is never loaded: the one before it is. The newest two are kept.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stillhouse.search.domain import CHECKPOINT
from stillhouse.search.errors import StageError
from stillhouse.search.failpoints import passing

KEPT = 2


def save_checkpoint(folder: Path, epoch: int, state: Mapping[str, Any]) -> Path:
    """Writes the state after ``epoch`` epochs and drops all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    path = folder / f"checkpoint-{epoch:06d}-{hashlib.sha256(data).hexdigest()}.pt"
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    with fresh.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    passing("rename.before")
    fresh.replace(path)
    sync_folder(folder)
    passing("rename.after")
    for old in _found(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def newest_checkpoint(folder: Path) -> Path:
    """The file of the newest state.

    Raises:
        StageError: There is none.
    """
    found = _found(folder)
    if not found:
        raise StageError(f"a training that stops early must leave a checkpoint, but {folder} holds none")
    return found[0]


def adopt_checkpoint(path: Path, name: str, folder: Path) -> None:
    """Puts a checkpoint that another training left into a folder, unless the folder has a state of its own.

    Args:
        path: The file.
        name: The name that ``save_checkpoint`` gave it.
        folder: Where ``load_checkpoint`` will look.
    """
    if CHECKPOINT.fullmatch(name) is None or _found(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{name}.tmp"
    shutil.copyfile(path, fresh)
    fresh.replace(folder / name)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest state whose bytes match their hash; None when there is none."""
    for path in _found(folder):
        data = path.read_bytes()
        match = CHECKPOINT.fullmatch(path.name)
        if match is not None and hashlib.sha256(data).hexdigest() == match[2]:
            state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return state
    return None


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _found(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in folder.glob("checkpoint-*.pt") if CHECKPOINT.fullmatch(path.name)), reverse=True)
