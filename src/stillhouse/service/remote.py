"""The claim of a process that has nothing but the API's address and its attempt's token.

It holds no database address and no store's keys. Files that it has read or made stay in a store of its own, so that
the next attempt on the same machine need not fetch them again. A call that gets no answer is made again for as long
as a lease lasts: an API that is started anew costs no work.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import httpx
import structlog

from stillhouse.search.domain import Json, StagePlan, StageResult
from stillhouse.search.errors import (
    AwayError,
    CorruptArtifactError,
    LeaseLostError,
    NotFoundError,
    StageError,
    StillhouseError,
)
from stillhouse.search.ports import ArtifactStore
from stillhouse.service.checkpoints import sha256_in, sorted_names
from stillhouse.service.claim import Claim, Order, until_answered
from stillhouse.service.digest import file_digest

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
LOG_PATIENCE_S = 2.0
_CHUNK_BYTES = 1 << 20
_ERRORS: Mapping[int, type[StillhouseError]] = {404: NotFoundError, 409: LeaseLostError, 422: StageError}

log = structlog.get_logger(__name__)


class _StoppedError(Exception):
    """What is being sent is not wanted any more."""


class RemoteClaim(Claim):
    """A ``Claim`` over the API's routes under ``/attempts``. Safe from several threads.

    Args:
        url: Address of the API, such as ``http://127.0.0.1:8000``.
        attempt_id: The attempt.
        token: Its token.
        store: This machine's own store: what is read and made is kept there.
        uploads: Folder for the pictures of an ingest stage.
        patience_s: Seconds that a call is tried for.
        transport: For tests: answers in place of the network.
    """

    def __init__(
        self,
        url: str,
        attempt_id: str,
        token: str,
        *,
        store: ArtifactStore,
        uploads: Path,
        patience_s: float,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.attempt_id = attempt_id
        self.log = "its end is among the trial's logs; the engine keeps the whole under the attempt's id"
        self._url, self._store, self._uploads, self._patience_s = url, store, uploads, patience_s
        self._base = f"/attempts/{attempt_id}"
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(30, connect=5),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # ------------------------------------------------------------------------------------- claim

    def order(self) -> Order:
        """What to do."""
        data = self._call("reading the order", lambda: self._http.get(self._base)).json()
        order = Order.from_json(data)
        self._patience_s = order.lease_s
        return order

    def fetch_source(self, order: Order) -> StagePlan:
        """The plan, its pictures copied here once: the hash that names them is checked."""
        if order.source is None:
            return order.plan
        digest = order.plan.spec["digest"]
        kept = self._uploads / f"{digest}.zip"
        if not (kept.is_file() and file_digest(kept) == digest):
            with self._fetched("/source", digest) as fresh:
                fresh.replace(kept)
        return replace(order.plan, hints={**order.plan.hints, "source": str(kept)})

    def renew(self, progress: Mapping[str, Json]) -> bool:
        """Heartbeat, tried once: the next one follows soon."""
        return self._holds(lambda: self._answer(self._post("/renew", {"progress": dict(progress)})))

    def commit(self, result: StageResult, *, seconds: float) -> bool:
        """Ends the stage with a result."""
        return self._end("committing", "/commit", {**result.to_json(), "seconds": seconds})

    def fail(self, reason: str, *, faults: Sequence[str] = ()) -> bool:
        """Ends the stage with a reason."""
        return self._end("telling a failure", "/fail", {"reason": reason, "faults": list(faults)})

    def give_back(self, reason: str, *, wait_s: float) -> None:
        """Ends the attempt for what is not its stage's doing."""
        body = {"reason": reason, "wait_s": wait_s}
        # Refused, it was given back by an earlier call whose answer was lost, or is another's: the same to us.
        self._holds(lambda: self._call("giving the attempt back", lambda: self._post("/give-back", body)))

    def fetch_checkpoint(self, order: Order, folder: Path) -> None:
        """Fetches it; one that is gone by now is done without, and the training begins with what is here."""
        name = order.checkpoint
        if name is None or any(held >= name for held in sorted_names(path.name for path in folder.glob("*.pt"))):
            return
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._fetched(f"/checkpoints/{name}", str(sha256_in(name))) as fresh:
                fresh.replace(folder / name)
        except NotFoundError as error:
            log.warning("no checkpoint to go on from", why=str(error))
            return
        log.info("going on from the checkpoint of another machine", checkpoint=name)

    def send_checkpoint(self, path: Path, stop: threading.Event) -> bool:
        """Sends it, tried once: the next one follows soon."""

        def pieces(handle: BinaryIO) -> Iterator[bytes]:
            while piece := handle.read(_CHUNK_BYTES):
                if stop.is_set():
                    raise _StoppedError
                yield piece

        with path.open("rb") as handle:
            try:
                self._answer(self._http.put(f"{self._base}/checkpoints/{path.name}", content=pieces(handle)))
            except _StoppedError:
                return False
        return True

    def send_log(self, text: bytes) -> None:
        """Sends the end of the attempt's log, tried once and for a moment only: the attempt does not depend on it."""

        def send() -> None:
            try:
                self._answer(self._http.put(f"{self._base}/log", content=text, headers={"Content-Type": "text/plain"}))
            except Exception as error:
                log.warning("the log could not be sent", why=repr(error))

        # By a thread: httpx limits each piece of the way and not the whole of it.
        sender = threading.Thread(target=send, name="log", daemon=True)
        sender.start()
        sender.join(LOG_PATIENCE_S)
        if sender.is_alive():
            log.warning("the log could not be sent", why=f"it took longer than {LOG_PATIENCE_S:g} s")

    def put(self, path: Path) -> str:
        """Stores a file here and sends it."""
        sha256 = self._store.put(path)

        def send() -> httpx.Response:
            with self._store.path(sha256).open("rb") as content:
                return self._http.put(f"{self._base}/artifacts/{sha256}", content=content)

        self._call(f"sending {path.name}", send)
        return sha256

    def path(self, sha256: str) -> Path:
        """A file of this machine's store, fetched when it is not there or damaged."""
        try:
            return self._store.path(sha256)
        except (NotFoundError, CorruptArtifactError):
            with self._fetched(f"/artifacts/{sha256}", sha256) as fresh:
                self._store.put(fresh)
            return self._store.path(sha256)

    # -------------------------------------------------------------------------------------- HTTP

    def _post(self, path: str, body: Mapping[str, Json]) -> httpx.Response:
        # Figures that are not finite are sent as they are: the ledger's own message refuses them, here as there.
        content = json.dumps(body).encode()
        return self._http.post(self._base + path, content=content, headers={"Content-Type": "application/json"})

    @contextmanager
    def _fetched(self, path: str, sha256: str) -> Iterator[Path]:
        """A file with the body of an answer, which must have this hash; removed at the end unless it was moved."""
        self._uploads.mkdir(parents=True, exist_ok=True)
        fresh = self._uploads / f"{os.urandom(8).hex()}.tmp"

        def fetch() -> httpx.Response:
            with self._http.stream("GET", self._base + path) as answer, fresh.open("wb") as target:
                if not answer.is_success:
                    answer.read()
                    return answer
                for chunk in answer.iter_bytes(_CHUNK_BYTES):
                    target.write(chunk)
            found = file_digest(fresh)
            if found != sha256:
                raise httpx.RemoteProtocolError(f"what came must hash to {sha256}, but hashes to {found}")
            return answer

        try:
            self._call(f"fetching {path}", fetch)
            yield fresh
        finally:
            fresh.unlink(missing_ok=True)

    def _end(self, what: str, path: str, body: Mapping[str, Json]) -> bool:
        """Ends the attempt; ``again`` says that an earlier call may have done it whose answer was lost."""
        tries = itertools.count()
        return self._holds(lambda: self._call(what, lambda: self._post(path, {**body, "again": next(tries) > 0})))

    def _call(self, what: str, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """Asks until there is an answer that another try would not change.

        Raises:
            LeaseLostError: None came for as long as a lease lasts.
        """

        def once() -> httpx.Response:
            try:
                answer = ask()
            except httpx.TransportError as error:
                raise AwayError(repr(error)) from error
            if answer.status_code >= 500 or answer.status_code == 429:  # 429: asked too often
                raise AwayError(f"{answer.status_code} {_detail(answer)}")
            return self._answer(answer)

        pauses_s = (FIRST_PAUSE_S, LONGEST_PAUSE_S)
        return until_answered(once, self._patience_s, f"{what}: {self._url}", pauses_s)

    @staticmethod
    def _answer(answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        raise _ERRORS.get(answer.status_code, StillhouseError)(_detail(answer))

    @staticmethod
    def _holds(ask: Callable[[], object]) -> bool:
        try:
            ask()
        except LeaseLostError as error:
            log.warning("the lease is no longer held", why=str(error))
            return False
        return True


def _detail(answer: httpx.Response) -> str:
    try:
        data: Any = answer.json()
        return str(data["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:500] or f"status {answer.status_code}"
