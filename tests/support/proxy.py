"""A TCP proxy on a loopback port that drops, delays and refuses connections as a test asks."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from dataclasses import dataclass


@dataclass
class Cut:
    """Breaks a connection while it carries a request.

    Attributes:
        request: Pattern that the request's head matches.
        after: Bytes that are let through, from the head on, or of the answer.
        answer: Count the answer's bytes: with 0 of them, all was done and nobody is told.
        times: How often.
        done: How often it has been.
    """

    request: bytes
    after: int = 0
    answer: bool = False
    times: int = 1
    done: int = 0


class Proxy:
    """Passes bytes on to another port; close it when done.

    Attributes:
        port: Where it listens.
        delay_s: Seconds that each piece waits before it is passed on.
        refusing: New connections are closed at once.
        cuts: Connections to break at a certain request.
    """

    def __init__(self, target: int) -> None:
        self._target, self.delay_s, self.refusing = target, 0.0, False
        self.cuts: list[Cut] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def drop(self) -> int:
        """Breaks all connections in the middle of whatever they carry; returns how many."""
        with self._lock:
            broken, self._open = self._open, set()
        for one in broken:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        return len(broken)

    def close(self) -> None:
        """Stops listening and breaks all connections."""
        self._listener.close()
        self.drop()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            left: dict[bool, int] = {}  # by whether it is an answer: bytes that may still pass
            for source, sink, answer in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass, args=(source, sink, answer, left), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, answer: bool, left: dict[bool, int]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.delay_s)
                if not answer:
                    self._look(data, left)
                if answer in left:
                    data, left[answer] = data[: left[answer]], left[answer] - len(data)
                sink.sendall(data)
                if left.get(answer, 0) < 0:
                    break
        for one in (source, sink):
            with self._lock:
                self._open.discard(one)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _look(self, data: bytes, left: dict[bool, int]) -> None:
        """Notes what is to be cut; clients send the head of a request in one piece."""
        with self._lock:
            for cut in self.cuts:
                if cut.done < cut.times and not left and re.search(cut.request, data):
                    cut.done += 1
                    left[cut.answer] = cut.after
