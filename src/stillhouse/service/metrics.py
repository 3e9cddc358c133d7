"""What Prometheus is told.

Two sources: what this process counts itself (requests, steps of the controller), and what the ledger holds, counted
when it is asked for, so that any process tells the same. Names begin with ``stillhouse_``; no label names a tenant, a
key or a job, so their number stays small whatever users do.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import REGISTRY as PROCESS
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse import __version__
from stillhouse.search.errors import UserError
from stillhouse.service import tracing
from stillhouse.service.db.totals import Totals
from stillhouse.service.settings import Settings

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STEP_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUESTS = Histogram(
    "stillhouse_http_request_seconds",
    "Seconds from a request to the start of its answer.",
    ("method", "route", "status"),
    buckets=_SECONDS,
)
OPEN_REQUESTS = Gauge("stillhouse_http_requests_open", "Requests being answered, streams of events among them.")
STEPS = Histogram("stillhouse_controller_step_seconds", "Seconds of one step of the controller.", buckets=_STEP_SECONDS)
FAILED_STEPS = Counter("stillhouse_controller_steps_failed", "Steps of the controller that ended in an error.")
LAST_STEP = Gauge("stillhouse_controller_last_step_timestamp_seconds", "When the controller last ended a step (Unix).")
OPENED = Counter("stillhouse_attempts_opened", "Attempts handed to the engine by this controller.", ("kind",))
LOST = Counter("stillhouse_attempts_lost", "Attempts that this controller saw end without a result.", ("kind",))
BUILD = Gauge("stillhouse_build_info", "The version, as a label; the value is 1.", ("version",))
BUILD.labels(__version__).set(1)


class Counted(Protocol):
    """What can be counted."""

    def totals(self) -> Totals:
        """How much there is of everything."""


class RequestMetrics:
    """Counts and times requests by route; an ASGI application around another."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, waited = time.perf_counter(), 500, 0.0

        async def timed(message: Message) -> None:
            nonlocal status, waited
            if message["type"] == "http.response.start":
                status, waited = message["status"], time.perf_counter() - began
            await send(message)

        method = scope["method"] if scope["method"] in _METHODS else "other"
        OPEN_REQUESTS.inc()
        try:
            with tracing.span(method, {"http.request.method": method}, headers=Headers(scope=scope)) as span:
                await self._app(scope, receive, timed)
                if span is not None:
                    span.update_name(f"{method} {route_of(scope)}")
                    span.set_attributes({"http.route": route_of(scope), "http.response.status_code": status})
        finally:
            OPEN_REQUESTS.dec()
            spent = waited or time.perf_counter() - began
            REQUESTS.labels(method, route_of(scope), str(status)).observe(spent)


def route_of(scope: Scope) -> str:
    """The pattern of the address that was asked for; ``none`` where no route was reached."""
    return str(getattr(scope.get("route"), "path", None) or "none")


def exposition(ledger: Counted, settings: Settings) -> bytes:
    """All metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_LedgerCollector(ledger.totals(), settings))
    return generate_latest(PROCESS) + generate_latest(registry)


class _LedgerCollector(Collector):
    def __init__(self, totals: Totals, settings: Settings) -> None:
        self._totals, self._settings = totals, settings

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        totals, now = self._totals, time.time()
        for what, counts in (
            ("datasets", totals.datasets),
            ("jobs", totals.jobs),
            ("trials", totals.trials),
            ("attempts", totals.attempts),
        ):
            yield _family(what, f"{what.capitalize()} in the ledger by state.", ("state",), _keyed(counts))
        yield _family("stages", "Stages in the ledger by kind and state.", ("kind", "state"), totals.stages)
        text = "Seconds that the stages took which are done, by kind."
        yield _family("stage_seconds", text, ("kind",), _keyed(totals.stage_seconds))
        yield _family("models", "Models in the ledger.", (), {(): totals.deployments})
        waiting = 0.0 if totals.queued_since is None else max(0.0, now - totals.queued_since)
        yield _family("queue_age_seconds", "How long the oldest job waits that has not begun.", (), {(): waiting})
        late = 0.0 if totals.expires_at is None else max(0.0, now - totals.expires_at)
        yield _family("lease_overdue_seconds", "How long the first lease that ran out is overdue.", (), {(): late})
        if self._settings.home.is_dir():
            free = shutil.disk_usage(self._settings.home).free
            yield _family("disk_free_bytes", "Free space on the home folder's disk.", (), {(): free})


def _family(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"stillhouse_{name}", text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _keyed(counts: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(name,): float(count) for name, count in counts.items()}


def listen(address: str) -> None:
    """Serves what this process counts, for one that has no API: ``host:port``.

    Raises:
        UserError: The address cannot be listened on.
    """
    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), addr=host.strip("[]"))
    except (OSError, OverflowError) as error:
        must = "STILLHOUSE_METRICS_LISTEN must be a free address of this machine"
        raise UserError(f"{must}, but got {address}: {error}") from None
