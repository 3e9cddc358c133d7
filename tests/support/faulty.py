"""A small real job in real processes that tests kill, stop and starve; its outcome beside an uninterrupted one's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.search.domain import Budget, StageKind
from stillhouse.search.errors import AwayError
from stillhouse.search.job import Epochs, JobSpec, StageRecord
from stillhouse.search.plan import ingest_plan
from stillhouse.service import store
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.digest import source_digest
from stillhouse.service.home import DiskHome
from stillhouse.service.room import lack_of_room
from stillhouse.service.settings import Settings
from stillhouse.service.wiring import Platform

LEASE_S, HEARTBEAT_S = 4.0, 0.5
SHORT = Epochs(2, 2, 2)
Outcome = Mapping[str, tuple[StageKind, Mapping[str, str]]]
"""What each stage left: kind, and artifacts by name, by stage key."""


def draw(root: Path) -> Path:
    """Two classes of small pictures, bright above and bright below, as an ImageFolder zip."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for kind, top in (("above", 200), ("below", 60)):
            folder = root / "pictures" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                grey = np.vstack([np.full((20, 40), top), np.full((20, 40), 260 - top)]) + rng.normal(0, 20, (40, 40))
                Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB").save(folder / f"{number}.png")
    return Path(shutil.make_archive(str(root / "pictures"), "zip", root / "pictures"))


def small_job(dataset: str, trials: int, seed: int, epochs: Epochs) -> JobSpec:
    """A job whose stages take a second or so each."""
    return JobSpec(
        dataset=dataset,
        budget=Budget(max_macs=60_000_000, max_image_size=32),
        trials=trials,
        seed=seed,
        teacher="lcnet_050",
        teacher_size=48,
        epochs=epochs,
        views=1,
        archs=("lcnet_035",),
        objectives=("macs",),
        qualities=(),
        precisions=("fp32",),
    )


@dataclass
class Rig:
    """One home, its ledger, and the processes that work on it."""

    home: Path
    archive: Path
    database_url: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @cached_property
    def settings(self) -> Settings:
        given = {"database_url": self.database_url} if self.database_url else {}
        return Settings.load(home=self.home, hub="off", lease_s=LEASE_S, heartbeat_s=HEARTBEAT_S, **given)

    @cached_property
    def ledger(self) -> SqlLedger:
        return Platform(self.settings).ledger

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        given = {
            "STILLHOUSE_HOME": str(self.home),
            "STILLHOUSE_HUB": "off",
            "STILLHOUSE_LEASE_S": str(LEASE_S),
            "STILLHOUSE_HEARTBEAT_S": str(HEARTBEAT_S),
            "OMP_NUM_THREADS": "1",
        }
        url = {"STILLHOUSE_DATABASE_URL": self.database_url} if self.database_url else {}
        return {**os.environ, **given, **url, **self.extra, **more}

    def start(self, *words: str, **more: str) -> subprocess.Popen[bytes]:
        """Starts a command of Stillhouse; what it prints goes to a log beside the home."""
        with (self.home.parent / f"{self.home.name}-{words[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "stillhouse.service.cli", *words],
                env=self.environment(more),
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        return process

    def accept(self, *, trials: int = 1, seed: int = 0, epochs: Epochs = SHORT) -> str:
        """Puts a job on the ledger, as the API does; returns its id."""
        code = (self.ledger.catalogue() or {})["code"]
        plan = ingest_plan(str(self.archive), source_digest(self.archive), False, code)
        return self.ledger.add_job(small_job(self.ledger.add_dataset("pictures", plan).id, trials, seed, epochs)).id

    def until(self, holds: Callable[[], object], what: str, seconds: float = 150) -> None:
        """Waits until something holds."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"timed out: {what}\n{self.logs()}"
            time.sleep(0.05)

    def ended(self, job_id: str) -> bool:
        """True when nothing more will happen to the job; False also while the database is away."""
        try:
            return self.ledger.job(job_id).state not in ("queued", "running")
        except AwayError:
            return False

    def lack(self) -> str | None:
        """What the home has too little of."""
        return lack_of_room(Settings.load(home=self.home, least_free_bytes=2**20))

    def keep_running(self, job_id: str, *, words: tuple[str, ...] = ("controller",), **more: str) -> int:
        """Starts the controller as often as it dies, until the job has ended; returns how often it died."""
        deaths, process = 0, self.start(*words, **more)
        deadline = time.monotonic() + 200
        while not self.ended(job_id):
            assert time.monotonic() < deadline, f"the job does not end\n{self.logs()}"
            if process.poll() is not None:
                deaths, process = deaths + 1, self.start(*words, **more)
            time.sleep(0.05)
        self.stop()
        return deaths

    def a_stage(self, *, most_tries: int = 1000) -> int | None:
        """Any process that works on a stage which has not been tried more often."""
        attempts = self.ledger.open_attempts()
        stages = self.ledger.stages(attempt.stage_key for attempt in attempts)
        names = {f"{each.id}.log" for each in attempts if stages[each.stage_key].attempts <= most_tries}
        return next((pid for pid in self.processes() if any(_holds(pid, name) for name in names)), None)

    def server(self) -> int | None:
        """The engine's server."""
        return next((pid for pid in self.processes() if "forkserver" in _command(pid) and _leads(pid)), None)

    def processes(self) -> list[int]:
        """All processes of this home that are alive."""
        mark = f"STILLHOUSE_HOME={self.home}\0".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes() + b"\0" and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return sorted(found)

    def stop(self) -> None:
        """Ends what was started, as an operator does."""
        for process in self.started:
            if process.poll() is None:
                process.terminate()
        for process in self.started:
            process.wait(30)

    def stages(self) -> dict[str, StageRecord]:
        """All stages that any trial or data set has asked for."""
        keys = {dataset.stage_key for dataset in self.ledger.datasets()}
        keys |= {key for job in self.ledger.jobs() for trial in self.ledger.trials(job.id) for key in trial.stages}
        stages = self.ledger.stages(keys)
        return self.ledger.stages({*stages, *(key for s in stages.values() for key in s.plan.inputs.values())})

    def outcome(self) -> Outcome:
        """What each stage left."""
        return {
            key: (stage.plan.kind, stage.result.artifacts)
            for key, stage in self.stages().items()
            if stage.result is not None
        }

    def attempts(self) -> Counter[str]:
        """How many attempts ended in which state."""
        return Counter(attempt.state for key in self.stages() for attempt in self.ledger.attempts(key))

    def check(self, job_id: str, reference: Outcome) -> None:
        """Nothing was lost, nothing done twice, nothing is left behind, and the files are those of a quiet run."""
        job = self.ledger.job(job_id)
        assert (job.state, job.reason) == ("done", None), self.logs()
        for key, stage in self.stages().items():
            states = Counter(attempt.state for attempt in self.ledger.attempts(key))
            assert (stage.state, states["done"]) == ("done", 1), (stage, states)
            assert states.keys() <= {"done", "lost"}
        assert self.outcome() == reference
        self.stop()
        deadline = time.monotonic() + 15
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.processes() == []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "_MOMENT_S", 0.0)  # nothing writes any more
            DiskHome(self.settings, self.ledger, store.DiskStore(self.settings.artifacts)).tidy()
        assert [path for path in self.home.rglob("*") if "tmp" in path.suffix or path.parent.name == "tmp"] == []
        assert list(self.settings.work.glob("*")) == []

    def logs(self) -> str:
        """The end of each log, for a failure's message."""
        paths = [*self.home.parent.glob(f"{self.home.name}-*.log"), *self.settings.logs.glob("*.log")]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(paths))

    def close(self) -> None:
        """Ends all, however it stands."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ledger.close()


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _leads(pid: int) -> bool:
    """False for an attempt: its parent is the server that it was forked from."""
    with contextlib.suppress(OSError):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        return "forkserver" not in _command(parent)
    return False


def _holds(pid: int, name: str) -> bool:
    """True when its standard output goes to a file of this name."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/fd/1").readlink().name == name
    return False


Faulty = Callable[..., Rig]


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("drawn"))


@dataclass(frozen=True)
class Reference:
    """A run that nobody disturbed."""

    outcome: Outcome
    catalogue: Path


@pytest.fixture(scope="session")
def reference(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    rig = Rig(tmp_path_factory.mktemp("reference") / "home", archive)
    try:
        job = rig.accept()
        assert rig.keep_running(job) == 0
        assert rig.attempts().keys() == {"done"}, rig.logs()
        rig.check(job, rig.outcome())
        (catalogue,) = rig.settings.cache.glob("catalogue-*.json")
        return Reference(rig.outcome(), catalogue)
    finally:
        rig.close()


@pytest.fixture
def faulty(archive: Path, reference: Reference, tmp_path: Path) -> Iterator[Faulty]:
    """Makes rigs; the worker's catalogue is taken from the reference run, to save its start."""
    rigs: list[Rig] = []

    def make(database_url: str | None = None, home: Path | None = None, **extra: str) -> Rig:
        once = tmp_path / f"once{len(rigs)}"
        once.mkdir()
        rig = Rig(home or tmp_path / f"home{len(rigs)}", archive, database_url, extra)
        rig.extra = {"STILLHOUSE_FAILPOINTS_ONCE": str(once), **extra}
        (rig.home / "cache").mkdir(parents=True, exist_ok=True)
        shutil.copy(reference.catalogue, rig.home / "cache")
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.close()
