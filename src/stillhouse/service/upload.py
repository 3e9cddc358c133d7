"""A zip that comes as ``multipart/form-data``, written once: straight into the folder of uploads, hashed on the way.

The framework's own form parser would write it to the system's temporary folder first, which may be small.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from stillhouse.search.errors import DatasetError

MOST_FIELD_BYTES = 4096


@dataclass(frozen=True)
class Upload:
    """A zip as kept: its place, the sha256 of its bytes, the name its sender gave, and the form's other fields."""

    path: Path
    digest: str
    name: str
    fields: Mapping[str, str]


@dataclass
class _Form:
    """What the parser has found so far; ``pending`` are bytes of the file that are not written yet."""

    pending: list[bytes] = field(default_factory=list)
    fields: dict[str, bytearray] = field(default_factory=dict)
    file_name: str | None = None
    ended: bool = False
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""
    _part: bytearray | None = None

    def on_part_begin(self) -> None:
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self._part = None
        if b"filename" not in options:
            if name == "file":
                raise DatasetError(
                    "the part 'file' must have a filename, but has none; send it as a file, not as a text"
                )
            self._part = self.fields.setdefault(name, bytearray())
            self._check_fields()
        elif name != "file" or self.file_name is not None:
            raise DatasetError(f"the form must have one file, in the part 'file', but has another in {name!r}")
        else:
            self.file_name = options[b"filename"].decode("utf-8", "replace") or "upload.zip"

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part is None:
            self.pending.append(data[start:end])
            return
        self._part += data[start:end]
        self._check_fields()

    def on_end(self) -> None:
        self.ended = True

    def _check_fields(self) -> None:
        if sum(len(name) + len(value) for name, value in self.fields.items()) > MOST_FIELD_BYTES:
            raise DatasetError(f"the form's fields beside the file may have at most {MOST_FIELD_BYTES} bytes in all")


async def receive_zip(request: Request, folder: Path, check: Callable[[int], None]) -> Upload:
    """Keeps the form's zip as ``<sha256>.zip`` in a folder; nothing is left behind when it fails.

    Args:
        request: With the form.
        folder: Made when it is missing.
        check: Is told how many bytes have come, before they are kept; what it raises ends the upload.

    Raises:
        DatasetError: The form is malformed or cut short, or its part ``file`` is missing or no zip.
        ClientDisconnect: The sender went away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    form, digest, size, fresh = _Form(), hashlib.sha256(), 0, folder / f"{os.urandom(8).hex()}.tmp"
    try:
        parser = _parser(request.headers["content-type"], form)
        with fresh.open("wb") as handle:
            async for chunk in request.stream():
                parser.write(chunk)
                if form.pending:
                    data = b"".join(form.pending)
                    form.pending.clear()
                    size += len(data)
                    check(size)
                    digest.update(data)
                    await run_in_threadpool(handle.write, data)
            await run_in_threadpool(_sync, handle)
        if form.file_name is None:
            raise DatasetError("the form must have a part 'file' with an ImageFolder zip, but has none")
        if not form.ended:
            raise DatasetError("the upload was cut short: the form's closing boundary is missing; send it again")
        if not await run_in_threadpool(zipfile.is_zipfile, fresh):
            raise DatasetError(f"{form.file_name}: not a zip; send the picture folder as one .zip")
        kept = fresh.replace(folder / f"{digest.hexdigest()}.zip")
    except FormParserError as error:
        raise DatasetError(f"the body is no valid multipart/form-data: {error}") from None
    finally:
        fresh.unlink(missing_ok=True)
    fields = {name: value.decode("utf-8", "replace") for name, value in form.fields.items()}
    return Upload(kept, digest.hexdigest(), fields.get("name") or form.file_name, fields)


def _parser(content_type: str, form: _Form) -> MultipartParser:
    _, options = parse_options_header(content_type)
    if not options.get(b"boundary"):
        raise DatasetError("the content type multipart/form-data must name a boundary; let the client set it")
    return MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": form.on_part_begin,
            "on_header_field": form.on_header_field,
            "on_header_value": form.on_header_value,
            "on_header_end": form.on_header_end,
            "on_headers_finished": form.on_headers_finished,
            "on_part_data": form.on_part_data,
            "on_end": form.on_end,
        },
    )


def _sync(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())
