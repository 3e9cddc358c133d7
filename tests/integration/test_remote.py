"""A worker that holds an address and a token alone: what opens its routes, what it survives, and a real stage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import structlog
from fastapi import FastAPI

from served import Served, pictures, problem
from stillhouse.search.domain import Candidate, Cost, Size, StageKind, StagePlan, StageResult
from stillhouse.search.errors import LeaseLostError, StageError, StillhouseError
from stillhouse.search.job import AttemptRecord
from stillhouse.service.claim import LOG_BYTES
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.remote import RemoteClaim
from stillhouse.service.store import DiskStore

Live = Callable[[FastAPI], str]
ROUTES = [
    ("GET", ""), ("GET", "/source"), ("GET", f"/artifacts/{'0' * 64}"), ("PUT", f"/artifacts/{'0' * 64}"),
    ("GET", f"/checkpoints/checkpoint-000001-{'0' * 64}.pt"), ("PUT", f"/checkpoints/checkpoint-000001-{'0' * 64}.pt"),
    ("POST", "/renew"), ("POST", "/commit"), ("POST", "/fail"),
    ("POST", "/give-back"), ("PUT", "/log"),
]  # fmt: skip
BODIES = {
    "/renew": {"progress": {}},
    "/commit": {"artifacts": {}, "metrics": {}, "seconds": 1},
    "/fail": {"reason": "r"},
    "/give-back": {"reason": "r", "wait_s": 1},
}


def opened(served: Served, plan: StagePlan) -> AttemptRecord:
    served.ledger.ensure_stage(plan)
    attempt = served.ledger.open_attempt(plan.key, lease_s=30, threads=1)
    assert attempt is not None
    return attempt


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_opens_without_the_token_of_an_open_attempt(
    served: Served, method: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, other = (opened(served, StagePlan(StageKind.TEACHER, {"n": n})) for n in range(2))

    def ask(attempt_id: str, headers: dict[str, str]) -> httpx.Response:
        return served.http.request(method, f"/attempts/{attempt_id}{path}", headers=headers, json=BODIES.get(path))

    for headers in ({}, bearer(""), bearer("wrong"), bearer(other.token), {"Authorization": f"Basic {attempt.token}"}):
        answer = ask(attempt.id, headers)
        problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
    assert "no such attempt" in problem(ask("att_none", bearer(attempt.token)), 404)
    assert served.ledger.lose(attempt.id, max_attempts=3)
    if path == "/log":
        assert ask(attempt.id, bearer(attempt.token)).status_code == 204, "it may still tell of its end"
        monkeypatch.setattr("stillhouse.service.api.attempts.LOG_AFTER_S", -1.0)
        assert "its log is closed" in problem(ask(attempt.id, bearer(attempt.token)), 409)
        return
    assert "stop without a result" in problem(ask(attempt.id, bearer(attempt.token)), 409)


def test_no_answer_names_a_token(served: Served) -> None:
    attempt = opened(served, StagePlan(StageKind.TEACHER, {}))
    order = served.http.get(f"/attempts/{attempt.id}", headers=bearer(attempt.token))
    assert order.status_code == 200
    assert attempt.token not in order.text


def test_a_token_reads_what_its_plan_names_and_no_more(served: Served, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"another's")
    secret = served.store.put(tmp_path / "secret")
    attempt = opened(served, StagePlan(StageKind.TEACHER, {}))
    for path in (f"/artifacts/{secret}", "/artifacts/..%2F..%2Fstillhouse.db", "/source"):
        problem(served.http.get(f"/attempts/{attempt.id}{path}", headers=bearer(attempt.token)), 404)


def test_a_damaged_file_of_the_server_is_told(served: Served, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b"weights")
    sha256 = served.store.put(tmp_path / "checkpoint")
    stored = next(path for path in (served.settings.artifacts / sha256[:2]).iterdir())
    stored.chmod(0o644)
    stored.write_bytes(b"damaged")
    attempt = opened(served, StagePlan(StageKind.TEACHER, {"checkpoint": sha256}))
    answer = served.http.get(f"/attempts/{attempt.id}/artifacts/{sha256}", headers=bearer(attempt.token))
    assert "heal" in problem(answer, 422)


def test_bytes_that_are_not_what_they_say_are_not_kept(served: Served) -> None:
    attempt = opened(served, StagePlan(StageKind.TEACHER, {}))
    claimed = hashlib.sha256(b"this").hexdigest()
    answer = served.http.put(
        f"/attempts/{attempt.id}/artifacts/{claimed}", content=b"that", headers=bearer(attempt.token)
    )
    assert claimed in problem(answer, 422)
    assert not served.store.has(claimed)
    assert not list(served.settings.uploads.iterdir())
    body = {"artifacts": {"weights": claimed}, "metrics": {}, "seconds": 1}
    answer = served.http.post(f"/attempts/{attempt.id}/commit", json=body, headers=bearer(attempt.token))
    assert "must be sent before" in problem(answer, 422)
    assert served.ledger.attempt(attempt.id).state == "open"


def test_a_folder_of_the_server_is_not_read_from_afar(served: Served, tmp_path: Path) -> None:
    plan = StagePlan(StageKind.INGEST, {"digest": "1" * 64}, hints={"source": str(tmp_path)})
    attempt = opened(served, plan)
    answer = served.http.get(f"/attempts/{attempt.id}/source", headers=bearer(attempt.token))
    assert "as a zip" in problem(answer, 422)


# ------------------------------------------------------------------------------- a flaky connection


class Flaky(httpx.BaseTransport):
    """Answers of the real application, each after some failures of the line."""

    def __init__(self, *faults: Callable[[httpx.Request], httpx.Response]) -> None:
        self.inner, self.faults = httpx.HTTPTransport(), list(faults)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.faults:
            return self.faults.pop(0)(request)
        return self.inner.handle_request(request)

    def close(self) -> None:
        self.inner.close()


def refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def away(_: httpx.Request) -> httpx.Response:
    return httpx.Response(503, json={"detail": "starting"})


def hurried(_: httpx.Request) -> httpx.Response:
    return httpx.Response(429, json={"detail": "too often"})


def garbled(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=b"not these bytes")


Dial = Callable[..., RemoteClaim]


@pytest.fixture
def dial(served: Served, live: Live, tmp_path: Path) -> Dial:
    """Makes claims over a flaky line to a real server, with a store of their own."""
    url = live(served.http.app)  # type: ignore[arg-type]

    def make(attempt: AttemptRecord, line: Flaky, patience_s: float = 5, home: str = "apart") -> RemoteClaim:
        store, uploads = DiskStore(tmp_path / home / "artifacts"), tmp_path / home / "uploads"
        return RemoteClaim(
            url, attempt.id, attempt.token, store=store, uploads=uploads, patience_s=patience_s, transport=line
        )

    return make


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.service.remote.FIRST_PAUSE_S", 0.01)


def test_an_api_that_comes_back_costs_nothing(served: Served, dial: Dial, tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(b"given")
    checkpoint = served.store.put(tmp_path / "given")
    plan = StagePlan(StageKind.TEACHER, {"checkpoint": checkpoint})
    attempt, line = opened(served, plan), Flaky()
    with dial(attempt, line) as worker:
        line.faults = [refused, away, hurried]
        assert worker.order().plan == plan
        line.faults = [garbled, refused]
        assert worker.path(checkpoint).read_bytes() == b"given"
        (tmp_path / "made").write_bytes(b"made")
        line.faults = [away, refused]
        sha256 = worker.put(tmp_path / "made")
        line.faults = [refused, away, refused]
        assert worker.commit(StageResult({"weights": sha256}), seconds=1)
    assert served.store.path(sha256).read_bytes() == b"made"
    assert not list((tmp_path / "apart" / "uploads").iterdir())


def test_an_api_that_stays_away_ends_the_attempt(served: Served, dial: Dial) -> None:
    attempt = opened(served, StagePlan(StageKind.TEACHER, {}))
    with dial(attempt, Flaky(*[refused] * 1000), 0.1) as worker:
        with pytest.raises(LeaseLostError, match=r"no answer for 0\.1 s: ConnectError"):
            worker.order()
        with pytest.raises(httpx.ConnectError):
            worker.renew({})  # a heartbeat does not wait: the next one is near


def test_a_damaged_copy_on_the_worker_is_fetched_again(served: Served, dial: Dial, tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(b"given")
    checkpoint = served.store.put(tmp_path / "given")
    attempt = opened(served, StagePlan(StageKind.TEACHER, {"checkpoint": checkpoint}))
    with dial(attempt, Flaky()) as worker:
        copy = worker.path(checkpoint)
    copy.chmod(0o644)
    copy.write_bytes(b"eaten")
    with dial(attempt, Flaky()) as worker:
        assert worker.path(checkpoint).read_bytes() == b"given"


@pytest.mark.parametrize(("status", "error"), [(400, StillhouseError), (422, StageError), (401, StillhouseError)])
def test_refusals_are_not_tried_again(served: Served, dial: Dial, status: int, error: type[StillhouseError]) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json={"detail": "no, because"})

    line = Flaky(refuse)
    attempt = opened(served, StagePlan(StageKind.TEACHER, {}))
    with dial(attempt, line) as worker, pytest.raises(error, match="no, because"):
        worker.order()


# -------------------------------------------------------------------------------------- checkpoints


def checkpoint(folder: Path, epoch: int, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{epoch:06d}-{hashlib.sha256(content).hexdigest()}.pt"
    path.write_bytes(content)
    return path


def test_the_next_machine_goes_on_from_the_last_checkpoint(served: Served, dial: Dial, tmp_path: Path) -> None:
    plan, quiet = StagePlan(StageKind.TEACHER, {}), threading.Event()
    first = opened(served, plan)
    with dial(first, Flaky()) as worker:
        assert worker.order().checkpoint is None
        for epoch in (1, 2):
            assert worker.send_checkpoint(checkpoint(tmp_path / "one", epoch, b"state %d" % epoch), quiet)
    assert served.ledger.lose(first.id, max_attempts=3)
    second = opened(served, plan)
    with dial(second, Flaky(), home="other") as worker:
        order = worker.order()
        assert order.checkpoint_every_s == served.settings.checkpoint_every_s
        worker.fetch_checkpoint(order, tmp_path / "two")
        (came,) = (tmp_path / "two").iterdir()
        assert (came.name, came.read_bytes()) == (order.checkpoint, b"state 2")
        assert came.name.startswith("checkpoint-000002-")
        late = checkpoint(tmp_path / "one", 3, b"late")
        with dial(first, Flaky()) as lost, pytest.raises(LeaseLostError, match="no longer holds"):
            lost.send_checkpoint(late, quiet)
        assert worker.commit(StageResult(), seconds=1)
    assert not list((served.settings.artifacts / "checkpoints").iterdir())


def test_a_newer_checkpoint_on_this_machine_counts(served: Served, dial: Dial, tmp_path: Path) -> None:
    attempt = opened(served, StagePlan(StageKind.TEACHER, {}))
    with dial(attempt, Flaky()) as worker:
        assert worker.send_checkpoint(checkpoint(tmp_path / "sent", 2, b"sent"), threading.Event())
        checkpoint(tmp_path / "own", 3, b"own")
        worker.fetch_checkpoint(worker.order(), tmp_path / "own")
        assert len(list((tmp_path / "own").iterdir())) == 1
        order = worker.order()
        shutil.rmtree(served.settings.artifacts / "checkpoints")
        worker.fetch_checkpoint(order, tmp_path / "fresh")  # it is gone: the training begins anew
        assert not list((tmp_path / "fresh").iterdir())


def test_a_checkpoint_that_is_not_what_its_name_says_is_refused(served: Served) -> None:
    attempt = opened(served, StagePlan(StageKind.TEACHER, {}))

    def send(name: str) -> httpx.Response:
        path = f"/attempts/{attempt.id}/checkpoints/{name}"
        return served.http.put(path, content=b"state", headers=bearer(attempt.token))

    assert "must hash to" in problem(send(f"checkpoint-000001-{'0' * 64}.pt"), 422)
    assert "must be named checkpoint-EPOCH-SHA256.pt" in problem(send("state.pt"), 422)
    problem(send("..%2F..%2Fstillhouse.db"), 404)
    assert not (served.settings.artifacts / "checkpoints").exists()
    assert not list(served.settings.uploads.iterdir())


def test_a_checkpoint_on_its_way_is_given_up_when_the_stage_ends(served: Served, dial: Dial, tmp_path: Path) -> None:
    attempt, stop = opened(served, StagePlan(StageKind.TEACHER, {})), threading.Event()
    with dial(attempt, Flaky()) as worker:
        stop.set()
        assert not worker.send_checkpoint(checkpoint(tmp_path / "one", 1, b"x" * (8 << 20)), stop)
        assert worker.commit(StageResult(), seconds=1)
    assert not (served.settings.artifacts / "checkpoints").exists()


def test_a_machine_with_other_code_gives_its_attempt_back(served: Served, live: Live, tmp_path: Path) -> None:
    attempt = opened(served, StagePlan(StageKind.TEACHER, {}, {}, "0" * 16))
    done = run_stage(tmp_path / "worker", attempt, "--url", live(served.http.app), token=attempt.token)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    stage = served.ledger.stages([attempt.stage_key])[attempt.stage_key]
    assert (stage.state, stage.attempts) == ("pending", 0)
    assert "runs other code than the controller" in (stage.reason or "")
    (line,) = (served.settings.logs / f"{attempt.id}.log").read_text().splitlines()
    assert json.loads(line)["event"] == "this machine cannot do it"
    assert json.loads(line)["event"] in done.stderr, "Ray keeps it too"


# --------------------------------------------------------------------------------------------- logs


def test_the_log_of_an_attempt_elsewhere_is_shown_with_its_trial(served: Served, dial: Dial) -> None:
    job = served.http.post("/jobs", json={"dataset": served.ready(), "budget": {}}).json()["id"]
    attempt = opened(served, StagePlan(StageKind.TEACHER, {}))
    served.ledger.add_trial(job, 0, Candidate("lcnet_050", Size(32, 32), Size(64, 64)), Cost())
    served.ledger.move_trial(job, 0, expect="costing", to="training", stages=[attempt.stage_key])
    with dial(attempt, Flaky()) as worker:
        worker.send_log(b"half\n")
        assert worker.commit(StageResult(), seconds=1)
        worker.send_log(b"it began\nAuthorization: Bearer 0123456789abcdef\nit ended \xff\n")
    shown = served.http.get(f"/jobs/{job}/trials/0/log").text
    assert shown.splitlines()[1:] == ["it began", "Authorization: Bearer [hidden]", "it ended \ufffd"]
    assert not list(served.settings.uploads.iterdir())


def test_a_log_has_an_end(served: Served) -> None:
    attempt = opened(served, StagePlan(StageKind.TEACHER, {}))
    url, most = f"/attempts/{attempt.id}/log", b"x" * LOG_BYTES
    assert served.http.put(url, content=most, headers=bearer(attempt.token)).status_code == 204
    assert "send its end" in problem(served.http.put(url, content=most + b"x", headers=bearer(attempt.token)), 413)
    assert (served.settings.logs / f"{attempt.id}.log").read_bytes() == most


def test_a_log_that_cannot_be_sent_costs_a_moment(served: Served, dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.service.remote.LOG_PATIENCE_S", 0.5)
    free = threading.Event()

    def silent(_: httpx.Request) -> httpx.Response:
        free.wait(20)
        raise httpx.ReadTimeout("nobody answered")

    attempt = opened(served, StagePlan(StageKind.TEACHER, {}))
    for fault, said in ((refused, "ConnectError"), (away, "starting"), (silent, "it took longer")):
        began = time.monotonic()
        with structlog.testing.capture_logs() as lines, dial(attempt, Flaky(fault)) as worker:
            worker.send_log(b"text")
        assert time.monotonic() - began < 10
        assert said in lines[0]["why"]
    free.set()


# ------------------------------------------------------------------------------------- a real stage


def run_stage(home: Path, attempt: AttemptRecord, *words: str, token: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stillhouse.service.cli", "stage", "run", attempt.id, *words]
    environment = {
        **os.environ,
        "STILLHOUSE_HOME": str(home),
        "STILLHOUSE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",  # it must not be looked at
        "STILLHOUSE_TOKEN": token,
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_stage_is_done_with_an_address_and_a_token(sqlite_url: str, live: Live, tmp_path: Path) -> None:
    """An ingest: its zip comes from the API, and its result goes there."""
    upgrade(sqlite_url)
    served = Served(sqlite_url, tmp_path / "home")
    url, away_home = live(served.http.app), tmp_path / "worker"  # type: ignore[arg-type]
    dataset = served.http.post("/datasets", files={"file": ("p.zip", pictures())}).json()["id"]
    key = served.ledger.dataset(dataset).stage_key
    attempt = served.ledger.open_attempt(key, lease_s=30, threads=1)
    assert attempt is not None
    done = run_stage(away_home, attempt, "--url", url, token="")
    assert (done.returncode, "STILLHOUSE_TOKEN" in done.stderr) == (2, True)
    done = run_stage(away_home, attempt, "--url", url, token=attempt.token)
    assert done.returncode == 0, done.stdout + done.stderr
    stage = served.ledger.stages([key])[key]
    assert (stage.state, stage.reason) == ("done", None)
    assert stage.result is not None
    manifest = json.loads(served.store.path(stage.result.artifacts["manifest"]).read_text())
    assert manifest["classes"] == ["a", "b"]
    events = [json.loads(line) for line in (served.settings.logs / f"{attempt.id}.log").read_text().splitlines()]
    assert [line["event"] for line in events if line["logger"] == "stillhouse.service.worker"] == [
        "attempt begins",
        "attempt ends",
    ]
    assert {line["attempt"] for line in events} == {attempt.id}
    assert not list((away_home / "work").iterdir())
    assert not (away_home / "stillhouse.db").exists()
    served.close()
