"""A service whose processes are killed at random: is any job lost, any stage done twice, how much work is repeated?

``python bench/chaos.py --kills 20 --json``. Small real jobs (two classes of drawn pictures, one candidate, two epochs a
training) are accepted by the API one after the other, each with its own seed, while SIGKILL goes to a process drawn at
random, at times drawn at random: a stage's process, the server it is forked from, the controller, PostgreSQL (with
``--database postgres``), or the API, that in the middle of taking a job. What is killed is started again, as a
supervisor would. A job that the API has not answered for is sent again under its Idempotency-Key. After the last kill
the jobs that are left run to their end.

- ``accepted``: jobs that the API has answered for; ``lost``: those that did not end as done, or are not there;
  ``strange``: jobs that are there and were not answered for.
- ``duplicated``: stages with more than one committed result.
- ``epochs_repeated_per_kill``: epochs begun beyond those that one quiet run of each training takes, a kill.
- ``left_behind``: processes, temporary files and work folders that are there after the end.

A stage may lose any number of attempts here (``STILLHOUSE_MAX_ATTEMPTS``): who kills at random may hit one stage often.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

import httpx

from faulty import SHORT, Rig, draw, small_job
from postgres import PostgresServer
from stillhouse.search.domain import StageKind
from stillhouse.service import store
from stillhouse.service.home import DiskHome

VICTIMS = ("stage", "stage", "stage", "stage", "server", "controller", "api")
DATABASE = ("database",)
TRAININGS = (StageKind.TEACHER, StageKind.ASSISTANT, StageKind.STUDENT)
EPOCHS = 2
LIVE_JOBS = 2
MOMENT_S, TAKING_S = 1.0, 0.03
MOST_TRIES = 3
"""No stage's process is aimed at more often: the pauses, which grow fourfold, would be all that is measured."""
PATIENCE_S = 600.0


class Chaos:
    """Kills, and what came of it."""

    def __init__(self, rig: Rig, seed: int, mean_s: float, database: PostgresServer | None) -> None:
        self.rig, self.rng, self.mean_s, self.database = rig, random.Random(seed), mean_s, database
        self.victims, self.dataset = VICTIMS + (DATABASE if database else ()), ""
        self.sent, self.seed = 0, 0
        self.killed: Counter[str] = Counter()
        self.jobs: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = str(probe.getsockname()[1])
        self.services: dict[str, subprocess.Popen[bytes]] = {}

    def supervise(self) -> None:
        """Starts what is not running."""
        for name, words in (("controller", "controller"), ("api", "serve")):
            if name not in self.services or self.services[name].poll() is not None:
                self.services[name] = self.rig.start(words, STILLHOUSE_PORT=self.port)

    def accept(self) -> None:
        """Keeps a few jobs alive."""
        if not self.dataset:
            self.dataset = self._asked(
                lambda http: http.post("/datasets", files={"file": ("p.zip", self.rig.archive.read_bytes())})
            )
        while sum(not self.rig.ended(job) for job in self.jobs) < LIVE_JOBS:
            self.seed += 1
            self._post()

    def _post(self) -> None:
        """Sends a job until it is answered for."""
        key, self.sent = f"chaos-{self.sent}", self.sent + 1
        search = small_job(self.dataset, 1, self.seed, SHORT).to_json()
        body = {"dataset": search.pop("dataset"), "budget": search.pop("budget"), "search": search}
        self.jobs.append(self._asked(lambda http: http.post("/jobs", json=body, headers={"Idempotency-Key": key})))

    def _asked(self, ask: Callable[[httpx.Client], httpx.Response]) -> str:
        """The id in the answer, asked for again for as long as nobody answers."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.supervise()
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30) as http:
                    answer = ask(http)
                if answer.status_code < 500:
                    assert answer.status_code == 202, answer.text
                    return str(answer.json()["id"])
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, self.rig.logs()
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to a process of a kind drawn at random, a moment after one of its kind is there."""
        victim = self.rng.choice(self.victims)
        find: dict[str, Callable[[], int | None]] = {
            "stage": lambda: self.rig.a_stage(most_tries=MOST_TRIES),
            "server": self.rig.server,
        }
        while victim in find and find[victim]() is None:
            self.supervise()
            self.accept()
            time.sleep(0.05)
        if victim == "api":
            # While it takes a job, whose stages are the last one's, so that it costs no more than its acceptance.
            threading.Timer(self.rng.uniform(0, TAKING_S), self.services["api"].kill).start()
            self._post()
            self.killed["api"] += 1
            return
        time.sleep(self.rng.uniform(0, MOMENT_S))
        if victim == "database" and self.database is not None:
            self.database.kill()
            time.sleep(self.rng.uniform(0, MOMENT_S))
            self.database.start()
            self.killed["database"] += 1
            return
        pid = find[victim]() if victim in find else self.services[victim].pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed[victim] += 1

    def run(self, kills: int) -> None:
        """Until so many were killed and all jobs have ended."""
        while self.killed.total() < kills:
            self.supervise()
            self.accept()
            pause_until = time.monotonic() + self.rng.expovariate(1 / self.mean_s)
            while time.monotonic() < pause_until:
                self.supervise()
                time.sleep(0.05)
            self.kill()
        deadline = time.monotonic() + PATIENCE_S
        while not all(map(self.rig.ended, self.jobs)) and time.monotonic() < deadline:
            self.supervise()
            time.sleep(0.2)
        self.rig.stop()

    def figures(self, notes: Path) -> dict[str, object]:
        """What is printed."""
        stages = self.rig.stages()
        done = {key: sum(one.state == "done" for one in self.rig.ledger.attempts(key)) for key in stages}
        trained = sum(stage.state == "done" and stage.plan.kind in TRAININGS for stage in stages.values())
        begun = len(notes.read_text().splitlines()) if notes.exists() else 0
        kills = self.killed.total()
        found = {job.id: job.state for job in self.rig.ledger.jobs()}
        states = Counter(found.get(job, "gone") for job in self.jobs)
        time.sleep(2)  # what sees its parent gone ends within a second
        return {
            "kills": kills,
            "killed": dict(self.killed),
            "accepted": len(self.jobs),
            "lost": len(self.jobs) - states["done"],
            "strange": len(found.keys() - set(self.jobs)),
            "states": dict(states),
            "duplicated": sum(count > 1 for count in done.values()),
            "stages": len(stages),
            "attempts": dict(self.rig.attempts()),
            "epochs": EPOCHS * trained,
            "epochs_repeated_per_kill": round((begun - EPOCHS * trained) / max(1, kills), 3),
            "left_behind": self._left_behind(),
        }

    def _left_behind(self) -> int:
        settings = self.rig.settings
        store._MOMENT_S = 0.0  # nothing writes any more
        DiskHome(settings, self.rig.ledger, store.DiskStore(settings.artifacts)).tidy()
        files = [path for path in settings.home.rglob("*") if path.suffix == ".tmp" or path.parent.name == "tmp"]
        return len(files) + len(list(settings.work.iterdir())) + len(self.rig.processes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean-s", type=float, default=5.0, help="Mean seconds between two kills.")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stillhouse-chaos-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        (root / "notes").mkdir()
        extra = {
            "STILLHOUSE_MAX_ATTEMPTS": "100",
            "STILLHOUSE_FAILPOINTS": "epoch.before=note",
            "STILLHOUSE_FAILPOINTS_ONCE": str(root / "notes"),
        }
        database = PostgresServer() if given.database == "postgres" else None
        if database is not None:
            database.start()
        url = None if database is None else database.url
        rig, began = Rig(root / "home", draw(root), url, extra=extra), time.monotonic()
        chaos = Chaos(rig, given.seed, given.mean_s, database)
        try:
            chaos.run(given.kills)
            figures = {**chaos.figures(root / "notes" / "notes"), "seconds": round(time.monotonic() - began)}
            if figures["lost"]:
                print(rig.logs(), file=sys.stderr)
        finally:
            rig.close()
            if database is not None:
                database.close()
    if given.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
