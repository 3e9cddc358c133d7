"""Errors are problem documents of RFC 9457: their types are told apart, documented, and say what to do."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from keys import bearer, every_route, make_key
from served import Served, problem
from stillhouse.search import errors
from stillhouse.search.errors import UserError
from stillhouse.service.problems import KINDS, PREFIX, Problem, kind_of

ROOT = Path(__file__).parents[2]


def test_the_page_tells_of_every_type() -> None:
    rows = re.findall(r"^\| `/problems/([a-z-]+)` \| ([0-9, ]+) \|", (ROOT / "docs" / "problems.md").read_text(), re.M)
    assert [name for name, _ in rows] == list(KINDS)
    told = Problem.model_json_schema()["properties"]["type"]["enum"]
    assert told == ["about:blank", *(PREFIX + name for name in KINDS)]
    titles = [title for title, _ in KINDS.values()]
    assert len(set(titles)) == len(titles)
    assert all(" " in title and "Error" not in title for title in titles), "words, not the names of classes"


def test_every_error_of_a_user_has_a_type_of_its_own() -> None:
    known = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, UserError)]
    assert len({kind_of(each("x")) for each in known}) == len(known)


@pytest.mark.parametrize(
    ("method", "url", "status", "kind"),
    [
        ("GET", "/jobs/no", 404, "not-found"),
        ("GET", "/nothing", 404, None),
        ("DELETE", "/jobs", 405, None),
        ("GET", "/jobs?limit=0", 422, "malformed"),
        ("GET", "/jobs?after=x", 422, "request"),
        ("GET", "/jobs?dataset=%00", 400, None),
        ("POST", "/jobs/no/cancel", 404, "not-found"),
    ],
)
def test_types_and_titles(method: str, url: str, status: int, kind: str | None, served: Served) -> None:
    answer = served.http.request(method, url)
    problem(answer, status)
    body = answer.json()
    wanted = ("about:blank", HTTPStatus(status).phrase) if kind is None else (PREFIX + kind, KINDS[kind][0])
    assert (body["type"], body["title"]) == wanted


def test_types_of_what_takes_more_to_meet(served: Served) -> None:
    dataset = served.ready()
    for body, kind in (
        ({"dataset": dataset, "budget": {"min_accuracy": 90}}, "budget"),
        ({"dataset": dataset, "budget": {"max_macs": 10}}, "infeasible"),
        ({"dataset": dataset, "search": {"method": "tass"}}, "unknown-name"),
    ):
        answer = served.http.post("/jobs", json=body)
        problem(answer, 422)
        assert answer.json()["type"] == PREFIX + kind
    for seed, status in ((0, 202), (1, 422)):
        body = {"dataset": dataset, "search": {"seed": seed}}
        again = served.http.post("/jobs", json=body, headers={"Idempotency-Key": "once"})
        assert again.status_code == status
    assert again.json()["type"] == PREFIX + "key-reused"
    assert served.http.post("/datasets", json={}).json()["type"] == PREFIX + "dataset"
    made = served.http.post("/uploads", json={"size": 9, "sha256": "a" * 64}).json()["id"]
    wrong = served.http.patch(f"/uploads/{made}", content=b"x", headers={"Upload-Offset": "5"})
    assert (wrong.json()["type"], wrong.headers["upload-offset"]) == (PREFIX + "upload-offset", "0")
    evil = served.http.get("/jobs", headers={"Host": "evil.example"})
    assert evil.json()["type"] == PREFIX + "unknown-host"
    site = served.http.post("/jobs/x/cancel", headers={"Sec-Fetch-Site": "cross-site"})
    assert site.json()["type"] == PREFIX + "cross-site"


def test_a_range_that_is_not_there_is_a_problem(served: Served, tmp_path: Path) -> None:
    _, model, content = served.finished(tmp_path)
    answer = served.http.get(f"/models/{model}/onnx", headers={"Range": f"bytes={len(content)}-"})
    assert "HEAD gives its length" in problem(answer, 416)
    assert answer.headers["content-range"] == f"bytes */{len(content)}"
    problem(served.http.get(f"/models/{model}/onnx", headers={"Range": "bytes=b-a"}), 400)


def test_a_wrong_method_or_content_type_is_told_the_right_one(served: Served) -> None:
    answer = served.http.put("/jobs", json={})
    assert "this address takes GET, POST, but got PUT" in problem(answer, 405)
    assert answer.headers["allow"] == "GET, POST"
    for url in ("/jobs", "/estimates", "/uploads", "/datasets"):
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            told = problem(served.http.post(url, content=b"{}", headers={"Content-Type": kind}), 422)
            assert "application/json" in told and repr(kind) in told, url
    assert "send JSON as" not in problem(served.http.post("/jobs", json=[]), 422)


def test_unknown_query_parameters_are_told_the_known_ones(served: Served) -> None:
    told = problem(served.http.get("/jobs?cursor=zzz"), 422)
    assert "query.cursor" in told
    assert "known: after, dataset, limit, state" in told
    told = problem(served.http.get("/jobs?limits=5&state=done&x=1"), 422)
    assert "query.limits" in told and "did you mean limit?" in told and "query.x" in told
    assert "known: none" in problem(served.http.get("/datasets?limit=5"), 422)
    assert "query.dry" in problem(served.http.post("/jobs/no/cancel?dry=1"), 422)
    for url in ("/jobs?state=done&state=failed&limit=5", "/health/live", "/ui/new?like=job_1"):
        assert served.http.get(url).status_code == 200, url


def test_every_route_of_the_api_refuses_what_it_does_not_know(served: Served) -> None:
    key = bearer(make_key(served))
    for method, path in every_route(served.http.app.routes):  # type: ignore[attr-defined]
        if path in ("/", "/openapi.json") or path.startswith(("/ui", "/sign", "/static", "/attempts")):
            continue
        answer = served.http.request(method, f"{path}?bogus=1", headers=key)
        assert answer.status_code == 422, (method, path)
        assert method == "HEAD" or "query.bogus" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "place", "told"),
    [
        ({"serch": {}}, "body.serch", "did you mean search?"),
        ({"search": {"bogus": 1}}, "body.search.bogus", "trials"),
        ({"search": {"trial": 1}}, "body.search.trial", "did you mean trials"),
        ({"budget": {"max_mac": 1}}, "body.budget.max_mac", "did you mean max_macs"),
        ({"search": {"epochs": {"teachers": 1}}}, "body.search.epochs.teachers", "did you mean teacher"),
    ],
)
def test_unknown_fields_are_told_the_near_or_the_allowed(
    body: dict[str, Any], place: str, told: str, served: Served
) -> None:
    for url in ("/jobs", "/estimates"):
        said = problem(served.http.post(url, json={"dataset": served.ready(), **body}), 422)
        assert f"{place}: there is no such name here" in said
        assert told in said
    assert "did you mean builtin" in problem(served.http.post("/datasets", json={"built_in": "textures"}), 422)
