"""The table that searches are replayed on: every candidate of a small space, trained for real, once.

``python bench/search_table.py`` trains all cells of ``SPACE`` on the first 20 classes of birds100 by the product's own
stages and defaults, and writes ``docs/benchmarks/search_table.json``: of each candidate its exact costs, its learning
curve on the validation pictures, its accuracy on the test pictures and the seconds of its own training; of each
network what its candidates share (the teacher, what the teacher says, the assistant, what the assistant says), and the
seconds of one export.

- One thread a stage; ``--workers`` stages at a time, as many as there are cores.
- The model hub is not asked: EfficientNet-lite starts from ImageNet weights, all others from random ones.
- It goes on where it was stopped: stages lie under ``--work`` by content key.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from _stages import Stages, ingest_of, offline_catalogue, say
from stillhouse.distill import zoo
from stillhouse.distill.catalogue import describe
from stillhouse.distill.loop import evaluate
from stillhouse.distill.stage import InputFiles, open_store
from stillhouse.distill.tasks.classification import Classification
from stillhouse.export.stage import run_export
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Candidate, Fit, Size, StageKind, StagePlan
from stillhouse.search.job import Epochs, JobSpec
from stillhouse.search.plan import Planner
from stillhouse.search.space import Space

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "benchmarks" / "search_table.json"
SIDES = (32, 48, 64, 96, 128)
SPACE: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "tf_efficientnet_lite0": {"stock": SIDES, "stride1": (32, 48, 64)},
    "tf_efficientnet_lite1": {"stock": SIDES},
    "mobilenetv3_small_100": {"stock": SIDES},
    "mobilenetv4_conv_small_050": {"stock": SIDES},
    "lcnet_050": {"stock": SIDES},
    "lcnet_100": {"stock": SIDES},
}
"""Network -> stem -> sides that it computes at."""
SPEC = JobSpec(
    dataset="",
    qualities=(),
    classes=20,
    teacher="tf_efficientnet_lite0",
    teacher_size=160,
    epochs=Epochs(teacher=6, assistant=6, student=12),
    archs=tuple(SPACE),
    image_sizes=("32", "48", "64", "96"),
)


def narrowed(catalogue: Mapping[str, Any]) -> dict[str, Any]:
    """The catalogue with the cells of ``SPACE`` alone."""
    archs = {}
    for name, stems in SPACE.items():
        cells = [f"{side}x{side}|{stem}" for stem, sides in stems.items() for side in sides]
        entry = describe(name)
        archs[name] = {**entry, "stems": list(stems), "cells": {cell: entry["cells"][cell] for cell in cells}}
    return {**catalogue, "archs": archs}


def in_groups(mentors: Sequence[StagePlan]) -> list[tuple[StagePlan, ...]]:
    """The stages before a student, in order; those that share the views of one mentor together."""
    trained = (plan for plan in mentors if plan.kind is not StageKind.PROBE)
    return [tuple(plans) for _, plans in itertools.groupby(trained, key=lambda plan: plan.kind)]


class Table:
    """The stages of all candidates."""

    def __init__(self, data: Path, work: Path) -> None:
        self.stages = Stages(work)
        self.catalogue, self.ingest = narrowed(offline_catalogue()), ingest_of(data)

    def plans(self, candidate: Candidate) -> tuple[StagePlan, ...]:
        """The stages of a candidate from the teacher on, its own training last."""
        assert SPEC.classes is not None
        return Planner(SPEC, self.ingest.key, SPEC.classes, self.catalogue).student(candidate, SPEC.method)

    def space(self) -> Space:
        """All candidates and their costs; the data set must have been read."""
        done = self.stages.output(self.ingest.key)
        assert done is not None, "the data set comes first"
        return Space(Catalogue.from_json(self.catalogue), done.metrics, SPEC)

    def work(self) -> None:
        """One worker: ever the first stage that is ready, not done, and not in another worker's hands."""
        torch.set_num_threads(1)
        while not self.stages.run(self.ingest):
            time.sleep(1)
        # Candidate by candidate of each network in turn, so that the dear ones do not come last together.
        space = self.space()
        ordered = sorted(space.candidates, key=lambda item: -(space.cost(item).macs or 0))
        while left := [item for item in ordered if self.stages.output(self.plans(item)[-1].key) is None]:
            if not any(self._advance(item) for item in left):
                time.sleep(1)

    def _advance(self, candidate: Candidate) -> bool:
        plan = next((plan for plan in self.plans(candidate) if self.stages.output(plan.key) is None), None)
        return plan is not None and self.stages.run(plan)

    def collect(self) -> dict[str, Any]:
        """All rows, once every stage is done."""
        space, shared, rows = self.space(), {}, []
        for candidate in space.candidates:
            *mentors, student = self.plans(candidate)
            done = self.stages.output(student.key)
            assert done is not None
            if candidate.arch not in shared:
                shared[candidate.arch] = self._shared(candidate, mentors)
                say(f"{candidate.arch}: {shared[candidate.arch]}")
            history, cost = done.metrics["history"], space.cost(candidate)
            total = done.metrics["val"]["total"]
            rows.append(
                {
                    "candidate": candidate.to_json(),
                    "macs": cost.macs,
                    "params": cost.params,
                    "image_bytes": cost.image_bytes,
                    "curve": [round(row["val_accuracy"] * total) for row in history],
                    "test": self._test(candidate, done.files["weights"]),
                    "epoch_s": round(sum(row["seconds"] for row in history) / len(history), 3),
                }
            )
        ingest = self.stages.output(self.ingest.key)
        assert ingest is not None
        names = ("names", "image_sizes", "archs", "methods", "tasks", "weights")
        kept = {name: self.catalogue[name] for name in names} | {"names": sorted(SPACE)}
        summary = {name: ingest.metrics[name] for name in ("classes", "curve")}
        counts = {"val": total, **{split: len(self._store.labels(split, SPEC.classes)) for split in ("train", "test")}}
        return {
            "made_with": {name: version(name).partition("+")[0] for name in ("torch", "timm", "onnxruntime")},
            "spec": SPEC.to_json(),
            "pictures": counts,
            "catalogue": kept,
            "summary": {**summary, "classes": summary["classes"][: SPEC.classes]},
            "in_parts": True,
            "shared_s": shared,
            "rows": rows,
        }

    def _test(self, candidate: Candidate, weights: Path) -> int:
        """Test pictures that it tells right; what a search is judged by, and never told."""
        pictures = self._store.array("test", candidate.image_size, Fit(SPEC.fit), SPEC.classes)
        labels = self._store.labels("test", SPEC.classes)
        return evaluate(
            zoo.load(weights).to(memory_format=torch.channels_last), Classification(), pictures, labels
        ).correct

    @functools.cached_property
    def _store(self) -> Any:
        done = self.stages.output(self.ingest.key)
        assert done is not None
        return open_store({"dataset": InputFiles(done.files, {})}, self.stages.work / "cache")

    def _shared(self, candidate: Candidate, mentors: list[StagePlan]) -> dict[str, float]:
        """Seconds of what all candidates of a network share, in order, and of one export."""
        names = ("teacher", "teacher_targets", "assistant", "assistant_targets")
        seconds = (sum(self.stages.seconds(plan.key) for plan in plans) for plans in in_groups(mentors))
        found = dict(zip(names, seconds, strict=True))
        return {name: round(value, 2) for name, value in (found | {"export": self._export_s(candidate)}).items()}

    def _export_s(self, candidate: Candidate) -> float:
        done = self.stages.output(self.plans(candidate)[-1].key)
        assert done is not None
        store, size = self._store, candidate.image_size
        spec = {**candidate.to_json(), "fit": str(SPEC.fit), "precision": "fp32"}
        pictures = store.array("val", Size.parse(size), Fit(SPEC.fit), SPEC.classes)[:32]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            network = zoo.load(done.files["weights"])
            run_export(network, spec, pictures=pictures, class_names=["?"] * network.classes, work=Path(folder))
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "birds100.zip")
    parser.add_argument("--work", type=Path, default=ROOT / "var" / "search_table")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    options = parser.parse_args()
    table = Table(options.data.resolve(), options.work.resolve())
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=table.work) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed; see above")
    torch.set_num_threads(1)
    text = json.dumps(table.collect(), indent=1)
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
