"""Stages run by content key under a folder that several processes share: what the studies stand on.

A finished stage is never run again, a killed one goes on from its checkpoint, and two processes never do the same one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from stillhouse.distill import stage as trainer
from stillhouse.distill.stage import InputFiles, Output
from stillhouse.search.domain import StageKind, StagePlan
from stillhouse.service.worker import catalogue


class Stages:
    """Runs the trainer's stages under ``work``.

    Args:
        work: The folder; made when it is not there.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        work.mkdir(parents=True, exist_ok=True)

    def output(self, key: str) -> Output | None:
        """What a finished stage left."""
        path = self.work / key / "output.json"
        if not path.exists():
            return None
        data = json.loads(path.read_text())
        return Output({name: Path(file) for name, file in data["files"].items()}, data["metrics"])

    def seconds(self, key: str) -> float:
        """Wall-clock of a finished stage."""
        found: float = json.loads((self.work / key / "output.json").read_text())["wall_s"]
        return found

    def run(self, plan: StagePlan) -> bool:
        """Runs a stage whose inputs are there, unless it is done; False when another process is at it."""
        folder = self.work / plan.key
        folder.mkdir(exist_ok=True)
        with locked(folder / "lock") as mine:
            if not mine or self.output(plan.key) is not None:
                return mine
            inputs = {}
            for role, key in plan.inputs.items():
                done = self.output(key)
                assert done is not None, f"stage {key} comes before {plan.key}"
                inputs[role] = InputFiles(done.files, done.metrics)
            began = time.monotonic()
            output = trainer.run(
                plan, inputs, folder, cache=self.work / "cache", threads=torch.get_num_threads(), report=lambda _: None
            )
            wall = time.monotonic() - began
            files = {name: str(path) for name, path in output.files.items()}
            (folder / "output.tmp").write_text(json.dumps({"files": files, "metrics": output.metrics, "wall_s": wall}))
            (folder / "output.tmp").replace(folder / "output.json")
            say(f"{plan.kind} {plan.key[:8]} {wall:.0f} s")
        return True


def offline_catalogue() -> dict[str, Any]:
    """What the workers can do, without the model hub and without digests of the code.

    An edit of a comment must not throw hours of training away.
    """
    found = {name: value for name, value in catalogue().items() if name != "code"}
    found["weights"] = {**found["weights"], "hub": []}
    return found


def ingest_of(data: Path) -> StagePlan:
    """The stage that reads an archive."""
    digest = f"{data.name} {data.stat().st_size}"
    return StagePlan(StageKind.INGEST, {"source": str(data), "digest": digest, "skip_faults": False})


def say(text: str) -> None:
    """Prints a line with the time of day."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a lock file; False when another process holds it."""
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
