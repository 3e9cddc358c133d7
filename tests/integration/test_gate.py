"""Nobody gets in who should not: routes ask for keys, keys open what their scopes say, quotas and limits hold."""

from __future__ import annotations

import io
import os
import re
import time
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from keys import bearer, every_route, make_key
from served import Serve, Served, problem
from stillhouse.search.domain import StageKind, StagePlan
from stillhouse.search.errors import AwayError
from stillhouse.service import gate
from stillhouse.service.app import create_app
from stillhouse.service.client import Client
from stillhouse.service.gate import Rule, rule_of
from stillhouse.service.guard import SAFE

Live = Callable[[FastAPI], str]
ANY = "0.0.0.0"  # noqa: S104 - it is not listened on


def test_without_a_key_everything_is_open_on_loopback(served: Served) -> None:
    dataset = served.ready()
    assert served.ledger.dataset(dataset).tenant == "default"
    assert served.http.post("/jobs", json={"dataset": dataset}).status_code == 202


@pytest.mark.parametrize("why", ["a key exists", "a key was revoked", "a public bind"])
def test_every_route_but_health_asks_for_a_key(why: str, serve: Serve) -> None:
    served = serve(host=ANY) if why == "a public bind" else serve()
    if why != "a public bind":
        secret = make_key(served)
        if why == "a key was revoked":
            assert served.ledger.accounts.revoke("key_" + secret.split("_")[1])
    found = list(every_route(served.http.app.routes))  # type: ignore[attr-defined]
    assert len(found) > 30
    assert {"/jobs/x1/cancel", "/attempts/x1/commit", "/openapi.json", "/ui/jobs/x1"} <= {path for _, path in found}
    opened = set()
    for method, path in found:
        answer = served.http.request(method, path, follow_redirects=False)
        if answer.status_code != 401:
            opened.add(path)
        elif path != "/sign-in":
            assert answer.headers["www-authenticate"] == "Bearer"
    way_in = {"/sign-in", "/sign-out", "/static/plotly.min.js"}
    assert {path for path in opened if not path.startswith("/health")} == way_in
    assert served.http.post("/sign-in", data={"key": "x"}).status_code == 401


@pytest.mark.parametrize(
    "secret", ["x", "sth_000000000000_" + "A" * 43, "sth_", "", "\u00e9", "a" * 10_000, "sth_%_" + "A" * 43]
)
def test_a_wrong_key_is_no_key(secret: str, served: Served) -> None:
    good = make_key(served)
    for wrong in (secret, good[:-1], good + "A", good[:-1] + ("A" if good[-1] != "A" else "B"), good.upper()):
        answer = served.http.get("/jobs", headers={"Authorization": f"Bearer {wrong}".encode()})
        assert "key" in problem(answer, 401)
    assert served.http.get("/jobs", headers=bearer(good)).status_code == 200
    assert served.http.get("/jobs", headers={"Authorization": good}).status_code == 401


def test_keys_expire_and_are_revoked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "RECALL_S", 0.5)
    short, long = make_key(served, expires_in_s=60), make_key(served)
    assert served.http.get("/jobs", headers=bearer(short)).status_code == 200
    now = time.time()
    monkeypatch.setattr("stillhouse.service.gate.time.time", lambda: now + 61)
    assert "expired" in problem(served.http.get("/jobs", headers=bearer(short)), 401)
    assert served.http.get("/jobs", headers=bearer(long)).status_code == 200
    assert served.ledger.accounts.revoke("key_" + long.split("_")[1])
    assert served.http.get("/jobs", headers=bearer(long)).status_code == 200, "what was said of it is recalled"
    time.sleep(gate.RECALL_S)
    assert "revoked" in problem(served.http.get("/jobs", headers=bearer(long)), 401)


def test_the_database_holds_no_secret(served: Served) -> None:
    secret = make_key(served)
    (key,) = served.ledger.accounts.all_keys()
    _, stored = served.ledger.accounts.find(key.id) or (None, "")
    assert re.fullmatch("[0-9a-f]{64}", stored)
    assert secret.split("_", 2)[2] not in repr((key, stored))


def test_scopes(served: Served) -> None:
    dataset = served.ready()
    reads, writes, works = (bearer(make_key(served, scope)) for scope in ("read", "write", "worker"))
    body = {"dataset": dataset, "budget": {}}
    assert "scope write" in problem(served.http.post("/jobs", json=body, headers=reads), 403)
    assert served.http.post("/estimates", json=body, headers=reads).status_code == 200
    assert served.http.post("/jobs", json=body, headers=writes).status_code == 202
    assert "scope read" in problem(served.http.get("/jobs", headers=writes), 403)
    for method, path in every_route(served.http.app.routes):  # type: ignore[attr-defined]
        if rule_of(path) not in (Rule.OPEN, Rule.ATTEMPT, Rule.MACHINE):
            assert served.http.request(method, path, headers=works).status_code == 403, path
    assert served.http.get("/metrics", headers=works).status_code == 200
    for other in (reads, writes):
        assert "scope worker" in problem(served.http.get("/metrics", headers=other), 403)


def test_an_undeclared_route_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "RECALL_S", 0.0)
    app: FastAPI = served.http.app  # type: ignore[assignment]
    app.get("/novelty")(lambda: {"open": True})
    app.post("/novelty/deep")(lambda: {"open": True})
    for method, path in (("GET", "/novelty"), ("POST", "/novelty/deep")):
        assert "nobody may" in problem(served.http.request(method, path), 403)
    key = bearer(make_key(served))
    for method, path in (("GET", "/novelty"), ("POST", "/novelty/deep")):
        assert "key" in problem(served.http.request(method, path), 401)
        assert "nobody may" in problem(served.http.request(method, path, headers=key), 403)
    problem(served.http.get("/nothing", headers=key), 404)


@pytest.mark.parametrize(
    "path", ["//jobs", "/health/../jobs", "/static/../jobs", "/health%2f..%2fjobs", "/static//jobs"]
)
def test_an_address_cannot_pretend(path: str, served: Served) -> None:
    make_key(served)
    transport = served.http._transport
    sent = served.http.build_request("GET", "http://127.0.0.1/")
    sent.url = sent.url.copy_with(raw_path=path.encode())
    assert transport.handle_request(sent).status_code in (401, 404)


def test_every_rule_has_a_route(served: Served) -> None:
    nouns = {path.split("/")[1] for _, path in every_route(served.http.app.routes)}  # type: ignore[attr-defined]
    assert nouns | {"static"} == set(gate.RULES)


# ---------------------------------------------------------------------------------------- browsers


def test_a_browser_signs_in_and_out(served: Served) -> None:
    secret, http = make_key(served, "read", "write"), served.http
    page = http.get("/ui/jobs/x")
    assert page.status_code == 401
    assert 'action="/sign-in"' in page.text
    assert 'value="/ui/jobs/x"' in page.text
    wrong = http.post("/sign-in", data={"key": "sth_no", "next": "/"})
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    answer = http.post("/sign-in", data={"key": secret, "next": "/ui/new"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/new")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "max-age" not in cookie.lower()
    assert http.get("/ui/new").status_code == 200
    assert http.get("/jobs").status_code == 200
    assert http.post("/jobs/x/cancel").status_code == 404
    assert "another site" in problem(http.post("/jobs/x/cancel", headers={"Sec-Fetch-Site": "same-site"}), 403)
    assert "another site" in problem(http.post("/jobs/x/cancel", headers={"Origin": "http://127.0.0.1:9"}), 403)
    assert http.post("/jobs/x/cancel", headers={"Origin": "http://127.0.0.1"}).status_code == 404
    http.post("/sign-out")
    assert http.get("/jobs").status_code == 401


@pytest.mark.parametrize("wanted", ["//evil.example", "https://evil.example", "/\\evil.example", "", "/a\r\nX: y"])
def test_signing_in_leads_nowhere_else(wanted: str, served: Served) -> None:
    form = {"key": make_key(served), "next": wanted}
    assert served.http.post("/sign-in", data=form, follow_redirects=False).headers["location"] == "/"


def test_the_cookie_of_an_encrypted_connection_stays_on_it(served: Served) -> None:
    secret = make_key(served)
    with TestClient(served.http.app, base_url="https://127.0.0.1") as http:
        assert "Secure" in http.post("/sign-in", data={"key": secret}, follow_redirects=False).headers["set-cookie"]


def test_answers_tell_caches_and_frames_to_keep_out(served: Served) -> None:
    for path in ("/jobs", "/", "/none", "/openapi.json"):
        headers = served.http.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "no-store" not in served.http.get("/static/style.css").headers.get("cache-control", "")


# --------------------------------------------------------------------------- limits, hosts, audit


def test_the_rate_is_limited_by_key(serve: Serve) -> None:
    served = serve(request_burst=5, requests_per_s=0.5)
    one, two = bearer(make_key(served)), bearer(make_key(served))
    assert [served.http.get("/jobs", headers=one).status_code for _ in range(6)] == [200] * 5 + [429]
    answer = served.http.get("/jobs", headers=one)
    assert "too many requests" in problem(answer, 429)
    assert 1 <= int(answer.headers["retry-after"]) <= 3
    assert served.http.get("/jobs", headers=two).status_code == 200
    assert [served.http.get("/jobs").status_code for _ in range(6)] == [401] * 5 + [429]
    assert served.http.get("/jobs", headers=two).status_code == 200


def zipped(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/1.png", os.urandom(size))
    return buffer.getvalue()


def test_quotas(serve: Serve) -> None:
    served = serve(max_live_jobs_per_key=2, max_dataset_bytes_per_key=3000)
    dataset, one, two = served.ready(), bearer(make_key(served)), bearer(make_key(served))
    jobs = [served.http.post("/jobs", json={"dataset": dataset, "search": {"seed": s}}, headers=one) for s in (1, 2, 3)]
    assert [answer.status_code for answer in jobs] == [202, 202, 429]
    assert "2 jobs" in problem(jobs[2], 429)
    assert served.http.post("/jobs", json={"dataset": dataset}, headers=two).status_code == 202
    served.http.post(f"/jobs/{jobs[0].json()['id']}/cancel", headers=one)
    assert served.http.post("/jobs", json={"dataset": dataset}, headers=one).status_code == 202

    def upload(size: int, key: dict[str, str]) -> Any:
        return served.http.post("/datasets", files={"file": ("p.zip", zipped(size))}, headers=key)

    first = upload(1500, one)
    assert first.status_code == 202
    assert "3000 bytes" in problem(upload(1500, one), 403)
    assert "3000 bytes" in problem(
        served.http.post("/uploads", json={"size": 2000, "sha256": "ab" * 32}, headers=one), 403
    )
    assert len(list(served.settings.uploads.glob("*"))) == 1, "what is refused is not kept"
    assert upload(1500, two).status_code == 202
    served.ledger.end_dataset(first.json()["id"], "failed", summary={}, reason="x", faults=())
    assert served.http.delete(f"/datasets/{first.json()['id']}", headers=one).status_code == 204
    assert upload(1500, one).status_code == 202


@pytest.mark.parametrize(
    ("host", "status"),
    [("stillhouse.example", 200), ("STILLHOUSE.example:8000", 200), ("127.0.0.1", 200), ("evil.example", 400)],
)
def test_named_hosts_only(host: str, status: int, serve: Serve) -> None:
    served = serve(host=ANY, allowed_hosts="stillhouse.example, other.example")
    assert served.http.get("/health", headers={"host": host}).status_code == status


def test_the_audit_log_tells_a_tenant_what_its_keys_did(served: Served) -> None:
    ours, theirs = bearer(make_key(served, tenant="a")), bearer(make_key(served, tenant="b"))
    served.http.post("/datasets", json={"builtin": "textures"}, headers=ours)
    refused = served.http.post("/jobs/no/cancel", headers=ours)
    served.http.post("/jobs/no/cancel", headers=theirs)
    served.http.get("/jobs", headers=ours)
    served.http.post("/jobs/no/cancel")
    found = served.http.get("/audit", headers=ours).json()
    assert [(deed["method"], deed["path"], deed["status"]) for deed in found] == [
        ("POST", "/jobs/no/cancel", 404),
        ("POST", "/datasets", 202),
    ]
    assert found[0]["request_id"] == refused.headers["x-request-id"]
    assert {deed["tenant"] for deed in found} == {"a"}
    assert {deed["key_id"] for deed in found} == {"key_" + ours["Authorization"].split("_")[1]}
    (older,) = served.http.get("/audit", params={"before": found[0]["id"]}, headers=ours).json()
    assert older == found[1]


def test_every_route_that_may_change_something_is_written_down_once(served: Served) -> None:
    key = bearer(make_key(served, "read", "write", tenant="lab"))
    routes = list(every_route(served.http.app.routes))  # type: ignore[attr-defined]
    changing = [(m, path) for m, path in routes if m not in SAFE and rule_of(path) is Rule.BY_METHOD]
    assert {"POST", "PATCH", "DELETE"} <= {method for method, _ in changing}
    assert len(changing) > 8
    for method, path in changing:
        before = len(served.http.get("/audit", headers=key).json())
        answer = served.http.request(method, path, headers=key)
        added = served.http.get("/audit", headers=key).json()[: -before or None]
        wanted = [(method, path, answer.status_code, answer.headers["x-request-id"])]
        assert [(deed["method"], deed["path"], deed["status"], deed["request_id"]) for deed in added] == wanted
    told = len(changing)
    for method, path in routes:
        if (method, path) not in changing:
            served.http.request(method, path, headers=key, follow_redirects=False)
    assert len(served.http.get("/audit?limit=1000", headers=key).json()) == told, "what looks only is not written down"


def test_the_client_sends_its_key(served: Served, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = make_key(served)
    address = live(create_app(served.ledger, served.store, served.settings))
    with Client(address, api_key=secret) as client:
        assert client.builtin("textures")["name"] == "textures"
    with Client(address) as client, pytest.raises(Exception, match="401"):
        client.builtin("textures")
    monkeypatch.setenv("STILLHOUSE_API_KEY", secret)
    with Client(address) as client:
        assert client.builtin("textures")["name"] == "textures"


def test_while_the_database_is_away_nobody_gets_in(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    key = bearer(make_key(served))

    def away(*_: object) -> None:
        raise AwayError("postgresql://user:password@host does not answer")

    monkeypatch.setattr(served.ledger.accounts, "find", away)
    answer = served.http.get("/jobs", headers=key)
    assert "postgresql" not in problem(answer, 503)
    assert answer.headers["retry-after"] == "5"
    monkeypatch.setattr(served.ledger.accounts, "any_key", away)
    served.http.app.middleware_stack = None  # type: ignore[attr-defined]
    problem(served.http.get("/jobs"), 503)


def test_an_attempt_is_opened_by_its_own_token_alone(served: Served) -> None:
    attempts = []
    for name in ("one", "two"):
        stage = served.ledger.add_dataset(name, StagePlan(StageKind.INGEST, {"name": name})).stage_key
        attempt = served.ledger.open_attempt(stage, lease_s=30, threads=1)
        assert attempt is not None
        attempts.append(attempt)
    one, two = attempts
    served.http.app.get("/attempts/{attempt_id}/unguarded")(lambda: {"open": True})  # type: ignore[attr-defined]
    key = make_key(served)
    for method, path in every_route(served.http.app.routes, fill=False):  # type: ignore[attr-defined]
        if rule_of(path) is Rule.ATTEMPT:
            address = path.replace("{attempt_id}", one.id).replace("{sha256}", "ab" * 32)
            for wrong in (two.token, key, "x", one.token[:-1]):
                assert served.http.request(method, address, headers=bearer(wrong)).status_code == 401, path
    assert served.http.get(f"/attempts/{one.id}/unguarded", headers=bearer(one.token)).status_code == 200
    assert served.http.get(f"/attempts/{one.id}", headers=bearer(one.token)).status_code == 200
    assert served.http.get("/jobs", headers=bearer(one.token)).status_code == 401
