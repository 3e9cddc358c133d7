"""Metrics: what the ledger holds, what a process counts, and a dashboard that asks for nothing else."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from served import Served
from stillhouse.search.domain import Candidate, Cost, Size, StageKind, StagePlan, StageResult
from stillhouse.search.errors import UserError
from stillhouse.search.job import JobSpec
from stillhouse.search.ports import Ledger
from stillhouse.search.wanted import Asker
from stillhouse.service import metrics
from stillhouse.service.db.totals import Totals
from stillhouse.service.observer import Telemetry
from stillhouse.service.settings import Settings

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"
ALERTS = Path(__file__).parents[2] / "deploy" / "prometheus-alerts.yaml"


def told(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_totals_are_those_of_the_ledger(ledger: Ledger) -> None:
    assert ledger.totals() == Totals()  # type: ignore[attr-defined]
    dataset = ledger.add_dataset("birds", StagePlan(StageKind.INGEST, {"digest": "a"}))
    first, second = ledger.add_job(JobSpec(dataset.id)), ledger.add_job(JobSpec(dataset.id))
    ledger.move_job(first.id, expect=("queued",), to="running")
    size = Size(32, 32)
    ledger.add_trial(first.id, 0, Candidate("net", size, size, "stock", {}), Cost())
    teacher = ledger.ensure_stage(StagePlan(StageKind.TEACHER, {"a": 1})).key
    attempt = ledger.open_attempt(teacher, lease_s=9, threads=1, asker=Asker(first.id, 0))
    assert attempt is not None
    found: Totals = ledger.totals()  # type: ignore[attr-defined]
    assert found.datasets == {"pending": 1}
    assert found.jobs == {"queued": 1, "running": 1}
    assert found.trials == {"costing": 1}
    assert found.stages == {("ingest", "pending"): 1, ("teacher", "running"): 1}
    assert (found.attempts, found.deployments, found.stage_seconds) == ({"open": 1}, 0, {})
    assert found.queued_since == pytest.approx(second.created_at)
    assert found.expires_at == pytest.approx(attempt.expires_at)
    assert ledger.attempt(attempt.id).asker == Asker(first.id, 0)
    ledger.commit(attempt.id, attempt.token, StageResult(), seconds=2.5)
    found = ledger.totals()  # type: ignore[attr-defined]
    assert (found.stage_seconds, found.attempts, found.expires_at) == ({"teacher": 2.5}, {"done": 1}, None)


def test_the_route_counts_requests_by_pattern_and_tells_the_ledger(served: Served) -> None:
    served.ready()
    before = told(served.http.get("/metrics").text)
    for _ in range(3):
        served.http.get("/jobs/job_000000000000/pareto")
    served.http.get("/nowhere/at/all")
    served.http.request("BREW", "/jobs")
    answer = served.http.get("/metrics")
    assert answer.headers["content-type"] == metrics.MEDIA_TYPE
    after = told(answer.text)

    def more(*labels: str) -> float:
        key = ("stillhouse_http_request_seconds_count", tuple(sorted(labels)))
        return after.get(key, 0) - before.get(key, 0)

    assert more("GET", "/jobs/{job_id}/pareto", "404") == 3
    assert more("GET", "none", "404") == 1
    assert more("other", "/jobs", "405") == 1
    assert after["stillhouse_datasets", ("ready",)] == 1
    assert after["stillhouse_http_requests_open", ()] == 1, "this one"
    assert after["stillhouse_disk_free_bytes", ()] > 0
    assert after["stillhouse_queue_age_seconds", ()] == 0


def test_how_long_jobs_wait_and_leases_are_overdue(tmp_path: Path) -> None:
    class Fixed:
        def totals(self) -> Totals:
            return Totals(queued_since=time.time() - 60, expires_at=time.time() - 5)

    found = told(metrics.exposition(Fixed(), Settings.load(home=tmp_path / "none")).decode())
    assert found["stillhouse_queue_age_seconds", ()] == pytest.approx(60, abs=2)
    assert found["stillhouse_lease_overdue_seconds", ()] == pytest.approx(5, abs=2)
    assert ("stillhouse_disk_free_bytes", ()) not in found


def test_a_controller_counts_its_steps_and_attempts() -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    names = ("stillhouse_controller_step_seconds_count", "stillhouse_controller_steps_failed_total")
    before = [value(name) for name in names]
    Telemetry().stepped(0.1, failed=False)
    Telemetry().stepped(0.1, failed=True)
    assert [value(name) for name in names] == [before[0] + 2, before[1] + 1]
    assert value("stillhouse_controller_last_step_timestamp_seconds") == pytest.approx(time.time(), abs=5)


def test_a_controller_alone_serves_its_own() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    metrics.listen(f"127.0.0.1:{port}")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert b"stillhouse_controller_step_seconds_bucket" in answer.read()
    with pytest.raises(UserError, match=r"STILLHOUSE_METRICS_LISTEN must be a free address of this machine, but got"):
        metrics.listen(f"127.0.0.1:{port}")


def test_dashboard_and_alerts_ask_for_what_there_is(served: Served) -> None:
    Telemetry().stepped(0.1, failed=False)
    text = served.http.get("/metrics").text
    known = {name for name, _ in told(text)} | {family.name for family in text_string_to_metric_families(text)}
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(asked) >= 12
    assert all("${datasource}" in json.dumps(panel["datasource"]) for panel in board["panels"] if "targets" in panel)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(places) == len(set(places))
    for text in [*asked, ALERTS.read_text(encoding="utf-8")]:
        for name in re.findall(r"\bstillhouse_[a-z_]+", text):
            assert name.removesuffix("_total") in known or name in known, name
