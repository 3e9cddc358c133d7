"""Room for a file before it is filled through a memory map."""

from __future__ import annotations

import os
from pathlib import Path


def reserve(path: Path) -> None:
    """Takes the blocks of a file that has its size but not its content.

    A map of a file with holes, written to on a full disk, kills the process (SIGBUS); this raises an error instead.

    Raises:
        OSError: The disk is full.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, max(1, path.stat().st_size))
    finally:
        os.close(descriptor)
