"""The local engine: a process per attempt on this machine, forked from a server that has torch loaded.

A slot is what an attempt takes. With GPUs there is one slot a GPU, and its attempt sees that one only; the CPU
threads are shared out among the slots. Without GPUs an attempt may take two slots, for their threads. All signals
are sent by the server, which is the parent of the attempts; when this process dies in whatever way, the server sees
its socket close and ends them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from stillhouse.search.domain import Json
from stillhouse.search.errors import StillhouseError
from stillhouse.search.job import AttemptRecord
from stillhouse.search.ports import Engine

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WIDEST = 2
"""Slots that an attempt may take: twice the threads are worth it (docs/benchmarks.md); more was not measured."""
_CLOSE_MARGIN_S = 5.0


class LocalEngine(Engine):
    """An ``Engine`` on this machine; close it when done. Safe from several threads.

    Args:
        home: Folder whose ``logs`` hold one log an attempt, and the server's own ``engine.log``.
        slots: Attempts at once; None takes one for each visible GPU, or 1 without a GPU.
        memory_bytes: What the processes of one attempt may hold; None for any amount.
        target: ``module:function`` that a process runs as ``function(attempt_id, threads, home)``.
        preload: Modules that the server imports once, before it forks.
        grace_s: Seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        home: Path,
        *,
        slots: int | None = None,
        memory_bytes: int | None = None,
        target: str = "stillhouse.service.worker:run_attempt",
        preload: Sequence[str] = ("stillhouse.service.worker",),
        grace_s: float = 5.0,
    ) -> None:
        self._home, self._target, self._preload, self._grace_s = home, target, tuple(preload), grace_s
        self._memory_bytes = memory_bytes
        self._gpus = visible_gpus()
        self._slots = slots or len(self._gpus) or 1
        self._lock = threading.RLock()
        self._running: dict[str, tuple[int, ...]] = {}
        self._faults: dict[str, str] = {}
        self._unread = b""
        self._closed = False
        (home / "logs").mkdir(parents=True, exist_ok=True)
        self._start_server()

    # ------------------------------------------------------------------------------------- verbs

    def capacity(self) -> int:
        """How many slots are free."""
        with self._lock:
            self._listen()
            return 0 if self._closed else len(self._free)

    def threads(self) -> int:
        """CPU threads of a slot."""
        return max(1, usable_cores() // self._slots)

    def widest(self) -> int:
        """Two slots, where each has a core; one with GPUs, for a stage computes on one of them."""
        return 1 if self._gpus or self._slots > usable_cores() else min(WIDEST, self._slots)

    def submit(self, attempt: AttemptRecord) -> None:
        """Starts the attempt's process; returns at once.

        Raises:
            StillhouseError: Too few slots are free, the engine is closed, or its server cannot be reached.
        """
        with self._lock:
            if self.capacity() < attempt.slots:
                raise StillhouseError(
                    f"capacity() >= {attempt.slots} must hold before submit, but {self._slots - len(self._free)} of "
                    f"{self._slots} slots are taken{' and the engine is closed' if self._closed else ''}"
                )
            if self._server.poll() is not None:
                self._stop_server()
                self._start_server()
            slots = self._free[: attempt.slots]
            command = {
                "do": "start",
                "id": attempt.id,
                "target": self._target,
                "args": [attempt.id, attempt.threads, str(self._home)],
                "log": str(self._home / "logs" / f"{attempt.id}.log"),
                "env": self._environment(slots[0], attempt.threads),
                "grace_s": self._grace_s,
                "memory_bytes": self._memory_bytes,
            }
            if not self._send(command):
                raise StillhouseError(f"the engine's server ended; {self._log_path} says why")
            self._running[attempt.id] = slots

    def running(self, attempt_id: str) -> bool:
        """False when no process works on the attempt any more."""
        with self._lock:
            self._listen()
            return attempt_id in self._running

    def fault(self, attempt_id: str) -> str | None:
        """That it held more memory than it may; told once."""
        with self._lock:
            return self._faults.pop(attempt_id, None)

    def cancel(self, attempt_id: str) -> None:
        """SIGTERM to the attempt's process group, SIGKILL after the grace period; returns at once.

        The attempt is running, and its slot taken, until its process has ended.
        """
        with self._lock:
            if self.running(attempt_id):
                self._send({"do": "cancel", "id": attempt_id})

    def close(self) -> None:
        """Cancels all, waits until they have ended, and stops the server."""
        with self._lock:
            if not self._closed:
                self._stop_server()
                self._closed = True
                self._running.clear()

    # ------------------------------------------------------------------------------------ server

    @property
    def _free(self) -> tuple[int, ...]:
        taken = {slot for slots in self._running.values() for slot in slots}
        return tuple(slot for slot in range(self._slots) if slot not in taken)

    @property
    def _log_path(self) -> Path:
        return self._home / "logs" / "engine.log"

    def _start_server(self) -> None:
        """Starts the server; it imports its modules while we go on, and commands wait in the socket."""
        self._socket, other = socket.socketpair()
        threads = str(self.threads())
        # What this process can import, the server can, however it came by it; "" is the working folder.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, threads) | {"PYTHONPATH": path}
        command = [sys.executable, "-P", "-m", "stillhouse.service.engine.forkserver", str(other.fileno())]
        with other, self._log_path.open("ab") as log:
            self._server = subprocess.Popen(
                [*command, *self._preload],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[other.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal goes to us alone
            )

    def _stop_server(self) -> None:
        self._listen()
        if not self._running:
            self._server.terminate()  # at once: it may still be importing
        self._send({"do": "close"})
        try:
            self._server.wait(self._grace_s + _CLOSE_MARGIN_S)
        except subprocess.TimeoutExpired:
            self._server.kill()  # its children see that it is gone, and end
            self._server.wait()
        self._socket.close()
        self._unread = b""

    def _send(self, command: Mapping[str, Json]) -> bool:
        """False when the server is gone."""
        try:
            self._socket.sendall(json.dumps(command).encode() + b"\n")
        except OSError:
            return False
        return True

    def _listen(self) -> None:
        """Takes in what the server has told since; without a server nothing runs."""
        while not self._closed and self._running:
            try:
                data = self._socket.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self._give_up()
                return
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                self._end(json.loads(line))

    def _end(self, event: Mapping[str, Json]) -> None:
        self._running.pop(event["ended"], None)
        if event.get("held_bytes") and self._memory_bytes:
            self._faults[event["ended"]] = (
                f"its processes held {event['held_bytes'] / 2**20:.0f} MiB of memory, but a stage may hold "
                f"{self._memory_bytes / 2**20:.0f} MiB (STILLHOUSE_STAGE_MEMORY_BYTES): raise the limit and retry the "
                "job, or ask for a smaller teacher, teacher_size or number of views"
            )

    def _give_up(self) -> None:
        """After the server's death: its attempts have ended, or end themselves within about a second."""
        for attempt_id in self._running:
            with (self._home / "logs" / f"{attempt_id}.log").open("a") as log:
                log.write(f"the engine's server, which this attempt was forked from, ended; see {self._log_path}\n")
        self._running.clear()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(_CLOSE_MARGIN_S)

    def _environment(self, slot: int, threads: int) -> dict[str, str]:
        environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return environment


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """Names of the GPUs as CUDA_VISIBLE_DEVICES takes them, without loading torch; empty without a GPU."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        # CUDA ignores what comes after the first name that is not valid; -1 is how users switch GPUs off.
        ends = [i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles")]
        return tuple(names[: ends[0]] if ends else names)
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (subprocess.SubprocessError, OSError):
        return ()  # the program without a working driver: there is no GPU to use
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip().isdecimal())
