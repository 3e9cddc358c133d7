"""How much sooner a stage is done with the threads of two slots: what the controller does with slots that stand idle.

``python bench/wide.py`` runs the stages of the search table (``bench/search_table.py``, its data set and networks) with
short trainings, each with one thread and with two in turn, and writes ``docs/benchmarks/wide.json``. A process of one
thread is held to one core and one of two threads to two, so the threads that prepare pictures compete for them
as they do where every slot is taken. ``speedup`` is seconds with one thread / seconds with two, round by round: median,
least and greatest. All that a stage does counts, from reading its inputs to writing its result.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from _stages import Stages, ingest_of, offline_catalogue, say
from search_table import ROOT, SPACE, SPEC, narrowed
from stillhouse.search.domain import Candidate, StagePlan
from stillhouse.search.job import Epochs
from stillhouse.search.plan import Planner

OUT = ROOT / "docs" / "benchmarks" / "wide.json"
WIDE = 2
SHORT = replace(SPEC, epochs=Epochs(teacher=2, assistant=2, student=4), views=2)
STUDENT = {"image_size": "48x48", "network_size": "96x96", "stem": "stock"}
"""The student that is trained of each network."""


def chains(data: Path) -> dict[str, tuple[StagePlan, ...]]:
    """Network -> its stages from the teacher to a student."""
    assert SHORT.classes is not None
    planner = Planner(SHORT, ingest_of(data).key, SHORT.classes, narrowed(offline_catalogue()))
    return {arch: planner.student(Candidate.from_json({"arch": arch, **STUDENT}), SHORT.method) for arch in SPACE}


def hold(threads: int) -> None:
    """Gives a fresh process so many threads, and as many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def seconds_of(work: Path, plan: StagePlan) -> float:
    """Runs a stage in this process; seconds that it took."""
    stages = Stages(work)
    stages.run(plan)
    return stages.seconds(plan.key)


def a_round(data: Path, folder: Path, number: int) -> dict[str, float]:
    """Stage -> seconds with one thread / seconds with two. Which of them is first changes from stage to stage."""
    ratios: dict[str, float] = {}
    widths = (1, WIDE)
    works = {width: folder / str(width) for width in widths}
    for work in works.values():
        shutil.copytree(folder.parent / "read", work)
    with Workers(widths) as workers:
        for arch, chain in chains(data).items():
            names = ("teacher", "teacher_targets", "assistant", "assistant_targets", "student")
            for place, (name, plan) in enumerate(zip(names, [p for p in chain if p.kind != "probe"], strict=True)):
                label = name if name.startswith("teacher") else f"{name} {arch}"
                if label in ratios:
                    continue
                order = widths if (number + place) % 2 else widths[::-1]
                took = {width: workers.run(width, works[width], plan) for width in order}
                ratios[label] = took[1] / took[WIDE]
                say(f"{label}: {took[1]:.1f} s, {took[WIDE]:.1f} s")
    return ratios


class Workers:
    """A process for each number of threads; one works at a time."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        self._pools: dict[int, ProcessPoolExecutor] = {}
        for width in widths:
            make = functools.partial(ProcessPoolExecutor, 1, mp_context=get_context("spawn"))
            self._pools[width] = make(initializer=hold, initargs=(width,))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools.values():
            pool.shutdown()

    def run(self, width: int, work: Path, plan: StagePlan) -> float:
        """Seconds of a stage."""
        return self._pools[width].submit(seconds_of, work, plan).result()


def figures(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Stage -> median, least and greatest over rounds."""
    found = {}
    for name in rounds[0]:
        ratios = sorted(one[name] for one in rounds)
        found[name] = {"median": round(median(ratios), 3), "low": round(ratios[0], 3), "high": round(ratios[-1], 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "birds100.zip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    data, rounds = options.data.resolve(), list[dict[str, float]]()
    if len(os.sched_getaffinity(0)) < WIDE:
        raise SystemExit(f"{WIDE} cores are needed, but this process may run on {len(os.sched_getaffinity(0))}")
    os.environ["OMP_NUM_THREADS"] = "1"  # of what is not torch
    with tempfile.TemporaryDirectory() as folder:
        Stages(Path(folder) / "read").run(ingest_of(data))
        for number in range(options.rounds):
            rounds.append(a_round(data, Path(folder) / f"round{number}", number))
    made_with = {name: version(name).partition("+")[0] for name in ("torch", "timm")}
    found = {"threads": WIDE, "rounds": len(rounds), "made_with": made_with, "speedup": figures(rounds)}
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
