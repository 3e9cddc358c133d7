"""The process that a local engine forks its attempts from: it has loaded torch, so that a fork is ready at once.

Run as ``python -P -m stillhouse.service.engine.forkserver FD MODULE...``: it imports the modules, then reads
one JSON command a line from the socket FD and answers with one JSON event a line::

    {"do": "start", "id", "target", "args", "log", "env",
     "grace_s", "memory_bytes"}  -> {"ended": id, "code": int, "held_bytes": int} once it ended;
                                    held_bytes > 0: its group held more than memory_bytes, and was killed
    {"do": "cancel", "id"}       SIGTERM to its group, SIGKILL after grace_s
    {"do": "close"}, or EOF      cancels all, ends when they are gone

Why not ``multiprocessing``: its forkserver runs the main script of its user again in every child (a script
without a guard would start itself anew), keeps its preload list in a global that others set too, and does
not let us end a process group before the id of its dead leader may be given to another process. Here the
parent of the attempts is one thread that does nothing else, so a signal can only reach its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

_POLL_S = 1.0
"""How often a process looks whether its parent is still there."""
_WEIGH_S = 0.25
"""How often the memory of attempts is looked at that may hold only so much."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class _Child:
    """One running attempt; ``kill_at`` is set once it was told to end, ``held_bytes`` once it held too much."""

    id: str
    pid: int
    grace_s: float
    memory_bytes: int | None = None
    kill_at: float | None = None
    held_bytes: int = 0

    def terminate(self) -> None:
        """SIGTERM to the group; SIGKILL is due after the grace period."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + self.grace_s
            _signal_group(self.pid, signal.SIGTERM)

    def kill_if_due(self) -> None:
        """SIGKILL to the group of one that outstayed its grace period."""
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            _signal_group(self.pid, signal.SIGKILL)

    def kill_if_large(self, held: Mapping[int, int]) -> None:
        """SIGKILL to the group of one that holds more memory than it may."""
        if self.memory_bytes is not None and held.get(self.pid, 0) > self.memory_bytes:
            self.held_bytes = held[self.pid]
            _signal_group(self.pid, signal.SIGKILL)


class _Server:
    """The loop: commands in, forks, deaths out."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._parent = os.getppid()
        self._children: dict[str, _Child] = {}
        self._unread = b""
        self._closing = False
        self._weigh_at = 0.0
        # A death of a child must wake the select below: Python writes a byte here at every signal.
        self._wake, wake_writer = os.pipe()
        self._own = (channel.fileno(), self._wake, wake_writer)
        for descriptor in (self._wake, wake_writer):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)

    def run(self) -> None:
        """Serves until it is told to close or its user is gone, and no child is left."""
        while not self._closing or self._children:
            listening = [self._wake] if self._closing else [self._wake, self._channel.fileno()]
            ready, _, _ = select.select(listening, [], [], self._patience())
            if self._wake in ready:
                os.read(self._wake, 4096)
            if self._channel.fileno() in ready:
                self._read()
            if os.getppid() != self._parent:
                self._close()
            for child in list(self._children.values()):
                self._reap(child)
                child.kill_if_due()
            self._weigh()

    def _weigh(self) -> None:
        if time.monotonic() < self._weigh_at or not any(child.memory_bytes for child in self._children.values()):
            return
        self._weigh_at = time.monotonic() + _WEIGH_S
        held = held_bytes()
        for child in self._children.values():
            child.kill_if_large(held)

    def _patience(self) -> float:
        due = [child.kill_at - time.monotonic() for child in self._children.values() if child.kill_at is not None]
        most = _WEIGH_S if any(child.memory_bytes for child in self._children.values()) else _POLL_S
        return min(most, max(0.01, min(due, default=_POLL_S)))

    def _read(self) -> None:
        try:
            data = self._channel.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._close()
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, command: Mapping[str, Any]) -> None:
        if command["do"] == "start":
            self._start(command)
        elif command["do"] == "cancel":
            if command["id"] in self._children:
                self._children[command["id"]].terminate()
        else:
            self._close()

    def _close(self) -> None:
        self._closing = True
        for child in self._children.values():
            child.terminate()

    def _start(self, command: Mapping[str, Any]) -> None:
        ready, ready_writer = os.pipe()
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            print(f"attempt {command['id']}: fork failed: {error}", file=sys.stderr, flush=True)
            os.close(ready)
            os.close(ready_writer)
            self._tell({"ended": command["id"], "code": 1})
            return
        if pid == 0:
            _run_child(command, server, ready_writer, close=(ready, *self._own))
        os.close(ready_writer)
        os.read(ready, 1)  # the child leads its own group from here on, or is dead
        os.close(ready)
        self._children[command["id"]] = _Child(
            command["id"], pid, float(command["grace_s"]), command.get("memory_bytes")
        )

    def _reap(self, child: _Child) -> None:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid == 0:
            return
        _signal_group(child.pid, signal.SIGKILL)  # what the attempt started does not outlive it
        del self._children[child.id]
        code = os.waitstatus_to_exitcode(status)
        self._tell({"ended": child.id, "code": code, "held_bytes": child.held_bytes})

    def _tell(self, event: Mapping[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # its user is gone: the next read says so
            self._channel.sendall(json.dumps(event).encode() + b"\n")


def _signal_group(pid: int, number: int) -> None:
    # PermissionError: on some systems a group of which only zombies are left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def held_bytes() -> dict[int, int]:
    """Resident memory by process group, in bytes, without files that are only mapped; empty where there is no /proc.

    Not by RLIMIT_AS: torch reserves many times the addresses that it uses. Pages that a group shares with the server
    (torch itself) count for each of its processes.
    """
    held: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[2])
            pages = (folder / "statm").read_text().split()
        except (OSError, IndexError, ValueError):  # it has just ended
            continue
        held[group] = held.get(group, 0) + (int(pages[1]) - int(pages[2])) * _PAGE_BYTES
    return held


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """A handler that does nothing: with SIG_IGN the kernel would not report the death of a child."""


# ------------------------------------------------------------------------------------- in the child


def _run_child(command: Mapping[str, Any], server: int, ready: int, close: Sequence[int]) -> NoReturn:
    """Becomes the attempt: own session, own log, own environment; never returns."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in close:
            os.close(descriptor)
        _redirect(command["log"])
        os.environ.update(command["env"])
        os.write(ready, b".")
        os.close(ready)
        threading.Thread(target=_watch, args=(server,), name="parent-watch", daemon=True).start()
        module, _, function = str(command["target"]).partition(":")
        getattr(importlib.import_module(module), function)(*command["args"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # the last frame of the process: what came must be in its log
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # a full disk must not keep the process from ending
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(log: str) -> None:
    """Standard output and error go to the log, standard input is empty."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, number in ((nothing, 0), (target, 1), (target, 2)):
        os.dup2(source, number)
    os.close(nothing)
    os.close(target)


def _watch(server: int) -> None:
    """Ends the whole group when the server is gone: nothing trains on unseen.

    A thread and not ``PR_SET_PDEATHSIG``, which would end the leader alone and leave its own children behind.
    """
    while os.getppid() == server:
        time.sleep(_POLL_S)
    os.killpg(0, signal.SIGKILL)


# ---------------------------------------------------------------------------------------- the entry


def main(arguments: Sequence[str]) -> None:
    """Imports the modules, then serves the socket.

    Args:
        arguments: The socket's file descriptor, then the modules to import.
    """
    descriptor, *modules = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the user of the engine, who then closes us
    with socket.socket(fileno=int(descriptor)) as channel:
        for module in modules:
            importlib.import_module(module)
        _Server(channel).run()


if __name__ == "__main__":
    main(sys.argv[1:])
