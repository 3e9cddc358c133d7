"""A job on a Ray cluster whose worker node dies, and then its head: all is done once, and the files are the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import httpx
import pytest

from cluster import TOKEN, Cluster, free_port, until
from faulty import Faulty, Outcome, Rig
from stillhouse.search.domain import StageKind
from stillhouse.search.job import AttemptRecord, Epochs, StageRecord
from stillhouse.service.engine.ray import RayEngine

LONG = Epochs(teacher=25, assistant=2, student=25)
"""Epochs enough to be met at work."""


@pytest.fixture
def quiet(faulty: Faulty) -> Outcome:
    """What the same job leaves on the local engine, undisturbed."""
    rig = faulty()
    job = rig.accept(epochs=LONG)
    assert rig.keep_running(job) == 0
    rig.check(job, rig.outcome())
    return rig.outcome()


@pytest.fixture
def busy_head(cluster: Cluster) -> Iterator[tuple[RayEngine, str]]:
    """Another's job on the head, so that ours begins on the second node; gives what can cancel it, and its id."""
    command = f"{sys.executable} -c 'import time; time.sleep(600)' #"
    engine = RayEngine(cluster.url, "http://none", token=TOKEN, command=command)
    ids = [f"att_another_{free_port()}_{name}" for name in "ab"]
    for one in ids:
        engine.submit(AttemptRecord(one, "0" * 64, "token", "open", 0.0))
    until(lambda: all(cluster.node_of(one) for one in ids), "they were not started", 40)
    (there,) = (one for one in ids if cluster.node_of(one) != cluster.head_id())
    engine.cancel(there)
    until(lambda: not engine.running(there), "it goes on")
    yield engine, next(one for one in ids if one != there)
    engine.close()


def test_a_node_and_then_the_head_of_a_ray_cluster_die(
    faulty: Faulty, quiet: Outcome, cluster: Cluster, busy_head: tuple[RayEngine, str]
) -> None:
    port = free_port()
    rig = faulty(
        STILLHOUSE_ENGINE="ray",
        STILLHOUSE_RAY_URL=cluster.url,
        STILLHOUSE_RAY_TOKEN=TOKEN,
        STILLHOUSE_RAY_CPUS_PER_STAGE="2",  # as many threads as the local engine gives
        STILLHOUSE_PORT=str(port),
        STILLHOUSE_CHECKPOINT_EVERY_S="0",
    )
    rig.start("up")
    rig.until(lambda: answers(port), "the API does not start")
    job = rig.accept(epochs=LONG)

    rig.until(lambda: checkpointed(rig, StageKind.TEACHER), "no checkpoint of the teacher has come")
    cluster.kill_node()
    engine, another = busy_head
    engine.cancel(another)
    rig.until(lambda: rig.attempts()["lost"] == 1, "the death of the node was not seen")
    assert epoch_of_the_next(rig, StageKind.TEACHER) > 1, f"the training began anew\n{rig.logs()}"

    rig.until(lambda: checkpointed(rig, StageKind.STUDENT), "no checkpoint of the student has come")
    cluster.kill_head()
    cluster.whole()
    assert epoch_of_the_next(rig, StageKind.STUDENT) > 1, f"the training began anew\n{rig.logs()}"
    rig.until(lambda: rig.ended(job), "the job does not end")
    rig.check(job, quiet)
    assert list((rig.settings.artifacts / "checkpoints").iterdir()) == []


# ---------------------------------------------------------------------------------------- helpers


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready").is_success
    except httpx.TransportError:
        return False


def stage(rig: Rig, kind: StageKind) -> StageRecord | None:
    return next((stage for stage in rig.stages().values() if stage.plan.kind is kind), None)


def checkpointed(rig: Rig, kind: StageKind) -> bool:
    """True when the server has a checkpoint of a stage that is at work."""
    found = stage(rig, kind)
    if found is None or found.state != "running":
        return False
    return any((rig.settings.artifacts / "checkpoints" / found.plan.key).glob("*.pt"))


def epoch_of_the_next(rig: Rig, kind: StageKind) -> int:
    """The first epoch that the next attempt at a stage reports."""
    before = stage(rig, kind)
    assert before is not None
    known = {attempt.id for attempt in rig.ledger.attempts(before.plan.key) if attempt.state != "open"}

    def epoch() -> int:
        found = rig.ledger.stages([before.plan.key])[before.plan.key]
        opened = {attempt.id for attempt in rig.ledger.attempts(before.plan.key)} - known
        assert found.state != "done", "it was done before it was seen at work"
        return int((found.progress or {}).get("epoch", 0)) if opened else 0

    rig.until(epoch, "the stage is not tried again")
    return epoch()
