"""Traces: off without a collector; a job is one trace, whoever adds to it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256

import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from stillhouse.search.errors import UserError
from stillhouse.search.job import JobRecord, JobSpec
from stillhouse.service import tracing
from stillhouse.service.metrics import RequestMetrics
from stillhouse.service.observer import Telemetry

JOB = "job_0123456789ab"


class Traces:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        tracing.configure("test", exporter=self._exporter)

    def all(self) -> tuple[ReadableSpan, ...]:
        tracing._provider.force_flush()
        return tuple(self._exporter.get_finished_spans())

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.all()}


@pytest.fixture
def traces() -> Iterator[Traces]:
    yield Traces()
    tracing.close()


def test_nothing_is_traced_unless_a_collector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    tracing.configure("api")
    with tracing.span("stage", {}, job=JOB) as span:
        assert span is None
    tracing.job_span(JOB, began=1.0, ended=2.0, attributes={})


def test_a_job_is_one_trace_with_a_root(traces: Traces) -> None:
    with (
        tracing.span("stage", {"stillhouse.kind": "teacher", "stillhouse.trial": None}, job=JOB),
        tracing.span("x", {}),
    ):
        pass
    record = JobRecord(JOB, JobSpec("ds_1"), "failed", "no network fits", 5.0, 10.0, 12.5)
    Telemetry().ended(record, times=1)
    spans = traces.spans()
    root, stage, inner = spans["job"], spans["stage"], spans["x"]
    assert root.parent is None
    assert root.context.trace_id == stage.context.trace_id == inner.context.trace_id
    assert stage.parent is not None and stage.parent.span_id == root.context.span_id
    assert inner.parent is not None and inner.parent.span_id == stage.context.span_id
    assert (root.start_time, root.end_time) == (int(10e9), int(12.5e9))
    assert root.attributes is not None and root.attributes["stillhouse.reason"] == "no network fits"
    assert not root.status.is_ok
    assert dict(stage.attributes or {}) == {"stillhouse.kind": "teacher"}
    assert root.resource.attributes["service.name"] == "stillhouse-test"


def test_a_job_that_ends_again_has_another_span_below_its_root(traces: Traces) -> None:
    failed = JobRecord(JOB, JobSpec("ds_1"), "failed", "no room", 5.0, 10.0, 12.5)
    Telemetry().ended(failed, times=1)
    root = traces.spans()["job"]
    for times, began in ((2, 20.0), (3, 30.0)):
        Telemetry().ended(replace(failed, state="done", started_at=began, finished_at=began + 1), times=times)
    first, *others = traces.all()
    assert len({span.context.span_id for span in (first, *others)}) == 3
    assert first.context == root.context
    for began, span in zip((20.0, 30.0), others, strict=True):
        assert span.name == "job"
        assert span.context.trace_id == root.context.trace_id
        assert span.parent is not None and span.parent.span_id == root.context.span_id
        assert (span.start_time, span.status.is_ok) == (int(began * 1e9), True)


def test_another_job_is_another_trace_and_ids_are_those_of_its_name(traces: Traces) -> None:
    tracing.job_span(JOB, began=1.0, ended=2.0, attributes={})
    first = traces.spans()["job"].context
    with tracing.span("stage", {}, job="job_ba9876543210"):
        pass
    assert traces.spans()["stage"].context.trace_id != first.trace_id
    digest = sha256(f"stillhouse job {JOB}".encode()).digest()
    assert first.trace_id == int.from_bytes(digest[:16], "big")


def test_a_request_belongs_to_the_trace_of_its_caller(traces: Traces) -> None:
    app = FastAPI()
    app.get("/jobs/{job_id}")(lambda job_id: job_id)
    app.add_middleware(RequestMetrics)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    TestClient(app).get("/jobs/a", headers={"traceparent": f"00-{trace}-{parent}-01"})
    span = traces.spans()["GET /jobs/{job_id}"]
    assert f"{span.context.trace_id:032x}" == trace
    assert span.parent is not None and f"{span.parent.span_id:016x}" == parent
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/jobs/{job_id}",
        "http.response.status_code": 200,
    }


def test_an_error_is_in_the_span_and_goes_on(traces: Traces) -> None:
    address = "postgresql://me:S3cret@host/db"
    with pytest.raises(ValueError, match="S3cret"), tracing.span("stage", {"why": address}, job=JOB):
        raise ValueError(f"{address} is broken")
    span = traces.spans()["stage"]
    assert not span.status.is_ok and span.status.description is not None and "is broken" in span.status.description
    assert "S3cret" not in span.to_json()


def test_a_collector_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing.configure("worker")
    with tracing.span("stage", {}, job=JOB):
        pass
    began = time.monotonic()
    tracing.close()
    assert time.monotonic() - began < tracing.SEND_S + 1


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UserError, match=r"install stillhouse\[otel\]"):
        tracing.configure("api")
