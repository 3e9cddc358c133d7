"""What the present state forbids is a 409, whatever was asked for."""

from __future__ import annotations

from pathlib import Path

import httpx

from served import Served, problem
from stillhouse.service.client import Client


def test_a_state_that_forbids_is_a_409(served: Served, tmp_path: Path) -> None:
    done, _, _ = served.finished(tmp_path)
    dataset = served.http.post("/datasets", json={"path": None, "builtin": "textures"}).json()["id"]
    body = {"dataset": dataset, "search": {"seed": 7}}
    queued = served.http.post("/jobs", json=body).json()["id"]
    for method, url, told in (
        ("POST", f"/jobs/{done}/cancel", "done"),
        ("POST", f"/jobs/{done}/retry", "done"),
        ("POST", f"/jobs/{queued}/retry", "queued"),
        ("DELETE", f"/jobs/{queued}", "cancel it first"),
        ("DELETE", f"/datasets/{dataset}", "jobs"),
    ):
        assert told in problem(served.http.request(method, url), 409), url
    document = served.http.get("/openapi.json").json()["paths"]
    for path in ("/jobs/{job_id}/cancel", "/jobs/{job_id}/retry"):
        assert "409" in document[path]["post"]["responses"]


def test_an_idempotency_key_with_another_body_is_a_422(served: Served) -> None:
    body = {"dataset": served.ready()}
    headers = {"Idempotency-Key": "once"}
    assert served.http.post("/jobs", json=body, headers=headers).status_code == 202
    other = served.http.post("/jobs", json={**body, "search": {"seed": 1}}, headers=headers)
    assert "another" in problem(other, 422)


def test_an_empty_idempotency_key_is_no_key(served: Served) -> None:
    body = {"dataset": served.ready()}
    said = problem(served.http.post("/jobs", json=body, headers={"Idempotency-Key": ""}), 422)
    assert "idempotency-key" in said and "at least 1 character" in said
    assert served.http.get("/jobs").json() == []
    sent: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("idempotency-key"))
        return httpx.Response(202, json={})

    with Client("http://127.0.0.1", transport=httpx.MockTransport(answer)) as client:
        client.create_job("ds", {}, idempotency_key="")
        client.create_job("ds", {})
    assert sent == ["", None], "the client hides nothing from the server"
