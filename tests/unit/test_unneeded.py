"""What nobody needs is removed from the disk, all else stays, and a run that was cut short is made good by the next."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Size, StageKind, StagePlan, StageResult
from stillhouse.search.errors import ConflictError
from stillhouse.search.job import JobSpec
from stillhouse.search.plan import ingest_plan
from stillhouse.service import cli
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.settings import Settings
from stillhouse.service.store import CLAIM, DiskStore
from stillhouse.service.unneeded import GRACE_S, Collector, Sum

CANDIDATE = Candidate("resnet18", Size(32, 48), Size(64, 96))
PICTURES = "e" * 64


class Place:
    """A home on the disk and a ledger, with helpers that do the work of stages; all files are old unless said."""

    def __init__(self, folder: Path, ledger: MemoryLedger | SqlLedger) -> None:
        self.settings = Settings.load(home=folder)
        self.settings.make_folders()
        self.ledger, self.store = ledger, DiskStore(self.settings.artifacts)

    def file(self, path: Path, content: bytes = b"x" * 100, *, age_s: float = 2 * GRACE_S) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        then = time.time() - age_s
        os.utime(path, (then, then))
        os.utime(path.parent, (then, then))
        return path

    def put(self, content: bytes, *, age_s: float = 2 * GRACE_S) -> str:
        sha256 = self.store.put(self.file(self.settings.home / "given", content))
        then = time.time() - age_s
        os.utime(self.store.path(sha256), (then, then))
        return sha256

    def done(self, plan: StagePlan, *contents: bytes) -> str:
        """Does a stage; returns the attempt's id."""
        self.ledger.ensure_stage(plan)
        attempt = self.ledger.open_attempt(plan.key, lease_s=9, threads=1)
        assert attempt is not None
        files = {f"file{number}": self.put(content) for number, content in enumerate(contents)}
        assert self.ledger.commit(attempt.id, attempt.token, StageResult(files), seconds=1.0)
        return attempt.id

    def begun(self, name: str) -> str:
        """A stage that is at work; returns its key."""
        begun = plan(name)
        self.ledger.ensure_stage(begun)
        assert self.ledger.open_attempt(begun.key, lease_s=9, threads=1)
        return begun.key

    def dataset(self, digest: str) -> str:
        ingest = ingest_plan(str(self.settings.uploads / f"{digest}.zip"), digest, False, {})
        made = self.ledger.add_dataset("birds", ingest).id
        self.done(ingest, b"pictures of " + digest.encode())
        self.ledger.end_dataset(made, "ready", summary={"digest": PICTURES}, reason=None, faults=())
        return made

    def job(self, dataset: str, *stages: StagePlan, model: str | None = None) -> str:
        made = self.ledger.add_job(JobSpec(dataset)).id
        self.ledger.add_trial(made, 0, CANDIDATE, Cost())
        self.ledger.move_trial(made, 0, expect="costing", to="training", stages=[each.key for each in stages])
        if model is not None:
            self.ledger.add_deployment(
                Deployment(f"mdl_{made}", made, 0, CANDIDATE, Cost(), "fp32", Accuracy(1, 2), model, {})
            )
        self.ledger.move_job(made, expect=("queued",), to="cancelled")
        return made

    def tidy(self, *, older_than_s: float = 0.0, dry_run: bool = False) -> Sum:
        time.sleep(0.002)  # what was used this very moment was not used before it
        found = Sum()
        for removed in Collector(self.settings, self.ledger, self.store).run(
            older_than_s=older_than_s, dry_run=dry_run, claim=True
        ):
            found.add(removed)
        return found

    def left(self) -> set[str]:
        """All files but those that say whose they are."""
        files = {path for path in self.settings.home.rglob("*") if path.is_file() and path.name != "ledger"}
        return {str(path.relative_to(self.settings.home)) for path in files}


@pytest.fixture(params=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "memory":
        return Place(tmp_path / "home", MemoryLedger())
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    upgrade(url)
    return Place(tmp_path / "home", SqlLedger(url))


CHECKPOINT = f"checkpoint-000001-{'0' * 64}.pt"


def plan(name: str, *reads: StagePlan, kind: StageKind = StageKind.STUDENT) -> StagePlan:
    return StagePlan(kind, {"name": name}, {f"role{number}": each.key for number, each in enumerate(reads)})


def test_a_deleted_job_frees_its_bytes_and_no_others(place: Place) -> None:
    birds = place.dataset("a" * 64)
    teacher, mine, theirs = plan("teacher"), plan("mine", plan("teacher")), plan("theirs", plan("teacher"))
    place.done(teacher, b"teacher")
    place.done(mine, b"mine" * 1000, b"same")
    place.done(theirs, b"theirs", b"same")
    gone, kept = place.job(birds, mine, model=place.put(b"mine" * 1000)), place.job(birds, theirs)
    assert not place.tidy(), "both are there: nothing goes"
    place.ledger.delete_job(gone)
    found = place.tidy()
    assert (found.counts, found.size) == ({"stages": 1, "artifacts": 1}, 4000)
    assert {item.size for item in place.store.listed()} == {7, 6, 4, 12 + 64}
    assert set(place.ledger.stages([teacher.key, mine.key, theirs.key])) == {teacher.key, theirs.key}
    place.ledger.delete_job(kept)
    place.ledger.delete_dataset(birds)
    assert place.tidy().counts == {"stages": 3, "artifacts": 4}
    assert list(place.store.listed()) == []


def test_a_model_outlives_its_stage(place: Place) -> None:
    """A comparison's stages are named by no trial; its model is a file that stays."""
    place.done(plan("comparison"), b"model")
    place.job(place.dataset("a" * 64), model=place.put(b"model"))
    assert place.tidy().counts == {"stages": 1}
    assert place.store.has(place.put(b"model"))


def test_young_files_stay_until_they_are_old(place: Place) -> None:
    """Whoever has put them may be about to commit; those of a stage that went meanwhile are found by a later run."""
    place.done(plan("one"), b"old", b"young")
    young = place.put(b"young", age_s=GRACE_S - 60)
    assert place.tidy().counts == {"stages": 1, "artifacts": 1}
    assert [item.sha256 for item in place.store.listed()] == [young]
    assert not place.tidy()
    place.put(b"young", age_s=GRACE_S + 1)
    assert place.tidy().counts == {"artifacts": 1}


def test_what_is_put_again_stays(place: Place) -> None:
    sha256 = place.put(b"weights")
    place.store.put(place.file(place.settings.home / "given", b"weights"))
    assert not place.tidy()
    assert place.store.has(sha256)


def test_age_counts(place: Place) -> None:
    place.done(plan("one"), b"one")
    assert not place.tidy(older_than_s=60)
    place.put(b"nobody's", age_s=10 * GRACE_S)
    assert place.tidy(older_than_s=9 * GRACE_S).counts == {"artifacts": 1}
    assert place.tidy().counts == {"stages": 1, "artifacts": 1}


def test_a_run_that_was_killed_is_made_good(place: Place) -> None:
    for number in range(5):
        place.done(plan(str(number)), f"weights {number}".encode())
    time.sleep(0.002)
    run = Collector(place.settings, place.ledger, place.store).run(older_than_s=0, claim=True)
    while not next(run).count:
        pass  # the rows are gone, and it dies before the files are
    run.close()
    assert len(list(place.store.listed())) == 5
    assert place.tidy().counts == {"artifacts": 5}


def test_a_stage_that_was_removed_runs_again(place: Place) -> None:
    one = plan("one")
    place.done(one, b"one")
    place.tidy()
    assert place.ledger.ensure_stage(one).state == "pending"
    place.done(one, b"one")
    result = place.ledger.stages([one.key])[one.key].result
    assert result is not None
    assert place.store.path(result.artifacts["file0"]).read_bytes() == b"one"


def test_jobs_that_come_and_go_do_not_stop_it_for_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    birds = place.dataset("a" * 64)
    place.done(plan("one"), b"one")
    forget, tries = place.ledger.forget_stages, list[int]()

    def busy(keys: list[str], **more: object) -> list[str] | None:
        tries.append(1)
        if len(tries) < busy_for:
            place.job(birds)
        return forget(keys, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(place.ledger, "forget_stages", busy)
    busy_for = 99
    assert not place.tidy(), "the files of a stage that is still there stay"
    assert len(tries) == 3
    tries.clear()
    busy_for = 2
    assert place.tidy().counts == {"stages": 1, "artifacts": 1}


def test_all_that_lies_beside(place: Place) -> None:
    settings, birds = place.settings, place.dataset("a" * 64)
    one, kept = plan("one"), plan("kept", kind=StageKind.TEACHER)
    attempts = [place.done(one), place.done(kept)]
    place.job(birds, kept)
    logs = [place.file(settings.logs / f"{attempt}.log") for attempt in attempts]
    goes = [
        logs[0],
        place.file(settings.uploads / f"{'b' * 64}.zip"),
        place.file(settings.work / one.key / "checkpoint"),
        place.file(settings.cache / ("b" * 64) / "chain1" / "train.npy"),
        place.file(settings.artifacts / "checkpoints" / one.key / CHECKPOINT),
        place.file(settings.artifacts / "checkpoints" / kept.key / CHECKPOINT, age_s=60),
        place.file(settings.artifacts / "checkpoints" / ("9" * 64) / CHECKPOINT),
        place.file(settings.cache / "bundles" / ("c" * 64), place.put(b"bundle").encode()),
        place.store.path(place.put(b"bundle")),
    ]
    stays = [
        logs[1],
        place.file(settings.logs / "engine.log"),
        place.file(settings.artifacts / "checkpoints" / place.begun("begun") / CHECKPOINT),
        place.file(settings.uploads / f"{'a' * 64}.zip"),
        place.file(settings.uploads / f"{'f' * 64}.zip", age_s=60),
        place.file(settings.work / kept.key / "checkpoint"),
        place.file(settings.work / ("9" * 64) / "checkpoint", age_s=60),
        place.file(settings.cache / PICTURES / "chain1" / "train.npy"),
        place.file(settings.cache / ("9" * 64) / "train.npy", age_s=60),
        place.file(settings.cache / "catalogue-0.json"),
        place.file(settings.cache / "bundles" / ("d" * 64), place.put(b"new bundle").encode(), age_s=60),
        place.store.path(place.put(b"new bundle")),
    ]
    os.utime((settings.cache / ("b" * 64)), (1, 1))
    before = place.left()
    told = place.tidy(dry_run=True)
    assert place.left() == before, "a dry run removes nothing"
    found = place.tidy()
    assert found == told
    assert found.counts == {
        "stages": 1,
        "bundles": 1,
        "artifacts": 1,
        "checkpoints": 3,
        "uploads": 1,
        "logs": 1,
        "work folders": 1,
        "picture caches": 1,
    }
    assert [path for path in goes if path.exists()] == []
    assert [path for path in stays if not path.exists()] == []
    assert str(found).startswith("1 stages, ")


def test_a_store_with_files_is_nobody_s_until_it_is_said(place: Place) -> None:
    place.done(plan("a"), b"weights")
    time.sleep(0.002)
    for dry_run in (True, False):
        with pytest.raises(ConflictError, match="stillhouse tidy --claim"):
            next(Collector(place.settings, place.ledger, place.store).run(older_than_s=0, dry_run=dry_run))
    assert place.store.owner() is None
    assert not (place.settings.home / CLAIM).exists()
    place.tidy(dry_run=True)
    assert place.store.owner() is None, "who only asks takes nothing"
    place.tidy()
    assert place.store.owner() == place.ledger.identity()


def test_an_empty_store_is_its_first_one_s(place: Place) -> None:
    list(Collector(place.settings, place.ledger, place.store).run(older_than_s=0))
    assert place.store.owner() == place.ledger.identity()
    place.done(plan("a"), b"weights")
    list(Collector(place.settings, place.ledger, place.store).run(older_than_s=0))


@pytest.mark.parametrize("where", ["home", "store"])
def test_another_database_s_files_are_left_alone(where: str, place: Place) -> None:
    """A database that was named by mistake knows nothing, which must not make everything unneeded."""
    stray = place.put(b"named by the other")
    place.done(plan("one"), b"one")
    folder = place.settings.home if where == "home" else place.settings.artifacts
    (folder / "ledger").write_text("led_other")
    with pytest.raises(ConflictError, match="led_other"):
        place.tidy()
    assert place.store.has(stray)
    assert len(place.ledger.stages([plan("one").key])) == 1
    (folder / "ledger").unlink()
    assert place.tidy().counts == {"stages": 1, "artifacts": 2}


# ------------------------------------------------------------------------------------- the command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))

    def invoke(*options: str) -> str:
        done = CliRunner().invoke(cli.app, ["tidy", *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    return invoke


def test_the_command_tells_what_it_removed(tmp_path: Path, run: Callable[..., str]) -> None:
    assert "nothing removed" in run()
    place = Place(tmp_path / "home", SqlLedger(Settings.load().database_url))
    place.done(plan("one"), b"w" * 12_345)
    assert "nothing would be removed" in run("--dry-run")
    shown = run("--older-than-days", "0", "--dry-run")
    assert "would be removed" in shown
    assert len(list(place.store.listed())) == 1
    told = json.loads(run("--older-than-days", "0", "--json"))
    assert told == {
        "older_than_days": 0.0,
        "dry_run": False,
        "stages": 1,
        "files": 1,
        "bytes": 12_345,
        "parts": {"stages": {"count": 1, "bytes": 0}, "artifacts": {"count": 1, "bytes": 12_345}},
    }
    assert list(place.store.listed()) == []
    place.put(b"w" * 12_345)
    shown = run("--older-than-days", "0")
    assert all(word in shown for word in ("removed", "artifacts", "12,345"))
    assert CliRunner().invoke(cli.app, ["tidy", "--older-than-days", "-1"]).exit_code == 2
