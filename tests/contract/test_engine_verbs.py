"""What ``stillhouse.search.ports.Engine`` promises of any engine.

Local processes, a real Ray cluster, and the engine within the process that tests of the controller rest on.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import TOKEN, Cluster, until
from instant import InstantEngine
from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.errors import StillhouseError
from stillhouse.search.job import AttemptRecord
from stillhouse.search.ports import Engine
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.engine.local import LocalEngine
from stillhouse.service.engine.ray import RayEngine

PROBE = """
import os, subprocess, sys, time
from pathlib import Path

def note(home, name, text):
    part = Path(home) / (name + ".part")
    part.write_text(str(text))
    part.rename(Path(home) / name)

def tell(attempt, threads, home):
    note(home, attempt, os.environ["OMP_NUM_THREADS"])

def crash(attempt, threads, home):
    note(home, attempt, "")
    raise RuntimeError("the probe crashes")

def family(attempt, threads, home):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note(home, attempt, f"{os.getpid()} {child.pid}")
    time.sleep(600)

if __name__ == "__main__":  # called by Ray as: stage run ATTEMPT --url HOME#FUNCTION
    home, function = sys.argv[5].split("#")
    globals()[function](sys.argv[3], 1, home)
"""

Make = Callable[[str], Engine]
Attempt = Callable[..., AttemptRecord]
of_processes = pytest.mark.parametrize("make", ["local", "ray"], indirect=True)
"""For what only an engine with processes of its own can show."""


@pytest.fixture
def known() -> MemoryLedger:
    """What the engine within the process reads; the others' probes read none."""
    return MemoryLedger()


@pytest.fixture
def attempt(known: MemoryLedger) -> Attempt:
    """Makes attempts with ids that no cluster has seen."""

    def opened(threads: int = 1) -> AttemptRecord:
        stage = known.ensure_stage(StagePlan(StageKind.TEACHER, {"name": os.urandom(6).hex()}))
        one = known.open_attempt(stage.key, lease_s=600, threads=threads)
        assert one is not None
        return one

    return opened


@pytest.fixture(params=["local", "ray", "instant"])
def make(
    request: pytest.FixtureRequest, known: MemoryLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """Makes an engine with two free slots whose attempts run a function of the probe."""
    probe = tmp_path / "verbs_probe.py"
    probe.write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    engines: list[Engine] = []

    def local(function: str) -> Engine:
        target = f"verbs_probe:{function}"
        return LocalEngine(tmp_path, slots=2, target=target, preload=["verbs_probe"], grace_s=0.3)

    def ray(function: str) -> Engine:
        cluster: Cluster = request.getfixturevalue("cluster")
        command = f"{sys.executable} {probe}"
        return RayEngine(cluster.url, f"{tmp_path}#{function}", token=TOKEN, command=command)

    def instant(function: str) -> Engine:
        engine = InstantEngine(known, within(known, tmp_path, function))
        engine.slots, engine.keeps_running = 2, function == "family"
        return engine

    def start(function: str) -> Engine:
        engine = {"local": local, "ray": ray, "instant": instant}[request.param](function)
        engines.append(engine)
        until(lambda: engine.capacity() == 2, "the slots of the test before were not freed")
        return engine

    yield start
    for engine in engines:
        for path in tmp_path.glob("att_*"):
            engine.cancel(path.name)
            until(lambda name=path.name, engine=engine: not engine.running(name), "it was not ended")  # type: ignore[misc]
        engine.close()


def within(known: MemoryLedger, home: Path, function: str) -> Callable[[StagePlan], StageResult | None]:
    """The probe's functions as the engine within the process calls them."""

    def work(plan: StagePlan) -> StageResult | None:
        (one,) = known.attempts(plan.key)
        (home / one.id).write_text({"tell": str(one.threads), "crash": "", "family": str(os.getpid())}[function])
        if function == "crash":
            raise ValueError("the probe crashes")
        return None if function == "family" else StageResult()

    return work


def noted(home: Path, name: str) -> str:
    until((home / name).exists, f"{name} was not noted")
    return (home / name).read_text()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("function", ["tell", "crash"])
def test_an_attempt_runs_and_is_seen_to_end(make: Make, attempt: Attempt, tmp_path: Path, function: str) -> None:
    engine, one = make(function), attempt(threads=3)
    engine.submit(one)
    assert engine.running(one.id) or isinstance(engine, InstantEngine), "that has done it by now"
    assert noted(tmp_path, one.id) == {"tell": "3", "crash": ""}[function]
    until(lambda: not engine.running(one.id), "its end was not seen")
    until(lambda: engine.capacity() == 2, "its slot was not freed")
    assert engine.fault(one.id) is None, "nothing says that it would end so again"


def test_no_more_is_taken_than_fits(make: Make, attempt: Attempt, tmp_path: Path) -> None:
    engine, attempts = make("family"), [attempt() for _ in range(3)]
    for free, one in zip((2, 1), attempts, strict=False):
        assert engine.capacity() == free
        engine.submit(one)
    assert engine.capacity() == 0
    with pytest.raises(StillhouseError, match=r"capacity\(\) >= 1 must hold"):
        engine.submit(attempts[2])
    assert not engine.running(attempts[2].id)
    for one in attempts[:2]:
        assert alive(int(noted(tmp_path, one.id).split()[0]))
        assert engine.running(one.id)


def test_what_is_cancelled_ends_and_frees_its_slot(make: Make, attempt: Attempt, tmp_path: Path) -> None:
    engine, one, other = make("family"), attempt(), attempt()
    for each in (one, other):
        engine.submit(each)
        noted(tmp_path, each.id)
    engine.cancel(one.id)
    engine.cancel(one.id)
    until(lambda: not engine.running(one.id), "it goes on")
    until(lambda: engine.capacity() == 1, "its slot was not freed")
    assert engine.running(other.id)


@of_processes
def test_a_killed_process_is_seen(make: Make, attempt: Attempt, tmp_path: Path) -> None:
    engine, one = make("family"), attempt()
    engine.submit(one)
    os.kill(int(noted(tmp_path, one.id).split()[0]), signal.SIGKILL)
    until(lambda: not engine.running(one.id), "its death was not seen")


@of_processes
def test_cancel_ends_the_whole_family(make: Make, attempt: Attempt, tmp_path: Path) -> None:
    engine, one = make("family"), attempt()
    engine.submit(one)
    pids = [int(pid) for pid in noted(tmp_path, one.id).split()]
    assert all(map(alive, pids))
    engine.cancel(one.id)
    until(lambda: not engine.running(one.id), "it goes on")
    until(lambda: not any(map(alive, pids)), "the family lives on")


def test_what_was_never_submitted(make: Make) -> None:
    engine = make("tell")
    assert not engine.running("att_never")
    assert engine.fault("att_never") is None
    engine.cancel("att_never")
    assert engine.threads() >= 1


@pytest.mark.parametrize("make", ["local", "instant"], indirect=True)
def test_close_ends_all_on_this_machine(make: Make, attempt: Attempt, tmp_path: Path) -> None:
    """Attempts on a cluster go on: the next controller finds them."""
    engine, one, late = make("family"), attempt(), attempt()
    engine.submit(one)
    noted(tmp_path, one.id)
    engine.close()
    assert not engine.running(one.id)
    assert engine.capacity() == 0
    with pytest.raises(StillhouseError, match=r"capacity\(\) >= 1 must hold"):
        engine.submit(late)
