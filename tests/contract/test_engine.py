"""What ``stillhouse.search.ports.Engine`` promises, on real processes of this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from stillhouse.search.errors import StillhouseError
from stillhouse.search.job import AttemptRecord
from stillhouse.service.engine import local
from stillhouse.service.engine.local import LocalEngine, usable_cores

PROBE = """
import os, signal, subprocess, sys, time
from pathlib import Path

LOADED_IN = os.getpid()

def note(home, name, text):
    part = Path(home) / (name + ".part")
    part.write_text(str(text))
    part.rename(Path(home) / name)

def facts(attempt, threads, home):
    print("hello from", attempt)
    print("and stderr", file=sys.stderr)
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    known = [os.environ.get(n, "") for n in names]
    note(home, attempt, [threads, *known, os.getpid() == os.getsid(0) == os.getpgid(0), LOADED_IN == os.getppid(),
                         sys.stdin.read()])

def loaded(attempt, threads, home):
    note(home, attempt, "torch" in sys.modules)

def wait(attempt, threads, home):
    note(home, attempt, os.getpid())
    time.sleep(600)

def hold(attempt, threads, home):
    note(home, attempt, os.environ["CUDA_VISIBLE_DEVICES"])
    time.sleep(600)

def crash(attempt, threads, home):
    raise RuntimeError("the probe crashes")

def family(attempt, threads, home):
    child = subprocess.Popen([sys.executable, "-c", STUBBORN])
    note(home, attempt, f"{os.getpid()} {child.pid}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

def fill(attempt, threads, home):
    child = subprocess.Popen([sys.executable, "-c", HUNGRY])
    note(home, attempt, f"{os.getpid()} {child.pid}")
    child.wait()
    time.sleep(600)

def leave(attempt, threads, home):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note(home, attempt, f"{os.getpid()} {child.pid}")

HUNGRY = "import time; held = bytearray(300_000_000); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
"""

Make = Callable[..., LocalEngine]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def make(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes engines that run a function of the probe module; closes them at the end."""
    (tmp_path / "engine_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    engines: list[LocalEngine] = []

    def start(
        function: str,
        *,
        slots: int | None = 2,
        grace_s: float = 0.3,
        memory_bytes: int | None = None,
        preload: Sequence[str] | None = ("engine_probe",),
    ) -> LocalEngine:
        engine = LocalEngine(
            home,
            slots=slots,
            memory_bytes=memory_bytes,
            target=f"engine_probe:{function}",
            grace_s=grace_s,
            **({} if preload is None else {"preload": preload}),  # type: ignore[arg-type]
        )
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()


def attempt(name: str, threads: int = 1, slots: int = 1) -> AttemptRecord:
    return AttemptRecord(name, "0" * 64, "token", "open", 0.0, threads, slots=slots)


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)


def noted(home: Path, name: str) -> str:
    until((home / name).exists, f"{name} was not noted")
    return (home / name).read_text()


def alive(pid: int) -> bool:
    """False also for a zombie that its parent has not yet collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_attempt_runs_in_its_own_surroundings(make: Make, home: Path) -> None:
    engine = make("facts")
    engine.submit(attempt("att_1", threads=3))
    until(lambda: not engine.running("att_1"), "it did not end")
    assert noted(home, "att_1") == str([3, "3", "", True, True, ""])
    assert (home / "logs" / "att_1.log").read_text() == "hello from att_1\nand stderr\n"
    assert engine.capacity() == 2


def test_the_probe_is_loaded_once(make: Make, home: Path) -> None:
    """The function's module is loaded by the server, not by each attempt."""
    engine = make("facts")
    for name in ("att_1", "att_2"):
        engine.submit(attempt(name))
    assert noted(home, "att_1") == noted(home, "att_2") == str([1, "1", "", True, True, ""])


def test_capacity_counts_what_runs(make: Make, home: Path) -> None:
    engine = make("wait")
    assert (engine.capacity(), engine.threads()) == (2, max(1, usable_cores() // 2))
    engine.submit(attempt("att_1"))
    assert (engine.capacity(), engine.running("att_1"), engine.running("att_2")) == (1, True, False)
    engine.submit(attempt("att_2"))
    assert engine.capacity() == 0
    with pytest.raises(StillhouseError, match="2 of 2 slots are taken"):
        engine.submit(attempt("att_3"))
    engine.cancel("att_1")
    until(lambda: engine.capacity() == 1, "the slot was not freed")
    engine.submit(attempt("att_3"))
    assert alive(int(noted(home, "att_3")))


@pytest.mark.parametrize(("cores", "slots", "widest"), [(8, 8, 2), (8, 4, 2), (1, 4, 1), (2, 4, 1), (8, 1, 1)])
def test_an_attempt_is_wide_where_there_are_cores_for_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, cores: int, slots: int, widest: int
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: cores)
    assert make("wait", slots=slots).widest() == widest
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert make("wait", slots=slots).widest() == 1, "a stage computes on one GPU"


def test_a_wide_attempt_takes_two_slots(make: Make, home: Path) -> None:
    engine = make("wait", slots=4)
    engine.submit(attempt("att_1", slots=2))
    assert engine.capacity() == 2
    engine.submit(attempt("att_2"))
    with pytest.raises(StillhouseError, match=r"capacity\(\) >= 2 must hold before submit, but 3 of 4 slots are taken"):
        engine.submit(attempt("att_3", slots=2))
    assert not engine.running("att_3")
    engine.submit(attempt("att_4"))
    assert engine.capacity() == 0
    assert alive(int(noted(home, "att_1")))
    engine.cancel("att_1")
    until(lambda: engine.capacity() == 2, "its slots were not freed")
    engine.submit(attempt("att_3", slots=2))
    assert (engine.capacity(), engine.running("att_2"), engine.running("att_4")) == (0, True, True)


def test_a_killed_process_is_seen(make: Make, home: Path) -> None:
    engine = make("wait")
    engine.submit(attempt("att_1"))
    pid = int(noted(home, "att_1"))
    assert engine.running("att_1")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not engine.running("att_1"), "its death was not seen")
    assert not Path(f"/proc/{pid}").exists()  # collected, no zombie


def test_a_crash_is_in_the_log(make: Make, home: Path) -> None:
    engine = make("crash")
    engine.submit(attempt("att_1"))
    until(lambda: not engine.running("att_1"), "it did not end")
    assert "RuntimeError: the probe crashes" in (home / "logs" / "att_1.log").read_text()


def test_cancel_ends_the_whole_family(make: Make, home: Path) -> None:
    """Both ignore SIGTERM: the grace period passes, then SIGKILL ends them."""
    engine = make("family", grace_s=1.0)
    engine.submit(attempt("att_1"))
    leader, child = map(int, noted(home, "att_1").split())
    assert alive(leader)
    assert alive(child)
    begun = time.monotonic()
    engine.cancel("att_1")
    engine.cancel("att_1")
    engine.cancel("att_unknown")
    assert time.monotonic() - begun < 1.0  # it does not wait
    until(lambda: not engine.running("att_1"), "it was not killed")
    assert time.monotonic() - begun >= 1.0
    until(lambda: not alive(leader) and not alive(child), "the family lives on")


def test_what_an_attempt_leaves_behind_is_ended(make: Make, home: Path) -> None:
    engine = make("leave")
    engine.submit(attempt("att_1"))
    _, child = map(int, noted(home, "att_1").split())
    until(lambda: not engine.running("att_1"), "it did not end")
    until(lambda: not alive(child), "the child lives on")


def test_an_attempt_that_holds_too_much_memory_is_ended_and_the_reason_told(make: Make, home: Path) -> None:
    """What counts is held by a grandchild: the group is weighed, and the whole of it ended."""
    engine = make("fill", memory_bytes=200 * 2**20)
    engine.submit(attempt("att_1"))
    pids = [int(pid) for pid in noted(home, "att_1").split()]
    until(lambda: not engine.running("att_1"), "it goes on")
    until(lambda: not any(map(alive, pids)), "some live on")
    fault = engine.fault("att_1") or ""
    assert re.match(r"its processes held (2\d\d|3\d\d) MiB of memory, but a stage may hold 200 MiB", fault), fault
    assert "STILLHOUSE_STAGE_MEMORY_BYTES" in fault
    assert engine.fault("att_1") is None
    assert engine.capacity() == 2


def test_an_attempt_within_its_memory_goes_on(make: Make, home: Path) -> None:
    engine = make("fill", memory_bytes=2**30)
    engine.submit(attempt("att_1"))
    noted(home, "att_1")
    time.sleep(1.2)
    assert engine.running("att_1")
    engine.cancel("att_1")
    until(lambda: not engine.running("att_1"), "it was not cancelled")
    assert engine.fault("att_1") is None


def test_the_next_attempt_starts_in_less_than_half_a_second_with_torch_loaded(make: Make, home: Path) -> None:
    """By the engine's own preload: the probe itself imports no torch."""
    engine = make("loaded", preload=None)
    engine.submit(attempt("att_0"))
    until((home / "att_0").exists, "it did not start", 60)
    took = []
    for number in range(1, 6):
        until(lambda: engine.capacity() == 2, "it did not end")
        begun = time.monotonic()
        engine.submit(attempt(f"att_{number}"))
        until((home / f"att_{number}").exists, "it did not start")
        took.append(time.monotonic() - begun)
        assert noted(home, f"att_{number}") == "True", "each attempt must begin with torch in memory"
    assert sorted(took)[2] < 0.5, took


def test_close_ends_all(make: Make, home: Path) -> None:
    engine = make("family")
    for name in ("att_1", "att_2"):
        engine.submit(attempt(name))
    pids = [int(pid) for name in ("att_1", "att_2") for pid in noted(home, name).split()]
    engine.close()
    engine.close()
    until(lambda: not any(map(alive, pids)), "some live on")
    assert (engine.capacity(), engine.running("att_1")) == (0, False)
    with pytest.raises(StillhouseError, match="closed"):
        engine.submit(attempt("att_3"))


def test_attempts_end_with_their_server(make: Make, home: Path) -> None:
    """The server killed: the attempts end themselves, and the next one gets a new server."""
    engine = make("family")
    engine.submit(attempt("att_1"))
    leader, child = map(int, noted(home, "att_1").split())
    os.kill(int(Path(f"/proc/{leader}/stat").read_text().rsplit(")", 1)[1].split()[1]), signal.SIGKILL)
    until(lambda: not engine.running("att_1"), "the end of the server was not seen")
    until(lambda: not alive(leader) and not alive(child), "orphans train on", 10)
    assert "engine.log" in (home / "logs" / "att_1.log").read_text()
    engine.submit(attempt("att_2"))
    assert alive(int(noted(home, "att_2").split()[0]))


def test_a_module_that_cannot_be_loaded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    engine = LocalEngine(home, target="no_such_module:f", preload=["no_such_module"])
    try:
        engine.submit(attempt("att_1"))
    except StillhouseError as error:  # the server had ended already
        assert "engine.log" in str(error)
    until(lambda: not engine.running("att_1"), "it still runs")
    engine.close()
    assert "No module named 'no_such_module'" in (home / "logs" / "engine.log").read_text()


SCRIPT = """
import sys, threading, time
from pathlib import Path
from stillhouse.search.job import AttemptRecord
from stillhouse.service.engine.local import LocalEngine

home = Path(sys.argv[1])
with (home / "script.log").open("a") as log:
    log.write("ran\\n")
engine = LocalEngine(home, target="engine_probe:" + sys.argv[2], preload=["engine_probe"], grace_s=0.3)
thread = threading.Thread(target=engine.submit, args=(AttemptRecord("att_1", "k", "t", "open", 0.0),))
thread.start()
thread.join()
while engine.running("att_1"):
    time.sleep(0.02)
engine.close()
"""


def run_script(tmp_path: Path, home: Path, function: str) -> subprocess.Popen[bytes]:
    home.mkdir()
    (tmp_path / "engine_probe.py").write_text(PROBE)
    script = tmp_path / "unguarded"  # as console scripts, it has no suffix
    script.write_text(textwrap.dedent(SCRIPT))
    source = str(Path(local.__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([source, str(tmp_path)]), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, str(script), str(home), function], env=environment)


def test_a_main_script_without_a_guard_runs_once(tmp_path: Path, home: Path) -> None:
    """Started from a thread of a script with no ``if __name__ == "__main__"``."""
    with run_script(tmp_path, home, "facts") as script:
        assert script.wait(60) == 0
    assert (home / "script.log").read_text() == "ran\n"
    assert noted(home, "att_1").startswith("[1, ")


def test_attempts_end_with_the_engine(tmp_path: Path, home: Path) -> None:
    """The engine's process killed with no chance to clean up: nothing of it lives on."""
    with run_script(tmp_path, home, "family") as script:
        pids = [int(pid) for pid in noted(home, "att_1").split()]
        assert all(map(alive, pids))
        script.kill()
    until(lambda: not any(map(alive, pids)), "orphans train on", 10)


def test_a_thread_may_end_before_its_attempt(make: Make, home: Path) -> None:
    engine = make("wait")
    thread = threading.Thread(target=engine.submit, args=(attempt("att_1"),))
    thread.start()
    thread.join()
    pid = int(noted(home, "att_1"))
    time.sleep(0.2)
    assert engine.running("att_1")
    assert alive(pid)


# -------------------------------------------------------------------------------------------- GPUs


def test_one_slot_without_a_gpu(make: Make) -> None:
    engine = make("wait", slots=None)
    assert (engine.capacity(), engine.threads()) == (1, usable_cores())


def test_each_attempt_sees_its_own_gpu(make: Make, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    engine = make("hold", slots=None)
    assert engine.capacity() == 2
    for name in ("att_1", "att_2"):
        engine.submit(attempt(name))
    assert {noted(home, name) for name in ("att_1", "att_2")} == {"4", "6"}
    engine.cancel("att_2")
    until(lambda: engine.capacity() == 1, "the slot was not freed")
    engine.submit(attempt("att_3"))
    assert noted(home, "att_3") == noted(home, "att_2")
