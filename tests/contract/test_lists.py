"""One suite for every ledger: what ``stillhouse.service.db.lists.Lists`` promises."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Size, StageKind, StagePlan, StageResult
from stillhouse.search.errors import ConflictError, NotFoundError, UserError
from stillhouse.search.job import JobSpec
from stillhouse.search.owner import Owner
from stillhouse.service.db.lists import JobFilter, Lists, ModelFilter, Place

CANDIDATE = Candidate("resnet18", Size(32, 48), Size(64, 96))


def new_dataset(ledger: Lists, name: str = "birds", state: str = "ready") -> str:
    dataset = ledger.add_dataset(name, StagePlan(StageKind.INGEST, {"name": name}))
    if state != "pending":
        ledger.end_dataset(dataset.id, state, summary={}, reason=None, faults=())
    return dataset.id


def new_job(ledger: Lists, dataset: str, *states: str) -> str:
    job = ledger.add_job(JobSpec(dataset)).id
    for before, after in zip(("queued", *states), states, strict=False):
        assert ledger.move_job(job, expect=(before,), to=after)
    return job


def model(ledger: Lists, job: str, name: str, **more: Any) -> str:
    item = Deployment(name, job, 0, CANDIDATE, Cost(macs=1), "fp32", Accuracy(1, 2), "ab" * 32, {})
    ledger.add_deployment(dataclasses.replace(item, **more))
    return name


def test_jobs_come_in_pages_newest_first(ledger: Lists) -> None:
    dataset = new_dataset(ledger)
    ids = [new_job(ledger, dataset) for _ in range(7)]
    seen: list[str] = []
    after: Place | None = None
    while lines := ledger.job_lines(JobFilter(), limit=3, after=after):
        seen += [line.id for line in lines]
        after = Place.parse(lines[-1].place.cursor())
        new_job(ledger, dataset)  # what comes in between is not seen, and moves nothing
    assert seen == ids[::-1]


def test_a_job_s_line_counts_its_trials(ledger: Lists) -> None:
    dataset = new_dataset(ledger, "birds")
    job, empty = new_job(ledger, dataset, "running"), new_job(ledger, dataset)
    for number, accuracy in enumerate((0.5, 0.75, None)):
        ledger.add_trial(job, number, CANDIDATE, Cost())
        if accuracy is not None:
            ledger.move_trial(job, number, expect="costing", to="training")
            ledger.move_trial(job, number, expect="training", to="done", accuracy=accuracy)
    first, second = ledger.job_lines(JobFilter(), limit=9)
    assert (first.id, dict(first.counts), first.best_accuracy) == (empty, {}, None)
    assert (second.id, dict(second.counts), second.best_accuracy) == (job, {"done": 2, "costing": 1}, 0.75)
    assert (second.dataset_name, second.state, second.spec["dataset"]) == ("birds", "running", dataset)
    assert second.started_at is not None


def test_the_line_of_a_job_that_ended_follows_it_when_it_goes_on(ledger: Lists) -> None:
    job = new_job(ledger, new_dataset(ledger), "running")
    ledger.add_trial(job, 0, CANDIDATE, Cost())
    ledger.move_job(job, expect=("running",), to="cancelled")
    for _ in range(2):
        (line,) = ledger.job_lines(JobFilter(), limit=9)
        assert (line.state, dict(line.counts)) == ("cancelled", {"stopped": 1})
    ledger.move_job(job, expect=("cancelled",), to="queued")
    ledger.move_job(job, expect=("queued",), to="running")
    (line,) = ledger.job_lines(JobFilter(), limit=9)
    assert (line.state, dict(line.counts)) == ("running", {"costing": 1})
    ledger.add_trial(job, 1, CANDIDATE, Cost())
    ledger.move_job(job, expect=("running",), to="failed", reason="no more")
    (line,) = ledger.job_lines(JobFilter(), limit=9)
    assert (line.state, line.reason, dict(line.counts)) == ("failed", "no more", {"stopped": 2})
    ledger.delete_job(job)
    assert ledger.job_lines(JobFilter(), limit=9) == []


def test_jobs_are_filtered(ledger: Lists) -> None:
    birds, flowers = new_dataset(ledger, "birds"), new_dataset(ledger, "flowers")
    one, two, three = new_job(ledger, birds), new_job(ledger, birds, "cancelled"), new_job(ledger, flowers, "failed")

    def found(**more: Any) -> list[str]:
        return [line.id for line in ledger.job_lines(JobFilter(**more), limit=9)]

    assert found(dataset=birds) == [two, one]
    assert found(states=["failed", "cancelled"]) == [three, two]
    assert found(states=["failed"], dataset=birds) == found(tenant="nobody") == []
    assert found(tenant="default") == [three, two, one]


def test_models_come_in_pages_and_are_filtered(ledger: Lists) -> None:
    birds, flowers = (new_job(ledger, new_dataset(ledger, name)) for name in ("birds", "flowers"))
    names = [model(ledger, birds, f"mdl_{index}", trial_number=index) for index in range(4)]
    other = model(ledger, flowers, "mdl_9", precision="int8", candidate=Candidate("vit", Size(8, 8), Size(8, 8)))
    seen: list[str] = []
    after: Place | None = None
    while page := ledger.model_page(ModelFilter(), limit=2, after=after):
        seen += [item.id for _, item in page]
        after = page[-1][0]
    assert seen == [other, *reversed(names)]

    def found(**more: Any) -> list[str]:
        return [item.id for _, item in ledger.model_page(ModelFilter(**more), limit=9)]

    dataset = ledger.job(flowers).spec.dataset
    assert found(job=flowers) == found(dataset=dataset) == found(arch="vit") == found(precision="int8") == [other]
    assert found(arch="vit", job=birds) == found(tenant="nobody") == []
    assert len(found(tenant="default")) == 5


def test_trials_come_in_pages(ledger: Lists) -> None:
    job = new_job(ledger, new_dataset(ledger))
    for number in range(5):
        ledger.add_trial(job, number, CANDIDATE, Cost())
    ledger.move_trial(job, 3, expect="costing", to="failed")
    assert [t.number for t in ledger.trial_page(job, states=(), limit=2)] == [0, 1]
    assert [t.number for t in ledger.trial_page(job, states=(), limit=9, after=1)] == [2, 3, 4]
    assert [t.number for t in ledger.trial_page(job, states=["failed"], limit=9)] == [3]


def test_marks_change_with_what_they_mark(ledger: Lists) -> None:
    dataset = new_dataset(ledger)
    marks = [ledger.jobs_mark()]
    job = new_job(ledger, dataset)
    marks.append(ledger.jobs_mark())
    ledger.move_job(job, expect=("queued",), to="running")
    marks.append(ledger.jobs_mark())
    own = [ledger.job_marks([job])[job]]
    assert own[0][:1] == ("running",)
    assert ledger.jobs_mark() == marks[-1] and ledger.job_marks([job])[job] == own[0]
    ledger.emit(job, "note", {})
    assert ledger.job_marks([job])[job] != own[0]
    ledger.move_job(job, expect=("running",), to="cancelled")
    ledger.delete_job(job)
    marks.append(ledger.jobs_mark())
    assert len(set(marks[:3])) == 3 and marks[3] != marks[2]
    assert ledger.job_marks([job]) == {}


def test_a_job_is_deleted_once_it_has_ended(ledger: Lists) -> None:
    dataset = new_dataset(ledger)
    job, other = ledger.add_job(JobSpec(dataset), idempotency_key="k").id, new_job(ledger, dataset)
    ledger.add_trial(job, 0, CANDIDATE, Cost())
    model(ledger, job, "mdl_1")
    model(ledger, other, "mdl_2")
    with pytest.raises(ConflictError, match="queued; cancel it first"):
        ledger.delete_job(job)
    ledger.move_job(job, expect=("queued",), to="cancelled")
    ledger.delete_job(job)
    for gone in (ledger.job, ledger.delete_job):
        with pytest.raises(NotFoundError, match=job):
            gone(job)
    assert ledger.trials(job) == ledger.deployments(job) == []
    assert [item.id for item in ledger.deployments(other)] == ["mdl_2"]
    assert ledger.add_job(JobSpec(dataset, seed=3), idempotency_key="k").id != job, "its key is free again"


def test_a_data_set_is_deleted_once_nothing_uses_it(ledger: Lists) -> None:
    dataset, pending = new_dataset(ledger), new_dataset(ledger, "other", "pending")
    job = new_job(ledger, dataset, "cancelled")
    with pytest.raises(ConflictError, match="has jobs"):
        ledger.delete_dataset(dataset)
    with pytest.raises(ConflictError, match="being read"):
        ledger.delete_dataset(pending)
    ledger.delete_job(job)
    ledger.delete_dataset(dataset)
    assert [each.id for each in ledger.datasets()] == [pending]
    with pytest.raises(NotFoundError):
        ledger.delete_dataset(dataset)
    assert new_dataset(ledger) != dataset, "the same pictures can come again"


def test_the_host_is_that_of_the_last_measurement(ledger: Lists) -> None:
    assert ledger.last_host() is None
    timed = {"latency": True}
    specs = (timed, timed, timed, {"latency": True, "device": "gate-cam"}, {"latency": False})
    hosts = ({"cpu": "old"}, {"cpu": "new"}, None, {"cpu": "the camera's"}, {"cpu": "told by the camera"})
    for index, (host, spec) in enumerate(zip(hosts, specs, strict=True)):
        stage = ledger.ensure_stage(StagePlan(StageKind.MEASURE, {"index": index, **spec}))
        attempt = ledger.open_attempt(stage.key, lease_s=9, threads=1)
        assert attempt is not None
        metrics = {} if host is None else {"host": host, "runtime": "r"}
        assert ledger.commit(attempt.id, attempt.token, StageResult({}, metrics), seconds=1.0)
    found = ledger.last_host()
    assert found is not None and found[1]["host"] == {"cpu": "new"}


@pytest.mark.parametrize("text", ["", "x", "W10", "bnVsbA", "WyJhIiwxXQ", "ä", "W05hTiwiYSJd", "WzEsICJcdWQ4MDAiXQ"])
def test_what_is_no_cursor_is_told(text: str) -> None:
    with pytest.raises(UserError, match="cursor"):
        Place.parse(text)
    assert Place.parse(Place(1.5, "job_1").cursor()) == Place(1.5, "job_1")


def test_a_data_set_that_is_gone_takes_no_bytes_of_its_key(ledger: Lists) -> None:
    owner = Owner("default", "key_1", max_dataset_bytes=100)
    plan = StagePlan(StageKind.INGEST, {"name": "counted"})
    dataset = ledger.add_dataset("counted", plan, owner=owner, source_bytes=80)
    ledger.end_dataset(dataset.id, "ready", summary={}, reason=None, faults=())
    assert ledger.dataset_bytes("key_1") == 80
    ledger.delete_dataset(dataset.id)
    assert ledger.dataset_bytes("key_1") == 0
