"""What ``stillhouse.search.ports.ArtifactStore`` promises: on the disk, and in a bucket with copies on the disk."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
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


def listed(store: ArtifactStore) -> dict[str, tuple[int, float]]:
    return {item.sha256: (item.size, item.put_at) for item in store.listed()}


def test_files_are_listed_with_size_and_time(store: ArtifactStore, make: Callable[[bytes], Path], root: Path) -> None:
    assert listed(store) == {}
    began = time.time()
    sizes = {store.put(make(data)): len(data) for data in (b"abc", b"", b"x" * 5000)}
    (root / "tmp" / "unfinished").write_bytes(b"x")
    found = listed(store)
    assert {sha256: size for sha256, (size, _) in found.items()} == sizes
    assert all(began - 2 <= at <= time.time() + 2 for _, at in found.values())  # buckets tell whole seconds


def test_what_is_removed_is_gone_and_can_be_put_again(store: ArtifactStore, make: Callable[[bytes], Path]) -> None:
    sha256, other = store.put(make(b"abc")), store.put(make(b"abcd"))
    later = time.time() + 60
    assert store.remove(sha256, before=later) == 3
    assert (store.has(sha256), store.has(other), listed(store).keys()) == (False, True, {other})
    with pytest.raises(NotFoundError):
        store.path(sha256)
    assert store.remove(sha256, before=later) == 0
    assert store.put(make(b"abc")) == sha256
    assert store.path(sha256).read_bytes() == b"abc"
    for name in ("0" * 64, "", "../../etc/passwd", "tmp"):
        assert store.remove(name, before=later) == 0


def test_what_was_put_lately_is_not_removed(store: ArtifactStore, make: Callable[[bytes], Path]) -> None:
    sha256 = store.put(make(b"abc"))
    assert store.remove(sha256, before=time.time() - 60) == 0
    assert store.path(sha256).read_bytes() == b"abc"


def test_a_file_that_is_put_again_counts_as_put_then(store: ArtifactStore, make: Callable[[bytes], Path]) -> None:
    sha256 = store.put(make(b"abc"))
    first = listed(store)[sha256][1]
    time.sleep(1.1)
    store.put(make(b"abc"))
    again = listed(store)[sha256][1]
    assert again > first
    assert store.remove(sha256, before=again) == 0


def test_what_is_put_while_it_is_removed_is_there(root: Path, make: Callable[[bytes], Path]) -> None:
    """On the disk: who puts an old file again has it, whatever a removal does meanwhile."""
    store, given = DiskStore(root), make(b"abc")
    sha256 = store.put(given)
    for _ in range(150):
        os.utime(store.path(sha256), (1, 1))
        gate = threading.Barrier(4)

        def work(index: int, gate: threading.Barrier = gate) -> None:
            gate.wait()
            if index % 2:
                DiskStore(root).remove(sha256, before=time.time() - 60)
            else:
                DiskStore(root).put(given)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert DiskStore(root).path(sha256).read_bytes() == b"abc"
    assert len(files(root)) == 1


def test_a_store_belongs_to_the_ledger_that_asked_first(store: ArtifactStore, make: Callable[[bytes], Path]) -> None:
    assert store.owner() is None
    assert [store.claim(name) for name in ("led_1", "led_2", "led_1")] == ["led_1"] * 3
    assert store.owner() == "led_1"
    sha256 = store.put(make(b"abc"))
    assert listed(store).keys() == {sha256}
