"""Runs on the device: asks a server for models to measure, measures them, reports.

``python -m stillhouse.export.agent http://192.168.0.2:8000 --name gate-cam`` needs onnxruntime, numpy and httpx;
nothing else of Stillhouse's dependencies is imported, so ``pip install --no-deps stillhouse`` beside them is enough.

::

    PUT /agents/NAME            what this device is; the answer names an attempt, or none
    GET /attempts/ID            what to measure, with how many threads
    GET /attempts/ID/artifacts  the model, checked against its sha256
    POST /attempts/ID/renew     while it is measured
    POST /attempts/ID/commit    the figures (or /fail: it does not run here)

The agent does not end by itself: a server that gives no answer is asked again. A restart loses nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from stillhouse.export import measure
from stillhouse.search.domain import Json
from stillhouse.search.errors import LeaseLostError, StageError, StillhouseError, UserError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
_LOST = (401, 404, 409)
_LATER = (429, 500, 502, 503, 504)

log = logging.getLogger(__name__)


class Agent:
    """One device.

    Args:
        url: The server.
        name: What jobs call this device.
        key: An API key with the scope ``worker``, where the server asks for one.
        transport: For tests: answers in place of the network.
        sleep: For tests: waits so many seconds.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        key: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(30, connect=10)
        self._http = httpx.Client(base_url=_address(url), headers=headers, timeout=timeout, transport=transport)
        self._url, self._name, self._sleep = url, name, sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def run(self) -> None:
        """Asks for work and does it, until the process is ended.

        Raises:
            UserError: The server refuses this device; the message says why.
        """
        log.info("%s asks %s for work", self._name, self._url)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                self._sleep(self.step())
                pause_s = FIRST_PAUSE_S
            except (httpx.TransportError, _LaterError) as error:
                log.warning("%s does not answer (%s); asking again in %g s", self._url, error, pause_s)
                self._sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def step(self) -> float:
        """Asks once and does what it is given; returns how many seconds to wait before it asks again.

        Raises:
            UserError: The server refuses this device.
            httpx.TransportError: It does not answer.
        """
        facts = {"runtime": measure.RUNTIME, "measure": _digest(), "host": measure.host_facts()}
        answer = self._http.put(f"/agents/{self._name}", json=facts)
        _check_later(answer)
        if answer.is_error:
            raise UserError(f"{self._url} refuses this device: {_detail(answer)}")
        asked = answer.json()
        if asked["attempt"] is None:
            return float(asked["poll_s"])
        attempt = _Attempt(self._http, asked["attempt"]["id"], asked["attempt"]["token"])
        try:
            attempt.do()
        except LeaseLostError as error:
            log.warning("attempt %s: %s; leaving it", attempt.id, error)
            return float(asked["poll_s"])
        return 0.0


class _LaterError(StillhouseError):
    """The server cannot answer now."""


class _Attempt:
    """One model to measure."""

    def __init__(self, http: httpx.Client, attempt_id: str, token: str) -> None:
        self.id, self._http = attempt_id, http
        self._base, self._headers = f"/attempts/{attempt_id}", {"Authorization": f"Bearer {token}"}

    def do(self) -> None:
        """From the order to the result.

        Raises:
            LeaseLostError: It is not this device's any more.
        """
        began = time.monotonic()
        order = self._call("GET", "").json()
        spec = order["plan"]["spec"]
        sha256 = order["results"]["onnx"]["artifacts"]["onnx"]
        with tempfile.TemporaryDirectory(prefix="stillhouse-agent-") as folder, _Heartbeat(self, order["heartbeat_s"]):
            path = Path(folder) / "model.onnx"
            self._fetch(sha256, path)
            try:
                figures = measure.probe(path, threads=spec["threads"]).figures()
            except (StageError, subprocess.TimeoutExpired) as error:
                reason = f"{spec['device']}: {error}"
                log.warning("attempt %s failed: %s", self.id, reason)
                self._call("POST", "/fail", {"reason": reason[:2000], "faults": []})
                return
            metrics = {**figures, "model_bytes": path.stat().st_size, "split": None}
        seconds = time.monotonic() - began
        self._call("POST", "/commit", {"artifacts": {}, "metrics": metrics, "seconds": seconds})
        size = f"{metrics['model_bytes'] / 1e6:.1f} MB"
        log.info("attempt %s: %s, %.2f ms, %d threads", self.id, size, metrics["latency_ms"], metrics["threads"])

    def renew(self) -> None:
        """Heartbeat."""
        self._call("POST", "/renew", {"progress": {}})

    def _fetch(self, sha256: str, path: Path) -> None:
        digest = hashlib.sha256()
        with self._http.stream("GET", f"{self._base}/artifacts/{sha256}", headers=self._headers) as answer:
            _check_held(answer)
            with path.open("wb") as file:
                for chunk in answer.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
        if digest.hexdigest() != sha256:
            raise _LaterError(f"the model came with the sha256 {digest.hexdigest()}, not {sha256}")

    def _call(self, method: str, path: str, body: Mapping[str, Json] | None = None) -> httpx.Response:
        answer = self._http.request(method, self._base + path, json=body, headers=self._headers)
        _check_held(answer)
        return answer


class _Heartbeat:
    """Renews an attempt's lease while it is worked on; one that is lost shows when the result is sent."""

    def __init__(self, attempt: _Attempt, every_s: float) -> None:
        self._attempt, self._every_s, self._stop = attempt, every_s, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._attempt.renew()
            except LeaseLostError:
                return
            except (httpx.TransportError, StillhouseError) as error:
                log.warning("heartbeat failed: %s", error)


def _address(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"the server must be like http://192.168.0.2:8000, but got {text!r}")
    return url


def _check_held(answer: httpx.Response) -> None:
    """Raises LeaseLostError for an attempt that is not this device's any more, and for what the server cannot take."""
    _check_later(answer)
    if answer.is_error:
        answer.read()
        lost = answer.status_code in _LOST
        raise LeaseLostError(_detail(answer) if lost else f"the server refuses it: {_detail(answer)}")


def _check_later(answer: httpx.Response) -> None:
    if answer.status_code in _LATER:
        answer.read()
        raise _LaterError(f"{answer.status_code}: {_detail(answer)}")


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:500] or f"status {answer.status_code}"


def _digest() -> str:
    """Of the code that measures."""
    return hashlib.sha256(Path(measure.__file__).read_bytes()).hexdigest()[:16]


def main() -> None:
    """The agent as a program of its own."""
    parser = argparse.ArgumentParser(prog="stillhouse.export.agent", description="Measures models on this device.")
    parser.add_argument("url", help="the server, such as http://192.168.0.2:8000")
    parser.add_argument("--name", required=True, help="what jobs shall call this device")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would tell of every question
    try:
        with Agent(asked.url, asked.name, key=os.environ.get("STILLHOUSE_API_KEY")) as agent:
            agent.run()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
