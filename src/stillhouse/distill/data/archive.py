"""A data set's files, from a zip or a folder, read as if a stranger had packed them.

Nothing is extracted: members are streamed out of the zip and never reach a path that they name. Sizes that
a zip claims are not believed; the bytes that really come out are counted.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from stillhouse.search.errors import DatasetError

CHUNK = 1 << 20
_UNPACK_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_CLUTTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_OTHER_METHODS = {9: "deflate64", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma", 93: "zstandard"}
"""Python unpacks the other methods without a bound: a megabyte of bzip2 can become twenty gigabytes in one read."""

_ENTRY, _LOCAL_HEADER = b"PK\x01\x02", 30
MOST_FOLDERS, MOST_NAME_BYTES = 16, 255
"""Depth of a path, and bytes of one name in it: what file systems take."""

# Controls, line separators, marks that turn the direction of writing, and what no encoding can carry.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Limits:
    """What an archive may ask of us.

    Attributes:
        members: Files and folders.
        directory_bytes: Bytes of a zip's own list of them, which is read whole.
        file_bytes: Actual bytes of one file; a larger one is a fault of that file.
        total_bytes: Actual bytes of all files read.
        ratio: Actual bytes of all files read to the bytes of the zip, once those are past ``ratio_from``.
        ratio_from: Below it no ratio is suspicious: a flat picture packs well.
    """

    members: int = 2_000_000
    directory_bytes: int = 512 << 20
    file_bytes: int = 128 << 20
    total_bytes: int = 256 << 30
    ratio: float = 100.0
    ratio_from: int = 64 << 20


@dataclass(frozen=True)
class Listing:
    """What a source holds, clutter of desktops left out.

    Attributes:
        files: Paths from the source's root, ``/`` between parts, sorted.
        folders: Every folder that holds something or stands there empty, sorted.
        faults: One line a file that cannot be taken, beginning with its name.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    faults: tuple[str, ...] = ()


class Source(Protocol):
    """An opened zip or folder."""

    listing: Listing

    def read(self, name: str) -> bytes:
        """One file's bytes.

        Raises:
            DatasetError: Damaged or too large (the message begins with the name).
            ArchiveError: The archive as a whole must not be read further.
        """


class ArchiveError(DatasetError):
    """The archive as a whole is refused; no file of it can be skipped to cure that."""


@contextmanager
def open_source(path: Path, limits: Limits | None = None) -> Iterator[Source]:
    """Opens a zip or a folder.

    Raises:
        ArchiveError: Neither, or an archive with a link, an outside path, an encrypted or repeated member,
            members that share bytes, a method other than deflate, or past a limit.
    """
    limits = limits or Limits()
    if path.is_dir():
        yield _Folder(path, limits)
        return
    if not path.is_file():
        raise ArchiveError(f"a data set must be a zip file or a folder, but {path} does not exist; check the path")
    with _opened_zip(path, limits) as archive:
        yield _Zip(archive, path.stat().st_size, limits)


def is_clutter(name: str) -> bool:
    """True for what desktops leave behind: dotfiles, ``__MACOSX``, ``Thumbs.db``."""
    return any(part.startswith(".") or part.lower() in _CLUTTER for part in PurePosixPath(name).parts)


@contextmanager
def _opened_zip(path: Path, limits: Limits) -> Iterator[zipfile.ZipFile]:
    with ExitStack() as held:
        try:
            stream = held.enter_context(_Watched(path, limits))
            archive = held.enter_context(zipfile.ZipFile(stream))
        except _UNPACK_ERRORS as error:
            raise ArchiveError(
                f"a data set must be a zip file or a folder, but {path.name} is not a readable zip ({error}); "
                "pack the class folders as .zip"
            ) from error
        yield archive


class _Watched(io.BufferedReader):
    """A zip's bytes. ``ZipFile`` reads its list of members at once and makes an object of each before we can count."""

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(io.FileIO(path))
        self._limits = limits

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > max(CHUNK, self._limits.directory_bytes):
            raise ArchiveError(
                f"the list of files in a zip may have at most {self._limits.directory_bytes:,} bytes, but this one "
                f"has {size:,}; leave out what is not needed, or pack it again"
            )
        data = super().read(size)
        _check_members(data.count(_ENTRY), self._limits)
        return data


@dataclass
class _Budget:
    """Counts the bytes that really come out."""

    limits: Limits
    packed_bytes: int | None
    total_bytes: int = field(default=0)

    def read(self, stream: IO[bytes], name: str) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            self.total_bytes += len(chunk)
            self._check_total()
            if size > self.limits.file_bytes:
                raise DatasetError(
                    f"{name}: too large, more than {self.limits.file_bytes:,} bytes; make the picture smaller"
                )
            chunks.append(chunk)
        return b"".join(chunks)

    def _check_total(self) -> None:
        if self.total_bytes > self.limits.total_bytes:
            raise ArchiveError(
                f"a data set may unpack to at most {self.limits.total_bytes:,} bytes, but more came out; "
                "make the pictures smaller or fewer"
            )
        if self.packed_bytes is None or self.total_bytes <= self.limits.ratio_from:
            return
        if self.total_bytes > self.limits.ratio * self.packed_bytes:
            raise ArchiveError(
                f"a zip may unpack to at most {self.limits.ratio:g} times its own size, but this one of "
                f"{self.packed_bytes:,} bytes gave {self.total_bytes:,} and was not at its end; "
                "give the pictures as a folder, or pack them without repeating members"
            )


class _Folder:
    """A folder on this machine; links in it are faults, since they may lead anywhere."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self._root = root
        self._budget = _Budget(limits, None)
        self.listing = self._list(limits)

    def read(self, name: str) -> bytes:
        try:
            with (self._root / name).open("rb") as stream:
                return self._budget.read(stream, name)
        except OSError as error:
            raise DatasetError(f"{name}: cannot be read ({error.strerror or error})") from error

    def _list(self, limits: Limits) -> Listing:
        files: list[str] = []
        folders: list[str] = []
        faults: list[str] = []
        for here, below, names in os.walk(self._root, onerror=_raise_unreadable):
            base = Path(here).relative_to(self._root)
            below[:] = sorted(name for name in below if not is_clutter(name))
            for name in [*below, *names]:
                path = (base / name).as_posix()
                if is_clutter(name):
                    continue
                if unfit := _unfit(path):
                    faults.append(unfit)
                    below[:] = [other for other in below if other != name]
                    continue
                mode = (self._root / path).lstat().st_mode
                if stat.S_ISDIR(mode):
                    folders.append(path)
                elif stat.S_ISREG(mode):
                    files.append(path)
                else:
                    what = "a link" if stat.S_ISLNK(mode) else "not a regular file"
                    faults.append(f"{path}: {what}; put the file itself in its place")
            _check_members(len(files) + len(folders), limits)
        return Listing(tuple(sorted(files)), tuple(sorted(folders)), tuple(sorted(faults)))


class _Zip:
    """A zip; one bad member refuses the whole, since an honest packer makes none."""

    def __init__(self, archive: zipfile.ZipFile, packed_bytes: int, limits: Limits) -> None:
        self._archive = archive
        self._budget = _Budget(limits, packed_bytes)
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.listing = self._list(limits)

    def read(self, name: str) -> bytes:
        try:
            with self._archive.open(self._members[name]) as stream:
                return self._budget.read(stream, name)
        except _UNPACK_ERRORS as error:
            raise DatasetError(f"{name}: damaged in the zip ({error or type(error).__name__})") from error

    def _list(self, limits: Limits) -> Listing:
        infos = self._archive.infolist()
        _check_members(len(infos), limits)
        _check_apart(infos)
        folders: set[str] = set()
        faults: list[str] = []
        for info in infos:
            name = _safe_name(info)
            if is_clutter(name):
                continue
            if unfit := _unfit(name):
                faults.append(unfit)
                continue
            folders.update(str(parent) for parent in PurePosixPath(name).parents if parent.name)
            if info.is_dir() or info.filename.endswith("\\"):
                folders.add(name)
            elif name in self._members:
                raise ArchiveError(
                    f"each name must stand once in a zip, but {name[:200]!r} is there twice; pack it again"
                )
            else:
                self._members[name] = info
        return Listing(tuple(sorted(self._members)), tuple(sorted(folders)), tuple(sorted(faults)))


def _safe_name(info: zipfile.ZipInfo) -> str:
    # Some Windows packers write backslashes; as separators they must pass the same checks.
    name = info.filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or parts[0][1:2] == ":":
        raise ArchiveError(
            f"paths in a zip must stay inside it, but {info.filename[:200]!r} does not; pack the folder itself, "
            "with relative paths"
        )
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        what = "a link" if kind == stat.S_IFLNK else "a special file"
        raise ArchiveError(
            f"a zip must hold files and folders only, but {info.filename[:200]!r} is {what}; pack the file itself"
        )
    if info.flag_bits & 0x1:
        raise ArchiveError(f"a zip must not be encrypted, but {info.filename[:200]!r} is; pack it without a password")
    if info.compress_type not in _METHODS:
        how = _OTHER_METHODS.get(info.compress_type, f"method {info.compress_type}")
        raise ArchiveError(
            f"a zip must be packed by deflate or not at all, but {info.filename[:200]!r} is by {how}; pack it again "
            "with the usual method"
        )
    return str(PurePosixPath(name))


def _unfit(path: str) -> str | None:
    """Why a path cannot be taken, as a fault; None when it can."""
    parts = path.split("/")
    if len(parts) > MOST_FOLDERS:
        why = f"a path may have at most {MOST_FOLDERS} parts, but has {len(parts)}; move it up"
    elif any(len(part.encode("utf-8", "replace")) > MOST_NAME_BYTES for part in parts):
        why = f"a name may have at most {MOST_NAME_BYTES} bytes, but has more; shorten it"
    elif _UNFIT.search(path):
        why = "a name must not hold control characters or parts of characters; rename it"
    else:
        return None
    shown = _UNFIT.sub(lambda found: found[0].encode("unicode_escape").decode(), path)
    return f"{shown[:200]}{'...' * (len(shown) > 200)}: {why}"


def _check_apart(infos: Sequence[zipfile.ZipInfo]) -> None:
    """Members that share bytes are how a small zip unpacks to a huge one."""
    placed = sorted(infos, key=lambda info: info.header_offset)
    for one, other in itertools.pairwise(placed):
        if one.header_offset + _LOCAL_HEADER + one.compress_size > other.header_offset:
            raise ArchiveError(
                f"files in a zip must not share bytes, but {one.filename[:200]!r} and {other.filename[:200]!r} do; "
                "pack it again"
            )


def _check_members(count: int, limits: Limits) -> None:
    if count > limits.members:
        raise ArchiveError(
            f"a data set may hold at most {limits.members:,} files and folders, but this one holds more; "
            "leave out what is not needed"
        )


def _raise_unreadable(error: OSError) -> None:
    raise ArchiveError(f"every folder must be readable, but {error.filename} is not ({error.strerror})") from error
