"""Odd and hostile uploads over HTTP: what their sender is told, and that nothing half-written stays behind."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import odd_pictures
import odd_zips
from at_once import AtOnce
from served import CATALOGUE, Served, problem
from stillhouse.search.controller import Controller
from stillhouse.service.app import create_app
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.db.migrate import upgrade
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore

BY_NAME = {odd.name: odd for odd in odd_zips.ODD}
REFUSED_AT_ONCE = ("empty file", "cut in the middle", "cut in the last record", "tar", "tar.gz", "7z", "rar", "bz2")
REFUSED_LATER = (
    "up", "absolute", "symbolic link", "overlapping members", "bzip2", "zip without members", "encrypted",
    "list too long", "version of the future", "the same name twice", "a surrogate", "one class only",
    "pictures in the root",
)  # fmt: skip
TAKEN = ("plain", "page before a zip", "huge comment", "zip64", "one class in two spellings", "hidden files")
WITH_FAULT = ("wrong checksum", "escape in a name", "deep", "a name of 60,000 bytes", "mixed depth")


class Shop:
    """A whole service on a fresh home: uploads go in by HTTP, stages run when told."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings.load(home=home)
        self.settings.make_folders()
        upgrade(self.settings.database_url)
        self.ledger = SqlLedger(self.settings.database_url)
        self.ledger.publish_catalogue(CATALOGUE)
        self.app = create_app(self.ledger, DiskStore(self.settings.artifacts), self.settings)
        self.http = TestClient(self.app, base_url="http://127.0.0.1")
        self._controller = Controller(self.ledger, AtOnce(home), lease_s=30, max_attempts=2)

    def post(self, data: bytes, **fields: str) -> Any:
        return self.http.post("/datasets", files={"file": ("odd.zip", data)}, data=fields)

    def ended(self, data: bytes, **fields: str) -> dict[str, Any]:
        """The data set as shown once its ingest has ended."""
        answer = self.post(data, **fields)
        assert answer.status_code == 202, answer.text
        for _ in range(4):
            self._controller.step()
        shown: dict[str, Any] = self.http.get(f"/datasets/{answer.json()['id']}").json()
        return shown

    def files(self) -> dict[str, list[str]]:
        """What lies in the folders that an upload passes through."""
        folders = {"uploads": self.settings.uploads, "artifacts": self.settings.artifacts, "work": self.settings.work}
        return {
            name: sorted(path.name for path in folder.rglob("*") if path.is_file()) for name, folder in folders.items()
        }

    def close(self) -> None:
        self.http.close()
        self.ledger.close()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    opened = Shop(tmp_path / "home")
    yield opened
    opened.close()


@pytest.mark.parametrize("name", REFUSED_AT_ONCE)
def test_what_is_no_zip_is_refused_at_the_door(name: str, shop: Shop) -> None:
    answer = shop.post(BY_NAME[name].make())
    assert problem(answer, 422) == "odd.zip: not a zip; send the picture folder as one .zip"
    assert shop.ledger.datasets() == []
    assert shop.files()["uploads"] == []


def test_a_zip_that_must_not_be_read_fails_with_its_reason(shop: Shop) -> None:
    for name in REFUSED_LATER:
        before = shop.files()
        shown = shop.ended(BY_NAME[name].make(), skip_faults="true")
        assert (name, shown["state"], shown["summary"]) == (name, "failed", {})
        assert re.search(str(BY_NAME[name].refused), shown["reason"]), shown["reason"]
        after = shop.files()
        assert (after["artifacts"], after["work"]) == (before["artifacts"], [])
        assert all(re.fullmatch(r"[0-9a-f]{64}\.zip", kept) for kept in after["uploads"])


def test_an_odd_zip_that_can_be_used_is_ready(shop: Shop) -> None:
    for name in TAKEN:
        shown = shop.ended(BY_NAME[name].make())
        assert (name, shown["state"], shown["reason"]) == (name, "ready", None)
        assert shown["summary"]["pictures"] == BY_NAME[name].pictures
        assert shown["summary"]["classes"] == list(BY_NAME[name].classes)
    assert shop.files()["work"] == []


def test_faults_are_listed_and_can_be_skipped(shop: Shop) -> None:
    for name in WITH_FAULT:
        odd = BY_NAME[name]
        failed = shop.ended(odd.make())
        assert (name, failed["state"]) == (name, "failed")
        assert len(failed["faults"]) == 1
        assert re.match(str(odd.fault), failed["faults"][0])
        assert "every picture must be readable, but 1 of" in failed["reason"]
        ready = shop.ended(odd.make(), skip_faults="true")
        assert (ready["state"], ready["summary"]["pictures"]) == ("ready", odd.pictures)
        assert ready["summary"]["faults"] == failed["faults"]
    assert shop.files()["work"] == []


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_all_odd_pictures_at_once(shop: Shop) -> None:
    members = {f"odd/{odd.name}": odd.make() for odd in odd_pictures.ODD}
    shown = shop.ended(odd_zips.packed({**odd_zips.GOOD, **members}), skip_faults="true")
    assert shown["state"] == "ready"
    expected = sorted(f"odd/{odd.name}" for odd in odd_pictures.ODD if odd.fault is not None)
    assert [fault.split(": ")[0] for fault in shown["summary"]["faults"]] == expected


def test_nothing_is_kept_before_the_service_can_take_it(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path)
    app = create_app(MemoryLedger(), DiskStore(settings.artifacts), settings)
    with TestClient(app, base_url="http://localhost") as http:
        answer = http.post("/datasets", files={"file": ("odd.zip", BY_NAME["plain"].make())})
    assert "no worker has published" in problem(answer, 503)
    assert not settings.uploads.exists() or not list(settings.uploads.iterdir())


# ------------------------------------------------------------------------------------------- forms

FORM = "multipart/form-data; boundary=b"


def part(disposition: str, data: bytes, *, more: str = "") -> bytes:
    return f"--b\r\nContent-Disposition: form-data; {disposition}\r\n{more}\r\n".encode() + data + b"\r\n"


ZIP = odd_zips.packed(odd_zips.GOOD)
FILE = 'name="file"; filename="p.zip"'
END = b"--b--\r\n"
FORMS: dict[str, tuple[bytes, str, str]] = {
    "no filename": (part('name="file"', ZIP) + END, FORM, "the part 'file' must have a filename, but has none"),
    "another part's file": (part('name="other"; filename="p.zip"', ZIP) + END, FORM, "one file, in the part 'file'"),
    "two files": (part(FILE, ZIP) + part(FILE, ZIP) + END, FORM, "one file, in the part 'file', but has another"),
    "no name": (part('filename="p.zip"', ZIP) + END, FORM, "one file, in the part 'file', but has another in ''"),
    "no disposition": (b"--b\r\n\r\n" + ZIP + b"\r\n" + END, FORM, "a part 'file'|at most 4096 bytes"),
    "wrong boundary": (part(FILE, ZIP) + END, "multipart/form-data; boundary=other", "no valid multipart/form-data"),
    "no boundary": (part(FILE, ZIP) + END, "multipart/form-data", "must name a boundary"),
    "empty boundary": (part(FILE, ZIP) + END, "multipart/form-data; boundary=", "must name a boundary"),
    "no end": (part(FILE, ZIP), FORM, "cut short"),
    "no body": (b"", FORM, "a part 'file'"),
    "only an end": (END, FORM, "a part 'file'"),
    "long field": (part('name="name"', b"x" * 5000) + part(FILE, ZIP) + END, FORM, "at most 4096 bytes"),
    "many fields": (b"".join(part(f'name="{n:0100}"', b"") for n in range(99)) + END, FORM, "at most 4096 bytes"),
    "long header": (part(FILE, ZIP, more=f"X: {'x' * 9000}\r\n") + END, FORM, "no valid multipart/form-data"),
    "zip as the body": (ZIP, "application/zip", "the type is 'application/zip'"),
    "zip as a form of another kind": (ZIP, "application/x-www-form-urlencoded", "send a zip as multipart/form-data"),
    "zip as JSON": (ZIP, "application/json", "body: Invalid JSON"),
    "no content type": (ZIP, "", "the type is ''"),
}


@pytest.mark.parametrize("name", FORMS)
def test_an_odd_form_is_refused_and_leaves_nothing(name: str, shop: Shop) -> None:
    body, kind, said = FORMS[name]
    answer = shop.http.post("/datasets", content=body, headers={"content-type": kind})
    assert re.search(said, problem(answer, 422))
    assert shop.ledger.datasets() == []
    assert shop.files()["uploads"] == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd.zip", "../../etc/passwd.zip"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("a\0b.zip", "a"),
        ("", "upload.zip"),
    ],
)
def test_a_files_name_is_shown_and_never_a_path(given: str, kept: str, served: Served) -> None:
    body = part(f'name="file"; filename="{given}"', ZIP, more="Content-Type: image/png\r\n") + END
    answer = served.http.post("/datasets", content=body, headers={"content-type": FORM})
    assert answer.status_code == 202, answer.text
    assert answer.json()["name"].startswith(kept)
    assert "\0" not in answer.json()["name"]
    (file,) = served.settings.uploads.iterdir()
    assert re.fullmatch(r"[0-9a-f]{64}\.zip", file.name)


# ------------------------------------------------------------------------------------------- wires


def exchanged(address: str, head: str, body: bytes, *, hangs_up: bool = False) -> bytes:
    """The answer to raw bytes."""
    host, port = address.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=20) as wire, contextlib.suppress(ConnectionResetError):
        wire.sendall(f"POST /datasets HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{head}\r\n".encode() + body)
        if hangs_up:
            wire.shutdown(socket.SHUT_WR)
        while piece := wire.recv(65_536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("Content-Length: {more}\r\n", None),  # its sender goes away before the promise is kept
        ("Content-Length: {less}\r\n", b"422"),
        ("Content-Length: -1\r\n", b"400"),
        ("Content-Length: 1\r\nContent-Length: 2\r\n", b"400"),
        ("Content-Length: 9223372036854775807\r\n", b"413"),
        ("Content-Length: 99999999999999999999\r\n", b"400"),
        ("Transfer-Encoding: chunked\r\n", b"400"),  # and then no chunks
        ("", b"422"),  # no length is no body
    ],
)
def test_a_length_that_lies_leaves_nothing(
    length: str, status: bytes | None, shop: Shop, live: Callable[[FastAPI], str]
) -> None:
    address = live(shop.app)
    body = part(FILE, ZIP) + END
    line = length.format(more=len(body) + 1000, less=len(body) - 20)
    answer = exchanged(address, f"Content-Type: {FORM}\r\n{line}", body, hangs_up=status is None)
    assert status is None or answer.startswith(b"HTTP/1.1 " + status), answer[:300]
    deadline = time.monotonic() + 10
    while shop.files()["uploads"]:
        assert time.monotonic() < deadline, shop.files()
        time.sleep(0.05)
    assert shop.ledger.datasets() == []


def test_chunks_without_a_length_will_do(shop: Shop, live: Callable[[FastAPI], str]) -> None:
    address = live(shop.app)
    body = part(FILE, ZIP) + END
    pieces = [body[at : at + 333] for at in range(0, len(body), 333)]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    answer = exchanged(address, f"Content-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n", chunked)
    assert answer.startswith(b"HTTP/1.1 202"), answer[:300]
    (kept,) = shop.settings.uploads.iterdir()
    assert kept.read_bytes() == ZIP
