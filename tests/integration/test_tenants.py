"""Across tenants nothing is there: a matrix over every route with an id, every list, and every method of the ledger."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from keys import bearer, every_route, make_key
from served import SUMMARY, Served, pictures, problem
from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Size, StageKind, StagePlan
from stillhouse.search.errors import ConflictError, NotFoundError, QuotaError
from stillhouse.search.job import JobSpec
from stillhouse.search.owner import Owner
from stillhouse.search.ports import Ledger
from stillhouse.service.accounts import Caller, ServiceLedger
from stillhouse.service.api.kept import Kept
from stillhouse.service.db.lists import JobFilter, Lists, ModelFilter
from stillhouse.service.db.tenant import TenantLedger
from stillhouse.service.gate import Rule, rule_of

NO_ID = ("health", "sign-in", "sign-out", "catalogue", "devices", "openapi.json")
"""Nouns whose answers are no tenant's."""


class Two:
    """What tenant ``a`` has, the key of ``a``, and that of ``b``."""

    def __init__(self, served: Served, tmp_path: Path) -> None:
        self.served, self.http = served, served.http
        self.a, self.b = (bearer(make_key(served, tenant=name)) for name in "ab")
        dataset = self.http.post("/datasets", json={"builtin": "textures"}, headers=self.a).json()["id"]
        served.ledger.end_dataset(dataset, "ready", summary=SUMMARY, reason=None, faults=())
        job = self.http.post("/jobs", json={"dataset": dataset}, headers=self.a).json()["id"]
        (tmp_path / "model.onnx").write_bytes(b"onnx")
        candidate = Candidate("lcnet_050", Size(32, 32), Size(64, 64))
        served.ledger.add_trial(job, 0, candidate, Cost(macs=10))
        cost = Cost(10, 20, 30, 40.0, Size(32, 32), 1.5, 2.5, 50)
        sha256 = served.store.put(tmp_path / "model.onnx")
        model = Deployment("mdl_a", job, 0, candidate, cost, "fp32", Accuracy(9, 12), sha256, {"fit": "squash"})
        served.ledger.add_deployment(model)
        served.ledger.move_job(job, expect=("queued",), to="running")
        content = pictures()
        offer = {"size": len(content), "sha256": "ab" * 32}
        upload = self.http.post("/uploads", json=offer, headers=self.a).json()["id"]
        self.ids = {"dataset_id": dataset, "job_id": job, "model_id": "mdl_a", "upload_id": upload, "number": "0"}
        self.secrets = (dataset, job, "mdl_a", upload, sha256)


@pytest.fixture
def two(served: Served, tmp_path: Path) -> Two:
    return Two(served, tmp_path)


BODIES: Mapping[str, Any] = {
    "/uploads/{upload_id}/complete": {"json": {}},
    "PATCH": {"headers": {"Upload-Offset": "0"}},
}


def test_what_another_tenant_has_is_not_there(two: Two) -> None:
    """Every route with an id: 404 with the other tenant's key, in the words of an id that does not exist."""
    checked = 0
    for method, template in every_route(two.http.app.routes, fill=False):  # type: ignore[attr-defined]
        names = re.findall(r"{(\w+)}", template)
        if not names or "device" in names:  # devices serve all tenants alike
            continue
        if rule_of(template) is Rule.ATTEMPT or template.startswith("/ui/"):
            continue
        assert set(names) <= two.ids.keys(), f"say in this test what {template} is asked for with"
        body = dict(BODIES.get(template, BODIES.get(method, {})))
        extra = body.pop("headers", {})
        texts = []
        for ids in (two.ids, {name: f"{name}_no" if name != "number" else "0" for name in two.ids}):
            answer = two.http.request(method, template.format(**ids), headers=two.b | extra, **body)
            assert answer.status_code == 404, (method, template, answer.text)
            texts.append(re.sub("|".join(map(re.escape, ids.values())), "X", answer.text.replace(ids["job_id"], "X")))
        assert texts[0] == texts[1], "a tenant must not be able to tell what others have from what nobody has"
        checked += 1
    assert checked >= 15
    assert two.http.get(f"/ui/jobs/{two.ids['job_id']}", headers=two.b).status_code == 404
    job = two.served.ledger.job(two.ids["job_id"])
    assert job.state == "running"
    assert two.http.get(f"/jobs/{job.id}", headers=two.a).status_code == 200
    assert two.http.get(f"/uploads/{two.ids['upload_id']}", headers=two.a).status_code == 200


def test_lists_hold_nothing_of_another_tenant(two: Two) -> None:
    listed = 0
    for _ in range(2):  # a second time from what was kept for a
        for method, path in every_route(two.http.app.routes, fill=False):  # type: ignore[attr-defined]
            if method != "GET" or "{" in path or rule_of(path) is Rule.OPEN or path.strip("/") in NO_ID:
                continue
            params = {"dataset": two.ids["dataset_id"]} if path == "/pareto" else {}
            ours = two.http.get(path, headers=two.a, params=params)
            theirs = two.http.get(path, headers=two.b, params=params)
            assert ours.status_code == 200, (path, ours.text)
            assert theirs.status_code in (200, 404), path
            assert not [secret for secret in two.secrets if secret in theirs.text.split('"detail"')[0]], path
            listed += any(secret in ours.text for secret in two.secrets)
    assert listed >= 6


def test_nothing_is_made_of_what_another_tenant_has(two: Two) -> None:
    body = {"dataset": two.ids["dataset_id"], "budget": {}}
    for path in ("/jobs", "/estimates"):
        assert two.ids["dataset_id"] in problem(two.http.post(path, json=body, headers=two.b), 404)


def test_idempotency_keys_are_a_tenants_own(two: Two) -> None:
    other = two.http.post("/datasets", json={"builtin": "textures"}, headers=two.b).json()["id"]
    assert other != two.ids["dataset_id"], "the same pictures, but b's own data set"
    two.served.ledger.end_dataset(other, "ready", summary=SUMMARY, reason=None, faults=())
    jobs = [
        two.http.post("/jobs", json={"dataset": dataset}, headers=key | {"Idempotency-Key": "once"}).json()["id"]
        for key, dataset in ((two.a, two.ids["dataset_id"]), (two.b, other), (two.b, other))
    ]
    assert jobs[0] != jobs[1] == jobs[2]


# -------------------------------------------------------------------------------------- the ledger

SPEC = StagePlan(StageKind.INGEST, {"name": "birds"})
SHARED = {"stages", "attempts", "reopen_stage", "device_seconds", "stage_seconds", "catalogue", "last_host"}
SHARED |= {"results", "devices", "forget_device"}
"""By content, or no tenant's."""
MADE = {"add_dataset", "add_job", "dataset_bytes"}
CALLS: Mapping[str, Any] = {
    "dataset": lambda view, ids: view.dataset(ids["dataset"]),
    "delete_dataset": lambda view, ids: view.delete_dataset(ids["dataset"]),
    "job": lambda view, ids: view.job(ids["job"]),
    "move_job": lambda view, ids: view.move_job(ids["job"], expect=("queued",), to="cancelled"),
    "trials": lambda view, ids: view.trials(ids["job"]),
    "move_trial": lambda view, ids: view.move_trial(ids["job"], 0, expect="costing", to="failed"),
    "deployment": lambda view, _: view.deployment("mdl_a"),
    "deployments": lambda view, ids: view.deployments(ids["job"]),
    "emit": lambda view, ids: view.emit(ids["job"], "note", {}),
    "events": lambda view, ids: view.events(ids["job"]),
    "trial_page": lambda view, ids: view.trial_page(ids["job"], states=(), limit=9),
    "delete_job": lambda view, ids: view.delete_job(ids["job"]),
}
LISTS: Mapping[str, Any] = {
    "datasets": lambda view: view.datasets(tenant="a"),
    "jobs": lambda view: view.jobs(tenant="a"),
    "job_lines": lambda view: view.job_lines(JobFilter(tenant="a"), limit=9),
    "model_page": lambda view: view.model_page(ModelFilter(tenant="a"), limit=9),
    "job_marks": lambda view: list(view.job_marks([job.id for job in view._all.jobs()], tenant="a")),
    "jobs_mark": lambda view: [part for part in view.jobs_mark("a")[:1] if part],
}


def filled(ledger: ServiceLedger) -> dict[str, str]:
    dataset = ledger.add_dataset("birds", SPEC, owner=Owner("a"))
    job = ledger.add_job(JobSpec(dataset.id), owner=Owner("a")).id
    candidate = Candidate("resnet18", Size(32, 48), Size(64, 96))
    ledger.add_trial(job, 0, candidate, Cost(macs=1))
    ledger.add_deployment(Deployment("mdl_a", job, 0, candidate, Cost(), "fp32", Accuracy(1, 2), "ab" * 32, {}))
    return {"dataset": dataset.id, "job": job}


def test_the_view_of_a_tenant(ledger: ServiceLedger) -> None:
    ids = filled(ledger)
    own, other = TenantLedger(ledger, Owner("a")), TenantLedger(ledger, Owner("b"))
    for name, call in CALLS.items():
        with pytest.raises(NotFoundError):
            call(other, ids)
        if not name.startswith("delete"):
            call(own, ids)
    for name, call in LISTS.items():
        assert call(other) == [], name
        assert call(own) != [], name
    with pytest.raises(NotFoundError):
        other.add_job(JobSpec(ids["dataset"]), owner=Owner("a"))
    with pytest.raises(NotFoundError):
        ledger.add_job(JobSpec(ids["dataset"]), owner=Owner("b"))
    assert other.add_dataset("birds", SPEC, owner=Owner("a")).tenant == "b"


def test_every_method_of_the_ledger_is_thought_of() -> None:
    methods = {name for port in (Ledger, Lists) for name, _ in inspect.getmembers(port, inspect.isfunction)}
    methods = {name for name in methods if not name.startswith("_")}
    refused = {name for name in methods if getattr(TenantLedger, name, None) is TenantLedger._refused}
    assert methods == SHARED | MADE | set(CALLS) | set(LISTS) | refused
    with pytest.raises(PermissionError):
        TenantLedger(None, Owner("a")).commit("att_1", "token", None, seconds=1.0)  # type: ignore[arg-type]


def test_the_same_pictures_are_read_once_for_all(ledger: ServiceLedger) -> None:
    one = ledger.add_dataset("birds", SPEC, owner=Owner("a"))
    two = ledger.add_dataset("finches", SPEC, owner=Owner("b"))
    assert (one.stage_key, one.name) == (two.stage_key, "birds")
    assert (two.id != one.id, two.name, two.tenant) == (True, "finches", "b")
    attempt = ledger.open_attempt(one.stage_key, lease_s=9, threads=1)
    assert attempt is not None
    ledger.fail(attempt.id, attempt.token, "no pictures")
    ledger.end_dataset(one.id, "failed", summary={}, reason="no pictures", faults=())
    assert ledger.add_dataset("c", SPEC, owner=Owner("c")).state == "pending"
    assert ledger.stages([one.stage_key])[one.stage_key].state == "pending", "tried again for c"
    assert ledger.dataset(one.id).state == "failed"


def test_idempotency_keys_in_the_ledger(ledger: ServiceLedger) -> None:
    specs = {name: JobSpec(ledger.add_dataset("x", SPEC, owner=Owner(name)).id) for name in "ab"}
    made = {name: ledger.add_job(spec, idempotency_key="k", owner=Owner(name)) for name, spec in specs.items()}
    assert made["a"].id != made["b"].id
    assert (made["a"].tenant, ledger.job(made["b"].id).tenant) == ("a", "b")
    with pytest.raises(ConflictError):
        ledger.add_job(JobSpec(specs["a"].dataset, seed=1), idempotency_key="k", owner=Owner("a"))


def test_quotas_hold_in_a_race(ledger: ServiceLedger, race: Any) -> None:
    from stillhouse.service.accounts import create_key

    key, _ = create_key(ledger.accounts, "n", tenant="a", scopes=["write"], now=0.0, expires_at=None)
    owner = Owner("a", key.id, max_live_jobs=3, max_dataset_bytes=100)
    dataset = ledger.add_dataset("birds", SPEC, owner=owner, source_bytes=0).id

    def job(index: int) -> bool:
        try:
            ledger.add_job(JobSpec(dataset, seed=index), owner=owner)
        except QuotaError:
            return False
        return True

    def upload(index: int) -> bool:
        try:
            ledger.add_dataset("x", StagePlan(StageKind.INGEST, {"n": index}), owner=owner, source_bytes=40)
        except QuotaError:
            return False
        return True

    assert sum(race(job)) == 3
    assert sum(race(upload)) == 2
    assert ledger.dataset_bytes(key.id) == 80


def test_a_kept_answer_is_one_tenants() -> None:
    kept, told = Kept(), []
    for tenant in ("a", "b", "a"):
        asked = {
            "type": "http",
            "path": "/jobs",
            "query_string": b"",
            "headers": [],
            "state": {"caller": Caller(tenant)},
        }
        told.append(kept.answer(Request(asked), (0,), lambda tenant=tenant: ([tenant], {})).body)
    assert told == [b'["a"]', b'["b"]', b'["a"]']
