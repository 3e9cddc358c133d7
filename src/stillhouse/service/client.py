"""A small Python client of the API."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from stillhouse.search.domain import Json
from stillhouse.search.errors import CorruptArtifactError, StillhouseError, UserError

Answer = dict[str, Json]


class Client:
    """Talks to a Stillhouse server.

    Every call raises UserError for a request that the server refuses (its message says why), StillhouseError when
    the server fails, and ``httpx.TransportError`` when none answers.

    Args:
        base_url: Such as ``http://127.0.0.1:8000``.
        transport: For tests: answers in place of the network.
    """

    def __init__(self, base_url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=60, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def upload(self, path: Path, *, name: str | None = None, skip_faults: bool = False) -> Answer:
        """Uploads an ImageFolder zip."""
        data = {"name": name or path.name, "skip_faults": str(skip_faults).lower()}
        with path.open("rb") as handle:
            return self._call("POST", "/datasets", files={"file": (path.name, handle)}, data=data)

    def builtin(self, name: str) -> Answer:
        """Names a built-in data set."""
        return self._call("POST", "/datasets", json={"builtin": name})

    def dataset(self, dataset_id: str) -> Answer:
        """One data set."""
        return self._call("GET", f"/datasets/{dataset_id}")

    def create_job(
        self,
        dataset: str,
        budget: Mapping[str, Json],
        search: Mapping[str, Json] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Answer:
        """Starts a search."""
        body = {"dataset": dataset, "budget": dict(budget), "search": dict(search or {})}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._call("POST", "/jobs", json=body, headers=headers)

    def estimate(self, dataset: str, budget: Mapping[str, Json], search: Mapping[str, Json] | None = None) -> Answer:
        """How many candidates fit a budget, and what relaxing it would open."""
        body = {"dataset": dataset, "budget": dict(budget), "search": dict(search or {})}
        return self._call("POST", "/estimates", json=body)

    def job(self, job_id: str) -> Answer:
        """One job."""
        return self._call("GET", f"/jobs/{job_id}")

    def cancel(self, job_id: str) -> Answer:
        """Stops a job."""
        return self._call("POST", f"/jobs/{job_id}/cancel")

    def events(self, job_id: str) -> Iterator[Answer]:
        """A job's events from the first on, ``{id, kind, data}``, until it has ended; comes back when cut off."""
        seen = 0
        while True:
            headers = {"Last-Event-ID": str(seen)}
            with self._sent("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
                if answer.status_code == 204:
                    return
                kind = ""
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind, data, number = value, "", 0
                    elif name == "data":
                        data = value
                    elif name == "id":
                        number = int(value)
                    elif not line and kind:
                        yield {"id": number, "kind": kind, "data": json.loads(data)}
                        seen, kind = number, ""

    def wait(self, job_id: str, *, timeout_s: float, poll_s: float = 1.0) -> Answer:
        """Waits until a job has ended.

        Raises:
            TimeoutError: It has not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while (job := self.job(job_id))["state"] in ("queued", "running"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {job['state']} after {timeout_s:g} s")
            time.sleep(poll_s)
        return job

    def front(self, job_id: str) -> Answer:
        """The front of a job."""
        return self._call("GET", f"/jobs/{job_id}/pareto")

    def download(self, model_id: str, path: Path) -> Path:
        """Writes a model's ONNX file; it appears whole, its hash checked, or not at all.

        Raises:
            CorruptArtifactError: Other bytes came than the server stores.
        """
        fresh = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
        digest = hashlib.sha256()
        try:
            with self._sent("GET", f"/models/{model_id}/onnx") as answer, fresh.open("wb") as handle:
                for chunk in answer.iter_bytes():
                    digest.update(chunk)
                    handle.write(chunk)
                wanted = answer.headers["etag"].strip('"')
            if digest.hexdigest() != wanted:
                raise CorruptArtifactError(f"{model_id}: sha256 {digest.hexdigest()} came, but {wanted} is stored")
            return fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)

    def _call(self, method: str, url: str, **parts: Json) -> Answer:
        with self._sent(method, url, **parts) as answer:
            body: Answer = json.loads(answer.read())
        return body

    @contextmanager
    def _sent(self, method: str, url: str, **parts: Json) -> Iterator[httpx.Response]:
        with self._http.stream(method, url, **parts) as answer:
            if answer.is_error:
                answer.read()
                raise _error(answer)
            yield answer


def _error(answer: httpx.Response) -> StillhouseError:
    try:
        problem = answer.json()
        detail, faults = problem["detail"], problem.get("faults", [])
    except (ValueError, KeyError, TypeError):
        detail, faults = answer.text, []
    message = "\n  ".join((f"{answer.status_code}: {detail}", *faults))
    return UserError(message) if answer.status_code < 500 else StillhouseError(message)
