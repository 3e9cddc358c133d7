"""A full disk at the API: what needs room is refused with the reason, and gives back the room that it took."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from served import Serve, Served, problem
from stillhouse.search.errors import AwayError, StillhouseError
from stillhouse.service import room
from stillhouse.service.app import create_app
from stillhouse.service.db.ledger import SqlLedger
from stillhouse.service.db.migrate import upgrade

MIB = 2**20


class Usage(NamedTuple):
    """What ``shutil.disk_usage`` gives."""

    total: int
    used: int
    free: int


class Disk:
    """How much is free, as the server is told."""

    free = 2**40

    def usage(self, _: Path) -> Usage:
        return Usage(2**41, 2**41 - self.free, self.free)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(room.shutil, "disk_usage", made.usage)
    return made


def offered(size: int, digit: str = "a") -> dict[str, Any]:
    return {"size": size, "sha256": digit * 64}


def test_what_would_not_fit_is_refused_before_it_is_sent(serve: Serve, disk: Disk) -> None:
    served = serve(least_free_bytes=10 * MIB)
    served.settings.home.mkdir(parents=True, exist_ok=True)
    disk.free = 30 * MIB
    assert served.http.post("/uploads", json=offered(20 * MIB)).status_code == 201
    said = problem(served.http.post("/uploads", json=offered(20 * MIB + 1, "b")), 507)
    assert "30 MiB left" in said and "10 MiB that must be free" in said and "make room" in said
    assert len(list(served.settings.uploads.glob("*.part"))) == 1
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(20 * MIB + 1)}
    asked: list[bool] = []

    def body() -> Iterator[bytes]:
        asked.append(True)
        yield b"x"

    problem(served.http.post("/datasets", content=body(), headers=headers), 507)
    assert not list(served.settings.uploads.glob("*.zip"))
    assert served.http.post("/datasets", json={"builtin": "textures"}).status_code == 202, "it needs no room"


def test_what_has_come_of_an_upload_needs_no_room_again(serve: Serve, disk: Disk) -> None:
    served = serve(least_free_bytes=10 * MIB)
    made = served.http.post("/uploads", json=offered(MIB)).json()["id"]
    served.http.patch(f"/uploads/{made}", content=b"x" * (MIB - 100), headers={"Upload-Offset": "0"})
    disk.free = 10 * MIB + 100
    assert served.http.post("/uploads", json=offered(MIB)).json()["offset"] == MIB - 100
    problem(served.http.post("/uploads", json=offered(MIB, "b")), 507)


def test_an_upload_stops_while_there_is_room_for_the_rest(serve: Serve, disk: Disk) -> None:
    """Its size was not told, or others wrote meanwhile: the floor stays free, so that the ledger can go on."""
    served = serve(least_free_bytes=10 * MIB)
    served.settings.home.mkdir(parents=True, exist_ok=True)

    def shrinking() -> Iterator[bytes]:
        yield b"--b\r\nContent-Disposition: form-data; name=file; filename=a.zip\r\n\r\n" + b"x" * 1000
        disk.free = 10 * MIB - 1
        yield b"x" * 1000

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert "10 MiB must be free" in problem(served.http.post("/datasets", content=shrinking(), headers=headers), 507)
    assert list(served.settings.uploads.iterdir()) == []
    disk.free = 2**40
    made = served.http.post("/uploads", json=offered(3000)).json()["id"]
    assert served.http.patch(f"/uploads/{made}", content=b"x" * 500, headers={"Upload-Offset": "0"}).is_success
    answer = served.http.patch(f"/uploads/{made}", content=shrinking(), headers={"Upload-Offset": "500"})
    problem(answer, 507)
    assert served.http.get(f"/uploads/{made}").json()["offset"] == 500, "what was acknowledged is kept, no more"


def test_a_part_that_met_a_full_disk_gives_its_room_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    made = served.http.post("/uploads", json=offered(300_000)).json()["id"]
    url, headers = f"/uploads/{made}", {"Upload-Offset": "0"}
    assert served.http.patch(url, content=b"x" * 1000, headers=headers).json()["offset"] == 1000
    fsync = os.fsync

    def no_room(_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", no_room)
    assert "make room" in problem(served.http.patch(url, content=b"y" * 9000, headers={"Upload-Offset": "1000"}), 507)
    monkeypatch.setattr(os, "fsync", fsync)
    assert (served.settings.uploads / f"{made}.part").read_bytes() == b"x" * 1000
    again = served.http.patch(url, content=b"z" * 9000, headers={"Upload-Offset": "1000"})
    assert again.json()["offset"] == 10_000


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        AwayError("the database does not answer: database or disk is full"),
        StillhouseError("the bundle cannot be made: OSError: [Errno 28] No space left on device"),
        RuntimeError("generic error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_anywhere_in_a_route_is_told(
    error: Exception, serve: Serve, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(least_free_bytes=10 * MIB)
    served.settings.home.mkdir(parents=True, exist_ok=True)
    dataset = served.ready()

    def full(*_: object, **__: object) -> None:
        raise error

    disk.free = MIB
    monkeypatch.setattr(served.ledger, "add_job", full)
    answer = served.http.post("/jobs", json={"dataset": dataset})
    assert "1 MiB left, and at least 10 MiB must be free" in problem(answer, 507)
    assert served.http.get("/audit").json()[0]["status"] == 507
    disk.free = 2**40
    assert "was full" in problem(served.http.post("/jobs", json={"dataset": dataset}), 507)


def test_another_fault_is_not_taken_for_a_full_disk(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = served.ready()

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(served.ledger, "add_job", broken)
    assert "fault of ours" in problem(served.http.post("/jobs", json={"dataset": dataset}), 500)


def test_a_server_without_room_is_not_ready_and_its_jobs_say_why(serve: Serve, disk: Disk) -> None:
    served = serve(least_free_bytes=10 * MIB)
    served.settings.home.mkdir(parents=True, exist_ok=True)
    dataset = served.ready()
    jobs = [served.http.post("/jobs", json={"dataset": dataset, "search": {"seed": n}}).json()["id"] for n in range(3)]
    served.ledger.move_job(jobs[1], expect=("queued",), to="running")
    served.ledger.move_job(jobs[2], expect=("queued",), to="cancelled")
    assert {job["waiting"] for job in served.http.get("/jobs").json()} == {None}
    assert served.http.get("/health/ready").status_code == 200
    disk.free = MIB
    said = problem(served.http.get("/health/ready"), 503)
    assert "at least 10 MiB must be free" in said
    shown = {job["id"]: job["waiting"] for job in served.http.get("/jobs?limit=9").json()}
    assert shown == {jobs[0]: said, jobs[1]: said, jobs[2]: None}
    assert served.http.get(f"/jobs/{jobs[0]}").json()["waiting"] == said


def test_a_line_says_what_it_waits_for_as_the_job_itself_does(served: Served) -> None:
    dataset = served.ready()
    job = served.http.post("/jobs", json={"dataset": dataset}).json()["id"]
    stage = served.ledger.dataset(dataset).stage_key
    attempt = served.ledger.open_attempt(stage, lease_s=9, threads=1)
    assert attempt is not None
    served.ledger.lose(attempt.id, max_attempts=9, wait_s=3000.0, reason="it was killed")
    (line,) = served.http.get("/jobs").json()
    assert "it was killed" in line["waiting"]
    assert "it was killed" in served.http.get(f"/jobs/{job}").json()["waiting"]


# ---------------------------------------------------------------------------------- a real disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=24m", "stillhouse-test", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk cannot be mounted here; this test needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("least", [4 * MIB, 0])
def test_uploads_on_a_small_disk(least: int, small_disk: Path) -> None:
    """With a floor nothing reaches the disk's end; without one, what reached it gives its room back."""
    url = f"sqlite:///{small_disk / 'home' / 'ledger.db'}"
    upgrade(url)
    served = Served(url, small_disk / "home", least_free_bytes=least)
    try:
        assert isinstance(served.ledger, SqlLedger)
        data = os.urandom(MIB)
        big = {"size": 40 * MIB, "sha256": hashlib.sha256(data).hexdigest()}
        problem(served.http.post("/uploads", json=big), 507)
        problem(served.http.post("/datasets", files={"file": ("a.zip", data * 40)}), 507)
        made = served.http.post("/uploads", json={**big, "size": 12 * MIB}).json()["id"]
        other = served.http.post("/uploads", json={**big, "size": 15 * MIB}).json()["id"]  # each fits, not both
        for number in range(12):
            headers = {"Upload-Offset": str(number * MIB)}
            assert served.http.patch(f"/uploads/{made}", content=data, headers=headers).is_success
        pieces = (data for _ in range(15))  # no length is told
        problem(served.http.patch(f"/uploads/{other}", content=pieces, headers={"Upload-Offset": "0"}), 507)
        assert served.http.get(f"/uploads/{other}").json()["offset"] == 0
        assert shutil.disk_usage(small_disk).free > max(least, 8 * MIB)
        assert served.http.post("/datasets", json={"builtin": "textures"}).status_code == 202
        time.sleep(0.1)
        done = served.http.get("/audit").json()
        assert [deed["status"] for deed in done if deed["path"] == f"/uploads/{other}"] == [507]
        assert create_app(served.ledger, served.store, served.settings)
    finally:
        served.close()
