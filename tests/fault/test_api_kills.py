"""The API is killed in the middle of a request; its client sends the same again, and it is done once and whole."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from cluster import free_port
from faulty import Rig
from stillhouse.service.client import Client


class Killed:
    """An API that a failpoint kills, once for each that is named."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.port = rig, int(rig.extra["STILLHOUSE_PORT"])
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        self.process = self.rig.start("serve")
        self.rig.until(self._answers, "the API does not start")

    def dies_of(self, ask: Callable[[], object]) -> None:
        """It is killed while it is asked this, and started again."""
        with pytest.raises(httpx.TransportError):
            ask()
        assert self.process.wait(20) == -signal.SIGKILL, self.rig.logs()
        self.start()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.rig.logs()
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health/ready").is_success
        return False


@pytest.fixture
def killed(archive: Path, tmp_path: Path) -> Iterator[Callable[..., Killed]]:
    """Starts an API that is killed at these places."""
    rigs: list[Rig] = []

    def start(*places: str, database_url: str | None = None) -> Killed:
        once = tmp_path / "once"
        once.mkdir()
        failpoints = ";".join(f"{place}=kill" for place in places)
        extra = {"STILLHOUSE_FAILPOINTS": failpoints, "STILLHOUSE_FAILPOINTS_ONCE": str(once)}
        extra["STILLHOUSE_PORT"] = str(free_port())
        rigs.append(Rig(tmp_path / "home", archive, database_url, extra))
        return Killed(rigs[-1])

    yield start
    for rig in rigs:
        rig.close()


def test_a_job_is_accepted_once(killed: Callable[..., Killed], sql_url: str) -> None:
    """It is killed before the commit that stores the job, and at the next try after it; the key is the same."""
    api = killed("accept.before", "accept.after", database_url=sql_url)
    dataset = httpx.post(f"{api.url}/datasets", json={"builtin": "textures"}).json()["id"]

    def ask(seed: int = 0) -> httpx.Response:
        body, headers = {"dataset": dataset, "budget": {}, "search": {"seed": seed}}, {"Idempotency-Key": "the same"}
        return httpx.post(f"{api.url}/jobs", json=body, headers=headers, timeout=30)

    api.dies_of(ask)
    assert api.rig.ledger.jobs() == [], "what was not committed is not there"
    api.dies_of(ask)
    (job,) = api.rig.ledger.jobs()
    for _ in range(2):
        answer = ask()
        assert (answer.status_code, answer.json()["id"]) == (202, job.id)
    assert ask(seed=1).status_code == 422
    assert api.rig.ledger.jobs() == [job]


def test_an_upload_is_taken_whole(killed: Callable[..., Killed]) -> None:
    """It is killed in the middle of the bytes, and when it has stored the data set but said nothing yet."""
    api = killed("piece.after", "dataset.after")
    content = api.rig.archive.read_bytes()
    offer = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    upload = httpx.post(f"{api.url}/uploads", json=offer).json()["id"]

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(content), 10_000):
            yield content[start : start + 10_000]

    headers = {"Upload-Offset": "0"}
    api.dies_of(lambda: httpx.patch(f"{api.url}/uploads/{upload}", content=pieces(), headers=headers))
    come = httpx.get(f"{api.url}/uploads/{upload}").json()["offset"]
    assert 0 < come < len(content)
    told: list[int] = []
    with Client(api.url) as client:
        api.dies_of(lambda: client.upload(api.rig.archive, progress=lambda have, _: told.append(have)))
        assert told[0] == come, "what had come is not sent again"
        (dataset,) = api.rig.ledger.datasets()
        assert client.upload(api.rig.archive)["id"] == dataset.id
    assert api.rig.ledger.datasets() == [dataset]
    (kept,) = api.rig.settings.uploads.iterdir()
    assert kept.read_bytes() == content
    stage = api.rig.ledger.stages([dataset.stage_key])[dataset.stage_key]
    assert stage.plan.hints["source"] == str(kept)
