"""The API over a real ledger: doors, errors, downloads; and what it must not import."""

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from served import Serve, Served, problem
from stillhouse.search.domain import Accuracy, Candidate, Cost, Size, StageResult
from stillhouse.search.errors import CorruptArtifactError, StillhouseError, UserError
from stillhouse.service.app import create_app
from stillhouse.service.client import Client
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore

Live = Callable[[FastAPI], str]


def test_an_upload_becomes_a_data_set_and_the_same_zip_the_same_one(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"x" * 5000)
    answers = [served.http.post("/datasets", files={"file": ("p.zip", path.read_bytes())}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    stage = next(iter(served.ledger.stages([served.ledger.dataset(answers[0].json()["id"]).stage_key]).values()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert stage.plan.spec["digest"] == digest
    assert Path(stage.plan.hints["source"]).read_bytes() == path.read_bytes()
    assert [entry.name for entry in served.settings.uploads.iterdir()] == [f"{digest}.zip"]


ZIP = zipfile.ZIP_STORED
HEAD = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="p.zip"\r\n\r\n'


def zipped(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", ZIP) as archive:
        archive.writestr("a/1.png", os.urandom(size))
    return buffer.getvalue()


def test_a_large_upload_in_small_pieces_is_the_same_bytes(served: Served) -> None:
    content = zipped(300_000)
    fields = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = fields % (b"name", "Vögel".encode()) + fields % (b"skip_faults", b"true")
    body += HEAD % b"file" + content + b"\r\n--b--\r\n"
    pieces = (body[start : start + 997] for start in range(0, len(body), 997))
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = served.http.post("/datasets", content=pieces, headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.json()["name"] == "Vögel"
    (kept,) = served.settings.uploads.iterdir()
    assert kept.read_bytes() == content
    (stage,) = served.ledger.stages([served.ledger.datasets()[0].stage_key]).values()
    assert stage.plan.spec == {"digest": hashlib.sha256(content).hexdigest(), "skip_faults": True}


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (HEAD % b"file" + b"text\r\n--b--\r\n", "multipart/form-data; boundary=b", "p.zip: not a zip"),
        (HEAD % b"file" + zipped(9), "multipart/form-data; boundary=b", "cut short"),
        (HEAD % b"other" + b"\r\n--b--\r\n", "multipart/form-data; boundary=b", "in the part 'file'"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", "a part 'file'"),
        (b"rubbish", "multipart/form-data; boundary=b", "no valid multipart"),
        (b"rubbish", "multipart/form-data", "boundary"),
        (b"rubbish", "text/plain", "'text/plain'"),
        (b"{", "application/json", "body: Invalid JSON"),
    ],
)
def test_an_upload_that_is_no_zip_leaves_nothing(body: bytes, kind: str, expected: str, served: Served) -> None:
    answer = served.http.post("/datasets", content=body, headers={"content-type": kind})
    assert expected in problem(answer, 422)
    assert served.ledger.datasets() == []
    assert not served.settings.uploads.exists() or not list(served.settings.uploads.iterdir())


def test_an_upload_past_the_cap_is_refused_whole(serve: Serve) -> None:
    served = serve(max_upload_bytes=10_000)
    detail = problem(served.http.post("/datasets", files={"file": ("p.zip", b"x" * 20_000)}), 413)
    assert "10000 bytes" in detail

    def chunks() -> Any:
        yield from [b"x" * 4000] * 5

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert "10000 bytes" in problem(served.http.post("/datasets", content=chunks(), headers=headers), 413)
    assert not served.settings.uploads.exists() or not list(served.settings.uploads.iterdir())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "either 'builtin' or 'path'"),
        ({"builtin": "cats"}, "textures"),
        ({"path": "/etc"}, "reads no folders"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_data_set_that_cannot_be_named(body: dict[str, Any], expected: str, served: Served) -> None:
    assert expected in problem(served.http.post("/datasets", json=body), 422)


def test_a_path_outside_the_allowed_folder_is_refused(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "allowed" / "birds" / "x").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    served = serve(allowed_folder=tmp_path / "allowed")
    assert served.http.post("/datasets", json={"path": "birds"}).status_code == 202
    for path in ("../secret", str(tmp_path / "secret"), "nothing", "\0", "a/" * 5000):
        assert "under the folder" in problem(served.http.post("/datasets", json={"path": path}), 422)


def test_a_job_is_accepted_and_shown(served: Served) -> None:
    body = {"dataset": served.ready(), "budget": {"max_flops": 8e6, "max_image_size": 64}, "search": {"trials": 3}}
    answer = served.http.post("/jobs", json=body)
    assert answer.status_code == 202, answer.text
    job = served.http.get(f"/jobs/{answer.json()['id']}").json()
    assert job["state"] == "queued"
    assert job["spec"]["budget"] == {"max_macs": 4_000_000, "max_image_size": "64x64", "device": "local"}
    assert job["spec"]["trials"] == 3
    assert job["dataset_name"] == "textures"
    assert [entry["id"] for entry in served.http.get("/jobs").json()] == [job["id"]]


def test_an_idempotency_key_gives_the_same_job_or_a_conflict(served: Served) -> None:
    body = {"dataset": served.ready(), "budget": {}}
    headers = {"Idempotency-Key": "once"}
    first, again = (served.http.post("/jobs", json=body, headers=headers).json()["id"] for _ in range(2))
    assert first == again
    other = served.http.post("/jobs", json={**body, "search": {"seed": 1}}, headers=headers)
    assert "Idempotency" in problem(other, 422) or "idempotency" in problem(other, 422)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"budget": {"max_macs": 10}}, "max_macs"),
        ({"budget": {"max_speed": 1}}, "max_speed"),
        ({"budget": {"min_accuracy": 90}}, "between 0 and 1"),
        ({"search": {"teacher": "resnet19"}}, "did you mean resnet18"),
        ({"search": {"archs": ["lcnet_05"]}}, "did you mean lcnet_050"),
        ({"search": {"method": "tass"}}, "did you mean tas"),
        ({"search": {"trials": "many"}}, "search.trials"),
        ({"search": {"surprise": 1}}, "search.surprise"),
        ({"search": {"trials": 0}}, "trials must be >= 1"),
        ({"search": {"epochs": {"teacher": 0}}}, "epochs must each be >= 1"),
        ({"search": {"trials": 2**63}}, "2**63"),
        ({"search": {"archs": ["\0"]}}, "NUL"),
        ({"budget": {"max_macs": 10**400}}, "2**63"),
    ],
)
def test_a_job_that_cannot_be_done_says_why(more: dict[str, Any], expected: str, served: Served) -> None:
    assert expected in problem(served.http.post("/jobs", json={"dataset": served.ready(), **more}), 422)
    assert served.http.get("/jobs").json() == []


@pytest.mark.parametrize(
    "path", ["/jobs/no", "/jobs/no/pareto", "/datasets/no", "/models/no", "/models/no/onnx", "/no", "/jobs/%00"]
)
def test_what_is_not_there_is_a_404(path: str, served: Served) -> None:
    problem(served.http.get(path), 404)


def test_the_front_and_its_model(served: Served, tmp_path: Path) -> None:
    job, model, content = served.finished(tmp_path)
    front = served.http.get(f"/jobs/{job}/pareto").json()
    assert front["picks"] == {"knee": "mdl_1", "macs": "mdl_1", "image_bytes": "mdl_1"}
    (entry,) = front["front"]
    assert front["compared"] == front["others"] == []
    assert (entry["model"], entry["accuracy"], entry["split"]) == (model, pytest.approx(12 / 18), "test")
    assert (entry["image_size"], entry["network_size"], entry["latency_p95_ms"]) == (32, 64, 2.5)
    whole = served.http.get(entry["links"]["onnx"])
    assert whole.content == content
    assert whole.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert whole.headers["content-disposition"] == f'attachment; filename="{entry["file"]}"'
    assert served.http.head(entry["links"]["onnx"]).headers["content-length"] == str(len(content))
    part = served.http.get(entry["links"]["onnx"], headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, content[4:12])
    assert served.http.get(f"/models/{model}").json()["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_baseline_that_won_is_on_the_front_and_what_it_beat_beside_it(served: Served, tmp_path: Path) -> None:
    job, model, _ = served.finished(tmp_path)
    own = served.ledger.deployment(model)
    figures = {"distilled": {"correct": 12, "total": 18}}
    won = {"method": "supervised", "variant": "no_teacher", "is_baseline": True}
    served.ledger.add_deployment(
        dataclasses.replace(own, id="mdl_2", validation=Accuracy(10, 12), test=None, details=won)
    )
    served.ledger.set_test("mdl_2", Accuracy(15, 18), {"baselines": figures})
    beaten = dataclasses.replace(own, id="mdl_3", trial_number=1, validation=Accuracy(8, 12), test=None)
    served.ledger.add_deployment(beaten)
    shown = served.http.get(f"/jobs/{job}/pareto").json()
    assert [[entry["model"] for entry in shown[name]] for name in ("front", "compared", "others")] == [
        ["mdl_2"],
        [model],
        ["mdl_3"],
    ]
    (entry,) = shown["front"]
    assert (entry["variant"], entry["method"], entry["accuracy"]) == (
        "no_teacher",
        "supervised",
        pytest.approx(15 / 18),
    )
    assert entry["baselines"]["distilled"]["accuracy"] == pytest.approx(12 / 18)
    assert "no teacher beat distilled" in entry["note"]
    assert entry["file"] != shown["compared"][0]["file"]
    assert served.http.get("/models/mdl_2").json()["variant"] == "no_teacher"
    assert served.http.get(f"/jobs/{job}").json()["trials_ended"] == 0, "a variant is no trial"


def test_a_job_is_cancelled_once(served: Served) -> None:
    job = served.http.post("/jobs", json={"dataset": served.ready(), "budget": {}}).json()["id"]
    assert served.http.post(f"/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert "cancelled" in problem(served.http.post(f"/jobs/{job}/cancel"), 409)


def test_progress_of_a_running_stage_is_shown(served: Served) -> None:
    job, plan = served.http.post("/jobs", json={"dataset": served.ready(), "budget": {}}).json()["id"], None
    plan = served.ledger.stages([served.ledger.datasets()[0].stage_key])[served.ledger.datasets()[0].stage_key].plan
    served.ledger.add_trial(job, 0, Candidate("lcnet_050", Size(32, 32), Size(64, 64)), Cost(macs=10))
    served.ledger.move_trial(job, 0, expect="costing", to="training", stages=[plan.key])
    attempt = served.ledger.open_attempt(plan.key, lease_s=30, threads=1)
    assert attempt is not None
    served.ledger.renew(attempt.id, attempt.token, lease_s=30, progress={"done": 3, "total": 10})
    (trial,) = served.http.get(f"/jobs/{job}").json()["trials"]
    assert trial["running"] == {"kind": "ingest", "progress": {"done": 3, "total": 10}}
    served.ledger.commit(attempt.id, attempt.token, StageResult(), seconds=1.0)
    (trial,) = served.http.get(f"/jobs/{job}").json()["trials"]
    assert (trial["running"], trial["stages_done"]) == (None, 1)


def test_health_says_when_the_database_is_gone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served.http.get("/health").json()["status"] == "ok"

    def gone(*_: str) -> None:
        raise OSError("secret://user:password@host")

    for name in ("jobs", "jobs_mark"):
        monkeypatch.setattr(served.ledger, name, gone)
    assert "database" in problem(served.http.get("/health"), 503)
    answer = served.http.get("/jobs")
    assert "password" not in problem(answer, 500)
    assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_before_a_worker_has_published_there_is_nothing_to_plan_with(tmp_path: Path) -> None:
    app = create_app(MemoryLedger(), DiskStore(tmp_path / "a"), Settings.load(home=tmp_path))
    with TestClient(app, base_url="http://localhost") as http:
        assert "controller" in problem(http.get("/catalogue"), 503)
        assert "controller" in problem(http.post("/datasets", json={"builtin": "textures"}), 503)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "LOCALHOST", "[::1]:80"])
def test_names_of_this_machine_are_answered(host: str, served: Served) -> None:
    answer = served.http.get("/health", headers={"host": host})
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost:80:80", "testserver"])
def test_other_names_are_refused_while_bound_to_loopback(host: str, serve: Serve) -> None:
    answer = serve().http.get("/health", headers={"host": host})
    assert "localhost" in problem(answer, 400)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert serve(host="0.0.0.0").http.get("/health", headers={"host": host}).status_code == 200  # noqa: S104


def test_a_page_of_another_site_may_look_but_not_touch(served: Served) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert "another site" in problem(served.http.post("/jobs/any/cancel", headers=headers), 403)
    assert "another site" in problem(served.http.post("/datasets", files={"file": b""}, headers=headers), 403)
    assert served.http.get("/health", headers=headers).status_code == 200
    assert served.http.post("/jobs/any/cancel", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 404


def events(text: str) -> list[dict[str, Any]]:
    """Server-sent events: blocks of ``name: value`` lines."""
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [{**block, "data": json.loads(block["data"])} for block in blocks if "data" in block]


def test_events_are_replayed_from_where_the_client_was(served: Served, tmp_path: Path) -> None:
    job, _, _ = served.finished(tmp_path)
    answer = served.http.get(f"/jobs/{job}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    whole = events(answer.text)
    assert [(event["event"], event["data"]["state"]) for event in whole] == [("job", "running"), ("job", "done")]
    rest = served.http.get(f"/jobs/{job}/events", headers={"Last-Event-ID": whole[0]["id"]})
    assert events(rest.text) == whole[1:]
    over = served.http.get(f"/jobs/{job}/events", headers={"Last-Event-ID": whole[1]["id"]})
    assert (over.status_code, over.content) == (204, b"")
    problem(served.http.get("/jobs/no/events"), 404)
    assert "last-event-id" in problem(served.http.get(f"/jobs/{job}/events", headers={"Last-Event-ID": "x"}), 422)


def test_the_client_follows_a_job_across_streams(served: Served, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.service.api.events.LIFE_S", 0.0)
    monkeypatch.setattr("stillhouse.service.api.events.POLL_S", 0.01)
    job = served.http.post("/jobs", json={"dataset": served.ready(), "budget": {}}).json()["id"]
    served.ledger.move_job(job, expect=("queued",), to="running")
    with Client(live(create_app(served.ledger, served.store, served.settings))) as client:
        stream = client.events(job)
        assert next(stream)["data"]["state"] == "running"
        served.ledger.add_trial(job, 0, Candidate("lcnet_050", Size(32, 32), Size(64, 64)), Cost(macs=10))
        served.ledger.move_trial(job, 0, expect="costing", to="infeasible", reason="too slow")
        client.cancel(job)
        found = [(event["kind"], event["data"]["state"]) for event in stream]
    assert found == [("trial", "infeasible"), ("job", "cancelled")]


def test_the_openapi_document_names_every_search_field(served: Served) -> None:
    document = served.http.get("/openapi.json").json()
    fields = document["components"]["schemas"]["Search"]["properties"]
    assert {"trials", "seed", "teacher", "epochs", "fit", "ablate"} <= set(fields)
    content = document["paths"]["/datasets"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    for path, methods in document["paths"].items():
        for answer in methods.values():
            for status, entry in answer["responses"].items():
                if int(status) >= 400:
                    example = entry["content"]["application/problem+json"]["example"]
                    assert (example["status"], bool(example["detail"])) == (int(status), True), path
            if "{" in path and not path.startswith("/agents"):  # a device that asks is there from then on
                assert "404" in answer["responses"], path


def test_the_client_speaks_to_it(served: Served, tmp_path: Path, live: Live) -> None:
    job, model, content = served.finished(tmp_path)
    with Client(live(create_app(served.ledger, served.store, served.settings))) as client:
        assert client.wait(job, timeout_s=5)["state"] == "done"
        assert client.front(job)["front"][0]["model"] == model
        assert client.download(model, tmp_path / "mine.onnx").read_bytes() == content
        with pytest.raises(UserError, match="404"):
            client.download("mdl_no", tmp_path / "none.onnx")
        assert not list(tmp_path.glob("none*"))
        with pytest.raises(UserError, match="max_macs"):
            client.create_job(client.builtin("textures")["id"], {"max_macs": -1})
        (tmp_path / "birds.zip").write_bytes(zipped(10))
        assert client.upload(tmp_path / "birds.zip", name="birds")["name"] == "birds"
        assert not list(tmp_path.glob(".*tmp"))


def test_the_client_keeps_no_file_that_came_wrong(tmp_path: Path) -> None:
    model = "mdl_1"

    def tampered(request: httpx.Request) -> httpx.Response:
        assert request.url.path == f"/models/{model}/onnx"
        return httpx.Response(200, content=b"other", headers={"etag": '"' + "0" * 64 + '"'})

    with (
        Client("http://127.0.0.1", transport=httpx.MockTransport(tampered)) as client,
        pytest.raises(CorruptArtifactError, match=model),
    ):
        client.download(model, tmp_path / "mine.onnx")
    assert not list(tmp_path.glob("*mine*"))


@pytest.mark.parametrize(
    ("status", "content", "kind", "expected"),
    [
        (422, b'{"detail": "2 faults", "faults": ["a.jpg: text", "b.jpg: empty"]}', UserError, "a.jpg: text\n  b.jpg"),
        (502, b"<html>bad gateway", StillhouseError, "502: <html>"),
        (500, b"[]", StillhouseError, "500"),
    ],
)
def test_the_client_tells_what_the_server_said(
    status: int, content: bytes, kind: type[StillhouseError], expected: str
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=content))
    with Client("http://127.0.0.1", transport=transport) as client, pytest.raises(kind, match=expected) as caught:
        client.job("any")
    assert type(caught.value) is kind
