"""Traces by OpenTelemetry, for those who installed the extra ``otel`` and named a collector.

A job is one trace: its id follows from the job's, so that the API, the controller and workers on other machines add
to the same trace and pass nothing on. Its root span lasts as long as the job, until its first end: a span that was sent
cannot be changed. Children of it are attempts at stages, and the job once more for each end after a retry. A request is
a trace of its own, or part of the caller's (``traceparent``).

``OTEL_EXPORTER_OTLP_ENDPOINT`` turns it on, and OpenTelemetry's other variables are obeyed. Without it ``span`` costs
nothing and the package need not be there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from stillhouse import __version__
from stillhouse.search.errors import UserError
from stillhouse.service.logs import redact

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SEND_S = 1.0
Attributes = Mapping[str, str | int | float | bool | None]

_told: ContextVar[tuple[int, int] | None] = ContextVar("ids of the next span", default=None)
_tracer: Tracer | None = None
_provider: Any = None


def configure(process: str, *, exporter: SpanExporter | None = None) -> None:
    """Turns tracing on where the environment asks for it. For the entry points of processes.

    Args:
        process: What the process is, by name: api, controller, worker.
        exporter: Takes the spans; by default the collector that the environment names.

    Raises:
        UserError: It asks for it, and the extra is not installed.
    """
    global _tracer, _provider  # noqa: PLW0603 - one process, one tracer, as OpenTelemetry itself has it
    if exporter is None and not any(os.environ.get(name) for name in ENDPOINTS):
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

            exporter = OTLPSpanExporter()
    except ImportError as error:
        raise UserError(
            f"{ENDPOINTS[0]} asks for traces, which need the extra otel ({error}); install stillhouse[otel], "
            "or unset it"
        ) from None
    resource = Resource.create({"service.name": f"stillhouse-{process}", "service.version": __version__})
    _provider = TracerProvider(resource=resource, id_generator=_ids(), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer("stillhouse", __version__)


def close() -> None:
    """Sends what is left, and turns tracing off. A collector that does not answer is given up after ``SEND_S``."""
    global _tracer, _provider  # noqa: PLW0603
    if _provider is not None:
        # Not shutdown, which waits for as long as the exporter tries again: a worker's slot would wait with it.
        sending = threading.Thread(target=_provider.force_flush, args=(int(SEND_S * 1000),), daemon=True)
        sending.start()
        sending.join(SEND_S)
    _tracer = _provider = None


@contextmanager
def span(
    name: str, attributes: Attributes, *, job: str | None = None, headers: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """A span around what is done within; gives it, or None while tracing is off.

    Args:
        name: Of few kinds: no id is in it.
        attributes: None is left out.
        job: The job whose trace it belongs to.
        headers: Of a request, which may name the caller's span.
    """
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    parent: Context | None = None
    kind = SpanKind.INTERNAL if headers is None else SpanKind.SERVER
    if headers is not None:
        parent = TraceContextTextMapPropagator().extract(headers)
    elif job is not None:
        parent = _within(job)
    with _tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=_clean(attributes),
        record_exception=False,  # its text and traceback may hold secrets
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            current.set_status(Status(StatusCode.ERROR, redact(repr(error))))
            raise


def job_span(job: str, *, began: float, ended: float, attributes: Attributes, again: bool = False) -> None:
    """The root span of a job's trace, once it has ended; times are Unix seconds.

    Args:
        job: Its id.
        began: When it did.
        ended: When it did.
        attributes: None is left out.
        again: It had ended before, and the root was sent: this is a child of it.
    """
    if _tracer is None:
        return
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

    known = _clean(attributes)
    ids = _told.set(None if again else _numbers(job))
    above = _within(job) if again else Context()
    try:
        span = _tracer.start_span("job", context=above, attributes=known, start_time=int(began * 1e9))
    finally:
        _told.reset(ids)
    if attributes.get("stillhouse.state") == "failed":
        span.set_status(Status(StatusCode.ERROR))
    span.end(int(ended * 1e9))


def _clean(attributes: Attributes) -> dict[str, str | int | float | bool]:
    known = {key: value for key, value in attributes.items() if value is not None}
    return {key: redact(value) if isinstance(value, str) else value for key, value in known.items()}


def _within(job: str) -> Context:
    from opentelemetry.trace import (  # noqa: PLC0415
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    trace_id, span_id = _numbers(job)
    remote = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(remote))


def _numbers(job: str) -> tuple[int, int]:
    """The ids of a job's trace and of its root span."""
    digest = sha256(f"stillhouse job {job}".encode()).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


def _ids() -> Any:
    """Random ids, but for the span whose ids are told."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415

    class Ids(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            told = _told.get()
            return super().generate_trace_id() if told is None else told[0]

        def generate_span_id(self) -> int:
            told = _told.get()
            return super().generate_span_id() if told is None else told[1]

    return Ids()
