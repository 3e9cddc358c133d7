"""Migrations on both databases: they give the tables of the code, up, down and up again, also in a race."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Size, StageKind, StagePlan
from stillhouse.search.errors import UserError
from stillhouse.search.job import JobSpec
from stillhouse.search.owner import Owner
from stillhouse.service.db import migrate
from stillhouse.service.db.connect import WRITE, connect
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.tables import Base

TABLES = set(Base.metadata.tables)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_database_url"))


def tables(url: str) -> set[str]:
    engine = connect(url)
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    return names


def fill(url: str) -> None:
    """Puts a row into every table."""
    ledger = SqlLedger(url)
    dataset = ledger.add_dataset("birds", StagePlan(StageKind.INGEST, {}))
    assert ledger.open_attempt(dataset.stage_key, lease_s=5, threads=1)
    job = ledger.add_job(JobSpec(dataset.id))
    candidate = Candidate("resnet18", Size(32, 32), Size(64, 64))
    ledger.add_trial(job.id, 0, candidate, Cost(macs=1))
    ledger.move_job(job.id, expect=("queued",), to="running")
    ledger.add_deployment(Deployment("mdl_1", job.id, 0, candidate, Cost(), "fp32", Accuracy(1, 2), "ab" * 32, {}))
    ledger.publish_catalogue({"names": []})
    ledger.close()


def test_the_migrated_database_has_the_tables_of_the_code(url: str) -> None:
    migrate.upgrade(url)
    engine = connect(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
        found = inspect(connection)
        for table in Base.metadata.sorted_tables:
            assert found.get_pk_constraint(table.name)["constrained_columns"] == [c.name for c in table.primary_key]
            assert {c["name"]: c["nullable"] for c in found.get_columns(table.name)} == {
                c.name: c.nullable for c in table.columns
            }
    engine.dispose()


def test_a_database_at_the_newest_revision_is_left_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: str) -> None:
        raise AssertionError("nothing is to be done")

    migrate.upgrade(url, "0006")
    migrate.upgrade(url)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "_run", run)
        migrate.upgrade(url)
    engine = connect(url)
    with engine.connect() as connection:
        newest = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations")).get_current_head()
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [newest]
    engine.dispose()


def test_up_down_and_up_again_with_data(url: str) -> None:
    migrate.upgrade(url)
    assert tables(url) == TABLES | {"alembic_version"}
    fill(url)
    migrate.upgrade(url)  # at head already: nothing is lost
    ledger = SqlLedger(url)
    assert len(ledger.jobs()) == len(ledger.open_attempts()) == 1
    ledger.close()

    migrate.downgrade(url, "base")
    assert tables(url) == {"alembic_version"}
    migrate.upgrade(url)
    assert tables(url) == TABLES | {"alembic_version"}
    fill(url)


def test_stages_of_an_older_version_are_kept_and_may_be_tried_at_once(url: str) -> None:
    migrate.upgrade(url, "0002")
    plan = StagePlan(StageKind.INGEST, {})
    engine = connect(url)
    with engine.execution_options(**WRITE).begin() as connection:
        row = {"key": plan.key, "plan": json.dumps(plan.to_json())}
        columns = "key, kind, plan, state, attempts, faults, created_at"
        connection.execute(
            text(f"INSERT INTO stages ({columns}) VALUES (:key, 'ingest', :plan, 'pending', 1, '[]', 0)"),  # noqa: S608
            row,
        )
    engine.dispose()
    migrate.upgrade(url)
    ledger = SqlLedger(url)
    stage = ledger.stages([plan.key])[plan.key]
    assert (stage.plan, stage.attempts, stage.not_before) == (plan, 1, None)
    attempt = ledger.open_attempt(plan.key, lease_s=5, threads=1)
    assert attempt is not None
    assert ledger.lose(attempt.id, max_attempts=3, wait_s=60)
    ledger.close()
    migrate.downgrade(url, "0002")
    migrate.upgrade(url)
    assert ledger.stages([plan.key])[plan.key].not_before is None
    ledger.close()


def test_trials_of_jobs_that_ended_before_are_stopped_and_tried_again(url: str) -> None:
    """What an older version left at work is what the ledger itself would have made of it."""
    migrate.upgrade(url)
    ledger = SqlLedger(url)
    dataset = ledger.add_dataset("birds", StagePlan(StageKind.INGEST, {}))
    ways = {"costing": (), "training": ("training",), "paused": ("training", "paused"), "infeasible": ("infeasible",)}
    ends = {"cancelled": None, "failed": "of something", "running": None}
    jobs = {}
    for end, why in ends.items():
        jobs[end] = ledger.add_job(JobSpec(dataset.id)).id
        for number, way in enumerate(ways.values()):
            ledger.add_trial(jobs[end], number, Candidate("resnet18", Size(32, 32), Size(64, 64)), Cost())
            for before, after in itertools.pairwise(("costing", *way)):
                ledger.move_trial(jobs[end], number, expect=before, to=after)
        ledger.move_job(jobs[end], expect=("queued",), to=end, reason=why)
    now = {end: ledger.trials(job) for end, job in jobs.items()}
    stopped = ["stopped", "stopped", "stopped", "infeasible"]
    assert {end: [trial.state for trial in trials] for end, trials in now.items()} == {
        "cancelled": stopped,
        "failed": stopped,
        "running": list(ways),
    }

    migrate.downgrade(url, "0007")
    assert all([trial.state for trial in ledger.trials(job)] == list(ways) for job in jobs.values())
    assert all(trial.reason is None for job in jobs.values() for trial in ledger.trials(job))
    migrate.upgrade(url)
    assert {end: ledger.trials(job) for end, job in jobs.items()} == now
    ledger.close()


def test_the_database_itself_forbids_two_open_attempts(url: str) -> None:
    migrate.upgrade(url)
    fill(url)
    engine = connect(url)
    copy = text(
        "INSERT INTO attempts (id, stage_key, token, state, expires_at, threads, progress, opened_at) "
        "SELECT :id, stage_key, token, :state, 0, 1, progress, 0 FROM attempts WHERE state = 'open'"
    )
    with engine.execution_options(**WRITE).begin() as connection:
        connection.execute(copy, {"id": "att_lost", "state": "lost"})
    with pytest.raises(Exception, match=r"(?i)unique"), engine.execution_options(**WRITE).begin() as connection:
        connection.execute(copy, {"id": "att_open", "state": "open"})
    engine.dispose()


def test_threads_race_to_upgrade(url: str) -> None:
    gate = threading.Barrier(4)

    def work(_: int) -> None:
        gate.wait()
        migrate.upgrade(url)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert tables(url) == TABLES | {"alembic_version"}


def _upgrade(url: str, gate: threading.Barrier) -> None:
    gate.wait()
    migrate.upgrade(url)


def test_processes_race_to_upgrade(url: str) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(3)
    workers = [context.Process(target=_upgrade, args=(url, gate)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert tables(url) == TABLES | {"alembic_version"}


def test_a_newer_database_is_refused(url: str) -> None:
    migrate.upgrade(url)
    engine = connect(url)
    with engine.execution_options(**WRITE).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(UserError, match="install that version"):
        migrate.upgrade(url)
    assert tables(url) == TABLES | {"alembic_version"}


def test_sqlite_is_set_up_for_several_processes(sqlite_url: str, tmp_path: Path) -> None:
    migrate.upgrade(sqlite_url)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    engine = connect(sqlite_url)
    with engine.connect() as ours:
        assert ours.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert ours.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000
    engine.dispose()


def test_what_was_there_before_tenants_belongs_to_the_default_one(url: str) -> None:
    migrate.upgrade(url)
    fill(url)
    migrate.downgrade(url, "0003")
    assert {"keys", "audit"}.isdisjoint(tables(url))
    migrate.upgrade(url)
    ledger = SqlLedger(url)
    (job,), (dataset,) = ledger.jobs(tenant="default"), ledger.datasets(tenant="default")
    assert ledger.deployment("mdl_1").job_id == job.id
    assert (len(ledger.trials(job.id)), len(ledger.events(job.id)), ledger.dataset_bytes("key_1")) == (1, 1, 0)
    assert ledger.add_dataset("again", StagePlan(StageKind.INGEST, {})).id == dataset.id
    ledger.add_dataset("birds", StagePlan(StageKind.INGEST, {}), owner=Owner("other"))
    with pytest.raises(UserError, match="default, other would see one another's data"):
        migrate.downgrade(url, "0003")
    assert len(ledger.datasets()) == 2, "nothing is lost by the attempt"
    ledger.close()
