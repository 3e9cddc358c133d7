"""How fast the API answers with a full ledger: 1,000 jobs, 100,000 deployments, 20 clients at once.

    python bench/api.py --json                     # SQLite
    python bench/api.py --json --database URL      # an empty PostgreSQL database: postgresql://user@host/name

A server process is started on a ledger that is filled first. 20 clients (connections of one other process) then ask
without a pause; each figure is the 99th percentile of what they wait, in milliseconds, over --requests answers:

- ``jobs_p99_ms``: GET /jobs, the first page of 100.
- ``front_p99_ms``: GET /jobs/{id}/pareto of finished jobs, drawn as readers do: a few jobs are asked for most (Zipf).
- ``trials_p99_ms``: GET /jobs/{id}/trials, drawn the same way.

``*_cpu_ms`` is the server's processor time for one answer, which other load on the machine blurs less.
``front_cold_ms`` is the median of one front that was not asked for before. ``startup_s`` is from the start of the
server process to its first answer, on a ledger that is migrated. ``listeners`` are streams of events that were all
open at once and all told of one event, and ``heard_s`` the seconds until the last was told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx
from sqlalchemy import insert

from stillhouse.search.domain import StageKind, StagePlan
from stillhouse.search.job import JobSpec
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.db.tables import DeploymentRow, EventRow, JobRow, TrialRow

JOBS, TRIALS, MODELS, CLIENTS, LISTENERS = 1000, 20, 100, 20, 200


def fill(url: str, jobs: int) -> list[str]:
    """Stores the jobs, and one more that runs; gives the ids of those that are done."""
    upgrade(url)
    ledger = SqlLedger(url)
    ledger.publish_catalogue({"names": [], "archs": {}, "methods": {}, "code": {}, "weights": {}})
    dataset = ledger.add_dataset("birds", StagePlan(StageKind.INGEST, {"digest": "birds"}))
    ledger.end_dataset(dataset.id, "ready", summary={"classes": ["a"] * 20}, reason=None, faults=())
    template, rng = ledger.job(ledger.add_job(JobSpec(dataset.id, trials=TRIALS)).id), random.Random(0)
    spec = template.spec.to_json()
    done = [f"job_{number:012x}" for number in range(jobs)]
    for start in range(0, len(done), 50):
        part = done[start : start + 50]
        rows = [_rows(job, start + at, dataset.id, spec, rng) for at, job in enumerate(part)]
        with ledger._sessions.write() as session:
            for table, index in ((JobRow, 0), (TrialRow, 1), (DeploymentRow, 2), (EventRow, 3)):
                session.execute(insert(table), [row for each in rows for row in each[index]])
    ledger.move_job(template.id, expect=("queued",), to="running")
    ledger.close()
    return done


def _rows(job: str, number: int, dataset: str, spec: dict[str, Any], rng: random.Random) -> list[list[dict[str, Any]]]:
    at = 1.7e9 + number
    row = {"id": job, "tenant": "default", "dataset_id": dataset, "spec": spec, "state": "done", "body_hash": "0" * 64,
           "created_at": at, "started_at": at, "finished_at": at + 9}  # fmt: skip
    trials, models, events = [], [], []
    for trial in range(TRIALS):
        side = rng.choice((32, 48, 64))
        candidate = {"arch": f"net_{rng.randrange(40)}", "image_size": f"{side}x{side}", "network_size": "96x96",
                     "stem": "stock", "knobs": {}}  # fmt: skip
        macs, accuracy = int(10 ** rng.uniform(6, 8)), rng.uniform(0.3, 0.9)
        cost = {"macs": macs, "params": macs // 10, "image_bytes": side * 30.0, "image_size": f"{side}x{side}"}
        stages = [f"{number:06d}{trial:02d}{step:02d}".ljust(64, "0") for step in range(6)]
        trials.append({"job_id": job, "number": trial, "candidate": candidate, "state": "done", "cost": cost,
                       "stages": stages, "accuracy": accuracy, "epochs": 12})  # fmt: skip
        event = {"number": trial, "state": "done", "candidate": candidate, "cost": cost, "accuracy": accuracy,
                 "epochs": 12, "reason": None}  # fmt: skip
        events.append({"job_id": job, "at": at + trial / 9, "kind": "trial", "data": event})
        for file in range(MODELS // TRIALS):
            right = rng.randrange(300, 900)
            details = {"method": "tas", "variant": "distilled", "judged": "coded", "right": rng.randbytes(125).hex(),
                       "picture": {"codec": "jpeg", "quality": 90 - 10 * file}, "left_out": {},
                       "coded_val": {"correct": right, "total": 1000},
                       "measured": {"threads": 1, "runs": 400, "host": {"cpu": "x"}}}  # fmt: skip
            measured = {**cost, "image_bytes": side * (30.0 - 5 * file), "latency_ms": macs / 4e6, "model_bytes": macs}
            models.append({"id": f"mdl_{number:06d}{trial:02d}{file}", "job_id": job, "trial_number": trial,
                           "candidate": candidate, "cost": measured, "precision": "fp32", "onnx_sha256": "ab" * 32,
                           "validation_correct": right, "validation_total": 1000, "details": details,
                           "preprocess": {"fit": "squash", "steps": ["decode", "resize"], "height": side},
                           "created_at": at + trial})  # fmt: skip
    events.append({"job_id": job, "at": at + 9, "kind": "job", "data": {"state": "done", "reason": None}})
    return [[row], trials, models, events]


SERVER = """
import sys
from pathlib import Path
from stillhouse.service.app import create_app, serve_app
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore
url, home, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
settings = Settings.load(home=home, port=port, database_url=url, requests_per_s=1e6, request_burst=10**6)
upgrade(url)
serve_app(create_app(SqlLedger(url), DiskStore(home / "artifacts"), settings), settings)
"""


def start(url: str, home: Path) -> tuple[subprocess.Popen[bytes], str, float]:
    """A server process, its address, and the seconds until it answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began, base = time.monotonic(), f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-c", SERVER, url, str(home), str(port)])
    with httpx.Client(timeout=5) as http:  # one: to make a client takes more processor time than the server has then
        while True:
            try:
                http.get(f"{base}/health/ready").raise_for_status()
                return process, base, time.monotonic() - began
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() - began < 60, "the server does not start"
                time.sleep(0.01)


def ask(base: str, urls: list[str], clients: int, queue: Any) -> None:
    """Asks over one connection for each client, without a pause; puts seconds of each answer into the queue.

    By bare sockets: a client library takes more processor time for an answer than the server does, and the clients of
    a service have processors of their own.
    """
    host, port = urlsplit(base).hostname or "", urlsplit(base).port or 80

    async def one(part: list[str]) -> list[float]:
        waits = []
        reader, writer = await asyncio.open_connection(host, port, limit=2**20)
        for url in ["/health/live", *part]:
            began = time.perf_counter()
            writer.write(f"GET {url} HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: gzip\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
            waits.append(time.perf_counter() - began)
        writer.close()
        return waits[1:]

    async def all_of() -> list[float]:
        found = await asyncio.gather(*(one(urls[at::clients]) for at in range(clients)))
        return [wait for part in found for wait in part]

    try:
        queue.put(asyncio.run(all_of()))
    except (AssertionError, OSError, asyncio.IncompleteReadError) as error:
        queue.put(str(error))


def cpu_s(pid: int) -> float:
    """Seconds of processor that a process has had so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waits(base: str, urls: list[str], clients: int = CLIENTS) -> list[float]:
    """Milliseconds of each answer, sorted, asked from another process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=ask, args=(base, urls, clients, queue))
    process.start()
    found = queue.get()
    process.join()
    assert isinstance(found, list), found
    return sorted(1e3 * wait for wait in found)


def listen(base: str, ledger: SqlLedger, job: str, count: int) -> tuple[int, float]:
    """Opens streams, emits one event, and counts those that told it, with the seconds until the last did."""
    told: list[float] = []
    ready, last = threading.Event(), ledger.events(job)[-1].id

    async def one(http: httpx.AsyncClient, opened: list[int]) -> None:
        async with http.stream("GET", f"/jobs/{job}/events", headers={"Last-Event-ID": str(last)}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("retry"):
                    opened.append(1)
                    if len(opened) == count:
                        ready.set()
                elif line == "event: bench":
                    told.append(time.monotonic())
                    return

    async def all_of() -> None:
        limits, opened = httpx.Limits(max_connections=None), list[int]()
        async with httpx.AsyncClient(base_url=base, timeout=60, limits=limits) as http:
            await asyncio.gather(*(one(http, opened) for _ in range(count)), return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(all_of()))
    thread.start()
    ready.wait(20)
    began = time.monotonic()
    ledger.emit(job, "bench", {})
    thread.join(40)
    return len(told), max(told, default=began) - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default="", help="an empty database; by default a SQLite file of its own")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(given.database or f"sqlite:///{folder}/bench.db", Path(folder), given.jobs, given.requests)
    print(json.dumps(found, indent=2) if given.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


def run(url: str, home: Path, jobs: int, requests: int) -> dict[str, Any]:
    """All figures on one database."""
    done = fill(url, jobs)
    process, base, first_s = start(url, home)
    process.terminate()
    process.wait()
    process, base, second_s = start(url, home)
    rng, weights = random.Random(1), [1 / (rank + 1) for rank in range(len(done))]
    drawn = rng.choices(rng.sample(done, len(done)), weights, k=requests)
    try:
        cold = waits(base, [f"/jobs/{job}/pareto" for job in rng.sample(done, 50)], 1)
        figures = {}
        for name, urls in {
            "jobs": ["/jobs"] * requests,
            "front": [f"/jobs/{job}/pareto" for job in drawn],
            "trials": [f"/jobs/{job}/trials" for job in drawn],
            "models": ["/models"] * (requests // 10),
        }.items():
            waits(base, urls)  # what readers ask for most is then known
            before = cpu_s(process.pid)
            measured = waits(base, urls)
            cpu_ms = 1e3 * (cpu_s(process.pid) - before) / len(urls)
            figures |= {f"{name}_p50_ms": round(median(measured), 1),
                        f"{name}_p99_ms": round(measured[int(0.99 * len(measured))], 1),
                        f"{name}_cpu_ms": round(cpu_ms, 2)}  # fmt: skip
        ledger = SqlLedger(url)
        (live,) = (job.id for job in ledger.jobs("running"))
        listeners, heard_s = listen(base, ledger, live, LISTENERS)
        ledger.close()
    finally:
        process.terminate()
        process.wait()
    return {
        "database": url.partition(":")[0],
        "jobs": jobs + 1,
        "deployments": len(done) * MODELS,
        "clients": CLIENTS,
        **figures,
        "front_cold_ms": round(median(cold), 1),
        "startup_s": round(min(first_s, second_s), 2),
        "listeners": listeners,
        "heard_s": round(heard_s, 2),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
