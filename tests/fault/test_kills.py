"""Whatever dies, and whenever: the job reaches its end, each stage is done once, and the files are the same."""

from __future__ import annotations

import os
import random
import signal
import time

from faulty import Faulty, Reference


def test_a_stage_process_killed_at_named_places(faulty: Faulty, reference: Reference) -> None:
    places = ("put.before", "put.after", "rename.before", "rename.after", "commit.before", "commit.after")
    failpoints = ";".join(f"{place}=kill" for place in places)
    rig = faulty(STILLHOUSE_FAILPOINTS=failpoints, STILLHOUSE_MAX_ATTEMPTS="20")
    job = rig.accept()
    assert rig.keep_running(job) == 0, "the controller lives on"
    assert rig.attempts()["lost"] == len(places) - 1, "what was committed is not lost"
    rig.check(job, reference.outcome)


def test_the_controller_killed_between_its_writes(faulty: Faulty, reference: Reference) -> None:
    places = ("open.after", "trial.after", "deployment.after")
    rig = faulty(STILLHOUSE_FAILPOINTS=";".join(f"{place}=kill" for place in places))
    job = rig.accept()
    assert rig.keep_running(job) == len(places)
    rig.check(job, reference.outcome)


def test_killed_at_random(faulty: Faulty, reference: Reference) -> None:
    """Stage process, engine's server and controller, each at times that a seed draws."""
    rng, rig = random.Random(0), faulty(STILLHOUSE_MAX_ATTEMPTS="20")
    job = rig.accept()
    process, kills = rig.start("controller"), 0
    victims = ["stage", "server", "controller", "stage", "server"]
    while not rig.ended(job):
        rig.until(lambda: rig.ended(job) or rig.ledger.open_attempts(), "nothing is at work")
        time.sleep(rng.uniform(0.0, 2.0))
        if victims:
            victim = victims[0]
            pid = process.pid if victim == "controller" else rig.server() if victim == "server" else rig.a_stage()
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                victims.pop(0)
                kills += 1
                if victim == "controller":
                    process.wait()
                    process = rig.start("controller")
    assert process.poll() is None
    assert kills >= 3
    rig.check(job, reference.outcome)
