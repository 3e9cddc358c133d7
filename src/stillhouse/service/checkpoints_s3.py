"""Checkpoints of trainings in a bucket of S3: ``prefix/checkpoints/STAGE/NAME``, beside the artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import obstore
from obstore.exceptions import BaseError

from stillhouse.service.checkpoints import CHUNK_BYTES, Checkpoints, not_kept, sha256_in, sorted_names
from stillhouse.service.store_s3 import bucket_failed, open_bucket

_FOLDER = "checkpoints"


class S3Checkpoints(Checkpoints):
    """``Checkpoints`` in a bucket, shared by any number of machines.

    Every method raises StillhouseError when the bucket does not answer.

    Args:
        url: ``s3://bucket/prefix``.
        endpoint: Address of a store that is not Amazon's.
    """

    def __init__(self, url: str, *, endpoint: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._bucket = open_bucket(self._url, endpoint)

    def keep(self, stage: str, name: str, path: Path) -> None:
        """Puts a copy under its own name, then removes the older ones."""
        try:
            obstore.put(self._bucket, f"{_FOLDER}/{stage}/{name}", path)
            for old in sorted_names(self._objects(stage))[1:]:
                obstore.delete(self._bucket, f"{_FOLDER}/{stage}/{old}")
        except (BaseError, FileNotFoundError) as error:
            raise bucket_failed(self._url, error) from error

    def newest(self, stage: str) -> str | None:
        """Name of the stage's newest."""
        try:
            names = sorted_names(self._objects(stage))
        except (BaseError, FileNotFoundError) as error:
            raise bucket_failed(self._url, error) from error
        return names[0] if names else None

    def read(self, stage: str, name: str) -> Iterator[bytes]:
        """The object's bytes."""
        if sha256_in(name) is None:
            raise not_kept(stage, name)
        try:
            found = obstore.get(self._bucket, f"{_FOLDER}/{stage}/{name}")
        except FileNotFoundError:
            raise not_kept(stage, name) from None
        except BaseError as error:
            raise bucket_failed(self._url, error) from error
        return (bytes(piece) for piece in found.stream(min_chunk_size=CHUNK_BYTES))

    def size(self, stage: str) -> int:
        """Bytes of the stage's objects."""
        try:
            return sum(self._objects(stage).values())
        except (BaseError, FileNotFoundError) as error:
            raise bucket_failed(self._url, error) from error

    def drop(self, stage: str) -> None:
        """Removes the stage's objects."""
        try:
            for name in self._objects(stage):
                obstore.delete(self._bucket, f"{_FOLDER}/{stage}/{name}")
        except (BaseError, FileNotFoundError) as error:
            raise bucket_failed(self._url, error) from error

    def stages(self) -> Iterator[str]:
        """The second parts of the objects' names."""
        try:
            listed = obstore.list_with_delimiter(self._bucket, prefix=f"{_FOLDER}/")
        except (BaseError, FileNotFoundError) as error:
            raise bucket_failed(self._url, error) from error
        yield from sorted(prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in listed["common_prefixes"])

    def _objects(self, stage: str) -> dict[str, int]:
        """Bytes by name."""
        parts = obstore.list(self._bucket, prefix=f"{_FOLDER}/{stage}/")
        return {item["path"].rsplit("/", 1)[-1]: item["size"] for part in parts for item in part}
