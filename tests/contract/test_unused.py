"""One suite for every ledger: what ``stillhouse.service.db.unused.Forgets`` promises."""

from __future__ import annotations

import time
from typing import Any

import pytest

from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Size, StageKind, StagePlan, StageResult
from stillhouse.search.errors import NotFoundError
from stillhouse.search.job import JobSpec
from stillhouse.search.plan import ingest_plan
from stillhouse.service.db.unused import Forgets, StageLine, unused

CANDIDATE = Candidate("resnet18", Size(32, 48), Size(64, 96))
INGEST = ingest_plan("birds.zip", "d" * 64, False, {})
OTHER = ingest_plan("cats.zip", "c" * 64, False, {})


def plan(name: str, *reads: StagePlan, kind: StageKind = StageKind.STUDENT, **hints: Any) -> StagePlan:
    return StagePlan(kind, {"name": name}, {f"role{number}": each.key for number, each in enumerate(reads)}, "", hints)


def done(ledger: Forgets, *plans: StagePlan, files: tuple[str, ...] = ()) -> None:
    for each in plans:
        ledger.ensure_stage(each)
        attempt = ledger.open_attempt(each.key, lease_s=9, threads=1)
        assert attempt is not None
        result = StageResult({name: name * 64 for name in files}, {"digest": "e" * 64})
        assert ledger.commit(attempt.id, attempt.token, result, seconds=1.0)


def dataset(ledger: Forgets, ingest: StagePlan = INGEST) -> str:
    found = ledger.add_dataset("birds", ingest)
    done(ledger, ingest)
    ledger.end_dataset(found.id, "ready", summary={"digest": "e" * 64}, reason=None, faults=())
    return found.id


def job(ledger: Forgets, dataset_id: str, *stages: StagePlan, state: str = "cancelled", **spec: Any) -> str:
    made = ledger.add_job(JobSpec(dataset_id, **spec)).id
    ledger.add_trial(made, 0, CANDIDATE, Cost())
    ledger.move_trial(made, 0, expect="costing", to="training", stages=[each.key for each in stages])
    if state != "queued":
        ledger.move_job(made, expect=("queued",), to=state)
    return made


def found(ledger: Forgets, *, before: float | None = None) -> set[str]:
    holders, lines = ledger.holders(), list[StageLine]()
    while page := ledger.stage_lines(after=lines[-1].key if lines else "", limit=2):
        lines += page
    return set(unused(lines, holders, before=time.time() + 1 if before is None else before))


def names(ledger: Forgets, *plans: StagePlan) -> set[str]:
    """The keys of those that are unused."""
    return {each.spec["name"] for each in plans if each.key in found(ledger)}


def test_lines_tell_what_matters(ledger: Forgets) -> None:
    first = plan("first")
    teacher = StagePlan(StageKind.TEACHER, {"checkpoint": "f" * 64}, {"dataset": first.key}, "", {"resume": "r" * 64})
    began = time.time()
    done(ledger, first)
    done(ledger, teacher, files=("a", "b"))
    ledger.ensure_stage(plan("pending"))
    lines = {line.key: line for line in ledger.stage_lines(limit=9)}
    assert list(lines) == sorted(lines)
    line = lines[teacher.key]
    assert (line.kind, line.state) == ("teacher", "done")
    assert set(line.reads) == {first.key, "r" * 64}
    assert set(line.files) == {"a" * 64, "b" * 64, "f" * 64}
    assert (lines[first.key].reads, lines[first.key].files) == ((), ())
    assert all(began <= line.used_at <= time.time() for line in lines.values())


def test_what_an_existing_job_reaches_is_used(ledger: Forgets) -> None:
    """Named, read by what is named, and gone on from: kept for as long as the job is there, however old."""
    pictures = dataset(ledger)
    teacher, rung = plan("teacher", INGEST), plan("rung", INGEST)
    student = plan("student", teacher, INGEST, resume=rung.key)
    stray, failed = plan("stray", teacher), plan("failed", INGEST)
    done(ledger, teacher, rung, student, stray)
    made = job(ledger, pictures, student)
    ledger.ensure_stage(failed)
    assert names(ledger, teacher, rung, student, stray, failed) == {"stray", "failed"}
    assert found(ledger, before=time.time() - 60) == set(), "what was used lately is kept, and what it reads"
    ledger.delete_job(made)
    assert names(ledger, teacher, rung, student) == {"teacher", "rung", "student"}
    assert INGEST.key not in found(ledger)
    ledger.delete_dataset(pictures)
    assert INGEST.key in found(ledger)


def test_what_a_live_job_may_take_up_is_used(ledger: Forgets) -> None:
    birds, cats = dataset(ledger), dataset(ledger, OTHER)
    of_birds, of_cats = plan("birds", plan("none"), INGEST), plan("cats", OTHER)
    below, costing, pending = plan("below", of_birds), plan("costing"), plan("pending", of_birds)
    done(ledger, of_birds, of_cats, below, costing)
    ledger.ensure_stage(pending)
    everything = (of_birds, of_cats, below, costing, pending)
    assert names(ledger, *everything) == {"birds", "cats", "below", "costing", "pending"}
    live = job(ledger, birds, state="queued")
    assert names(ledger, *everything) == {"cats"}
    other = job(ledger, cats, state="queued")
    assert names(ledger, *everything) == set()
    ledger.move_job(live, expect=("queued",), to="cancelled")
    assert names(ledger, *everything) == {"birds", "below", "pending"}
    ledger.move_job(other, expect=("queued",), to="cancelled")
    assert len(names(ledger, *everything)) == 5


def test_what_runs_is_used_and_so_is_what_it_reads(ledger: Forgets) -> None:
    first, rung = plan("first"), plan("rung")
    at_work = plan("at work", first, resume=rung.key)
    done(ledger, first, rung)
    ledger.ensure_stage(at_work)
    attempt = ledger.open_attempt(at_work.key, lease_s=0, threads=1)
    assert attempt is not None
    assert names(ledger, first, rung, at_work) == set()
    mark = ledger.holders().mark
    assert ledger.forget_stages([at_work.key], mark=mark, before=time.time() + 9) == []
    ledger.lose(attempt.id, max_attempts=None)
    assert names(ledger, first, rung, at_work) == {"first", "rung", "at work"}


def test_a_forgotten_stage_runs_again(ledger: Forgets) -> None:
    one = plan("one")
    done(ledger, one, files=("a",))
    (attempt,) = ledger.attempts(one.key)
    mark, soon = ledger.holders().mark, time.time() + 1
    assert ledger.known_attempts([attempt.id, "att_no"]) == {attempt.id}
    assert ledger.forget_stages([one.key, "0" * 64], mark=mark, before=soon) == [one.key]
    assert (ledger.stages([one.key]), ledger.attempts(one.key), ledger.known_attempts([attempt.id])) == ({}, [], set())
    with pytest.raises(NotFoundError):
        ledger.attempt(attempt.id)
    assert not ledger.renew(attempt.id, attempt.token, lease_s=9, progress={})
    again = ledger.ensure_stage(one)
    assert (again.state, again.attempts, again.result) == ("pending", 0, None)
    done(ledger, one, files=("a",))
    assert ledger.stages([one.key])[one.key].state == "done"


def test_used_in_between_is_not_forgotten(ledger: Forgets) -> None:
    one, before = plan("one"), time.time()
    done(ledger, one)
    mark = ledger.holders().mark
    assert ledger.forget_stages([one.key], mark=mark, before=before) == []
    dataset(ledger)
    assert ledger.forget_stages([INGEST.key], mark=mark, before=time.time() + 9) == [], "a data set is made by it"


def test_nothing_is_forgotten_once_something_has_happened_to_jobs(ledger: Forgets) -> None:
    birds, one = dataset(ledger), plan("one", INGEST)
    done(ledger, one)

    def refused(change: Any) -> Any:
        mark = ledger.holders().mark
        made = change()
        assert ledger.forget_stages([one.key], mark=mark, before=time.time() + 9) is None
        return made

    made = refused(lambda: ledger.add_job(JobSpec(birds)).id)
    refused(lambda: ledger.move_job(made, expect=("queued",), to="running"))
    refused(lambda: ledger.move_job(made, expect=("running",), to="failed"))
    refused(lambda: ledger.move_job(made, expect=("failed",), to="queued"))
    refused(lambda: ledger.move_job(made, expect=("queued",), to="cancelled"))
    refused(lambda: ledger.delete_job(made))
    assert ledger.forget_stages([one.key], mark=ledger.holders().mark, before=time.time() + 9) == [one.key]


def test_models_and_jobs_name_files(ledger: Forgets) -> None:
    made = job(ledger, dataset(ledger), state="queued", teacher_checkpoint="f" * 64)
    job(ledger, dataset_of(ledger))
    model = Deployment("mdl_1", made, 0, CANDIDATE, Cost(), "fp32", Accuracy(1, 2), "a" * 64, {})
    assert ledger.add_deployment(model)
    assert ledger.move_job(made, expect=("queued",), to="cancelled")
    asked = ["a" * 64, "b" * 64, "f" * 64]
    assert ledger.named_files(asked) == {"a" * 64, "f" * 64}
    assert ledger.named_files([]) == set()
    holders = ledger.holders()
    assert (holders.pictures, holders.sources) == ({"e" * 64}, {"d" * 64})
    ledger.delete_job(made)
    assert ledger.named_files(asked) == set()


def dataset_of(ledger: Forgets) -> str:
    return ledger.datasets()[0].id


def test_a_data_set_that_comes_back_while_its_stage_goes(ledger: Forgets, race: Any) -> None:
    """Whoever is first: the data set has a stage, and nobody sees an error."""
    for number in range(12):
        ingest = ingest_plan("x.zip", f"{number:064d}", False, {})
        done(ledger, ingest)
        mark = ledger.holders().mark

        def one(index: int, ingest: StagePlan = ingest, mark: Any = mark) -> Any:
            if index % 2:
                return ledger.forget_stages([ingest.key], mark=mark, before=time.time() + 9)
            return ledger.add_dataset("birds", ingest).stage_key

        race(one, 4)
        assert ingest.key in ledger.stages([ingest.key])
        ledger.delete_dataset(end(ledger, ingest.key))


def end(ledger: Forgets, key: str) -> str:
    (made,) = [record.id for record in ledger.datasets() if record.stage_key == key]
    ledger.end_dataset(made, "ready", summary={}, reason=None, faults=())
    return made


def test_a_ledger_has_one_name(ledger: Forgets, race: Any) -> None:
    assert len({*race(lambda _: ledger.identity(), 4), ledger.identity()}) == 1


def test_jobs_that_come_while_stages_go(ledger: Forgets, race: Any) -> None:
    """Nobody waits for ever, and what a job has found when it was there already stays."""
    birds = dataset(ledger)
    for number in range(6):
        one = plan(str(number), INGEST)
        done(ledger, one)
        mark = ledger.holders().mark

        def work(index: int, one: StagePlan = one, mark: Any = mark) -> bool:
            if index % 2:
                return bool(ledger.forget_stages([one.key], mark=mark, before=time.time() + 9))
            made = ledger.add_job(JobSpec(birds)).id
            there = one.key in ledger.stages([one.key])
            ledger.move_job(made, expect=("queued",), to="running")
            assert there == (one.key in ledger.stages([one.key])), "it was there when the job was"
            ledger.move_job(made, expect=("running",), to="cancelled")
            return True

        answers = race(work, 4)
        assert (answers[1] or answers[3]) == (one.key not in ledger.stages([one.key]))
