"""A stage that stands still, a database that is killed or cut off, a disk that is full, an API that dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import make_url

from faulty import LEASE_S, Faulty, Reference, Rig
from postgres import PostgresServer
from proxy import Proxy
from stillhouse.search.domain import StageKind
from stillhouse.service.client import Client


def test_a_stage_that_stands_still_past_its_lease_is_taken_over(faulty: Faulty, reference: Reference) -> None:
    """It is woken while the next attempt is about to work: it must not disturb that, nor commit."""
    rig = faulty(STILLHOUSE_FAILPOINTS="commit.before=stop")
    job = rig.accept()
    rig.start("controller")
    rig.until(lambda: [a for a in rig.ledger.open_attempts() if a.expires_at < time.time()], "no lease ran out")
    (late,) = rig.ledger.open_attempts()
    stopped = rig.a_stage()
    assert stopped is not None
    rig.until(lambda: rig.ledger.attempt(late.id).state == "lost", "it was not given up", 2 * LEASE_S)
    os.kill(stopped, signal.SIGCONT)
    rig.until(lambda: rig.ended(job), "the job does not end")
    assert rig.ledger.attempt(late.id).state == "lost"
    assert rig.attempts()["lost"] == 1
    rig.check(job, reference.outcome)


def test_a_late_holder_that_lives_on_cannot_commit(faulty: Faulty, reference: Reference) -> None:
    """A process that no engine cancels (started by hand): it stands still, is woken after the stage was done."""
    rig = faulty()
    job = rig.accept()
    ingest = rig.ledger.datasets()[0].stage_key
    attempt = rig.ledger.open_attempt(ingest, lease_s=60, threads=1)
    assert attempt is not None
    by_hand = rig.start("stage", "run", attempt.id, STILLHOUSE_FAILPOINTS="commit.before=stop")
    rig.until(lambda: _state(by_hand.pid) == "T", "it does not stand still")
    rig.ledger.lose(attempt.id, max_attempts=None)
    shutil.move(rig.settings.work / ingest, rig.home / "elsewhere")  # on another machine it would have its own folder
    controller = rig.start("controller")
    rig.until(lambda: rig.ledger.stages([ingest])[ingest].state == "done", "the next attempt does not end")
    (done,) = [one for one in rig.ledger.attempts(ingest) if one.state == "done"]
    by_hand.send_signal(signal.SIGCONT)
    by_hand.wait(30)
    assert [one.state for one in rig.ledger.attempts(ingest)] == ["lost", "done"]
    assert done.id != attempt.id
    shutil.rmtree(rig.home / "elsewhere")
    rig.until(lambda: rig.ended(job), "the job does not end")
    assert controller.poll() is None
    rig.check(job, reference.outcome)


# --------------------------------------------------------------------------------------- database


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    server.start()
    yield server
    server.close()


def test_postgresql_is_killed_and_comes_back(postgres: PostgresServer, faulty: Faulty, reference: Reference) -> None:
    """Then its connections are broken, refused for a while, and slow."""
    proxy = Proxy(postgres.port)
    url = make_url(postgres.url).set(port=proxy.port).render_as_string(hide_password=False)
    rig = faulty(database_url=url)
    job = rig.accept()
    rig.start("controller")
    _at_work(rig, StageKind.INGEST)
    postgres.kill()
    time.sleep(1.5)
    postgres.start()
    rig.until(lambda: _count(rig, "done") >= 2, "nothing goes on after the kill")
    proxy.refusing = True
    assert proxy.drop() > 0
    time.sleep(1.5)
    proxy.refusing = False
    rig.until(lambda: _count(rig, "done") >= 4, "nothing goes on after the cut")
    proxy.delay_s = 0.05
    time.sleep(2.0)
    proxy.drop()
    proxy.delay_s = 0.0
    rig.until(lambda: rig.ended(job), "the job does not end")
    rig.check(job, reference.outcome)
    rig.ledger.close()
    proxy.close()


# ------------------------------------------------------------------------------------------- disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "stillhouse-test", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk cannot be mounted here; this test needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_nothing_for_good(small_disk: Path, faulty: Faulty, reference: Reference) -> None:
    """The ledger lies on the same disk: nothing can be written at all until there is room again."""
    rig = faulty(home=small_disk / "home", STILLHOUSE_LEAST_FREE_BYTES=str(2**20))
    job = rig.accept()
    rig.start("controller")
    _at_work(rig, StageKind.INGEST)
    ballast = small_disk / "ballast"
    _fill(ballast)
    time.sleep(LEASE_S + 2)
    assert not rig.ended(job)
    assert (lack := rig.lack()) is not None
    assert "make room" in lack
    ballast.unlink()
    rig.until(lambda: rig.ended(job), "the job does not end")
    assert rig.lack() is None
    rig.check(job, reference.outcome)


def test_a_stage_that_meets_a_full_disk_is_given_back(faulty: Faulty, reference: Reference) -> None:
    rig = faulty(STILLHOUSE_FAILPOINTS="put.before=enospc", STILLHOUSE_MAX_ATTEMPTS="1")
    job = rig.accept()
    rig.start("controller")
    ingest = rig.ledger.datasets()[0].stage_key
    rig.until(lambda: rig.attempts()["lost"], "it met no full disk")
    stage = rig.ledger.stages([ingest])[ingest]
    assert (stage.state, stage.attempts) == ("pending", 0)
    assert "the disk is full" in (stage.reason or "")
    assert not list((rig.settings.artifacts / "tmp").iterdir())
    rig.until(lambda: rig.ended(job), "the job does not end")
    assert rig.attempts()["lost"] == 1
    rig.check(job, reference.outcome)


# -------------------------------------------------------------------------------------------- API


def test_the_api_is_killed_while_it_takes_pictures_and_jobs(faulty: Faulty, reference: Reference) -> None:
    """What it has answered for is there when it is back; what it had not is sent again and taken once."""
    rig = faulty(STILLHOUSE_PORT="0")
    port = _free_port()
    api = rig.start("serve", STILLHOUSE_PORT=str(port))
    url = f"http://127.0.0.1:{port}"
    rig.until(lambda: _answers(url), "the API does not start")
    with Client(url) as client:
        dataset = client.upload(rig.archive)["id"]
    job = rig.accept()
    assert rig.ledger.job(job).spec.dataset == dataset

    def torn() -> Iterator[bytes]:
        yield b"--edge\r\nContent-Disposition: form-data; name=file; filename=a.zip\r\n\r\n" + b"PK" * 5000
        api.kill()
        yield b"PK" * 500_000

    with pytest.raises(httpx.TransportError):
        httpx.post(f"{url}/datasets", content=torn(), headers={"Content-Type": "multipart/form-data; boundary=edge"})
    api.wait()
    controller = threading.Thread(target=rig.keep_running, args=(job,))
    controller.start()
    again = rig.start("serve", STILLHOUSE_PORT=str(port))
    rig.until(lambda: _answers(url), "the API does not start again")
    with Client(url) as client:
        assert client.upload(rig.archive)["id"] == dataset
        assert httpx.get(f"{url}/jobs/{job}").json()["state"] in ("queued", "running", "done")
    again.kill()
    controller.join()
    for left in rig.settings.uploads.glob("*.tmp"):
        os.utime(left, (0, 0))  # as an hour later
    rig.check(job, reference.outcome)


# ---------------------------------------------------------------------------------------- helpers


def _at_work(rig: Rig, kind: StageKind) -> None:
    """Waits for an attempt at it; the first one of a job holds on while the engine loads torch."""
    rig.until(lambda: any(s.plan.kind is kind and s.state == "running" for s in rig.stages().values()), f"no {kind}")


def _count(rig: Rig, state: str) -> int:
    try:
        return sum(stage.state == state for stage in rig.stages().values())
    except Exception:  # the database is just coming back
        return 0


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(bytes(1 << 16))
        except OSError:
            return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live").status_code < 500
    except httpx.TransportError:
        return False
