"""The digest that names a data set's source, without reading a picture."""

from __future__ import annotations

import hashlib
from pathlib import Path


def source_digest(source: Path) -> str:
    """The sha256 of a file's bytes, or of a folder's listing: sorted relative paths, each with its file's sha256.

    Hidden files, which desktops leave behind, do not count; nor do times, owners or the folder's own place.
    """
    if not source.is_dir():
        return file_digest(source)
    listing = hashlib.sha256()
    names = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file()}
    for name in sorted(names):
        if not any(part.startswith(".") for part in name.split("/")):
            listing.update(f"{file_digest(names[name])} {name!r}\n".encode())
    return listing.hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
