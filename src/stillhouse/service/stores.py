"""Opens the artifact store that the settings name, and the place of checkpoints beside it."""

from __future__ import annotations

import importlib.util

from stillhouse.search.errors import UserError
from stillhouse.search.ports import ArtifactStore
from stillhouse.service.checkpoints import Checkpoints, DiskCheckpoints
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore


def open_store(settings: Settings) -> ArtifactStore:
    """The store: a folder, or a bucket with copies in a folder.

    Raises:
        UserError: A bucket is named, and what talks to one is not installed.
    """
    if not _in_bucket(settings):
        return DiskStore(settings.artifacts)
    _need_obstore()
    from stillhouse.service.store_s3 import S3Store  # noqa: PLC0415 - it needs the extra

    return S3Store(str(settings.store_url), cache=settings.artifacts, endpoint=settings.store_endpoint)


def open_checkpoints(settings: Settings) -> Checkpoints:
    """Where checkpoints of other machines are kept: beside the artifacts, in the folder or in the bucket.

    Raises:
        UserError: A bucket is named, and what talks to one is not installed.
    """
    if not _in_bucket(settings):
        return DiskCheckpoints(settings.artifacts / "checkpoints")
    _need_obstore()
    from stillhouse.service.checkpoints_s3 import S3Checkpoints  # noqa: PLC0415 - it needs the extra

    return S3Checkpoints(str(settings.store_url), endpoint=settings.store_endpoint)


def _in_bucket(settings: Settings) -> bool:
    return (settings.store_url or "").startswith("s3://")


def _need_obstore() -> None:
    if importlib.util.find_spec("obstore") is None:
        raise UserError("a store in a bucket needs obstore: pip install 'stillhouse[s3]'")
