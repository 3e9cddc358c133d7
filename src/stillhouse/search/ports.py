"""What the planner needs from the outside, as Protocols; adapters live in ``stillhouse.service``.

The same ledger serves the controller, the API and the stage process. Every change of state is a
compare-and-set: the method says which state must hold and answers whether it did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stillhouse.search.devices import DeviceRecord
from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Json, StageKind, StagePlan, StageResult
from stillhouse.search.job import (
    AttemptRecord,
    DatasetRecord,
    Event,
    JobRecord,
    JobSpec,
    StageRecord,
    TrialRecord,
)
from stillhouse.search.owner import NOBODY, Owner
from stillhouse.search.wanted import NO_ONE, Asker


class Ledger(Protocol):
    """The only truth: data sets, jobs, trials, stages, attempts, deployments, events."""

    # data sets
    def add_dataset(self, name: str, plan: StagePlan, *, owner: Owner = NOBODY, source_bytes: int = 0) -> DatasetRecord:
        """Stores a data set that ``plan`` (an ingest stage) will make; the same key gives a tenant the same record.

        A data set that failed is put back to ``pending`` with its stage, so that it is tried again.

        Raises:
            QuotaError: The owner's key may not have so many bytes more.
        """

    def dataset(self, dataset_id: str) -> DatasetRecord:
        """Raises NotFoundError."""

    def datasets(self, *states: str, tenant: str | None = None) -> list[DatasetRecord]:
        """All in these states (none named: all) of a tenant (none named: of all), oldest first."""

    def dataset_bytes(self, key: str) -> int:
        """Bytes of what an API key uploaded."""

    def end_dataset(
        self, dataset_id: str, state: str, *, summary: Mapping[str, Json], reason: str | None, faults: Sequence[str]
    ) -> bool:
        """Moves pending -> ready | failed."""

    # jobs
    def add_job(self, spec: JobSpec, *, idempotency_key: str | None = None, owner: Owner = NOBODY) -> JobRecord:
        """Stores a job in state queued.

        Raises:
            ConflictError: The tenant used the idempotency key with another spec. (With the same: its record.)
            NotFoundError: The tenant has no such data set.
            QuotaError: The owner's key may have no further live job.
        """

    def job(self, job_id: str) -> JobRecord:
        """Raises NotFoundError."""

    def jobs(self, *states: str, tenant: str | None = None) -> list[JobRecord]:
        """All in these states (none named: all) of a tenant (none named: of all), oldest first."""

    def move_job(self, job_id: str, *, expect: Sequence[str], to: str, reason: str | None = None) -> bool:
        """Sets the state if it is one of ``expect``; stamps started_at / finished_at; emits a ``job`` event.

        Trials go with their job in the same moment, as ``states.with_job`` says, each with its event.
        """

    # trials
    def trials(self, job_id: str) -> list[TrialRecord]:
        """In order of number."""

    def add_trial(self, job_id: str, number: int, candidate: Candidate, cost: Cost) -> bool:
        """Stores a trial in state costing; False when that number exists, or the job has ended.

        Raises:
            NotFoundError: No such job.
        """

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
        """Sets the state if it is ``expect`` (``to`` may equal it) and the job lives; emits a ``trial`` event.

        Arguments left None stay as stored.
        """

    # stages and attempts
    def ensure_stage(self, plan: StagePlan) -> StageRecord:
        """Stores a stage in state pending unless its key exists; returns what is stored."""

    def stages(self, keys: Iterable[str]) -> dict[str, StageRecord]:
        """Those that exist, by key, with the progress of a running attempt."""

    def results(self, keys: Iterable[str]) -> dict[str, StageResult]:
        """What those of these stages have left that are done, by key."""

    def open_attempt(
        self, key: str, *, lease_s: float, threads: int, slots: int = 1, asker: Asker = NO_ONE
    ) -> AttemptRecord | None:
        """Moves pending -> running with a new attempt; None when the stage is not pending, or must still wait."""

    def attempt(self, attempt_id: str) -> AttemptRecord:
        """Raises NotFoundError."""

    def open_attempts(self) -> list[AttemptRecord]:
        """Attempts in state open."""

    def attempts(self, key: str) -> list[AttemptRecord]:
        """All attempts at a stage, oldest first."""

    def device_seconds(self, keys: Collection[str], *, since: float) -> float:
        """Seconds that attempts at these stages, opened since then (Unix seconds), have run; open ones until now.

        One of several slots counts in each.
        """

    def stage_seconds(self, kind: StageKind, *, limit: int) -> list[tuple[StagePlan, float]]:
        """Plans and seconds of the last ``limit`` stages of a kind that were done, newest first."""

    def renew(self, attempt_id: str, token: str, *, lease_s: float, progress: Mapping[str, Json]) -> bool:
        """Heartbeat: False when the lease is no longer held."""

    def commit(self, attempt_id: str, token: str, result: StageResult, *, seconds: float) -> bool:
        """Moves running -> done by the holder of the lease; False when it is no longer held (nothing is stored)."""

    def fail(self, attempt_id: str, token: str, reason: str, *, faults: Sequence[str] = ()) -> bool:
        """Moves running -> failed, for a fault that a retry will not cure."""

    def lose(
        self, attempt_id: str, *, max_attempts: int | None, wait_s: float = 0.0, reason: str | None = None
    ) -> bool:
        """Ends an open attempt whose process is gone: its stage is pending again (failed after ``max_attempts``).

        Args:
            attempt_id: The attempt.
            max_attempts: None stands for an end that is not the stage's doing (it was cancelled, its controller was
                stopped, the disk is full): the attempt does not count as a try.
            wait_s: Seconds that the stage then waits before it may be tried again.
            reason: Why, for people; kept until the next attempt.
        """

    def reopen_stage(self, plan: StagePlan) -> bool:
        """Moves failed -> pending and stores the plan's hints anew: a user's retry tries it again."""

    # deployments
    def add_deployment(self, deployment: Deployment) -> bool:
        """False when its id exists, or its job has failed or was cancelled meanwhile.

        Raises:
            NotFoundError: No such job.
        """

    def deployment(self, deployment_id: str) -> Deployment:
        """Raises NotFoundError."""

    def deployments(self, job_id: str) -> list[Deployment]:
        """In order of trial number."""

    def set_test(self, deployment_id: str, test: Accuracy, details: Mapping[str, Json]) -> bool:
        """Stores the test accuracy once (False when it is there) and merges ``details``."""

    # events, catalogue and devices
    def emit(self, job_id: str, kind: str, data: Mapping[str, Json]) -> None:
        """Appends an event."""

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Events with an id greater than ``after``, in order."""

    def publish_catalogue(self, data: Mapping[str, Json]) -> None:
        """Replaces the catalogue: what the workers can build, and the digests of their code."""

    def catalogue(self) -> Mapping[str, Json] | None:
        """The catalogue last published; ``devices``, where any announced itself, names each with its ``code``."""

    def see_device(self, device: DeviceRecord) -> None:
        """Stores a device as it announces itself now, in place of what was known of that name."""

    def devices(self) -> list[DeviceRecord]:
        """All that ever announced themselves and were not forgotten, by name."""

    def forget_device(self, name: str) -> bool:
        """False when there is none."""


class Engine(Protocol):
    """Runs attempts somewhere: one command, one attempt.

    Attributes:
        one_machine: All attempts share one machine, so that what measures latency must run alone.
    """

    one_machine: bool = True

    def capacity(self) -> int:
        """How many slots are free: as many more attempts of one slot may be submitted now."""

    def threads(self) -> int:
        """CPU threads of a slot."""

    def widest(self) -> int:
        """How many slots one attempt may take. More than one only where a stage is done sooner with their threads."""
        return 1

    def submit(self, attempt: AttemptRecord) -> None:
        """Starts the attempt's process."""

    def running(self, attempt_id: str) -> bool:
        """False when no process works on the attempt any more."""

    def fault(self, attempt_id: str) -> str | None:  # noqa: ARG002 - for adapters
        """Why an attempt that has ended would end the same way again; None when nothing says so. Told once."""
        return None

    def cancel(self, attempt_id: str) -> None:
        """SIGTERM, then SIGKILL, of the attempt's process group."""

    def close(self) -> None:
        """Frees what the engine holds, and cancels what would not live without it."""


@dataclass(frozen=True)
class Artifact:
    """A file of a store.

    Attributes:
        sha256: Of its bytes, which it is named by.
        size: Bytes.
        put_at: Unix seconds when it was last put.
    """

    sha256: str
    size: int
    put_at: float


class ArtifactStore(Protocol):
    """Files by the sha256 of their bytes."""

    def put(self, path: Path) -> str:
        """Stores a copy, atomically; returns its sha256. A file that is there already counts as put now."""

    def path(self, sha256: str) -> Path:
        """A local, read-only file with these bytes, its hash checked once a process.

        Raises:
            NotFoundError: Not stored.
            CorruptArtifactError: The bytes do not match.
        """

    def has(self, sha256: str) -> bool:
        """True when stored."""

    def owner(self) -> str | None:
        """Name of the ledger that this store belongs to; None while it belongs to none."""

    def claim(self, ledger: str) -> str:
        """As ``owner``; a store that belongs to none is this ledger's from now on. No other may remove files."""

    def listed(self) -> Iterator[Artifact]:
        """All files, in no order; one that comes or goes meanwhile may be missing."""

    def remove(self, sha256: str, *, before: float) -> int:
        """Removes a file unless it was put at this time (Unix seconds) or later; returns its bytes, 0 if it stays."""


class Home(Protocol):
    """The disk that attempts work on."""

    def lack(self) -> str | None:
        """Why nothing may be started now; None when there is room."""

    def tidy(self) -> None:
        """Removes what processes that died have left behind."""


class Sole:
    """That a controller is the only one on its ledger. This one is what cannot be lost while the process lives."""

    def held(self) -> bool:
        """False while another controller has the ledger; asking tries to have it again. Never waits for the other.

        Raises:
            AwayError: The database does not answer, so that nobody can know.
        """
        return True


class Observer:
    """Is told what the controller does, for logs, metrics and traces: it must not raise, and decides nothing.

    This one keeps it to itself.
    """

    def stepped(self, seconds: float, *, failed: bool) -> None:
        """A step took so long."""

    def opened(self, attempt: AttemptRecord, plan: StagePlan) -> None:
        """An attempt was handed to the engine."""

    def lost(self, attempt: AttemptRecord, plan: StagePlan, tries: int, reason: str) -> None:
        """An attempt ended without a result."""

    def started(self, job: JobRecord) -> None:
        """A job was seen at work for the first time by this controller."""

    def ended(self, job: JobRecord, *, times: int) -> None:
        """A job that was at work has ended, for the first time or, after retries, once more."""
