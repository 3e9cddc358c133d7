"""What ``stillhouse.service.claim.Claim`` promises: beside the database, and through the API with a token alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from served import Served
from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.errors import NotFoundError, StageError
from stillhouse.search.job import AttemptRecord
from stillhouse.service.claim import Claim, LocalClaim
from stillhouse.service.remote import RemoteClaim
from stillhouse.service.store import DiskStore

Make = Callable[[AttemptRecord], Claim]


@pytest.fixture(params=["local", "remote"])
def make(request: pytest.FixtureRequest, served: Served, tmp_path: Path) -> Iterator[Make]:
    """Makes claims of either kind over one ledger and store; a remote one keeps its files elsewhere."""
    opened: list[RemoteClaim] = []

    def local(attempt: AttemptRecord) -> Claim:
        terms = {"lease_s": served.settings.lease_s, "heartbeat_s": served.settings.heartbeat_s}
        return LocalClaim(served.ledger, served.store, attempt.id, log="a log", **terms)

    def remote(attempt: AttemptRecord) -> Claim:
        live: Callable[[FastAPI], str] = request.getfixturevalue("live")
        url, apart = live(served.http.app), tmp_path / "apart"  # type: ignore[arg-type]
        store, uploads = DiskStore(apart / "artifacts"), apart / "uploads"
        opened.append(RemoteClaim(url, attempt.id, attempt.token, store=store, uploads=uploads, patience_s=1))
        return opened[-1]

    yield local if request.param == "local" else remote
    for claim in opened:
        claim.__exit__(None, None, None)


def stage(served: Served, plan: StagePlan) -> AttemptRecord:
    served.ledger.ensure_stage(plan)
    attempt = served.ledger.open_attempt(plan.key, lease_s=30, threads=3)
    assert attempt is not None
    return attempt


def done(served: Served, name: str, path: Path, content: bytes) -> StagePlan:
    """A stage that has left one file."""
    plan = StagePlan(StageKind.TEACHER, {"name": name})
    attempt = stage(served, plan)
    path.write_bytes(content)
    result = StageResult({"weights": served.store.put(path)}, {"by": name})
    assert served.ledger.commit(attempt.id, attempt.token, result, seconds=1)
    return plan


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_an_order_names_the_plan_and_what_it_reads(make: Make, served: Served, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b"checkpoint")
    checkpoint = served.store.put(tmp_path / "checkpoint")
    teacher, rung = (done(served, name, tmp_path / name, name.encode()) for name in ("teacher", "rung"))
    unfinished = StagePlan(StageKind.TARGETS, {"name": "unfinished"})
    served.ledger.ensure_stage(unfinished)
    inputs = {"teacher": teacher.key, "targets": unfinished.key}
    plan = StagePlan(StageKind.STUDENT, {"checkpoint": checkpoint}, inputs, "7", {"resume": rung.key})
    claim = make(stage(served, plan))
    order = claim.order()
    assert order.plan == plan
    assert {role: result.metrics for role, result in order.results.items()} == {
        "teacher": {"by": "teacher"}, "resume": {"by": "rung"},
    }  # fmt: skip
    assert (order.threads, order.lease_s, order.heartbeat_s) == (3, 30, 2)
    assert order.readable == {checkpoint, sha(b"teacher"), sha(b"rung")}
    assert (order.source, claim.fetch_source(order)) == (None, plan)
    for content in (b"checkpoint", b"teacher", b"rung"):
        assert claim.path(sha(content)).read_bytes() == content


def test_what_is_put_is_stored_and_committed(make: Make, served: Served, tmp_path: Path) -> None:
    plan = StagePlan(StageKind.TEACHER, {})
    claim = make(stage(served, plan))
    content = bytes(range(256)) * 10_000
    (tmp_path / "weights").write_bytes(content)
    assert claim.renew({"epoch": 1})
    assert served.ledger.stages([plan.key])[plan.key].progress == {"epoch": 1}
    sha256 = claim.put(tmp_path / "weights")
    assert claim.put(tmp_path / "weights") == sha256 == sha(content)
    result = StageResult({"weights": sha256}, {"val": {"correct": 3, "total": 4}})
    assert claim.commit(result, seconds=2.5)
    stored = served.ledger.stages([plan.key])[plan.key]
    assert (stored.state, stored.result, stored.seconds) == ("done", result, 2.5)
    assert served.store.path(sha256).read_bytes() == content
    assert not claim.commit(result, seconds=2.5)


def test_a_failure_is_told_with_its_faults(make: Make, served: Served) -> None:
    plan = StagePlan(StageKind.INGEST, {"digest": "textures"}, hints={"source": "textures"})
    claim = make(stage(served, plan))
    assert claim.order().source is None  # built in
    assert claim.fail("two pictures cannot be read", faults=["a.png: empty", "b.png: no picture"])
    stored = served.ledger.stages([plan.key])[plan.key]
    assert (stored.state, stored.reason) == ("failed", "two pictures cannot be read")
    assert stored.faults == ("a.png: empty", "b.png: no picture")
    assert not claim.fail("again")


def test_a_lost_lease_holds_nothing(make: Make, served: Served) -> None:
    plan = StagePlan(StageKind.TEACHER, {})
    claim = make(stage(served, plan))
    assert served.ledger.lose(claim.attempt_id, max_attempts=3)
    assert not claim.renew({})
    assert not claim.commit(StageResult(), seconds=1)
    assert not claim.fail("late")
    assert served.ledger.stages([plan.key])[plan.key].state == "pending"


def test_figures_that_are_not_finite_are_refused(make: Make, served: Served) -> None:
    claim = make(stage(served, StagePlan(StageKind.TEACHER, {})))
    with pytest.raises(StageError, match="finite"):
        claim.commit(StageResult({}, {"loss": math.nan}), seconds=1)
    assert claim.renew({})


def test_a_file_that_is_not_stored(make: Make, served: Served) -> None:
    with pytest.raises(NotFoundError, match="no such artifact"):
        make(stage(served, StagePlan(StageKind.TEACHER, {}))).path("0" * 64)


def test_an_attempt_that_does_not_exist(make: Make) -> None:
    with pytest.raises(NotFoundError, match="no such attempt"):
        make(AttemptRecord("att_none", "0" * 64, "token", "open", 0.0)).order()


def test_pictures_of_an_ingest_stage_come_to_the_worker(make: Make, served: Served, tmp_path: Path) -> None:
    zipped = tmp_path / "pictures.zip"
    zipped.write_bytes(b"a zip")
    plan = StagePlan(StageKind.INGEST, {"digest": sha(b"a zip")}, hints={"source": str(zipped)})
    claim = make(stage(served, plan))
    located = claim.fetch_source(claim.order())
    assert located.key == plan.key
    assert Path(located.hints["source"]).read_bytes() == b"a zip"
    assert claim.fetch_source(claim.order()) == located


def test_what_is_given_back_is_no_try_and_waits(make: Make, served: Served) -> None:
    plan = StagePlan(StageKind.TEACHER, {"name": "full"})
    attempt = stage(served, plan)
    claim = make(attempt)
    claim.give_back("the disk is full", wait_s=60)
    stored = served.ledger.stages([plan.key])[plan.key]
    assert (stored.state, stored.attempts, stored.reason) == ("pending", 0, "the disk is full")
    assert served.ledger.open_attempt(plan.key, lease_s=30, threads=1) is None, "it waits"
    assert not claim.commit(StageResult(), seconds=1)
    assert not claim.fail("late")
