"""The memory ledger's lists."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping

from stillhouse.search.domain import Deployment, Json
from stillhouse.search.errors import ConflictError
from stillhouse.search.job import JobRecord, TrialRecord
from stillhouse.service.db.lists import JobFilter, JobLine, Mark, ModelFilter, Place, in_use, not_ended, timed_here
from stillhouse.service.db.memory_tables import MemoryTables
from stillhouse.service.db.records import JOB_ENDS, not_found


class MemoryLists(MemoryTables):
    """Lists and deletion; see ``stillhouse.service.db.lists.Lists`` for what each method promises."""

    def job_lines(self, wanted: JobFilter, *, limit: int, after: Place | None = None) -> list[JobLine]:
        """Jobs, newest first."""
        with self._lock:
            found = [
                job
                for job in self._jobs.values()
                if wanted.tenant in (None, job.tenant)
                and wanted.dataset in (None, job.spec.dataset)
                and (not wanted.states or job.state in wanted.states)
                and (after is None or (job.created_at, job.id) < (after.at, after.id))
            ]
            found.sort(key=lambda job: (job.created_at, job.id), reverse=True)
            return [self._line(job) for job in found[:limit]]

    def _line(self, job: JobRecord) -> JobLine:
        trials = [trial for trial in self._trials.values() if trial.job_id == job.id]
        known = [trial.accuracy for trial in trials if trial.accuracy is not None]
        return JobLine(
            job.id,
            job.state,
            job.reason,
            self._datasets[job.spec.dataset].name,
            job.spec.to_json(),
            job.created_at,
            job.started_at,
            job.finished_at,
            Counter(trial.state for trial in trials),
            max(known, default=None),
        )

    def model_page(
        self, wanted: ModelFilter, *, limit: int, after: Place | None = None
    ) -> list[tuple[Place, Deployment]]:
        """Deployments, the last that came first."""
        with self._lock:
            placed = [(Place(float(at), item.id), item) for at, item in enumerate(self._deployments.values())]
            found = [
                (place, copy.deepcopy(item))
                for place, item in reversed(placed)
                if wanted.tenant in (None, self._jobs[item.job_id].tenant)
                and wanted.dataset in (None, self._jobs[item.job_id].spec.dataset)
                and wanted.job in (None, item.job_id)
                and wanted.arch in (None, item.candidate.arch)
                and wanted.precision in (None, item.precision)
                and (after is None or (place.at, place.id) < (after.at, after.id))
            ]
        return found[:limit]

    def trial_page(self, job_id: str, *, states: Collection[str], limit: int, after: int = -1) -> list[TrialRecord]:
        """Trials of a job in order of number."""
        with self._lock:
            found = [trial for trial in self._trials.values() if trial.job_id == job_id and trial.number > after]
        found = [trial for trial in found if not states or trial.state in states]
        return sorted(found, key=lambda trial: trial.number)[:limit]

    def job_marks(self, job_ids: Collection[str], *, tenant: str | None = None) -> dict[str, Mark]:
        """State and last event of each job."""
        with self._lock:
            jobs = [self._jobs[each] for each in job_ids if each in self._jobs]
            jobs = [job for job in jobs if tenant in (None, job.tenant)]
            last = {event.job_id: event.id for event in self._events}
            return {job.id: (job.state, last.get(job.id, 0), job.finished_at) for job in jobs}

    def jobs_mark(self, tenant: str | None = None) -> Mark:
        """The jobs, and the last event of any."""
        with self._lock:
            jobs = [job.id for job in self._jobs.values() if tenant in (None, job.tenant)]
            return len(jobs), jobs[-1] if jobs else None, self._events[-1].id if self._events else None

    def last_host(self) -> tuple[float, Mapping[str, Json]] | None:
        """The last measurement of latency."""
        with self._lock:
            done = [attempt for attempt in self._attempts.values() if attempt.state == "done"]
            for attempt in sorted(done, key=lambda each: each.ended_at or 0.0, reverse=True):
                stage = self._stages[attempt.stage_key]
                if timed_here(stage.plan) and stage.result and stage.result.metrics.get("host"):
                    return attempt.ended_at or 0.0, copy.deepcopy(stage.result.metrics)
        return None

    def delete_job(self, job_id: str) -> None:
        """Forgets a job that has ended."""
        with self._lock:
            if job_id not in self._jobs:
                raise not_found("job", job_id)
            if self._jobs[job_id].state not in JOB_ENDS:
                raise ConflictError(not_ended(job_id, self._jobs[job_id].state))
            for key in [key for key in self._trials if key[0] == job_id]:
                del self._trials[key]
            for name in [item.id for item in self._deployments.values() if item.job_id == job_id]:
                del self._deployments[name]
            del self._jobs[job_id]
            for used in [used for used, made in self._by_idempotency_key.items() if made[0] == job_id]:
                del self._by_idempotency_key[used]
            # Events stay in place, since their ids are their places; none can be asked for any more.

    def delete_dataset(self, dataset_id: str) -> None:
        """Forgets a data set without jobs."""
        with self._lock:
            if dataset_id not in self._datasets:
                raise not_found("data set", dataset_id)
            state = self._datasets[dataset_id].state
            if state == "pending" or any(job.spec.dataset == dataset_id for job in self._jobs.values()):
                raise ConflictError(in_use(dataset_id, state))
            del self._datasets[dataset_id]
            self._source_bytes.pop(dataset_id, None)
