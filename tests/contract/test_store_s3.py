"""What a store in a bucket promises beyond the port: machines share it, bytes are checked, failures are told."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest

from bucket import Bucket
from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.errors import CorruptArtifactError, NotFoundError, StillhouseError, UserError
from stillhouse.service import stores
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore
from stillhouse.service.store_s3 import S3Store
from stillhouse.service.unneeded import GRACE_S, Collector, Sum

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


def test_copies_of_what_another_machine_removed_go_too(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(b"abc")
    sha256 = machine("one").put(tmp_path / "given")
    machine("two").path(sha256)
    later = time.time() + 60
    assert machine("one").remove(sha256, before=later) == 3
    assert not [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert list(machine("one").listed()) == []
    (copy,) = machine("two").listed()
    assert (copy.sha256, copy.size) == (sha256, 3)
    assert machine("two").remove(sha256, before=copy.put_at) == 0, "it was put here lately"
    assert machine("two").remove(sha256, before=later) == 3
    assert list(machine("two").listed()) == []


def test_a_bucket_that_is_not_there_cannot_be_listed(s3_endpoint: str, bucket: Bucket, tmp_path: Path) -> None:
    store = S3Store(f"s3://{bucket.name}-not", cache=tmp_path / "one", endpoint=s3_endpoint)
    with pytest.raises(StillhouseError, match=f"{bucket.name}-not"):
        list(store.listed())


def test_what_is_not_needed_is_removed_from_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path / "home", store_url=bucket.url, store_endpoint=bucket.endpoint)
    settings.make_folders()
    store, ledger = stores.open_store(settings), MemoryLedger()
    plan = StagePlan(StageKind.TEACHER, {})
    ledger.ensure_stage(plan)
    attempt = ledger.open_attempt(plan.key, lease_s=9, threads=1)
    assert attempt is not None
    for name in ("given", "stray"):
        (tmp_path / name).write_bytes(name.encode() * 10)
    result = StageResult({"weights": store.put(tmp_path / "given")})
    ledger.commit(attempt.id, attempt.token, result, seconds=1.0)
    store.put(tmp_path / "stray")

    def tidy(in_s: float, **more: float) -> dict[str, int]:
        collector, found = Collector(settings, ledger, store, clock=lambda: time.time() + in_s), Sum()
        for removed in collector.run(older_than_s=more.get("older_than_s", 0.0), claim=True):
            found.add(removed)
        return dict(found.counts)

    assert tidy(GRACE_S - 60, older_than_s=GRACE_S) == {}
    assert tidy(GRACE_S + 60, older_than_s=2 * GRACE_S) == {}
    assert tidy(GRACE_S + 60) == {"stages": 1, "artifacts": 2}
    left = [item["path"] for page in obstore.list(bucket.objects()) for item in page]
    assert left == ["under/here/ledger"], "which says whose it is"
