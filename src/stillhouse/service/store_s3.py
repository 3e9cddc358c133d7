"""Artifacts in a bucket of S3, or of what speaks like it, by the sha256 of their bytes: ``prefix/ab/cdef...``.

What is read or written stays in a local store too: the hash of each object is checked as it arrives, and an artifact
is fetched once a machine. Keys and region come from the variables that all S3 clients read (``AWS_ACCESS_KEY_ID`` and
so on), never from our settings.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store as Bucket

from stillhouse.search.errors import CorruptArtifactError, NotFoundError, StillhouseError
from stillhouse.search.ports import Artifact, ArtifactStore
from stillhouse.service.digest import file_digest
from stillhouse.service.store import CLAIM, DiskStore, is_sha256

_CHUNK_BYTES = 1 << 20
_LISTED_AT_ONCE = 1000


class S3Store(ArtifactStore):
    """An ``ArtifactStore`` in a bucket, shared by any number of machines.

    Args:
        url: ``s3://bucket/prefix``.
        cache: Folder of the local copies.
        endpoint: Address of a store that is not Amazon's, such as ``http://127.0.0.1:9000``.
    """

    def __init__(self, url: str, *, cache: Path, endpoint: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._bucket = open_bucket(self._url, endpoint)
        self._local, self._scratch = DiskStore(cache), cache / "tmp"

    def put(self, path: Path) -> str:
        """Stores a copy here and in the bucket; returns its sha256. A copy found damaged is replaced.

        Raises:
            OSError: The file cannot be read, or the disk is full.
            StillhouseError: The bucket does not take it.
        """
        sha256 = self._local.put(path)
        copy = self._local.path(sha256)
        try:
            obstore.put(self._bucket, _place(sha256), copy)
        except (BaseError, FileNotFoundError) as error:  # the latter when there is no such bucket
            raise self._failed(error) from error
        return sha256

    def path(self, sha256: str) -> Path:
        """A local, read-only copy; its hash is checked when it arrives, and at its first use in this process.

        Raises:
            NotFoundError: Not stored.
            CorruptArtifactError: The bytes in the bucket do not match.
            StillhouseError: The bucket does not answer.
        """
        try:
            return self._local.path(sha256)
        except (NotFoundError, CorruptArtifactError):
            if not is_sha256(sha256):
                raise
        self._fetch(sha256)
        return self._local.path(sha256)

    def has(self, sha256: str) -> bool:
        """True when it is in the bucket; what is here only does not count.

        Raises:
            StillhouseError: The bucket does not answer.
        """
        if not is_sha256(sha256):
            return False
        try:
            obstore.head(self._bucket, _place(sha256))
        except FileNotFoundError:
            return False
        except BaseError as error:
            raise self._failed(error) from error
        return True

    def owner(self) -> str | None:
        """Name of the ledger that this bucket belongs to; None while it belongs to none.

        Raises:
            StillhouseError: The bucket does not answer.
        """
        try:
            return bytes(obstore.get(self._bucket, CLAIM).bytes()).decode().strip()
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise self._failed(error) from error

    def claim(self, ledger: str) -> str:
        """As ``owner``; a bucket that belongs to none is this ledger's from now on.

        Raises:
            StillhouseError: The bucket does not answer.
        """
        if self.owner() is None:
            try:
                obstore.put(self._bucket, CLAIM, ledger.encode(), mode="create")
            except AlreadyExistsError:
                pass
            except (BaseError, FileNotFoundError) as error:
                raise self._failed(error) from error
        return self.owner() or ledger

    def listed(self) -> Iterator[Artifact]:
        """All objects of the bucket, then the copies here of what is not there any more.

        Raises:
            StillhouseError: The bucket does not answer.
        """
        seen: set[str] = set()
        try:
            for part in obstore.list(self._bucket, chunk_size=_LISTED_AT_ONCE):
                for item in part:
                    sha256 = item["path"].replace("/", "")
                    if is_sha256(sha256):
                        seen.add(sha256)
                        yield Artifact(sha256, item["size"], item["last_modified"].timestamp())
        except (BaseError, FileNotFoundError) as error:
            raise self._failed(error) from error
        yield from (copy for copy in self._local.listed() if copy.sha256 not in seen)

    def remove(self, sha256: str, *, before: float) -> int:
        """Removes an object, and the copy here, unless it was put at this time or later; returns its bytes, or 0.

        A bucket cannot look and remove in one: who puts the same bytes within that moment loses them.

        Raises:
            StillhouseError: The bucket does not answer.
        """
        if not is_sha256(sha256):
            return 0
        try:
            known = obstore.head(self._bucket, _place(sha256))
        except FileNotFoundError:
            return self._local.remove(sha256, before=before)
        except BaseError as error:
            raise self._failed(error) from error
        if known["last_modified"].timestamp() >= before:
            return 0
        try:
            obstore.delete(self._bucket, _place(sha256))
        except BaseError as error:
            raise self._failed(error) from error
        self._local.remove(sha256, before=before)
        return known["size"]

    def _fetch(self, sha256: str) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._scratch)
        copy = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as target:
                fcntl.flock(target, fcntl.LOCK_EX)  # DiskStore.tidy leaves alone what is locked
                for chunk in obstore.get(self._bucket, _place(sha256)).stream(min_chunk_size=_CHUNK_BYTES):
                    target.write(chunk)
                target.flush()
                found = file_digest(copy)
                if found != sha256:
                    raise CorruptArtifactError(
                        f"the bytes of {self._url}/{_place(sha256)} must hash to {sha256}, but hash to {found}: "
                        "another program changed them; put the same file again to heal it, or delete it and run its "
                        "stage again"
                    )
                self._local.put(copy)
        except FileNotFoundError as error:
            raise NotFoundError(f"no such artifact: {sha256!r}; it is not in {self._url}") from error
        except BaseError as error:
            raise self._failed(error) from error
        finally:
            copy.unlink(missing_ok=True)

    def _failed(self, error: Exception) -> StillhouseError:
        return bucket_failed(self._url, error)


def open_bucket(url: str, endpoint: str | None) -> Bucket:
    """A client of the bucket at ``s3://bucket/prefix``."""
    more = {"endpoint": endpoint} if endpoint else {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    options = {"allow_http": True} if (endpoint or "").startswith("http://") else {}
    return Bucket.from_url(url, region=region, client_options=options, **more)  # type: ignore[arg-type]


def bucket_failed(url: str, error: Exception) -> StillhouseError:
    """The error of a bucket that does not answer, or refuses."""
    return StillhouseError(f"the store {url} failed: {str(error).strip().splitlines()[0][:500]}")


def _place(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256[2:]}"
