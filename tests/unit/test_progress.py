"""What a person sees while a job runs."""

import io

import pytest
from rich.console import Console

from stillhouse.search.domain import Candidate, Cost, Size, StageKind, StagePlan, StageResult
from stillhouse.search.forecast import Forecast
from stillhouse.search.job import DatasetRecord, JobRecord, JobSpec
from stillhouse.search.plan import Planner, ingest_plan
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.progress import Watcher, note_of, title_of

SMALL = Candidate("lcnet_050", Size(32, 32), Size(64, 64), "stride1")
CATALOGUE = {"methods": {"tas": {"teacher": True, "assistant": True}}}


def test_a_plain_console_gets_one_line_a_stage_and_a_trial() -> None:
    ledger, screen = MemoryLedger(), io.StringIO()
    dataset = ledger.add_dataset("[birds]", ingest_plan("x", "x", False, {}))
    job = ledger.add_job(JobSpec(dataset.id, trials=2))
    stages = Planner(job.spec, dataset.stage_key, 3, CATALOGUE).training(SMALL).stages
    ledger.add_trial(job.id, 0, SMALL, Cost(macs=12_000_000))
    ledger.move_trial(job.id, 0, expect="costing", to="training", stages=[stage.key for stage in stages])
    with Watcher(ledger, Console(file=screen, width=60)) as watcher:
        watcher.ready(DatasetRecord(dataset.id, "[birds]", "k", "ready", summary=SUMMARY))
        for stage in stages:
            ledger.ensure_stage(stage)
            attempt = ledger.open_attempt(stage.key, lease_s=9, threads=1)
            assert attempt is not None
            watcher.job(job.id)
            metrics = {"val": {"correct": 3, "total": 4}} if stage.kind is StageKind.STUDENT else {}
            ledger.commit(attempt.id, attempt.token, StageResult({}, metrics), seconds=1.5)
            watcher.job(job.id)
        assert watcher._share(ledger.trials(job.id)[0]) == pytest.approx(1.0)
        ledger.move_trial(job.id, 0, expect="training", to="done", accuracy=0.75)
        watcher.job(job.id)
        watcher.job(job.id)
    lines = screen.getvalue().splitlines()
    assert lines[0] == "data set [birds]: 12 pictures, 2 classes (8 train, 2 val, 2 test)"
    assert "  note: a note" in lines
    assert "student lcnet_050 32x32->64x64 stride1 by tas: 1.5 s, 75.0% on validation" in lines
    assert lines[-1] == "trial 0 lcnet_050 32x32->64x64 stride1: 75.0% on validation, 12.0 M MACs"
    assert len(lines) == 2 + len(stages) + 1


SUMMARY = {
    "pictures": 12,
    "classes": ["a", "b"],
    "splits": {"train": 8, "val": 2, "test": 2},
    "notes": ["a note"],
    "faults": [],
}


def test_a_terminal_shows_the_seconds_that_the_api_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, screen = MemoryLedger(), io.StringIO()
    dataset = ledger.add_dataset("birds", ingest_plan("x", "x", False, {}))
    job = ledger.add_job(JobSpec(dataset.id, trials=2))
    asked: list[str] = []

    def told(_self: Forecast, job: JobRecord, _trials: object, _stages: object) -> float:
        asked.append(job.id)
        return 3723.4

    monkeypatch.setattr(Forecast, "eta_s", told)
    with Watcher(ledger, Console(file=screen, width=120, force_terminal=True)) as watcher:
        watcher.job(job.id)
        watcher.job(job.id)
    assert asked == [job.id], "not asked each time"
    assert "1:02:03" in screen.getvalue()


def test_titles_and_notes_say_what_is_going_on() -> None:
    costing = Planner(JobSpec("d"), "k", 3, CATALOGUE).costing(SMALL).stages
    assert title_of(costing[0]) == "export lcnet_050 32x32->64x64 stride1 (untrained, for its costs)"
    assert title_of(StagePlan(StageKind.TARGETS, {"size": "64x64"})) == "targets 64x64"
    for views, part, said in ((4, [1, 2], " view 2 of 4"), (10, [2, 5], " views 3-5 of 10"), (1, [0, 1], "")):
        spec = {"size": "64x64", "views": views, "part": part}
        assert title_of(StagePlan(StageKind.TARGETS, spec)) == f"targets 64x64{said}"
    running = {"epoch": 2, "epochs": 6, "val_accuracy": 0.5, "images_per_s": 123.4}
    assert note_of(running) == "epoch 2/6, validation 50.0%, 123 images/s"
    assert note_of({}) == ""
