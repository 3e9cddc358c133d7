"""The engine of a Ray cluster: one Ray job an attempt, over the HTTP API of the cluster's head.

This process needs no Ray. A job runs ``stillhouse stage run ATTEMPT --url ...`` with the attempt's token in its
environment, and gets all else from our API. What the head knows is asked for at most once in ``LOOK_S`` seconds.

A job is submitted only when a node has room for it: one that waits in the head's queue would hold its stage and do
nothing. Nobody else is taken to use the cluster's GPUs; a job of another is counted like one of ours.

When the head does not answer, nothing is known to have ended: attempts stay open for as long as they renew their
leases, and none is started. A head that was started anew knows none of its jobs: they are lost, and the controller
starts their stages again. A node that is cut off may train on for a while; its lease is then another's.
"""

from __future__ import annotations

import math
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx
import structlog

from stillhouse.search.domain import Json
from stillhouse.search.errors import StillhouseError
from stillhouse.search.job import AttemptRecord
from stillhouse.search.ports import Engine
from stillhouse.service.engine.local import THREAD_VARIABLES

LOOK_S = 1.0
_LIVE = frozenset({"PENDING", "RUNNING"})
_MOST_NODES = 10_000
"""As many as the head lists at once; by itself it would stop at 100."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Share:
    """What each attempt gets of a node.

    Attributes:
        gpus: GPUs; a fraction shares one.
        cpus: CPU cores, which are also its threads.
    """

    gpus: float = 1.0
    cpus: int = 1

    def slots(self, resources: Mapping[str, float]) -> int:
        """How many attempts a node with these resources holds."""
        needs = {"GPU": self.gpus, "CPU": float(self.cpus)}
        # A little more than the quotient, so that 1 / 0.1 is ten.
        return min(math.floor(resources.get(name, 0.0) / need + 1e-6) for name, need in needs.items() if need > 0)


@dataclass
class _Seen:
    """What the head said: ids of live jobs and attempts that all nodes hold; ``away`` says why it said nothing."""

    live: set[str] = field(default_factory=set)
    slots: int = 0
    away: str | None = None


class RayEngine(Engine):
    """An ``Engine`` on a Ray cluster. Safe from several threads.

    Args:
        url: Address of the head's dashboard, such as ``http://127.0.0.1:8265``.
        public_url: Address at which the cluster's nodes reach our API.
        share: What each attempt gets.
        token: The cluster's token, where it runs with ``RAY_AUTH_MODE=token``.
        command: How the nodes call the command line.
        clock: Seconds, for tests.
    """

    one_machine = False

    def __init__(
        self,
        url: str,
        public_url: str,
        *,
        share: Share | None = None,
        token: str | None = None,
        command: str = "stillhouse",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=10)
        self._url, self._public_url, self._command = url, public_url, command
        self._share, self._clock = share or Share(), clock
        self._lock = threading.RLock()
        self._seen, self._looked_at = _Seen(), -math.inf

    # ------------------------------------------------------------------------------------- verbs

    def capacity(self) -> int:
        """How many more attempts the cluster's nodes have room for now. Each takes one slot."""
        with self._lock:
            seen = self._look()
            return 0 if seen.away else max(0, seen.slots - len(seen.live))

    def threads(self) -> int:
        """CPU threads that each attempt gets."""
        return self._share.cpus

    def submit(self, attempt: AttemptRecord) -> None:
        """Hands the attempt to the head; returns at once.

        Raises:
            StillhouseError: No node has room, or the head does not take it.
        """
        variables = {"STILLHOUSE_TOKEN": attempt.token, **dict.fromkeys(THREAD_VARIABLES, str(attempt.threads))}
        words = ["stage", "run", attempt.id, "--url", self._public_url]
        body = {
            "submission_id": attempt.id,
            "entrypoint": f"exec {self._command} {shlex.join(words)}",
            "runtime_env": {"env_vars": variables},
            "entrypoint_num_gpus": self._share.gpus,
            "entrypoint_num_cpus": self._share.cpus,
        }
        with self._lock:
            if self.capacity() < 1:
                why = self._seen.away or "no node has room"
                raise StillhouseError(
                    f"capacity() >= 1 must hold before submit, but of the cluster at {self._url}: {why}"
                )
            try:
                self._ask("POST", "/api/jobs/", body)
            except (httpx.TransportError, StillhouseError) as error:
                raise StillhouseError(f"the Ray head at {self._url} did not take {attempt.id}: {error}") from error
            self._seen.live.add(attempt.id)

    def running(self, attempt_id: str) -> bool:
        """False when the head says that the attempt's job has ended, or knows no such job."""
        with self._lock:
            seen = self._look()
            return seen.away is not None or attempt_id in seen.live

    def cancel(self, attempt_id: str) -> None:
        """SIGTERM to the attempt's processes, SIGKILL after the head's grace period; returns at once.

        When the head does not answer, the attempt ends itself once it finds its lease gone.
        """
        with self._lock:
            if attempt_id not in self._look().live:
                return
        try:
            self._ask("POST", f"/api/jobs/{attempt_id}/stop")
        except (httpx.TransportError, StillhouseError) as error:
            log.warning(
                "a job was not stopped; it ends when it finds its lease gone", attempt=attempt_id, why=str(error)
            )

    def close(self) -> None:
        """Closes the connection. Attempts go on: the next controller finds them at work."""
        self._http.close()

    # -------------------------------------------------------------------------------------- head

    def _look(self) -> _Seen:
        """What the head says now, or said less than ``LOOK_S`` ago."""
        now = self._clock()
        if now - self._looked_at < LOOK_S:
            return self._seen
        before, first = self._seen, self._looked_at == -math.inf
        try:
            self._seen = _Seen(self._live(), self._slots())
        except (httpx.TransportError, StillhouseError, KeyError, TypeError, ValueError) as error:
            self._seen = _Seen(before.live, before.slots, away=f"{type(error).__name__}: {error}")
        self._looked_at = self._clock()
        self._tell(before, first=first)
        return self._seen

    def _tell(self, before: _Seen, *, first: bool) -> None:
        """Logs what has changed for its operator."""
        seen = self._seen
        if seen.away and not before.away:
            log.warning("the Ray head does not answer; nothing is started until it does", url=self._url, why=seen.away)
        elif before.away and not seen.away:
            log.warning("the Ray head answers again", url=self._url)
        if not seen.away and not seen.slots and (before.slots or first):
            log.warning("no node of the Ray cluster holds one attempt", gpus=self._share.gpus, cpus=self._share.cpus)

    def _live(self) -> set[str]:
        jobs = self._ask("GET", "/api/jobs/")
        return {job["submission_id"] for job in jobs if job["type"] == "SUBMISSION" and job["status"] in _LIVE}

    def _slots(self) -> int:
        nodes = self._ask("GET", f"/api/v0/nodes?limit={_MOST_NODES}")["data"]["result"]["result"]
        return sum(self._share.slots(node["resources_total"]) for node in nodes if node["state"] == "ALIVE")

    def _ask(self, method: str, path: str, body: Mapping[str, Json] | None = None) -> Json:
        """An answer's JSON; a StillhouseError with what an answer that is no success says."""
        answer = self._http.request(method, path, json=body)
        if answer.status_code in (401, 403):
            raise StillhouseError(f"{answer.text.strip()[:200]}; STILLHOUSE_RAY_TOKEN must be the cluster's token")
        if not answer.is_success:
            said = answer.text.strip().splitlines() or [""]
            raise StillhouseError(f"status {answer.status_code}: {said[-1][:500]}")
        return answer.json()
