"""What ``stillhouse.service.checkpoints.Checkpoints`` promises: in a folder and in a bucket."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bucket import Bucket
from stillhouse.search.errors import NotFoundError, StillhouseError
from stillhouse.service.checkpoints import Checkpoints, DiskCheckpoints
from stillhouse.service.checkpoints_s3 import S3Checkpoints

STAGE, OTHER = "a" * 64, "b" * 64


@pytest.fixture(params=["disk", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    if request.param == "disk":
        return DiskCheckpoints(tmp_path / "checkpoints")
    bucket: Bucket = request.getfixturevalue("bucket")
    return S3Checkpoints(bucket.url, endpoint=bucket.endpoint)


def written(folder: Path, epoch: int, content: bytes) -> Path:
    path = folder / f"checkpoint-{epoch:06d}-{hashlib.sha256(content).hexdigest()}.pt"
    path.write_bytes(content)
    return path


def test_the_newest_comes_back_and_the_older_goes(kept: Checkpoints, tmp_path: Path) -> None:
    assert kept.newest(STAGE) is None
    assert list(kept.stages()) == []
    first, second = written(tmp_path, 1, b"first"), written(tmp_path, 2, os.urandom((2 << 20) + 5))
    for path in (first, second):
        kept.keep(STAGE, path.name, path)
        assert kept.newest(STAGE) == path.name
        assert b"".join(kept.read(STAGE, path.name)) == path.read_bytes()
    with pytest.raises(NotFoundError, match="a newer one may have come"):
        kept.read(STAGE, first.name)


def test_an_older_one_that_comes_late_changes_nothing(kept: Checkpoints, tmp_path: Path) -> None:
    late, newest = written(tmp_path, 9, b"late"), written(tmp_path, 10, b"newest")
    kept.keep(STAGE, newest.name, newest)
    kept.keep(STAGE, late.name, late)
    assert kept.newest(STAGE) == newest.name
    assert b"".join(kept.read(STAGE, newest.name)) == b"newest"
    with pytest.raises(NotFoundError):
        kept.read(STAGE, late.name)


def test_stages_are_apart_and_can_be_forgotten(kept: Checkpoints, tmp_path: Path) -> None:
    path = written(tmp_path, 1, b"state")
    for stage in (STAGE, OTHER):
        kept.keep(stage, path.name, path)
    assert sorted(kept.stages()) == [STAGE, OTHER]
    assert kept.size(STAGE) == 5
    kept.drop(STAGE)
    kept.drop(STAGE)  # of one that is not there
    assert kept.size(STAGE) == 0
    assert (kept.newest(STAGE), kept.newest(OTHER), list(kept.stages())) == (None, path.name, [OTHER])


@pytest.mark.parametrize("name", ["", "../secret", "checkpoint-000001.pt", f"checkpoint-000001-{'0' * 64}.pt", "\n"])
def test_names_that_are_not_kept(kept: Checkpoints, name: str) -> None:
    with pytest.raises(NotFoundError, match="no such checkpoint"):
        kept.read(STAGE, name)


def test_many_at_once_leave_the_newest(kept: Checkpoints, tmp_path: Path) -> None:
    paths, gate = [written(tmp_path, epoch, b"x" * epoch) for epoch in range(1, 6)], threading.Barrier(5)

    def keep(path: Path) -> None:
        gate.wait()
        kept.keep(STAGE, path.name, path)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(keep, paths))
    assert kept.newest(STAGE) == paths[-1].name
    assert b"".join(kept.read(STAGE, paths[-1].name)) == b"x" * 5


def test_a_copy_that_fails_leaves_the_last(kept: Checkpoints, tmp_path: Path) -> None:
    path = written(tmp_path, 1, b"state")
    kept.keep(STAGE, path.name, path)
    with pytest.raises((OSError, StillhouseError)):
        kept.keep(STAGE, path.name.replace("000001", "000002"), tmp_path / "missing")
    assert kept.newest(STAGE) == path.name
    assert not list(tmp_path.rglob("*.tmp"))
