"""A TCP proxy on a loopback port that drops, delays and refuses connections as a test asks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Proxy:
    """Passes bytes on to another port; close it when done.

    Attributes:
        port: Where it listens.
        delay_s: Seconds that each piece waits before it is passed on.
        refusing: New connections are closed at once.
    """

    def __init__(self, target: int) -> None:
        self._target, self.delay_s, self.refusing = target, 0.0, False
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
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.delay_s)
                sink.sendall(data)
        for one in (source, sink):
            with self._lock:
                self._open.discard(one)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
