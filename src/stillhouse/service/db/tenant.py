"""The ledger as one tenant sees it: what others have is not there.

Routes are handed this view, so none of them can forget the filter; and a method of the ledger that is not named here
cannot be called through it. What hangs on a job (trials, deployments, events) is opened by asking for the job first.
Stages are shared by content and have no tenant: their keys are hashes that only who holds the plan can name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from stillhouse.search.devices import DeviceRecord
from stillhouse.search.domain import Cost, Deployment, Json, StageKind, StagePlan, StageResult
from stillhouse.search.errors import NotFoundError
from stillhouse.search.job import AttemptRecord, DatasetRecord, Event, JobRecord, JobSpec, StageRecord, TrialRecord
from stillhouse.search.owner import NOBODY, Owner
from stillhouse.service.db.lists import JobFilter, JobLine, Lists, Mark, ModelFilter, Place
from stillhouse.service.db.records import not_found


class TenantLedger:
    """A ledger that holds one tenant's data sets and jobs; the work of the engine cannot be done through it.

    Args:
        ledger: The whole.
        owner: On whose behalf data sets and jobs are made, and seen.
    """

    def __init__(self, ledger: Lists, owner: Owner) -> None:
        self._all, self._owner = ledger, owner

    # --------------------------------------------------------------------------------- data sets

    def add_dataset(self, name: str, plan: StagePlan, *, owner: Owner = NOBODY, source_bytes: int = 0) -> DatasetRecord:
        """Stores it for the tenant, whoever is named."""
        del owner
        return self._all.add_dataset(name, plan, owner=self._owner, source_bytes=source_bytes)

    def dataset(self, dataset_id: str) -> DatasetRecord:
        """Raises NotFoundError for another tenant's, in the words of one that does not exist."""
        found = self._all.dataset(dataset_id)
        if found.tenant != self._owner.tenant:
            raise not_found("data set", dataset_id)
        return found

    def datasets(self, *states: str, tenant: str | None = None) -> list[DatasetRecord]:
        """The tenant's."""
        del tenant
        return self._all.datasets(*states, tenant=self._owner.tenant)

    def dataset_bytes(self, key: str) -> int:
        """Of the owner's key; no other's."""
        return self._all.dataset_bytes(key) if key == self._owner.key else 0

    # -------------------------------------------------------------------------------------- jobs

    def add_job(self, spec: JobSpec, *, idempotency_key: str | None = None, owner: Owner = NOBODY) -> JobRecord:
        """Stores it for the tenant, whoever is named."""
        del owner
        return self._all.add_job(spec, idempotency_key=idempotency_key, owner=self._owner)

    def job(self, job_id: str) -> JobRecord:
        """Raises NotFoundError for another tenant's, in the words of one that does not exist."""
        found = self._all.job(job_id)
        if found.tenant != self._owner.tenant:
            raise not_found("job", job_id)
        return found

    def jobs(self, *states: str, tenant: str | None = None) -> list[JobRecord]:
        """The tenant's."""
        del tenant
        return self._all.jobs(*states, tenant=self._owner.tenant)

    def move_job(self, job_id: str, *, expect: Sequence[str], to: str, reason: str | None = None) -> bool:
        """Of the tenant's own."""
        self.job(job_id)
        return self._all.move_job(job_id, expect=expect, to=to, reason=reason)

    # ------------------------------------------------------------------------------------ trials

    def trials(self, job_id: str) -> list[TrialRecord]:
        """Of the tenant's own job."""
        self.job(job_id)
        return self._all.trials(job_id)

    def move_trial(
        self,
        job_id: str,
        number: int,
        *,
        expect: str,
        to: str,
        cost: Cost | None = None,
        stages: Sequence[str] | None = None,
        accuracy: float | None = None,
        epochs: int | None = None,
        reason: str | None = None,
    ) -> bool:
        """Of the tenant's own job."""
        self.job(job_id)
        return self._all.move_trial(
            job_id,
            number,
            expect=expect,
            to=to,
            cost=cost,
            stages=stages,
            accuracy=accuracy,
            epochs=epochs,
            reason=reason,
        )

    # ------------------------------------------------------------------------ stages and attempts

    def stages(self, keys: Iterable[str]) -> dict[str, StageRecord]:
        """Shared by content."""
        return self._all.stages(keys)

    def reopen_stage(self, plan: StagePlan) -> bool:
        """Shared by content."""
        return self._all.reopen_stage(plan)

    def attempts(self, key: str) -> list[AttemptRecord]:
        """Shared by content."""
        return self._all.attempts(key)

    def device_seconds(self, keys: Collection[str], *, since: float) -> float:
        """Shared by content."""
        return self._all.device_seconds(keys, since=since)

    def stage_seconds(self, kind: StageKind, *, limit: int) -> list[tuple[StagePlan, float]]:
        """Shared by content: how fast the machines are is no tenant's."""
        return self._all.stage_seconds(kind, limit=limit)

    # ------------------------------------------------------------------------------- deployments

    def deployment(self, deployment_id: str) -> Deployment:
        """Raises NotFoundError for another tenant's, in the words of one that does not exist."""
        found = self._all.deployment(deployment_id)
        try:
            self.job(found.job_id)
        except NotFoundError:
            raise not_found("model", deployment_id) from None
        return found

    def deployments(self, job_id: str) -> list[Deployment]:
        """Of the tenant's own job."""
        self.job(job_id)
        return self._all.deployments(job_id)

    # ---------------------------------------------------------------------- events and catalogue

    def emit(self, job_id: str, kind: str, data: Mapping[str, Json]) -> None:
        """Of the tenant's own job."""
        self.job(job_id)
        self._all.emit(job_id, kind, data)

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Of the tenant's own job."""
        self.job(job_id)
        return self._all.events(job_id, after=after)

    def results(self, keys: Iterable[str]) -> dict[str, StageResult]:
        """By content, whoever had it done."""
        return self._all.results(keys)

    def devices(self) -> list[DeviceRecord]:
        """All: devices serve everybody."""
        return self._all.devices()

    def forget_device(self, name: str) -> bool:
        """Any: one that is there announces itself again."""
        return self._all.forget_device(name)

    def catalogue(self) -> Mapping[str, Json] | None:
        """The same for all."""
        return self._all.catalogue()

    # -------------------------------------------------------------------------------------- lists

    def job_lines(self, wanted: JobFilter, *, limit: int, after: Place | None = None) -> list[JobLine]:
        """The tenant's."""
        return self._all.job_lines(replace(wanted, tenant=self._owner.tenant), limit=limit, after=after)

    def model_page(
        self, wanted: ModelFilter, *, limit: int, after: Place | None = None
    ) -> list[tuple[Place, Deployment]]:
        """The tenant's."""
        return self._all.model_page(replace(wanted, tenant=self._owner.tenant), limit=limit, after=after)

    def trial_page(self, job_id: str, *, states: Collection[str], limit: int, after: int = -1) -> list[TrialRecord]:
        """Of the tenant's own job."""
        self.job(job_id)
        return self._all.trial_page(job_id, states=states, limit=limit, after=after)

    def job_marks(self, job_ids: Collection[str], *, tenant: str | None = None) -> dict[str, Mark]:
        """Of the tenant's own jobs."""
        del tenant
        return self._all.job_marks(job_ids, tenant=self._owner.tenant)

    def jobs_mark(self, tenant: str | None = None) -> Mark:
        """Of the tenant's jobs."""
        del tenant
        return self._all.jobs_mark(self._owner.tenant)

    def last_host(self) -> tuple[float, Mapping[str, Json]] | None:
        """The machines are no tenant's."""
        return self._all.last_host()

    def delete_job(self, job_id: str) -> None:
        """Of the tenant's own."""
        self.job(job_id)
        self._all.delete_job(job_id)

    def delete_dataset(self, dataset_id: str) -> None:
        """Of the tenant's own."""
        self.dataset(dataset_id)
        self._all.delete_dataset(dataset_id)

    # ----------------------------------------------------------- what controller and workers do

    def _refused(self, *_: object, **__: object) -> NoReturn:
        raise PermissionError(f"no route may do the engine's work on the behalf of tenant {self._owner.tenant}")

    end_dataset = _refused
    add_trial = _refused
    ensure_stage = _refused
    open_attempt = _refused
    totals = _refused
    attempt = _refused
    open_attempts = _refused
    renew = _refused
    commit = _refused
    fail = _refused
    lose = _refused
    add_deployment = _refused
    set_test = _refused
    publish_catalogue = _refused
    see_device = _refused
