"""What ``stillhouse.search.ports.ArtifactStore`` promises: on the disk, and in a bucket with copies on the disk."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bucket import Bucket
from stillhouse.search.errors import CorruptArtifactError, NotFoundError
from stillhouse.search.ports import ArtifactStore
from stillhouse.service.store import DiskStore
from stillhouse.service.store_s3 import S3Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, root: Path) -> ArtifactStore:
    if request.param == "disk":
        return DiskStore(root)
    bucket: Bucket = request.getfixturevalue("bucket")
    return S3Store(bucket.url, cache=root, endpoint=bucket.endpoint)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "given"
        path.write_bytes(data)
        return path

    return write


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("data", [b"", b"abc", os.urandom((1 << 20) + 17)], ids=["empty", "short", "chunks"])
def test_what_is_put_comes_back(store: ArtifactStore, make: Callable[[bytes], Path], data: bytes) -> None:
    sha256 = store.put(make(data))
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert store.has(sha256)
    assert store.path(sha256).read_bytes() == data


def test_the_copy_is_read_only_and_apart(store: ArtifactStore, make: Callable[[bytes], Path], root: Path) -> None:
    given = make(b"abc")
    stored = store.path(store.put(given))
    assert stat.S_IMODE(stored.stat().st_mode) == 0o444
    given.write_bytes(b"changed")
    assert stored.read_bytes() == b"abc"
    sha256 = hashlib.sha256(b"abc").hexdigest()
    assert files(root) == [stored] == [root / sha256[:2] / sha256[2:]]


def test_put_is_idempotent(store: ArtifactStore, make: Callable[[bytes], Path], root: Path) -> None:
    first = store.path(store.put(make(b"abc")))
    inode = first.stat().st_ino
    assert store.path(store.put(make(b"abc"))).stat().st_ino == inode
    assert len(files(root)) == 1


def test_threads_put_the_same_file(store: ArtifactStore, make: Callable[[bytes], Path], root: Path) -> None:
    given, gate = make(b"abc" * 1000), threading.Barrier(6)

    def work(_: int) -> bytes:
        gate.wait()
        return store.path(store.put(given)).read_bytes()

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(work, range(6))) == {given.read_bytes()}
    assert len(files(root)) == 1


@pytest.mark.parametrize("name", ["0" * 64, "", "../../etc/passwd", "A" * 64, "0" * 63 + "\n", "tmp"])
def test_unknown_names(store: ArtifactStore, name: str) -> None:
    assert not store.has(name)
    with pytest.raises(NotFoundError, match="no such artifact"):
        store.path(name)


def test_changed_bytes_are_seen_once_a_process(root: Path, make: Callable[[bytes], Path]) -> None:
    sha256 = DiskStore(root).put(make(b"abc"))
    store = DiskStore(root)
    place = store.path(sha256)
    place.chmod(0o644)
    place.write_bytes(b"abd")
    assert store.path(sha256) == place  # checked before: not read again
    with pytest.raises(CorruptArtifactError, match=sha256):
        DiskStore(root).path(sha256)
    DiskStore(root).put(make(b"abc"))
    assert DiskStore(root).path(sha256).read_bytes() == b"abc"


def test_a_failed_put_leaves_nothing(store: ArtifactStore, root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.put(tmp_path / "missing")
    assert files(root) == []
