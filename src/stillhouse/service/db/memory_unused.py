"""The memory ledger's part about what is no longer used."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stillhouse.search.job import StageRecord
from stillhouse.service.db.lists import Mark
from stillhouse.service.db.memory_tables import MemoryTables
from stillhouse.service.db.records import JOB_ENDS
from stillhouse.service.db.unused import Holders, StageLine, stage_files, stage_reads


class MemoryUnused(MemoryTables):
    """See ``stillhouse.service.db.unused.Forgets`` for what each method promises."""

    def identity(self) -> str:
        """The ledger's own name."""
        return f"led_{id(self):x}"

    def stage_lines(self, *, after: str = "", limit: int) -> list[StageLine]:
        """Stages in order of key."""
        with self._lock:
            used = self._used()
            keys = sorted(key for key in self._stages if key > after)[:limit]
            return [_line(self._stages[key], used[key]) for key in keys]

    def holders(self) -> Holders:
        """What holds on to stages and files now."""
        with self._lock:
            made = list(self._datasets.values())
            keys = {record.stage_key for record in made}
            live = [job for job in self._jobs.values() if job.state not in JOB_ENDS]
            return Holders(
                self._mark(),
                frozenset({key for trial in self._trials.values() for key in trial.stages} | keys),
                frozenset(self._datasets[job.spec.dataset].stage_key for job in live),
                frozenset(record.summary["digest"] for record in made if record.summary.get("digest")),
                frozenset(digest for key in keys if (digest := self._stages[key].plan.spec.get("digest"))),
            )

    def forget_stages(self, keys: Collection[str], *, mark: Mark, before: float) -> list[str] | None:
        """Removes stages with their attempts."""
        with self._lock:
            if self._mark() != mark:
                return None
            used, made = self._used(), {record.stage_key for record in self._datasets.values()}
            found = {
                key
                for key in keys
                if key in self._stages
                and self._stages[key].state != "running"
                and used[key] < before
                and key not in made
            }
            for key in found:
                del self._stages[key], self._stored_at[key]
            for name in [attempt.id for attempt in self._attempts.values() if attempt.stage_key in found]:
                del self._attempts[name]
            return sorted(found)

    def named_files(self, among: Collection[str]) -> set[str]:
        """Those that a model or a job names."""
        with self._lock:
            named: set[str | None] = {deployment.onnx_sha256 for deployment in self._deployments.values()}
            named |= {job.spec.teacher_checkpoint for job in self._jobs.values()}
            return {sha256 for sha256 in among if sha256 in named}

    def known_attempts(self, among: Collection[str]) -> set[str]:
        """Those that exist."""
        with self._lock:
            return set(among) & self._attempts.keys()

    def _used(self) -> Mapping[str, float]:
        """When each stage was last used."""
        tried: dict[str, float] = {}
        for attempt in self._attempts.values():
            at = attempt.opened_at if attempt.ended_at is None else attempt.ended_at
            tried[attempt.stage_key] = max(at, tried.get(attempt.stage_key, at))
        return self._stored_at | tried

    def _mark(self) -> Mark:
        return tuple((job.id, job.state, job.started_at, job.finished_at) for job in self._jobs.values())


def _line(stage: StageRecord, used_at: float) -> StageLine:
    plan, artifacts = stage.plan, None if stage.result is None else stage.result.artifacts
    reads = stage_reads(plan.inputs, plan.hints.get("resume"))
    return StageLine(
        stage.key, str(plan.kind), stage.state, used_at, reads, stage_files(artifacts, plan.spec.get("checkpoint"))
    )
