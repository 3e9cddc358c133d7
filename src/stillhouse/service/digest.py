"""The digest that names a data set's source, without reading a picture."""

from __future__ import annotations

import hashlib
from pathlib import Path


def source_digest(source: Path) -> str:
    """sha256 of a file's bytes, or of a folder's listing: sorted relative paths, each with its file's sha256.

    Links are not followed: what they point to is no part of the folder.
    """
    if not source.is_dir():
        return file_digest(source)
    listing = hashlib.sha256()
    files = (path for path in source.rglob("*") if path.is_file() and not path.is_symlink())
    for path in sorted(files, key=lambda path: path.relative_to(source).as_posix()):
        name = path.relative_to(source).as_posix()
        listing.update(f"{file_digest(path)} {name!r}\n".encode())
    return listing.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
