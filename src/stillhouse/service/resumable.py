"""Uploads that can be taken up where they broke off: an offer, then its bytes in any number of requests.

An offer is two files in the folder of uploads: ``<id>.json`` says what is to come, ``<id>.part`` holds what has come.
So it survives a restart, and its offset is the length of a file. One that nobody goes on with is removed after a day.
Until then an offer takes its whole size of what the API key may upload, however little of it has come.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from stillhouse.search.errors import ConflictError, DatasetError, NotFoundError, UserError
from stillhouse.service.digest import file_digest
from stillhouse.service.room import disk_full
from stillhouse.service.store import is_sha256

MOST_AGE_S = 24 * 3600.0
_ID = re.compile(r"upl_[0-9a-f]{32}")


@dataclass(frozen=True)
class Offer:
    """What is to come: ``size`` bytes that hash to ``sha256``, from ``owner``, by the API key whose id is ``key``."""

    size: int
    sha256: str
    owner: str = ""
    key: str | None = None

    @property
    def id(self) -> str:
        """The same for the same offer: who lost the id offers again and goes on."""
        return "upl_" + hashlib.sha256(f"{self.owner}|{self.size}|{self.sha256}".encode()).hexdigest()[:32]


class OffsetError(ConflictError):
    """The upload is not where the sender thinks.

    Args:
        offset: Where it is.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(f"the upload has {offset} bytes; go on from there (Upload-Offset: {offset})")
        self.offset = offset


class Tail:
    """The end of an upload's file. Nothing waits in a buffer, so that what is cut off stays cut off.

    Args:
        file: Not buffered.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def tell(self) -> int:
        """Where the next bytes go."""
        return self._file.tell()

    def write(self, data: bytes) -> None:
        """Writes all of it; raises OSError."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]


class Uploads:
    """The offers in a folder.

    Args:
        folder: Made when it is needed.
        most_bytes: Greatest size of an upload.
    """

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        self._folder, self._most = folder, most_bytes

    def offer(
        self,
        size: int,
        sha256: str,
        *,
        owner: str = "",
        key: str | None = None,
        check: Callable[[int, int], None] | None = None,
    ) -> Offer:
        """Takes an offer, or finds the one that was taken before.

        Args:
            size: Bytes.
            sha256: Of the bytes.
            owner: Whose it is.
            key: Id of the API key that offers.
            check: Is told the bytes of the key's other offers, and those still to come of this one, and may raise; no
                offer comes in between.

        Raises:
            UserError: A size or hash that cannot be taken.
        """
        if not 1 <= size <= self._most:
            raise UserError(
                f"1 <= size <= {self._most} bytes must hold, but got {size}; see STILLHOUSE_MAX_UPLOAD_BYTES"
            )
        if not is_sha256(sha256):
            raise UserError(f"sha256 must be 64 hex digits in lower case, but got {sha256[:80]!r}")
        self.clean()
        self._folder.mkdir(parents=True, exist_ok=True)
        found = Offer(size, sha256, owner, key)
        with self._alone():
            if check is not None:
                others = 0 if key is None else self.offered_bytes(key, but=found.id)
                check(others, size - self._come(found.id))
            self._part(found.id).touch()
            fresh = self._folder / f"{os.urandom(8).hex()}.tmp"
            try:
                fresh.write_text(json.dumps(asdict(found)), encoding="utf-8")
                fresh.replace(self._told(found.id))
            finally:
                fresh.unlink(missing_ok=True)
        return found

    def offered_bytes(self, key: str, *, but: str = "") -> int:
        """Bytes of the open offers of an API key, come or not, but for the offer of this id."""
        offers = (self._read(part.stem) for part in self._folder.glob("upl_*.part") if part.stem != but)
        return sum(offer.size for offer in offers if offer is not None and offer.key == key)

    def find(self, upload_id: str, *, owner: str = "") -> Offer:
        """The offer of this id; raises NotFoundError."""
        offer = self._read(upload_id) if _ID.fullmatch(upload_id) else None
        if offer is None or offer.owner != owner or not self._part(upload_id).exists():
            raise _gone(upload_id)
        return offer

    def offset(self, offer: Offer) -> int:
        """Bytes that have come; raises NotFoundError."""
        try:
            return self._part(offer.id).stat().st_size
        except FileNotFoundError:
            raise _gone(offer.id) from None

    @contextmanager
    def opened(self, offer: Offer, at: int) -> Iterator[Tail]:
        """The upload's file, open to be written from ``at`` on, synced at the end.

        Where there is no room for what is written, the room of all of it is given back: its sender has no word yet that
        it is kept.

        Raises:
            OffsetError: The upload is elsewhere.
            ConflictError: Another request is at it.
            NotFoundError: It was dropped or completed meanwhile.
        """
        try:
            file = self._part(offer.id).open("r+b", buffering=0)
        except FileNotFoundError:
            raise _gone(offer.id) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError(
                    "another request is sending to this upload; wait for it, then ask for the offset"
                ) from None
            end = file.seek(0, os.SEEK_END)
            if at != end:
                raise OffsetError(end)
            try:
                try:
                    yield Tail(file)
                finally:
                    os.fsync(file.fileno())
            except Exception as error:
                if disk_full(error):
                    file.truncate(end)
                raise

    def complete(self, offer: Offer) -> Path:
        """Checks the bytes and gives the zip its place, ``<sha256>.zip``, too; ``drop`` then ends the offer.

        Raises:
            ConflictError: Bytes are missing.
            DatasetError: The bytes are others than those offered, or no zip; they are removed.
        """
        part = self._part(offer.id)
        if (have := self.offset(offer)) != offer.size:
            raise ConflictError(f"{offer.size - have} of {offer.size} bytes are missing; send them, then complete")
        digest = file_digest(part)
        if digest != offer.sha256 or not zipfile.is_zipfile(part):
            self.drop(offer)
            what = (
                "no zip; send the picture folder as one .zip"
                if digest == offer.sha256
                else f"not those: they hash to {digest}"
            )
            raise DatasetError(
                f"the bytes must be a zip that hashes to {offer.sha256}, but are {what}; send them again"
            )
        os.utime(part)  # a zip that no data set names is removed when it is old
        fresh = self._folder / f"{os.urandom(8).hex()}.tmp"
        fresh.hardlink_to(part)  # the offer lives on until its data set is stored: a repeated request finds it
        kept = fresh.replace(self._folder / f"{digest}.zip")
        fresh.unlink(missing_ok=True)  # where both were links to one file, a rename removes neither
        return kept

    def drop(self, offer: Offer) -> None:
        """Forgets an offer and what has come."""
        for path in (self._part(offer.id), self._told(offer.id)):
            path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes offers that nobody went on with for a day."""
        if not self._folder.is_dir():
            return
        oldest = time.time() - MOST_AGE_S
        for part in self._folder.glob("upl_*.part"):
            try:
                if part.stat().st_mtime < oldest:
                    part.unlink()
                    self._told(part.stem).unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # another process was first

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Puts those who offer in line, of all processes on this folder."""
        with self._folder.with_name(f"{self._folder.name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _come(self, upload_id: str) -> int:
        part = self._part(upload_id)
        return part.stat().st_size if part.exists() else 0

    def _read(self, upload_id: str) -> Offer | None:
        try:
            return Offer(**json.loads(self._told(upload_id).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _part(self, upload_id: str) -> Path:
        return self._folder / f"{upload_id}.part"

    def _told(self, upload_id: str) -> Path:
        return self._folder / f"{upload_id}.json"


def _gone(upload_id: str) -> NotFoundError:
    return NotFoundError(f"no such upload: {upload_id[:80]!r}; it was completed, or left for a day: offer it again")
