"""What the controller does, as lines of the log, metrics and traces."""

from __future__ import annotations

import time

import structlog

from stillhouse.search.domain import StagePlan
from stillhouse.search.job import AttemptRecord, JobRecord
from stillhouse.search.ports import Observer
from stillhouse.service import metrics, tracing
from stillhouse.service.logs import named

log = structlog.get_logger(__name__)


class Telemetry(Observer):
    """Tells people and machines that watch."""

    def stepped(self, seconds: float, *, failed: bool) -> None:
        """Times it; a failed step has been logged where it failed."""
        metrics.STEPS.observe(seconds)
        metrics.LAST_STEP.set(time.time())
        if failed:
            metrics.FAILED_STEPS.inc()

    def opened(self, attempt: AttemptRecord, plan: StagePlan) -> None:
        """Counts and logs it."""
        metrics.OPENED.labels(str(plan.kind)).inc()
        log.info("attempt opened", threads=attempt.threads, **named(attempt.id, plan, attempt.asker))

    def lost(self, attempt: AttemptRecord, plan: StagePlan, tries: int, reason: str) -> None:
        """Counts and logs it."""
        metrics.LOST.labels(str(plan.kind)).inc()
        log.warning("attempt lost", tries=tries, reason=reason, **named(attempt.id, plan, attempt.asker))

    def started(self, job: JobRecord) -> None:
        """Logs it."""
        log.info("job at work", job=job.id, tenant=job.tenant, dataset=job.spec.dataset)

    def ended(self, job: JobRecord, *, times: int) -> None:
        """Logs it, and gives its trace the root; once more, after a retry, a span below the root."""
        log.info("job ended", job=job.id, tenant=job.tenant, state=job.state, reason=job.reason)
        told = {"stillhouse.job": job.id, "stillhouse.state": job.state, "stillhouse.reason": job.reason}
        began, ended = job.started_at or job.created_at, job.finished_at or time.time()
        tracing.job_span(job.id, began=began, ended=ended, attributes=told, again=times > 1)
