"""Opens the artifact store that the settings name."""

from __future__ import annotations

import importlib.util

from stillhouse.search.errors import UserError
from stillhouse.search.ports import ArtifactStore
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore


def open_store(settings: Settings) -> ArtifactStore:
    """The store: a folder, or a bucket with copies in a folder.

    Raises:
        UserError: A bucket is named, and what talks to one is not installed.
    """
    if settings.store_url is None or not settings.store_url.startswith("s3://"):
        return DiskStore(settings.artifacts)
    if importlib.util.find_spec("obstore") is None:
        raise UserError("a store in a bucket needs obstore: pip install 'stillhouse[s3]'")
    from stillhouse.service.store_s3 import S3Store  # noqa: PLC0415 - it needs the extra

    return S3Store(settings.store_url, cache=settings.artifacts, endpoint=settings.store_endpoint)
