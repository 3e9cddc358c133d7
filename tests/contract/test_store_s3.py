"""What a store in a bucket promises beyond the port: machines share it, bytes are checked, failures are told."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest

from bucket import Bucket
from stillhouse.search.errors import CorruptArtifactError, NotFoundError, StillhouseError, UserError
from stillhouse.service import stores
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore
from stillhouse.service.store_s3 import S3Store

Machine = Callable[[str], S3Store]


@pytest.fixture
def machine(bucket: Bucket, tmp_path: Path) -> Machine:
    """Makes the store of a machine with copies of its own."""
    return lambda name: S3Store(bucket.url, cache=tmp_path / name, endpoint=bucket.endpoint)


def test_machines_share_it(machine: Machine, bucket: Bucket, tmp_path: Path) -> None:
    content = os.urandom(12 << 20)  # in several parts
    (tmp_path / "given").write_bytes(content)
    sha256 = machine("one").put(tmp_path / "given")
    assert hashlib.sha256(obstore.get(bucket.objects(), bucket.place(sha256)).bytes()).hexdigest() == sha256
    other = machine("two")
    assert other.has(sha256)
    assert other.path(sha256).read_bytes() == content
    obstore.delete(bucket.objects(), bucket.place(sha256))
    assert other.path(sha256).read_bytes() == content  # a copy is here
    assert not other.has(sha256)
    with pytest.raises(NotFoundError, match=bucket.name):
        machine("three").path(sha256)


def test_bytes_that_were_changed_in_the_bucket_are_seen_and_healed(
    machine: Machine, bucket: Bucket, tmp_path: Path
) -> None:
    (tmp_path / "given").write_bytes(b"abc")
    sha256 = machine("one").put(tmp_path / "given")
    obstore.put(bucket.objects(), bucket.place(sha256), b"abd")
    with pytest.raises(CorruptArtifactError, match=sha256):
        machine("two").path(sha256)
    assert not [path for path in (tmp_path / "two").rglob("*") if path.is_file()]
    machine("one").put(tmp_path / "given")
    assert machine("two").path(sha256).read_bytes() == b"abc"


def test_a_copy_that_was_damaged_is_fetched_again(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(b"abc")
    copy = machine("one").path(machine("one").put(tmp_path / "given"))
    copy.chmod(0o644)
    copy.write_bytes(b"abd")
    assert machine("one").path(hashlib.sha256(b"abc").hexdigest()).read_bytes() == b"abc"


def test_a_bucket_that_is_not_there_is_told(s3_endpoint: str, bucket: Bucket, tmp_path: Path) -> None:
    store = S3Store(f"s3://{bucket.name}-not", cache=tmp_path / "one", endpoint=s3_endpoint)
    (tmp_path / "given").write_bytes(b"abc")
    with pytest.raises(StillhouseError, match=f"{bucket.name}-not"):
        store.put(tmp_path / "given")


def test_settings_open_a_folder_or_a_bucket(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(stores.open_store(Settings.load(home=tmp_path / "h")), DiskStore)
    for url in (str(tmp_path / "elsewhere"), f"file://{tmp_path / 'elsewhere'}"):
        settings = Settings.load(home=tmp_path / "h", store_url=url)
        assert settings.artifacts == tmp_path / "elsewhere"
        assert isinstance(stores.open_store(settings), DiskStore)
    settings = Settings.load(home=tmp_path / "h", store_url=bucket.url, store_endpoint=bucket.endpoint)
    (tmp_path / "given").write_bytes(b"abc")
    store = stores.open_store(settings)
    assert isinstance(store, S3Store)
    assert store.path(store.put(tmp_path / "given")).is_relative_to(tmp_path / "h" / "artifacts")
    for url in ("gs://bucket/here", "s3://"):
        with pytest.raises(UserError, match="STILLHOUSE_STORE_URL"):
            Settings.load(store_url=url)
    monkeypatch.setattr(stores.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"stillhouse\[s3\]"):
        stores.open_store(settings)
