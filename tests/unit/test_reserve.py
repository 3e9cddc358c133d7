"""A file that is filled through a memory map has its blocks before."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from stillhouse.distill.reserve import reserve


def test_the_blocks_are_taken_and_the_content_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(64, 4096))
    array[0] = 7
    reserve(path)
    assert path.stat().st_blocks * 512 >= path.stat().st_size > 64 * 4096
    assert np.load(path)[0, 0] == 7


def test_a_full_disk_is_an_error_and_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = tmp_path / "a"
    path.write_bytes(b"x")
    with pytest.raises(OSError, match="no space"):
        reserve(path)
