"""How much sooner a mentor's stage is done with the threads of two slots, and what its views cost in parts.

``python bench/wide.py`` runs the mentors' stages of the search table (``bench/search_table.py``: its data set, networks
and teacher; half of its epochs), each with one thread and with two in turn, and writes ``docs/benchmarks/wide.json``. A
process of one thread is held to one core and one of two threads to two: a slot is a core. Where cores are idle the
thread that prepares pictures has one of its own, so a stage in one slot may be faster than here. All that a stage does
counts, from reading its inputs to writing its result. Median, least and greatest over rounds of

- ``speedup``: seconds with one thread / seconds with two;
- ``in_parts``: seconds of the stages that share the views of a mentor, one after the other / of one stage for all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from _stages import Stages, ingest_of, offline_catalogue, say
from search_table import ROOT, SPACE, SPEC, in_groups, narrowed
from stillhouse.search.domain import Candidate, StagePlan
from stillhouse.search.job import Epochs
from stillhouse.search.plan import Planner

OUT = ROOT / "docs" / "benchmarks" / "wide.json"
WIDE = 2
SHORT = replace(SPEC, epochs=Epochs(teacher=3, assistant=3, student=1))
STUDENT = {"image_size": "48x48", "network_size": "96x96", "stem": "stock"}


def chains(data: Path) -> dict[str, dict[str, tuple[StagePlan, ...]]]:
    """Network -> its mentors' stages by name, in order; those that share the views of one mentor are one name's."""
    assert SHORT.classes is not None
    planner = Planner(SHORT, ingest_of(data).key, SHORT.classes, narrowed(offline_catalogue()))
    found = {}
    for arch in SPACE:
        *mentors, _ = planner.student(Candidate.from_json({"arch": arch, **STUDENT}), SHORT.method)
        names = ("teacher", "teacher_targets", f"assistant {arch}", f"assistant_targets {arch}")
        found[arch] = dict(zip(names, in_groups(mentors), strict=True))
    return found


def hold(threads: int) -> None:
    """Gives a fresh process so many threads, and as many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def seconds_of(work: Path, plan: StagePlan) -> float:
    """Runs a stage in this process; seconds that it took."""
    stages = Stages(work)
    stages.run(plan)
    return stages.seconds(plan.key)


def a_round(data: Path, folder: Path, number: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds with one thread / with two, and seconds in parts / in one stage, by name.

    Which of them is first changes from name to name and from round to round.
    """
    wide, parts = dict[str, float](), dict[str, float]()
    widths = (1, WIDE)
    works = {width: folder / str(width) for width in widths}
    for work in works.values():
        shutil.copytree(folder.parent / "read", work)
    with contextlib.ExitStack() as stack:
        # One process a width; one works at a time.
        process = partial(ProcessPoolExecutor, 1, mp_context=get_context("spawn"), initializer=hold)
        pools = {width: stack.enter_context(process(initargs=(width,))) for width in widths}

        def run(width: int, plan: StagePlan) -> float:
            return pools[width].submit(seconds_of, works[width], plan).result()

        named = {name: plans for chain in chains(data).values() for name, plans in chain.items()}
        for place, (name, plans) in enumerate(named.items()):
            order = widths if (number + place) % 2 else widths[::-1]
            took = {width: sum(run(width, plan) for plan in plans) for width in order}
            wide[name] = took[1] / took[WIDE]
            if len(plans) > 1:
                spec = {key: value for key, value in plans[0].spec.items() if key != "part"}
                parts[name] = took[1] / run(1, replace(plans[0], spec=spec))
            say(f"{name}: {took[1]:.1f} s, {took[WIDE]:.1f} s, in parts x{parts.get(name, 1):.2f}")
    return wide, parts


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
    data, rounds = options.data.resolve(), list[tuple[dict[str, float], dict[str, float]]]()
    if len(os.sched_getaffinity(0)) < WIDE:
        raise SystemExit(f"{WIDE} cores are needed, but this process may run on {len(os.sched_getaffinity(0))}")
    os.environ["OMP_NUM_THREADS"] = "1"  # of what is not torch
    with tempfile.TemporaryDirectory() as folder:
        Stages(Path(folder) / "read").run(ingest_of(data))
        for number in range(options.rounds):
            rounds.append(a_round(data, Path(folder) / f"round{number}", number))
    made_with = {name: version(name).partition("+")[0] for name in ("torch", "timm")}
    found = {
        "threads": WIDE,
        "rounds": len(rounds),
        "made_with": made_with,
        "speedup": figures([wide for wide, _ in rounds]),
        "in_parts": figures([parts for _, parts in rounds]),
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
