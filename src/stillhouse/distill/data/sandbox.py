"""Decodes pictures of strangers in child processes that can do little harm.

A picture that leads a decoder astray ends a child, not the stage: it is a fault, and a new child takes the next one.
A child has its three standard streams, none of our environment and, once it is ready, limits on memory, CPU time, open
files and bytes written. Run as ``python -P -m stillhouse.distill.data.sandbox`` it reads pictures, each headed by its
length (8 bytes, little-endian), and answers each with one line of JSON: ``{"height", "width", "pixels"}``, or
``{"fault"}`` with what is wrong with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stillhouse.distill.data.archive import ArchiveError
from stillhouse.distill.data.codecs import open_picture
from stillhouse.search.errors import DatasetError, StillhouseError

MEMORY_BYTES = 2 << 30
"""Address space of a child; the costliest picture that is read at all, 64 Mpixel of lossless WebP, takes 1.5 GB."""

PICTURE_CPU_S = 30
"""CPU time of one picture; the costliest takes a few seconds."""

PICTURE_WALL_S = 300.0
"""Time of one picture, should a child sleep. Far above the CPU time: that a machine is busy is no fault."""

OPEN_FILES = 8
MOST_DEATHS = 20
"""More pictures that end a child are no accident, and each may cost ``PICTURE_CPU_S``."""

MOST_AT_ONCE = 32
"""Pictures; their answers must fit into a socket's buffer, since none is read before all pictures are sent."""

COMMAND = (sys.executable, "-P", "-m", "stillhouse.distill.data.sandbox")
_ENVIRONMENT = {
    # Threads of numpy's, which nothing uses, would take address space.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # Memory that is given back after each picture must be cleared by the kernel for the next: a third of the time.
    **dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(256 << 20)),
}
_HEAD = struct.Struct("<Q")
_READY = b"ready\n"
_LONGEST_ANSWER = 1 << 16


@dataclass(frozen=True)
class Decoded:
    """What a picture holds: its height and width once upright, and a hash of its pixels."""

    height: int
    width: int
    pixels: str


class Sandbox:
    """A few children that decode; safe from several threads.

    Args:
        size: Children at work at once; each starts with its first picture.
        command: What a child runs; tests give another.
        wall_s: Seconds after which a child that has not answered is ended.
    """

    def __init__(self, size: int, *, command: Sequence[str] = COMMAND, wall_s: float = PICTURE_WALL_S) -> None:
        self._children = [_Child(command, wall_s) for _ in range(size)]
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self._deaths, self._lock = 0, threading.Lock()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(min(1.0, wall_s / 4),), daemon=True)

    def __enter__(self) -> Sandbox:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._watcher.join()
        for child in self._children:
            child.end()

    def decode(self, pictures: Sequence[tuple[str, bytes]]) -> list[Decoded | str]:
        """Decodes pictures (name, bytes), at most ``MOST_AT_ONCE``.

        Returns:
            What each holds, or its fault, which begins with its name.

        Raises:
            ArchiveError: Too many pictures ended their child.
            StillhouseError: No child can be started.
        """
        found: list[Decoded | str] = []
        child = self._idle.get()
        try:
            while len(found) < len(pictures):
                rest = pictures[len(found) :]
                try:
                    for (name, _), answer in zip(rest, child.ask([data for _, data in rest]), strict=True):
                        found.append(f"{name}{answer}" if isinstance(answer, str) else answer)
                except _ChildEndedError as ended:
                    self._count(ended)
                    name = pictures[len(found)][0]
                    found.append(f"{name}: {ended}; save it again with another program, or remove it")
        finally:
            self._idle.put(child)
        return found

    def _count(self, ended: _ChildEndedError) -> None:
        with self._lock:
            self._deaths += 1
        if self._deaths > MOST_DEATHS:
            raise ArchiveError(
                f"at most {MOST_DEATHS} pictures may end the process that decodes them, but more of this data set do "
                f"(the last one {ended}); save its pictures again with another program"
            )

    def _watch(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            for child in self._children:
                child.end_if_late()


class _ChildEndedError(Exception):
    """A child ended, or answered what it must not; the text says how, of a picture."""


class _Child:
    """One process, started anew with the next picture when it has ended."""

    def __init__(self, command: Sequence[str], wall_s: float) -> None:
        self._command, self._wall_s = command, wall_s
        self._process: subprocess.Popen[bytes] | None = None
        self._due: float | None = None

    def ask(self, pictures: Sequence[bytes]) -> Iterator[Decoded | str]:
        """What each picture holds, or what is wrong with it; all are sent at once, since each wait costs time."""
        self._hurry()
        try:
            if self._process is None:
                self._start()
            with contextlib.suppress(ConnectionError):  # the answers that it gave before its end can be read
                self._send(pictures)
            for _ in pictures:
                self._hurry()
                yield _checked(self._stream.readline(_LONGEST_ANSWER))
        except (ConnectionError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
            late, how = time.monotonic() > (self._due or 0.0), self.end(patience_s=1.0)
            if late:
                raise _ChildEndedError(f"does not decode in {self._wall_s:g} s") from None
            if how == signal.SIGXCPU.name:
                raise _ChildEndedError(f"takes more than {PICTURE_CPU_S} s to decode") from None
            raise _ChildEndedError(f"ends the process that decodes it ({how})") from None
        finally:
            self._due = None

    def _hurry(self) -> None:
        self._due = time.monotonic() + self._wall_s

    def _send(self, pictures: Sequence[bytes]) -> None:
        for data in pictures:
            self._hurry()
            self._stream.write(_HEAD.pack(len(data)))
            self._stream.write(data)
        self._stream.flush()

    def end_if_late(self) -> None:
        """Ends the process, from another thread, when its answer is overdue."""
        due, process = self._due, self._process
        if due is not None and process is not None and time.monotonic() > due:
            process.kill()

    def end(self, patience_s: float = 0.0) -> str:
        """Ends the process, or after a while waits no longer for its end; says how it ended."""
        process, self._process = self._process, None
        if process is None:
            return "no process"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
        process.kill()
        code = process.wait()
        with contextlib.suppress(ConnectionError):  # bytes that it never took
            self._stream.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _start(self) -> None:
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._stream = ours.makefile("rwb")
            self._process = subprocess.Popen(
                self._command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env={"PYTHONPATH": path, **_ENVIRONMENT, **libraries},
                cwd="/",
            )
        if self._stream.readline(len(_READY)) != _READY:
            how = self.end(patience_s=1.0)
            raise StillhouseError(f"the process that decodes pictures must start, but ended ({how}); the log says why")


def _checked(line: bytes) -> Decoded | str:
    """An answer; it is read as a stranger's, since a decoder may have been taken over.

    Raises:
        ValueError, KeyError, TypeError, ArithmeticError, RecursionError: No answer of ours.
    """
    answer = json.loads(line)
    if "fault" in answer:
        return str(answer["fault"])
    return Decoded(int(answer["height"]), int(answer["width"]), str(answer["pixels"]))


# ------------------------------------------------------------------------------------- in the child


def main() -> None:
    """Answers until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the stage, whose end is ours
    Image.init()  # all that is ever imported, before files are short
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a decoder's complaints would fill the stage's log
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS does not limit the address space
            resource.setrlimit(kind, (most, most))
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    while head := sys.stdin.buffer.read(_HEAD.size):
        data = sys.stdin.buffer.read(*_HEAD.unpack(head))
        _allow_cpu()
        sys.stdout.buffer.write(json.dumps(_answer(data)).encode() + b"\n")
        sys.stdout.buffer.flush()


def _allow_cpu() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(time.process_time()) + 1 + PICTURE_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if most < 0 else min(wanted, most), most))


def _answer(data: bytes) -> dict[str, str | int]:
    try:
        image = open_picture(data, "")
        digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
        digest.update(image.tobytes())
    except DatasetError as error:
        return {"fault": str(error)}
    except MemoryError:
        return {"fault": f": takes more than {MEMORY_BYTES >> 20:,} MB to decode; make it smaller"}
    return {"height": image.height, "width": image.width, "pixels": digest.hexdigest()}


if __name__ == "__main__":
    main()
