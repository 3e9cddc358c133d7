"""The client and its command line: every route of the API, breaks in the line, and what a person sees."""

import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from rich.console import Console
from typer.testing import CliRunner

from served import SUMMARY, Serve, Served
from stillhouse.search.devices import DeviceRecord
from stillhouse.search.domain import Candidate, Cost, Size
from stillhouse.search.errors import CorruptArtifactError, StillhouseError
from stillhouse.search.plan import ingest_plan
from stillhouse.service import cli_server, cli_watch, transfer
from stillhouse.service.app import create_app
from stillhouse.service.cli import app
from stillhouse.service.client import Client

Live = Callable[[FastAPI], str]
WORKERS = ("/attempts", "/agents")
"""Routes for workers and devices."""
CALLS: dict[str, Callable[[Client, Path], object]] = {
    "GET /health": lambda client, _: client.health(),
    "GET /health/live": lambda client, _: client.live(),
    "GET /health/ready": lambda client, _: client.ready(),
    "GET /metrics": lambda client, _: client.metrics(),
    "GET /catalogue": lambda client, _: client.catalogue(),
    "GET /devices": lambda client, _: client.devices(),
    "DELETE /devices/{device}": lambda client, _: client.forget_device("gate-cam"),
    "GET /audit": lambda client, _: client.audit(before=5),
    "POST /uploads": lambda client, path: client.upload(path),
    "PATCH /uploads/{upload_id}": lambda client, path: client.upload(path),
    "POST /uploads/{upload_id}/complete": lambda client, path: client.upload(path),
    "GET /uploads/{upload_id}": lambda client, _: client.upload_state("upl_1"),
    "DELETE /uploads/{upload_id}": lambda client, _: client.drop_upload("upl_1"),
    "POST /datasets": lambda client, _: client.folder("birds"),
    "GET /datasets": lambda client, _: client.datasets(),
    "GET /datasets/{dataset_id}": lambda client, _: client.dataset("ds_1"),
    "DELETE /datasets/{dataset_id}": lambda client, _: client.delete_dataset("ds_1"),
    "POST /estimates": lambda client, _: client.estimate("ds_1", {}),
    "POST /jobs": lambda client, _: client.create_job("ds_1", {}),
    "GET /jobs": lambda client, _: list(client.jobs(states=["done"], dataset="ds_1")),
    "GET /jobs/{job_id}": lambda client, _: client.job("job_1"),
    "DELETE /jobs/{job_id}": lambda client, _: client.delete_job("job_1"),
    "POST /jobs/{job_id}/cancel": lambda client, _: client.cancel("job_1"),
    "POST /jobs/{job_id}/retry": lambda client, _: client.retry("job_1"),
    "GET /jobs/{job_id}/events": lambda client, _: list(client.events("job_1")),
    "GET /jobs/{job_id}/pareto": lambda client, _: client.front("job_1"),
    "GET /jobs/{job_id}/trials": lambda client, _: list(client.trials("job_1")),
    "GET /jobs/{job_id}/trials/{number}/log": lambda client, _: client.log("job_1", 0),
    "GET /pareto": lambda client, _: client.front_across(jobs=["job_1"], objectives=["macs"]),
    "GET /models": lambda client, _: list(client.models(arch="a")),
    "GET /models/{model_id}": lambda client, _: client.model("mdl_1"),
    "GET /models/{model_id}/onnx": lambda client, path: client.download("mdl_1", path.with_suffix(".onnx")),
    "GET /models/{model_id}/bundle": lambda client, path: client.download_bundle("mdl_1", path.with_suffix(".zip")),
}


def zipped(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/1.png", os.urandom(size))
    return buffer.getvalue()


def answered(request: httpx.Request) -> httpx.Response:
    """What the client can go on with."""
    if request.url.path.endswith(("/onnx", "/bundle")):
        return httpx.Response(200, content=b"abc", headers={"etag": f'"{hashlib.sha256(b"abc").hexdigest()}"'})
    if request.url.path.endswith("/events"):
        return httpx.Response(204)
    lists = r"/(datasets|jobs|models|devices|audit|jobs/[^/]+/trials)"
    if request.method == "GET" and re.fullmatch(lists, request.url.path):
        return httpx.Response(200, json=[])
    offset = 3 if request.method == "PATCH" else 0
    return httpx.Response(200, json={"id": "upl_1", "offset": offset, "size": 3})


def test_the_client_covers_every_route(served: Served) -> None:
    document = served.http.get("/openapi.json").json()
    routes = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if not path.startswith(WORKERS)
    }
    assert set(CALLS) == routes, "give each new route a method of the client, and call it here"


@pytest.mark.parametrize("route", sorted(CALLS))
def test_each_call_asks_for_its_route(route: str, tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        asked.append(f"{request.method} {request.url.path}")
        return answered(request)

    path = tmp_path / "three"
    path.write_bytes(b"abc")
    with Client("http://127.0.0.1", api_key="secret", transport=httpx.MockTransport(answer)) as client:
        CALLS[route](client, path)
    pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", route))
    assert any(pattern.fullmatch(each) for each in asked), asked


class Breaking(httpx.BaseTransport):
    """A line that breaks once in the middle of every other request that carries or fetches much."""

    def __init__(self, url: str) -> None:
        self._real, self.breaks, self._sound = httpx.HTTPTransport(), 0, False
        self._url = url

    def close(self) -> None:
        self._real.close()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        heavy = request.method == "PATCH" or (request.method == "GET" and request.url.path.endswith(("onnx", "bundle")))
        self._sound = not self._sound if heavy else self._sound
        if not heavy or self._sound is False:
            return self._real.handle_request(request)
        self.breaks += 1
        if request.method == "PATCH":  # half of it comes
            half = request.content[: len(request.content) // 2]
            headers = {"Upload-Offset": request.headers["Upload-Offset"]}
            httpx.patch(self._url + request.url.path, content=half, headers=headers)
            raise httpx.WriteError("the line broke")
        answer = self._real.handle_request(request)
        whole = answer.read()
        answer.close()

        class Half(httpx.SyncByteStream):
            def __iter__(self) -> Any:
                yield whole[: len(whole) // 2]
                raise httpx.ReadError("the line broke")

        return httpx.Response(answer.status_code, headers=answer.headers, stream=Half())


def test_uploads_and_downloads_go_on_after_a_break(
    served: Served, tmp_path: Path, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    _, model, content = served.finished(tmp_path)
    (tmp_path / "birds.zip").write_bytes(zipped(45_000))
    url = live(create_app(served.ledger, served.store, served.settings))
    line, seen = Breaking(url), []
    with Client(url, transport=line) as client:
        made = client.upload(tmp_path / "birds.zip", progress=lambda done, total: seen.append((done, total)))
        assert made["name"] == "birds.zip"
        (kept,) = served.settings.uploads.glob("*.zip")
        assert kept.read_bytes() == (tmp_path / "birds.zip").read_bytes()
        assert seen == sorted(seen) and seen[-1] == (kept.stat().st_size, kept.stat().st_size)
        assert client.download(model, tmp_path / "mine.onnx").read_bytes() == content
    assert line.breaks >= 3
    assert not list(tmp_path.glob(".*part"))


def test_a_download_goes_on_in_another_process(served: Served, tmp_path: Path, live: Live) -> None:
    _, model, content = served.finished(tmp_path)
    sha256 = hashlib.sha256(content).hexdigest()
    part = tmp_path / f".mine.onnx.{sha256[:16]}.part"
    part.write_bytes(content[:1500])
    first: list[int] = []
    with Client(live(create_app(served.ledger, served.store, served.settings))) as client:
        client.download(model, tmp_path / "mine.onnx", progress=lambda done, _: first.append(done))
        assert (tmp_path / "mine.onnx").read_bytes() == content
        assert first[0] > 1500
        part.write_bytes(b"x" * 1500)
        with pytest.raises(CorruptArtifactError):
            client.download(model, tmp_path / "mine.onnx")
        assert not part.exists()


def test_pages_are_walked(served: Served, live: Live) -> None:
    dataset = served.ready()
    ids = [served.http.post("/jobs", json={"dataset": dataset, "search": {"seed": n}}).json()["id"] for n in range(5)]
    with Client(live(create_app(served.ledger, served.store, served.settings))) as client:
        assert [job["id"] for job in client.jobs(page=2, dataset=dataset, states=["queued"])] == ids[::-1]


def test_events_go_on_after_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.service.client.time.sleep", lambda _: None)
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["last-event-id"])
        if len(asked) == 2:
            raise httpx.ReadError("the line broke")
        if len(asked) == 4:
            return httpx.Response(204)
        number = len(asked)
        return httpx.Response(200, text=f'retry: 1000\n\nid: {number}\nevent: job\ndata: {{"n": {number}}}\n\n')

    with Client("http://127.0.0.1", transport=httpx.MockTransport(answer)) as client:
        assert [event["id"] for event in client.events("job_1")] == [1, 3]
    assert asked == ["0", "1", "1", "3"]


@pytest.fixture
def run(served: Served, live: Live, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv("STILLHOUSE_URL", live(create_app(served.ledger, served.store, served.settings)))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["client", *words])
        assert done.exit_code == code, done.output
        return done.output

    return invoke


def test_data_sets_and_jobs_by_command(run: Callable[..., str], served: Served, tmp_path: Path) -> None:
    (tmp_path / "birds.zip").write_bytes(zipped(100))
    made = json.loads(run("--json", "datasets", "add", str(tmp_path / "birds.zip"), "--name", "birds"))
    assert made["state"] == "pending"
    assert "birds" in run("datasets", "list")
    assert "no file" in run("datasets", "add", "nothing.zip", code=2)
    dataset = served.ready()
    asked = ("jobs", "create", dataset, "--max-flops", "8e6", "--set", "trials=3", "--set", "archs=[lcnet_050]")
    count = json.loads(run("--json", *asked, "--estimate"))["candidates"]
    assert f" of {count} candidates fit" in run(*asked, "--estimate")
    (job,) = json.loads(run("--json", *asked))
    assert (job["spec"]["trials"], job["spec"]["budget"]["max_macs"]) == (3, 4_000_000)
    assert re.search(rf"{job['id']} +queued +textures +0 of 3", run("jobs", "list", "--state", "queued"))
    assert job["id"] not in run("jobs", "list", "--state", "done")
    assert "cancel it first" in run("jobs", "delete", job["id"], code=2)
    assert "cancelled" in run("jobs", "cancel", job["id"])
    assert "queued" in run("jobs", "retry", job["id"])
    served.ledger.move_job(job["id"], expect=("queued",), to="running")
    served.ledger.add_trial(job["id"], 0, Candidate("lcnet_050", Size(32, 32), Size(64, 64)), Cost())
    served.ledger.move_trial(job["id"], 0, expect="costing", to="infeasible", reason="too slow")
    served.ledger.move_job(job["id"], expect=("running",), to="failed", reason="nothing fits")
    assert "trial 0 lcnet_050 32x32->64x64: infeasible (too slow)" in run("jobs", "watch", job["id"], code=1)
    assert "too slow" in run("jobs", "trials", job["id"])
    assert "nothing was tried" in run("jobs", "log", job["id"], "0")
    assert "reason: nothing fits" in run("jobs", "show", job["id"])
    run("jobs", "delete", job["id"])
    run("datasets", "delete", dataset)
    assert "404" in run("datasets", "show", dataset, code=2)
    assert "NAME=VALUE" in run("jobs", "create", "ds", "--set", "trials", code=2)


def test_a_data_set_is_shown_in_a_few_lines(run: Callable[..., str], served: Served) -> None:
    dataset = served.ready()
    shown = run("datasets", "show", dataset)
    assert shown.startswith(
        f"{dataset}  textures: ready\n90 pictures (60 train, 12 val, 18 test)\n3 classes: a, b, c\n"
    )
    assert re.search("64x64 +1,167 +1,750 +2,100", shown)
    assert len(shown.splitlines()) < 20
    assert json.loads(run("--json", "datasets", "show", dataset))["summary"] == SUMMARY

    broken = served.ledger.add_dataset("broken", ingest_plan("broken.zip", "broken", False, {})).id
    faults = [f"a/{number}.jpg: not a picture" for number in range(12)]
    served.ledger.end_dataset(broken, "failed", summary={}, reason="12 pictures cannot be read", faults=faults)
    lines = run("datasets", "show", broken).splitlines()
    assert lines[:3] == [f"{broken}  broken: failed", "reason: 12 pictures cannot be read", f"fault: {faults[0]}"]
    assert lines[-2:] == [f"fault: {faults[9]}", "and 2 more faults"]


def test_models_and_the_rest_by_command(run: Callable[..., str], served: Served, tmp_path: Path) -> None:
    job, model, content = served.finished(tmp_path)
    better = dataclasses.replace(served.ledger.deployment(model), id="mdl_2", trial_number=1, cost=Cost(1, 1, 1, 1.0))
    served.ledger.add_deployment(better)
    assert "best trade-off: mdl_2" in run("front", job)
    assert "mdl_2" in run("front", "--dataset", served.ledger.job(job).spec.dataset, "--objective", "macs")
    assert re.search(rf"{model} .* 66\.7%", run("models", "list", "--arch", "lcnet_050"))
    assert f"job {job}, trial 0" in run("models", "show", model)
    run("models", "download", model, "--onnx", "--out", str(tmp_path / "mine.onnx"))
    assert (tmp_path / "mine.onnx").read_bytes() == content
    (tmp_path / "folder").mkdir()
    assert run("models", "download", model, "--out", str(tmp_path / "folder")).strip().endswith("fp32.zip")
    assert len(list((tmp_path / "folder").glob("*.zip"))) == 1
    served.ledger.see_device(DeviceRecord("gate-cam", "onnxruntime 1.22.0", "d1", {"cpu": "Cortex-A53", "cores": 4}))
    listed = run("devices")
    assert "local" in listed
    assert re.search(r"gate-cam +True +\d+ s ago +Cortex-A53 +4 +- +onnxruntime 1\.22\.0", listed)
    run("forget-device", "gate-cam")
    assert "gate-cam" not in run("devices")
    assert re.search("lcnet_050 +cnn +stock", run("catalogue"))
    assert json.loads(run("health"))["status"] == "ready"


def test_folders_uploads_and_the_audit_log_by_command(
    serve: Serve, live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "allowed" / "birds" / "wren").mkdir(parents=True)
    served = serve(allowed_folder=tmp_path / "allowed")
    monkeypatch.setenv("STILLHOUSE_URL", live(create_app(served.ledger, served.store, served.settings)))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["client", *words])
        assert done.exit_code == code, done.output
        return done.output

    made = json.loads(run("--json", "datasets", "add", "--server-folder", "birds", "--name", "mine"))
    assert (made["name"], made["state"]) == ("mine", "pending")
    assert "under the folder" in run("datasets", "add", "--server-folder", "../birds", code=2)
    for words in ((), ("a.zip", "--server-folder", "birds")):
        assert "give either" in run("datasets", "add", *words, code=2)
    upload = served.http.post("/uploads", json={"size": 9, "sha256": "a" * 64}).json()["id"]
    assert json.loads(run("uploads", "show", upload))["size"] == 9
    run("uploads", "delete", upload)
    assert "no such upload" in run("uploads", "show", upload, code=2)
    (last, *_) = json.loads(run("--json", "audit", "--limit", "1"))
    assert (last["method"], last["path"]) == ("DELETE", f"/uploads/{upload}")
    assert "/datasets" in run("audit", "--before", str(last["id"]))


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, module: Any) -> io.StringIO:
    """What the module writes to its consoles, which take themselves for terminals."""
    screen = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    return screen


def test_a_transfer_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_a_terminal(monkeypatch, cli_server)
    with cli_server.transfer_bar("upload [birds].zip") as moved:
        moved(500_000, 1_000_000)
        moved(1_000_000, 1_000_000)
    drawn = screen.getvalue()
    assert "upload [birds].zip" in drawn
    assert "1.0/1.0 MB" in drawn
    assert "━" in drawn


def test_a_watched_job_draws_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_watch, "POLL_S", 0.3)  # rich draws ten times a second
    candidate = {"arch": "lcnet_050", "image_size": "32x32", "network_size": "64x64"}
    trial = {"number": 0, "state": "training", "candidate": candidate, "val_accuracy": None, "reason": None}
    trial["running"] = {"kind": "student", "progress": {}}
    job = {"state": "running", "trials": [trial], "trials_ended": 0, "trials_wanted": 2, "eta_s": 60.0}
    done = {**trial, "state": "done", "val_accuracy": 0.5, "running": None}
    states = iter([job, {**job, "state": "done", "trials": [done], "trials_ended": 2, "eta_s": None}])

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=next(states))

    screen = io.StringIO()
    with Client("http://127.0.0.1", transport=httpx.MockTransport(answer)) as client:
        cli_watch.watch_job(client, "job_1", Console(file=screen, force_terminal=True, width=120))
    drawn = screen.getvalue()
    assert "job_1" in drawn
    assert "0/2" in drawn and "running, 60 s left student" in drawn
    assert "2/2" in drawn
    assert "trial 0 lcnet_050 32x32->64x64: done, 50.0% on validation" in drawn
    assert "━" in drawn


def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["client", "--url", "http://127.0.0.1:9", "jobs", "list"])
    assert done.exit_code == 2
    assert "no Stillhouse answers at http://127.0.0.1:9" in done.output


def test_an_upload_outlasts_a_server_that_is_away_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    (tmp_path / "a.zip").write_bytes(b"zip")
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        if len(asked) in (2, 3, 4):  # the piece breaks, and so do the first questions for the offset
            raise httpx.ConnectError("away")
        done = 3 if request.method == "PATCH" else 0
        return httpx.Response(200, json={"id": "upl_1", "offset": done, "name": "a"})

    with Client("http://127.0.0.1", transport=httpx.MockTransport(answer)) as client:
        client.upload(tmp_path / "a.zip")
    assert asked == ["POST", "PATCH", "GET", "GET", "GET", "PATCH", "POST"]


def test_a_file_that_changes_while_it_is_fetched_is_told(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        etag, body = ('"one"', b"longer") if request.method == "HEAD" else ('"two"', b"new")
        return httpx.Response(200, headers={"ETag": etag}, content=body)

    with (
        Client("http://127.0.0.1", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(StillhouseError, match="has changed meanwhile"),
    ):
        client.download("mdl_1", tmp_path / "a.onnx")
