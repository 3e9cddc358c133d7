"""What one attempt needs of the outside: its order, its lease, its files.

The worker knows ``Claim`` alone. ``LocalClaim`` serves a process beside the database; ``remote.RemoteClaim`` one that
has nothing but the API's address and the attempt's token.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from stillhouse.search.domain import Json, StageKind, StagePlan, StageResult
from stillhouse.search.errors import AwayError, LeaseLostError
from stillhouse.search.job import AttemptRecord
from stillhouse.search.ports import ArtifactStore, Ledger
from stillhouse.search.wanted import NO_ONE, Asker

LOG_BYTES = 256 << 10
"""Of the end of its log, which an attempt on another machine sends."""
_PAUSES_S = (0.1, 2.0)

Answer = TypeVar("Answer")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Order:
    """What an attempt is to do, and on which terms.

    Attributes:
        plan: The stage.
        results: What the stages that it reads have left, by role; those that are not done are missing. ``resume`` is
            the same training, paused earlier.
        threads: CPU threads.
        lease_s: Seconds that the attempt may go without a heartbeat.
        heartbeat_s: Seconds between two heartbeats.
        asker: Who asked for the stage first: for logs and traces.
        checkpoint: Name of the newest checkpoint that an attempt on another machine has sent; None when there is none.
        checkpoint_every_s: Seconds between two that are sent.
    """

    plan: StagePlan
    results: Mapping[str, StageResult]
    threads: int
    lease_s: float
    heartbeat_s: float
    asker: Asker = NO_ONE
    checkpoint: str | None = None
    checkpoint_every_s: float = 60.0

    @property
    def readable(self) -> frozenset[str]:
        """The sha256 of each artifact that the attempt may read."""
        named = {sha256 for result in self.results.values() for sha256 in result.artifacts.values()}
        checkpoint = self.plan.spec.get("checkpoint")
        return frozenset(named | ({checkpoint} if checkpoint else set()))

    @property
    def source(self) -> Path | None:
        """Where the pictures of an ingest stage lie on the API's machine; None where nothing lies (built in)."""
        source = self.plan.hints.get("source")
        if self.plan.kind is not StageKind.INGEST or source is None or source == self.plan.spec["digest"]:
            return None
        return Path(source)

    def to_json(self) -> dict[str, Json]:
        """JSON form; ``from_json`` reads it back."""
        return {
            "plan": self.plan.to_json(),
            "results": {role: result.to_json() for role, result in self.results.items()},
            "threads": self.threads,
            "lease_s": self.lease_s,
            "heartbeat_s": self.heartbeat_s,
            "asker": asdict(self.asker),
            "checkpoint": self.checkpoint,
            "checkpoint_every_s": self.checkpoint_every_s,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Order:
        """Reads what ``to_json`` wrote."""
        results = {role: StageResult.from_json(result) for role, result in data["results"].items()}
        plan = StagePlan.from_json(data["plan"])
        terms = {name: data[name] for name in ("threads", "lease_s", "heartbeat_s", "checkpoint", "checkpoint_every_s")}
        return cls(plan, results, asker=Asker(**data["asker"]), **terms)


class Claim(Protocol):
    """One attempt's hold on its stage.

    Every method may raise LeaseLostError: the attempt must stop without a result.
    """

    attempt_id: str
    log: str
    """Where the attempt's log is, for the reason of a failure."""

    def order(self) -> Order:
        """What to do.

        Raises:
            NotFoundError: No such attempt.
        """

    def fetch_source(self, order: Order) -> StagePlan:
        """The order's plan, its pictures where this machine can read them.

        Raises:
            StillhouseError: They cannot be had here; the message says why.
        """

    def renew(self, progress: Mapping[str, Json]) -> bool:
        """Heartbeat: False when the lease is no longer held."""

    def commit(self, result: StageResult, *, seconds: float) -> bool:
        """Ends the stage with a result; False when the lease is no longer held.

        Raises:
            StageError: The figures are no JSON, or are not finite.
        """

    def fail(self, reason: str, *, faults: Sequence[str] = ()) -> bool:
        """Ends the stage for a fault that a retry will not cure; False when the lease is no longer held."""

    def give_back(self, reason: str, *, wait_s: float) -> None:
        """Ends the attempt for what is not its stage's doing: it is tried again after a while, and this is no try."""

    def fetch_checkpoint(self, order: Order, folder: Path) -> None:
        """Puts the checkpoint that the order names into a folder, unless that holds it or a newer one."""

    def send_checkpoint(self, path: Path, stop: threading.Event) -> bool:
        """Keeps a checkpoint where another machine finds it; False when it need not, or was told to stop before.

        Raises:
            FileNotFoundError: It is gone.
            StillhouseError: It cannot be kept now; the next may.
        """

    def put(self, path: Path) -> str:
        """Stores a file; returns its sha256."""

    def path(self, sha256: str) -> Path:
        """A local, read-only file with these bytes.

        Raises:
            NotFoundError: Not stored, or not for this attempt to read.
            CorruptArtifactError: The bytes do not match.
        """


class LocalClaim(Claim):
    """A ``Claim`` over the ledger and the store themselves.

    A call that the database does not answer is made again for as long as a lease lasts: a database that is started anew
    costs no work.

    Raises:
        NotFoundError: No such attempt.
    """

    def __init__(
        self, ledger: Ledger, store: ArtifactStore, attempt_id: str, *, lease_s: float, heartbeat_s: float, log: str
    ) -> None:
        self.attempt_id, self.log = attempt_id, log
        self._ledger, self._store = ledger, store
        self._lease_s, self._heartbeat_s = lease_s, heartbeat_s
        self._attempt = self._ask(lambda: ledger.attempt(attempt_id))

    def order(self) -> Order:
        """What to do."""
        terms = {"lease_s": self._lease_s, "heartbeat_s": self._heartbeat_s}
        return self._ask(lambda: order_of(self._ledger, self._attempt, **terms))

    def fetch_source(self, order: Order) -> StagePlan:
        """The plan as it is: its pictures lie on this machine."""
        return order.plan

    def renew(self, progress: Mapping[str, Json]) -> bool:
        """Heartbeat, tried once: the next one follows soon."""
        return self._ledger.renew(self.attempt_id, self._attempt.token, lease_s=self._lease_s, progress=progress)

    def commit(self, result: StageResult, *, seconds: float) -> bool:
        """Ends the stage with a result."""
        attempt, tries = self._attempt, itertools.count()

        def commit() -> bool:
            again = next(tries) > 0
            if self._ledger.commit(attempt.id, attempt.token, result, seconds=seconds):
                return True
            # An earlier call may have done it whose answer was lost.
            return again and self._ledger.attempt(attempt.id).state == "done"

        return self._ask(commit)

    def fail(self, reason: str, *, faults: Sequence[str] = ()) -> bool:
        """Ends the stage with a reason."""
        return self._ask(lambda: self._ledger.fail(self.attempt_id, self._attempt.token, reason, faults=faults))

    def give_back(self, reason: str, *, wait_s: float) -> None:
        """Ends the attempt for what is not its stage's doing."""
        self._ask(lambda: self._ledger.lose(self.attempt_id, max_attempts=None, wait_s=wait_s, reason=reason))

    def fetch_checkpoint(self, order: Order, folder: Path) -> None:
        """Does nothing: the folder persists from one attempt on this machine to the next."""

    def send_checkpoint(self, path: Path, stop: threading.Event) -> bool:  # noqa: ARG002 - for the remote one
        """Does nothing, for the same reason."""
        return False

    def put(self, path: Path) -> str:
        """Stores a file."""
        return self._store.put(path)

    def path(self, sha256: str) -> Path:
        """A file of the store."""
        return self._store.path(sha256)

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        return until_answered(call, self._lease_s, "the database", _PAUSES_S)


def until_answered(ask: Callable[[], Answer], for_s: float, who: str, pauses_s: tuple[float, float]) -> Answer:
    """Asks again while nobody answers (``AwayError``).

    Args:
        ask: Asks once.
        for_s: Seconds to go on for.
        who: Is asked.
        pauses_s: The first and the longest pause, which doubles from try to try.

    Raises:
        LeaseLostError: None answered in that time.
    """
    until, pause_s = time.monotonic() + for_s, pauses_s[0]
    while True:
        try:
            return ask()
        except AwayError as error:
            if time.monotonic() + pause_s > until:
                raise LeaseLostError(f"{who} gave no answer for {for_s:g} s: {error}") from error
            log.warning("no answer; trying again", who=who, why=str(error), pause_s=pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, pauses_s[1])


def order_of(ledger: Ledger, attempt: AttemptRecord, *, lease_s: float, heartbeat_s: float) -> Order:
    """Reads from the ledger what an attempt is to do."""
    plan = ledger.stages([attempt.stage_key])[attempt.stage_key].plan
    keys: dict[str, str] = dict(plan.inputs)
    if plan.hints.get("resume"):
        keys["resume"] = plan.hints["resume"]
    stages = ledger.stages(keys.values())
    done = {role: stages[key].result for role, key in keys.items() if key in stages}
    results = {role: result for role, result in done.items() if result is not None}
    return Order(plan, results, attempt.threads, lease_s, heartbeat_s, attempt.asker)
