"""One suite for every ledger, the part about work: stages and the attempts that threads and processes race for."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.search.domain import (
    Candidate,
    Size,
    StageKind,
    StagePlan,
    StageResult,
)
from stillhouse.search.errors import StageError, UserError
from stillhouse.search.job import JobSpec
from stillhouse.search.ports import Ledger
from stillhouse.service.db.ledger import SqlLedger

Race = Callable[..., list[Any]]
CANDIDATE = Candidate("resnet18", Size(32, 48), Size(64, 96), "stride1", (("gamma", 0.5),))
RESULT = StageResult({"weights": "ab" * 32}, {"val": {"correct": 3, "total": 4}, "history": [0.5, 0.25]})


def plan(name: str = "a", kind: StageKind = StageKind.STUDENT, **hints: str) -> StagePlan:
    return StagePlan(kind, {"name": name, "epochs": 2}, {"dataset": "0" * 64}, "code", hints)


def test_stage_survives_storage(ledger: Ledger) -> None:
    asked = plan(source="/pictures")
    stage = ledger.ensure_stage(asked)
    assert (stage.plan, stage.state, stage.attempts, stage.result) == (asked, "pending", 0, None)
    assert stage.plan.hints == {"source": "/pictures"}
    assert ledger.ensure_stage(plan(source="/elsewhere")) == stage
    assert ledger.stages([asked.key, "0" * 64, asked.key]) == {asked.key: stage}
    assert ledger.stages([]) == {}


def test_many_stages_at_once(ledger: Ledger) -> None:
    for i in range(12):
        ledger.ensure_stage(plan(str(i)))
    unknown = [f"{i:064d}" for i in range(40_000)]
    wanted = [plan(str(i)).key for i in range(12)]
    assert set(ledger.stages(unknown + wanted)) == set(wanted)


def test_results_are_those_of_stages_that_are_done(ledger: Ledger) -> None:
    done, open_, pending = (ledger.ensure_stage(plan(name)).key for name in "abc")
    for key in (done, open_):
        attempt = ledger.open_attempt(key, lease_s=30, threads=1)
        assert attempt is not None
        if key == done:
            assert ledger.commit(attempt.id, attempt.token, RESULT, seconds=1.0)
    unknown = [f"{i:064d}" for i in range(2000)]
    assert ledger.results([pending, open_, *unknown, done, done]) == {done: RESULT}
    assert ledger.results([]) == {}


def test_ensure_stage_under_a_race(ledger: Ledger, race: Race) -> None:
    stages = race(lambda _: ledger.ensure_stage(plan()))
    assert all(stage == stages[0] for stage in stages)


def test_attempt_commits_once(ledger: Ledger) -> None:
    key = ledger.ensure_stage(plan()).key
    attempt = ledger.open_attempt(key, lease_s=30, threads=2)
    assert attempt is not None
    assert (attempt.state, attempt.stage_key, attempt.threads) == ("open", key, 2)
    assert time.time() + 20 < attempt.expires_at < time.time() + 31
    assert ledger.open_attempt(key, lease_s=30, threads=1) is None
    assert ledger.open_attempts() == [attempt]
    assert ledger.stages([key])[key].attempts == 1

    assert ledger.renew(attempt.id, attempt.token, lease_s=90, progress={"done": 3})
    assert ledger.stages([key])[key].progress == {"done": 3}
    assert ledger.attempt(attempt.id).expires_at > attempt.expires_at + 30

    assert not ledger.commit(attempt.id, "wrong", RESULT, seconds=1.5)
    assert ledger.stages([key])[key].state == "running"
    assert ledger.commit(attempt.id, attempt.token, RESULT, seconds=1.5)
    assert not ledger.commit(attempt.id, attempt.token, StageResult(), seconds=2)
    assert not ledger.renew(attempt.id, attempt.token, lease_s=90, progress={})
    assert not ledger.fail(attempt.id, attempt.token, "late")
    assert not ledger.lose(attempt.id, max_attempts=3)
    stage = ledger.stages([key])[key]
    assert (stage.state, stage.result, stage.seconds, stage.progress) == ("done", RESULT, 1.5, {})
    assert ledger.attempt(attempt.id).state == "done"
    assert ledger.open_attempts() == []
    assert ledger.open_attempt(key, lease_s=30, threads=1) is None


def test_late_holder_may_commit_until_taken_over(ledger: Ledger) -> None:
    key = ledger.ensure_stage(plan()).key
    late = ledger.open_attempt(key, lease_s=-5, threads=1)
    assert late is not None
    assert ledger.commit(late.id, late.token, RESULT, seconds=1)

    key = ledger.ensure_stage(plan("b")).key
    old = ledger.open_attempt(key, lease_s=-5, threads=1)
    assert old is not None
    assert ledger.lose(old.id, max_attempts=3)
    new = ledger.open_attempt(key, lease_s=5, threads=1)
    assert new is not None
    assert not ledger.commit(old.id, old.token, StageResult(), seconds=1)
    assert not ledger.commit(new.id, old.token, StageResult(), seconds=1)
    assert not ledger.renew(old.id, old.token, lease_s=5, progress={})
    assert ledger.commit(new.id, new.token, RESULT, seconds=1)
    assert ledger.stages([key])[key].result == RESULT


def test_an_attempt_given_up_for_no_fault_of_its_stage_is_not_counted(ledger: Ledger) -> None:
    plan = StagePlan(StageKind.TEACHER, {"arch": "given up"})
    ledger.ensure_stage(plan)
    for _ in range(4):
        attempt = ledger.open_attempt(plan.key, lease_s=30, threads=1)
        assert attempt is not None
        assert ledger.lose(attempt.id, max_attempts=None)
        stage = ledger.stages([plan.key])[plan.key]
        assert (stage.state, stage.attempts) == ("pending", 0)
        assert not ledger.commit(attempt.id, attempt.token, StageResult(), seconds=1.0)


def test_lost_attempts_are_counted(ledger: Ledger) -> None:
    key = ledger.ensure_stage(plan()).key
    for count in (1, 2, 3):
        attempt = ledger.open_attempt(key, lease_s=5, threads=1)
        assert attempt is not None
        ledger.renew(attempt.id, attempt.token, lease_s=5, progress={"done": count})
        assert ledger.lose(attempt.id, max_attempts=3)
        assert not ledger.lose(attempt.id, max_attempts=3)
        assert ledger.attempt(attempt.id).state == "lost"
        stage = ledger.stages([key])[key]
        assert (stage.attempts, stage.progress) == (count, {})
        assert stage.state == ("pending" if count < 3 else "failed")
    assert stage.reason is not None
    assert "ended 3 times" in stage.reason
    assert attempt.id in stage.reason
    assert ledger.reopen_stage(plan(source="/new"))
    stage = ledger.stages([key])[key]
    assert (stage.state, stage.attempts, stage.reason, stage.plan.hints) == ("pending", 0, None, {"source": "/new"})
    assert not ledger.reopen_stage(plan())
    assert not ledger.reopen_stage(plan("unknown"))


def test_a_stage_waits_before_it_is_tried_again(ledger: Ledger) -> None:
    key = ledger.ensure_stage(plan()).key
    first = ledger.open_attempt(key, lease_s=5, threads=1)
    assert first is not None
    assert ledger.lose(first.id, max_attempts=3, wait_s=0.4, reason="its process ended")
    stage = ledger.stages([key])[key]
    assert (stage.state, stage.reason) == ("pending", "its process ended")
    assert stage.not_before == pytest.approx(time.time() + 0.4, abs=0.3)
    assert ledger.open_attempt(key, lease_s=5, threads=1) is None
    time.sleep(0.45)
    second = ledger.open_attempt(key, lease_s=5, threads=1)
    assert second is not None
    stage = ledger.stages([key])[key]
    assert (stage.state, stage.reason, stage.not_before) == ("running", None, None)
    assert ledger.lose(second.id, max_attempts=2, wait_s=60)
    stage = ledger.stages([key])[key]
    assert (stage.state, stage.not_before) == ("failed", None)
    assert ledger.reopen_stage(plan())
    assert ledger.open_attempt(key, lease_s=5, threads=1) is not None


def test_attempts_at_a_stage_are_told_oldest_first(ledger: Ledger) -> None:
    key = ledger.ensure_stage(plan()).key
    ledger.open_attempt(ledger.ensure_stage(plan("other")).key, lease_s=5, threads=1)
    assert ledger.attempts(key) == []
    for _ in range(2):
        attempt = ledger.open_attempt(key, lease_s=5, threads=1)
        assert attempt is not None
        assert ledger.lose(attempt.id, max_attempts=None)
        time.sleep(0.002)  # the order is by the clock
    last = ledger.open_attempt(key, lease_s=5, threads=1)
    assert last is not None
    found = ledger.attempts(key)
    assert [one.state for one in found] == ["lost", "lost", "open"]
    assert found[-1] == last
    assert all(one.opened_at <= (one.ended_at or time.time()) <= time.time() for one in found)
    assert last.ended_at is None


def test_seconds_of_workers_are_those_of_the_stages_asked_for(ledger: Ledger) -> None:
    began = time.time()
    keys = [ledger.ensure_stage(plan(str(i))).key for i in range(3)]
    attempts = [ledger.open_attempt(key, lease_s=30, threads=1) for key in keys]
    time.sleep(0.05)
    assert attempts[0] is not None
    assert attempts[1] is not None
    ledger.commit(attempts[0].id, attempts[0].token, RESULT, seconds=1.0)
    ledger.lose(attempts[1].id, max_attempts=None)
    ended = ledger.device_seconds(keys[:2], since=began)
    assert 0.1 <= ended <= 2 * (time.time() - began)
    time.sleep(0.05)
    assert ledger.device_seconds(keys[:2], since=began) == pytest.approx(ended), "what has ended takes no longer"
    assert ledger.device_seconds(keys, since=began) >= ended + 0.1, "what is open counts until now"
    assert ledger.device_seconds(keys, since=time.time()) == 0.0
    assert ledger.device_seconds([], since=began) == 0.0


def test_an_attempt_of_several_slots_counts_in_each(ledger: Ledger) -> None:
    began = time.time()
    key, other = (ledger.ensure_stage(plan(name)).key for name in ("wide", "narrow"))
    wide, narrow = (ledger.open_attempt(k, lease_s=30, threads=n, slots=n) for k, n in ((key, 3), (other, 1)))
    assert wide is not None
    assert narrow is not None
    assert (wide.slots, narrow.slots) == (3, 1)
    assert {each.slots for each in ledger.open_attempts()} == {3, 1}
    time.sleep(0.05)
    ledger.commit(wide.id, wide.token, RESULT, seconds=1.0)
    ended = ledger.attempt(wide.id)
    assert ended.ended_at is not None
    assert ledger.device_seconds([key], since=began) == pytest.approx(3 * (ended.ended_at - ended.opened_at))


def test_seconds_of_stages_are_those_done_last_of_a_kind(ledger: Ledger) -> None:
    asked = [plan(name, source=name) for name in "abcde"]
    for one in (*asked, plan("t", StageKind.TEACHER)):
        ledger.ensure_stage(one)
    opened = {one.spec["name"]: ledger.open_attempt(one.key, lease_s=30, threads=1) for one in asked}
    for name, seconds in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        attempt = opened[name]
        assert attempt is not None
        assert ledger.commit(attempt.id, attempt.token, RESULT, seconds=seconds)
        time.sleep(0.002)  # the order is by the clock
    failed = opened["d"]
    assert failed is not None
    assert ledger.fail(failed.id, failed.token, "why")
    newest = [(asked[1], 2.0), (asked[0], 1.0), (asked[2], 3.0)]
    found = ledger.stage_seconds(StageKind.STUDENT, limit=9)
    assert found == newest, "what failed, is at work or of another kind has no seconds"
    assert found[0][0].hints == {"source": "b"}
    assert ledger.stage_seconds(StageKind.STUDENT, limit=2) == newest[:2]
    assert ledger.stage_seconds(StageKind.TEACHER, limit=9) == []


def test_fail_tells_why(ledger: Ledger) -> None:
    key = ledger.ensure_stage(plan()).key
    attempt = ledger.open_attempt(key, lease_s=5, threads=1)
    assert attempt is not None
    assert not ledger.fail(attempt.id, "wrong", "no")
    assert ledger.fail(attempt.id, attempt.token, "bad \0 name", faults=["a\0.jpg: empty", "b.jpg: \ud800"])
    stage = ledger.stages([key])[key]
    assert (stage.state, stage.reason, len(stage.faults)) == ("failed", "bad \ufffd name", 2)
    assert ledger.attempt(attempt.id).state == "failed"
    assert ledger.open_attempt(key, lease_s=5, threads=1) is None


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), object()])
def test_figures_must_be_finite_json(ledger: Ledger, figure: object) -> None:
    key = ledger.ensure_stage(plan()).key
    attempt = ledger.open_attempt(key, lease_s=5, threads=1)
    assert attempt is not None
    with pytest.raises(StageError, match="finite"):
        ledger.commit(attempt.id, attempt.token, StageResult({}, {"loss": figure}), seconds=1)
    assert ledger.stages([key])[key].state == "running"
    assert ledger.attempt(attempt.id).state == "open"
    dataset = ledger.add_dataset("birds", plan(kind=StageKind.INGEST))
    with pytest.raises(UserError, match="finite"):
        ledger.add_job(JobSpec(dataset.id, knobs={"gamma": figure}))  # type: ignore[dict-item]


def test_a_loss_that_diverges_does_not_cost_the_heartbeat(ledger: Ledger) -> None:
    key = ledger.ensure_stage(plan()).key
    attempt = ledger.open_attempt(key, lease_s=5, threads=1)
    assert attempt is not None
    progress = {"losses": {"a": float("nan"), "b": 1.5}, "history": [float("-inf"), 2]}
    assert ledger.renew(attempt.id, attempt.token, lease_s=5, progress=progress)
    assert ledger.stages([key])[key].progress == {"losses": {"a": None, "b": 1.5}, "history": [None, 2]}
    with pytest.raises(StageError, match="JSON"):
        ledger.renew(attempt.id, attempt.token, lease_s=5, progress={"loss": object()})


def test_one_thread_opens_the_attempt(ledger: Ledger, race: Race) -> None:
    key = ledger.ensure_stage(plan()).key
    opened = [a for a in race(lambda _: ledger.open_attempt(key, lease_s=5, threads=1)) if a is not None]
    assert len(opened) == 1
    assert ledger.open_attempts() == opened


def test_one_thread_commits(ledger: Ledger, race: Race) -> None:
    """Commit, loss and takeover race: the stage ends with one result, and its winner was told so."""
    for name in "abcd":
        key = ledger.ensure_stage(plan(name)).key
        attempt = ledger.open_attempt(key, lease_s=5, threads=1)
        assert attempt is not None

        def work(i: int, a: str = attempt.id, token: str = attempt.token) -> bool:
            if i % 2:
                return ledger.commit(a, token, StageResult({}, {"by": i}), seconds=1)
            return ledger.lose(a, max_attempts=3)

        answers = race(work)
        assert sum(answers) == 1
        winner = answers.index(True)
        stage = ledger.stages([key])[key]
        if winner % 2:
            assert (stage.state, stage.result) == ("done", StageResult({}, {"by": winner}))
        else:
            assert (stage.state, stage.result) == ("pending", None)


# --------------------------------------------------------------------------------- SQL only


def _open_and_commit(url: str, keys: list[str], gate: threading.Barrier, won: multiprocessing.SimpleQueue[int]) -> None:
    ledger = SqlLedger(url)
    gate.wait()
    count = 0
    for key in keys:
        attempt = ledger.open_attempt(key, lease_s=5, threads=1)
        if attempt is not None:
            count += ledger.commit(attempt.id, attempt.token, RESULT, seconds=1)
    won.put(count)
    ledger.close()


def test_processes_race_for_attempts(sql_url: str) -> None:
    ledger = SqlLedger(sql_url)
    keys = [ledger.ensure_stage(plan(str(i))).key for i in range(20)]
    ledger.close()
    context = multiprocessing.get_context("fork")
    gate, won = context.Barrier(3), context.SimpleQueue()
    workers = [context.Process(target=_open_and_commit, args=(sql_url, keys, gate, won)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sum(won.get() for _ in workers) == len(keys)
    stages = ledger.stages(keys)
    assert all((stage.state, stage.attempts) == ("done", 1) for stage in stages.values())
    won.close()
    ledger.close()


def _use(ledger: SqlLedger, key: str) -> None:
    for _ in range(20):
        assert ledger.stages([key])
        ledger.ensure_stage(plan("child"))
    ledger.close()


def test_ledger_goes_on_in_a_forked_child(sql_url: str) -> None:
    ledger = SqlLedger(sql_url)
    key = ledger.ensure_stage(plan()).key
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_use, args=(ledger, key))
    child.start()
    for i in range(20):
        ledger.ensure_stage(plan(f"parent {i}"))
    child.join(60)
    assert child.exitcode == 0
    assert plan("child").key in ledger.stages([plan("child").key])
    ledger.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "the database URL must read"),
        ("mysql://host/name", "SQLite or PostgreSQL, but got 'mysql'"),
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
    ],
)
def test_urls_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SqlLedger(url)
