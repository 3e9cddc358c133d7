"""A small Python client of the API."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx

from stillhouse.search.domain import Json
from stillhouse.search.errors import StillhouseError, UserError
from stillhouse.search.states import LIVE
from stillhouse.service.transfer import Progress, broken, fetch, send

Answer = dict[str, Json]


class Client:
    """Talks to a Stillhouse server.

    Every call raises UserError for a request that the server refuses (its message says why), StillhouseError when
    the server fails, and ``httpx.TransportError`` when none answers. Lists come page by page while they are walked.

    Args:
        base_url: Such as ``http://127.0.0.1:8000``.
        api_key: Where the server asks for one; by default the environment variable STILLHOUSE_API_KEY.
        transport: For tests: answers in place of the network.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        key = api_key or os.environ.get("STILLHOUSE_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(60, read=180)  # a bundle is made at its first request
        self._http = httpx.Client(base_url=base_url, timeout=timeout, transport=transport, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # --------------------------------------------------------------------------------- the server

    def health(self) -> Answer:
        """Whether the API and its database answer."""
        return self._call("GET", "/health")

    def live(self) -> Answer:
        """Whether the process answers."""
        return self._call("GET", "/health/live")

    def ready(self) -> Answer:
        """Whether jobs can be taken; StillhouseError says why not."""
        return self._call("GET", "/health/ready")

    def catalogue(self) -> Answer:
        """What the workers can build."""
        return self._call("GET", "/catalogue")

    def metrics(self) -> str:
        """Counts, times and states in Prometheus' text format; the key needs the scope ``worker``."""
        with self._sent("GET", "/metrics") as answer:
            answer.read()
            return answer.text

    def devices(self) -> list[Answer]:
        """Devices that latency and memory are measured on."""
        return self._listed("/devices")

    def forget_device(self, name: str) -> None:
        """Takes a device off the list; one whose agent runs comes back at once."""
        self._call("DELETE", f"/devices/{quote(name, safe='')}")

    def audit(self, *, before: int | None = None, limit: int = 100) -> list[Answer]:
        """What keys have changed, newest first."""
        return self._listed("/audit", before=before, limit=limit)

    # --------------------------------------------------------------------------------- data sets

    def upload(
        self, path: Path, *, name: str | None = None, skip_faults: bool = False, progress: Progress | None = None
    ) -> Answer:
        """Uploads an ImageFolder zip in pieces; after a break, the same call goes on where it broke off.

        Args:
            path: The zip.
            name: How to call the data set; by default as the file.
            skip_faults: Leave unreadable pictures out and go on.
            progress: Told bytes that the server has, and all, after each piece.
        """
        upload_id = send(self._sent, path, progress)
        body = {"name": name or path.name, "skip_faults": skip_faults}
        return self._call("POST", f"/uploads/{upload_id}/complete", json=body)

    def upload_state(self, upload_id: str) -> Answer:
        """How much of an upload has come."""
        return self._call("GET", f"/uploads/{upload_id}")

    def drop_upload(self, upload_id: str) -> None:
        """Forgets an upload that will not be completed."""
        self._call("DELETE", f"/uploads/{upload_id}")

    def builtin(self, name: str) -> Answer:
        """Names a built-in data set."""
        return self._call("POST", "/datasets", json={"builtin": name})

    def folder(self, path: str, *, name: str | None = None, skip_faults: bool = False) -> Answer:
        """Names a folder or zip under the server's allowed folder."""
        return self._call("POST", "/datasets", json={"path": path, "name": name, "skip_faults": skip_faults})

    def datasets(self) -> list[Answer]:
        """All data sets, oldest first."""
        return self._listed("/datasets")

    def dataset(self, dataset_id: str) -> Answer:
        """One data set."""
        return self._call("GET", f"/datasets/{dataset_id}")

    def delete_dataset(self, dataset_id: str) -> None:
        """Forgets a data set without jobs."""
        self._call("DELETE", f"/datasets/{dataset_id}")

    # -------------------------------------------------------------------------------------- jobs

    def estimate(self, dataset: str, budget: Mapping[str, Json], search: Mapping[str, Json] | None = None) -> Answer:
        """How many candidates fit a budget, and what relaxing it would open."""
        body = {"dataset": dataset, "budget": dict(budget), "search": dict(search or {})}
        return self._call("POST", "/estimates", json=body)

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
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self._call("POST", "/jobs", json=body, headers=headers)

    def jobs(self, *, states: Sequence[str] = (), dataset: str | None = None, page: int = 100) -> Iterator[Answer]:
        """Jobs, newest first, without their trials."""
        return self._pages("/jobs", state=list(states), dataset=dataset, limit=page)

    def job(self, job_id: str) -> Answer:
        """One job."""
        return self._call("GET", f"/jobs/{job_id}")

    def cancel(self, job_id: str) -> Answer:
        """Stops a job."""
        return self._call("POST", f"/jobs/{job_id}/cancel")

    def retry(self, job_id: str) -> Answer:
        """Sets a job going again that failed or was cancelled."""
        return self._call("POST", f"/jobs/{job_id}/retry")

    def delete_job(self, job_id: str) -> None:
        """Forgets a job that has ended, with its models."""
        self._call("DELETE", f"/jobs/{job_id}")

    def trials(self, job_id: str, *, states: Sequence[str] = (), page: int = 100) -> Iterator[Answer]:
        """A job's trials in order of number."""
        return self._pages(f"/jobs/{job_id}/trials", state=list(states), limit=page)

    def log(self, job_id: str, number: int, *, tail: int = 100, attempt: str | None = None) -> str:
        """The last lines of the logs of a trial's attempts."""
        params = _given(tail=tail, attempt=attempt)
        with self._sent("GET", f"/jobs/{job_id}/trials/{number}/log", params=params) as answer:
            answer.read()
            return answer.text

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Answer]:
        """A job's events, ``{id, kind, data}``, until it has ended; comes back when cut off.

        Args:
            job_id: The job.
            after: Id of the last event that was seen; 0 begins with the first.
        """
        seen, breaks = after, 0
        while True:
            try:
                with self._sent("GET", f"/jobs/{job_id}/events", headers={"Last-Event-ID": str(seen)}) as answer:
                    if answer.status_code == 204:
                        return
                    for event in _events(answer.iter_lines()):
                        yield event
                        seen, breaks = event["id"], 0
            except httpx.TransportError:
                breaks = broken(breaks)

    def wait(self, job_id: str, *, timeout_s: float, poll_s: float = 1.0) -> Answer:
        """Waits until a job has ended.

        Raises:
            TimeoutError: It has not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while (job := self.job(job_id))["state"] in LIVE:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {job['state']} after {timeout_s:g} s")
            time.sleep(poll_s)
        return job

    # ------------------------------------------------------------------------- fronts and models

    def front(self, job_id: str) -> Answer:
        """The front of a job."""
        return self._call("GET", f"/jobs/{job_id}/pareto")

    def front_across(
        self, *, dataset: str | None = None, jobs: Sequence[str] = (), objectives: Sequence[str] = ()
    ) -> Answer:
        """The front across the jobs of a data set, or across those named."""
        params = _given(dataset=dataset, job=list(jobs), objectives=list(objectives))
        return self._call("GET", "/pareto", params=params)

    def models(
        self,
        *,
        job: str | None = None,
        dataset: str | None = None,
        arch: str | None = None,
        precision: str | None = None,
        page: int = 50,
    ) -> Iterator[Answer]:
        """Models, newest first."""
        return self._pages("/models", job=job, dataset=dataset, arch=arch, precision=precision, limit=page)

    def model(self, model_id: str) -> Answer:
        """One model."""
        return self._call("GET", f"/models/{model_id}")

    def download(self, model_id: str, path: Path, *, progress: Progress | None = None) -> Path:
        """Writes a model's ONNX file; it appears whole, its hash checked, or not at all.

        What came before a break is kept beside it, and the same call goes on from there.

        Raises:
            CorruptArtifactError: Other bytes came than the server stores.
        """
        return fetch(self._sent, f"/models/{model_id}/onnx", path, progress)

    def download_bundle(self, model_id: str, path: Path, *, progress: Progress | None = None) -> Path:
        """Writes a model's bundle, a zip; as ``download``."""
        return fetch(self._sent, f"/models/{model_id}/bundle", path, progress)

    # ----------------------------------------------------------------------------------- helpers

    def _call(self, method: str, url: str, **parts: Json) -> Answer:
        with self._sent(method, url, **parts) as answer:
            body: Answer = json.loads(answer.read() or b"{}")
        return body

    def _listed(self, url: str, **params: Json) -> list[Answer]:
        with self._sent("GET", url, params=_given(**params)) as answer:
            body: list[Answer] = json.loads(answer.read())
        return body

    def _pages(self, url: str, **params: Json) -> Iterator[Answer]:
        following: str | None = str(httpx.URL(url, params=_given(**params)))
        while following:
            with self._sent("GET", following) as answer:
                lines = json.loads(answer.read())
                following = answer.links.get("next", {}).get("url")
            yield from lines

    @contextmanager
    def _sent(self, method: str, url: str, **parts: Json) -> Iterator[httpx.Response]:
        with self._http.stream(method, url, **parts) as answer:
            if answer.is_error:
                answer.read()
                raise _error(answer)
            yield answer


def _given(**params: Json) -> dict[str, Json]:
    return {name: value for name, value in params.items() if value is not None and value != []}


def _events(lines: Iterator[str]) -> Iterator[Answer]:
    """Server-sent events: ``name: value`` lines, each event ended by an empty one."""
    kind, data, number = "", "", 0
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            data = value
        elif name == "id":
            number = int(value)
        elif not line and kind:
            yield {"id": number, "kind": kind, "data": json.loads(data)}
            kind, data, number = "", "", 0


def _error(answer: httpx.Response) -> StillhouseError:
    try:
        problem = answer.json()
        detail, faults = problem["detail"], problem.get("faults", [])
    except (ValueError, KeyError, TypeError):
        detail, faults = answer.text, []
    message = "\n  ".join((f"{answer.status_code}: {detail}", *faults))
    return UserError(message) if answer.status_code < 500 else StillhouseError(message)
