"""A small Python client of the API."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from stillhouse.search.domain import Json
from stillhouse.search.errors import StillhouseError, UserError

Answer = dict[str, Json]


class Client:
    """Talks to a Stillhouse server.

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

    def job(self, job_id: str) -> Answer:
        """One job."""
        return self._call("GET", f"/jobs/{job_id}")

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
        """Writes a model's ONNX file; it appears whole or not at all."""
        fresh = path.with_suffix(".tmp")
        with self._http.stream("GET", f"/models/{model_id}/onnx") as answer:
            if answer.is_error:
                answer.read()
            _check(answer)
            with fresh.open("wb") as handle:
                for chunk in answer.iter_bytes():
                    handle.write(chunk)
        return fresh.replace(path)

    def _call(self, method: str, url: str, **parts: Json) -> Answer:
        answer = self._http.request(method, url, **parts)
        _check(answer)
        body: Answer = answer.json()
        return body


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError):
        detail = answer.text
    message = f"{answer.status_code}: {detail}"
    raise UserError(message) if answer.status_code < 500 else StillhouseError(message)
