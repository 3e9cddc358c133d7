"""What the doors ask of the ledger beyond the planner: pages of lists, marks of change, deletion.

A page is asked for by the place where the last one ended: (time, id) of its last line, so that lines which come in
between move nothing. Outside it is an opaque cursor.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from stillhouse.search.domain import Deployment, Json, StageKind, StagePlan
from stillhouse.search.errors import UserError
from stillhouse.search.job import TrialRecord
from stillhouse.search.ports import Ledger
from stillhouse.service.db.totals import Totals

Mark = tuple[object, ...]
"""What is equal as long as nothing was changed."""


@dataclass(frozen=True)
class Place:
    """Where a page ended: time (Unix seconds) and id of its last line."""

    at: float
    id: str

    def cursor(self) -> str:
        """As an opaque text; ``parse`` reads it back."""
        return base64.urlsafe_b64encode(json.dumps([self.at, self.id]).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Place:
        """Reads a cursor; raises UserError for what is none."""
        try:
            at, name = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            if not (isinstance(at, float | int) and math.isfinite(at) and isinstance(name, str) and name.isprintable()):
                raise ValueError
        except (ValueError, TypeError, binascii.Error):
            raise UserError(f"a cursor is taken from the list's Link header, but got {text[:80]!r}") from None
        return cls(float(at), name)


@dataclass(frozen=True)
class JobFilter:
    """Which jobs; None and empty take all."""

    tenant: str | None = None
    states: Collection[str] = ()
    dataset: str | None = None


@dataclass(frozen=True)
class ModelFilter:
    """Which models; None takes all. ``dataset`` is that of their job."""

    tenant: str | None = None
    dataset: str | None = None
    job: str | None = None
    arch: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class JobLine:
    """A job as one line of a list: its spec as stored, its trials counted by state."""

    id: str
    state: str
    reason: str | None
    dataset_name: str
    spec: Mapping[str, Json]
    created_at: float
    started_at: float | None
    finished_at: float | None
    counts: Mapping[str, int] = field(default_factory=dict)
    best_accuracy: float | None = None

    @property
    def place(self) -> Place:
        """Where a page ends whose last line this is."""
        return Place(self.created_at, self.id)


class Lists(Ledger, Protocol):
    """A ledger that also gives lists in pages, newest first, and can forget."""

    def job_lines(self, wanted: JobFilter, *, limit: int, after: Place | None = None) -> list[JobLine]:
        """Jobs, newest first."""

    def model_page(
        self, wanted: ModelFilter, *, limit: int, after: Place | None = None
    ) -> list[tuple[Place, Deployment]]:
        """Deployments, newest first, each with its place."""

    def trial_page(self, job_id: str, *, states: Collection[str], limit: int, after: int = -1) -> list[TrialRecord]:
        """Trials of a job in order of number, from the one after ``after`` on."""

    def job_marks(self, job_ids: Collection[str], *, tenant: str | None = None) -> dict[str, Mark]:
        """State, id of the last event (0: none) and more of jobs: equal while one has ended and nothing changed.

        Jobs that are not there, or not of this tenant, are left out.
        """

    def jobs_mark(self, tenant: str | None = None) -> Mark:
        """Equal while no job came, went or told of anything; one that two writers race past may be missed."""

    def last_host(self) -> tuple[float, Mapping[str, Json]] | None:
        """When latency was last measured here (Unix seconds), and the figures of that measurement."""

    def totals(self) -> Totals:
        """How much there is of everything, of all tenants."""

    def delete_job(self, job_id: str) -> None:
        """Forgets a job with its trials, models and events; what its stages made goes later, if nobody else uses it.

        Raises:
            NotFoundError: No such job.
            ConflictError: It has not ended.
        """

    def delete_dataset(self, dataset_id: str) -> None:
        """Forgets a data set.

        Raises:
            NotFoundError: No such data set.
            ConflictError: It is being read, or has jobs.
        """


def timed_here(plan: StagePlan) -> bool:
    """True for a stage that measured latency on this machine."""
    return plan.kind is StageKind.MEASURE and plan.spec.get("latency", False) and plan.device is None


def not_ended(job_id: str, state: str) -> str:
    """Why a job is not deleted."""
    return f"only a job that has ended can be deleted, but {job_id} is {state}; cancel it first"


def in_use(dataset_id: str, state: str) -> str:
    """Why a data set is not deleted."""
    if state == "pending":
        return f"{dataset_id} is being read; delete it once it is ready or failed"
    return f"{dataset_id} has jobs; delete those first (GET /jobs?dataset={dataset_id})"
