"""The study: which way of training is worth what, on real photographs, at small pictures.

``python bench/study.py`` runs every cell of ``CELLS`` on the first 50 classes of birds100: a network, a picture size, a
way of keeping the grid and a way of training. All stages are the product's own, planned by its planner and run by its
trainer; a cell differs from another in nothing but what its name says.

- Epochs are equal (``EPOCHS``); cells named ``2x`` train the student twice as long, which is at least the
  wall-clock of a distilled student with its assistant: the comparison at equal time.
- Everything is chosen on validation. The test pictures are read once, by the trained student, for the table.
- The model hub is not asked: the EfficientNet-lite networks start from ImageNet weights, MobileNetV3 and the ViT from
  random ones, and those train five times as long.
- A seed decides all: views, order, new layers, and so the teacher and the assistant too.
- It begins no stage after ``--hours`` (2), and goes on when it is started again: a finished stage lies under
  ``--work`` by its content key, a killed one goes on from its checkpoint, a finished row is in ``--out`` and is not
  computed again. Cells run in order of importance, seed by seed.

``--quick`` is the same on 10 classes with four cells, in under 10 minutes on 2 cores. ``--report`` writes
``docs/benchmarks.md`` and its plots from the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _stages import Stages, ingest_of, locked, offline_catalogue, say
from stillhouse.distill import stage as trainer
from stillhouse.distill import zoo
from stillhouse.distill.loop import to_tensor
from stillhouse.distill.stage import InputFiles
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Candidate, Fit, Size, StageKind, StagePlan
from stillhouse.search.job import Epochs, JobSpec
from stillhouse.search.plan import Planner
from stillhouse.search.space import Space
from study_report import report

ROOT = Path(__file__).parents[1]
TEACHER, TEACHER_SIZE = "tf_efficientnet_lite0", 192
EPOCHS = Epochs(teacher=6, assistant=6, student=8)
FROM_RANDOM = dataclasses.replace(EPOCHS, assistant=30, student=5 * EPOCHS.student)
VIEWS, CLASSES, SEEDS = 4, 50, (0, 1, 2)
LITE, MOBILE, VIT = "tf_efficientnet_lite0", "mobilenetv3_small_100", "vit_tiny_patch16_224"

WAYS: dict[str, dict[str, Any]] = {
    "no teacher": {"method": "supervised"},
    "no teacher 2x": {"method": "supervised", "epochs": dataclasses.replace(EPOCHS, student=2 * EPOCHS.student)},
    "no teacher, smoothed": {"method": "supervised", "knobs": {"smoothing": 0.1}},
    "KD": {"method": "logits"},
    "KD 2x": {"method": "logits", "epochs": dataclasses.replace(EPOCHS, student=2 * EPOCHS.student)},
    "no teacher 5x": {"method": "supervised", "epochs": FROM_RANDOM},
    "KD 5x": {"method": "logits", "epochs": FROM_RANDOM},
    "PD 5x": {"method": "pixel", "epochs": FROM_RANDOM},
    "TAS 5x": {"method": "tas", "epochs": FROM_RANDOM},
    "KD, lite2 at 224": {"method": "logits", "teacher": "tf_efficientnet_lite2", "teacher_size": 224},
    "KD + codec": {"method": "logits", "codec_share": 0.5},
    "KD + mixup": {"method": "logits", "mixup": 0.5},
    "PD": {"method": "pixel"},
    "DIST": {"method": "dist"},
    "DKD": {"method": "dkd"},
    "standardised": {"method": "standardised"},
    "hints": {"method": "hints"},
    "attention transfer": {"method": "attention_transfer"},
    "TAS": {"method": "tas", "knobs": {"beta": 0.1, "gamma": 1.0}},
    "TAS, logits only": {"method": "tas", "knobs": {"beta": 0.0, "gamma": 0.0}},
    "TAS, no ISRD": {"method": "tas", "knobs": {"beta": 0.1, "gamma": 0.0}},
    "TAS + mixup": {"method": "tas", "knobs": {"beta": 0.0, "gamma": 0.0}, "mixup": 0.5},
    "TAS + EMA": {"method": "tas", "knobs": {"beta": 0.0, "gamma": 0.0}, "ema": 0.99},
    "TAS + codec": {"method": "tas", "knobs": {"beta": 0.0, "gamma": 0.0}, "codec_share": 0.5},
    "TAS + codec 2x": {
        "method": "tas",
        "knobs": {"beta": 0.0, "gamma": 0.0},
        "codec_share": 0.5,
        "epochs": dataclasses.replace(EPOCHS, student=2 * EPOCHS.student),
    },
    "TAS + ladder": {"method": "tas", "knobs": {"beta": 0.0, "gamma": 0.0}, "ladder": (128,)},
    "adversarial MMD": {"method": "adversarial_mmd"},
}
"""Ways of training by name; each is a set of the job's own fields. ``TAS + ...`` adds to ``TAS, logits only``."""

GRIDS = {
    "stock": (1, "stock"),
    "stride1": (1, "stride1"),
    "half patch": (1, "half_patch"),
    "to 64": (64, "stock"),
    "to 96": (96, "stock"),
    "to 128": (128, "stock"),
}
"""How the grid is kept: side that the network computes at (1: the picture's own) and stem."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One student of the study."""

    arch: str
    side: int
    grid: str
    way: str

    @property
    def candidate(self) -> Candidate:
        inner, stem = GRIDS[self.grid]
        side = max(self.side, inner)
        return Candidate(self.arch, Size(self.side, self.side), Size(side, side), stem)

    def key(self, classes: int, seed: int) -> str:
        return f"{classes} classes | {self.arch} | {self.side} px | {self.grid} | {self.way} | seed {seed}"


def _cells(arch: str, side: int, grid: str, *ways: str) -> list[Cell]:
    return [Cell(arch, side, grid, way) for way in ways]


FIRST = [
    *_cells(LITE, 64, "stock", "no teacher"),
    *_cells(LITE, 64, "to 128", "no teacher", "TAS", "TAS, logits only", "KD"),
    *_cells(LITE, 32, "to 128", "TAS, logits only"),
    *_cells(LITE, 64, "to 128", "TAS + codec"),
    *_cells(LITE, 32, "to 128", "TAS + codec"),
]
"""What the aims are about: these cells come first for every seed."""

NEXT = [
    *_cells(LITE, 64, "to 128", "PD", "TAS + mixup", "KD 2x", "no teacher 2x", "TAS + codec 2x"),
    *_cells(LITE, 64, "stock", "KD", "PD", "TAS"),
    *_cells(LITE, 32, "to 128", "no teacher", "KD"),
    *_cells(LITE, 128, "stock", "no teacher", "KD"),
    *_cells(LITE, 64, "to 128", "TAS + EMA", "KD + codec", "adversarial MMD", "DIST", "DKD", "standardised"),
    *_cells(LITE, 48, "to 128", "no teacher", "KD", "TAS, logits only"),
    *_cells(MOBILE, 64, "to 128", "no teacher 5x", "KD 5x"),
    *_cells(LITE, 64, "stride1", "no teacher", "KD", "TAS, logits only"),
    *_cells(LITE, 112, "stock", "no teacher", "KD", "TAS, logits only"),
    *_cells(VIT, 64, "stock", "no teacher 5x", "KD 5x", "PD 5x"),
    *_cells(MOBILE, 64, "to 128", "TAS 5x", "PD 5x"),
    *_cells(MOBILE, 64, "stock", "no teacher 5x", "KD 5x"),
    *_cells(LITE, 64, "to 128", "hints", "attention transfer", "KD, lite2 at 224", "no teacher, smoothed"),
    *_cells(LITE, 64, "to 128", "TAS + ladder", "KD + mixup", "TAS, no ISRD"),
    *_cells(VIT, 64, "half patch", "KD 5x"),
]

QUICK = [
    *_cells(LITE, 64, "stock", "no teacher"),
    *_cells(LITE, 64, "to 128", "no teacher", "KD", "TAS + codec"),
]

Run = tuple[Cell, int]


def runs(quick: bool) -> list[Run]:
    """Cells and seeds in the order in which they are worth the time."""
    if quick:
        return [(cell, 0) for cell in QUICK]
    return [*((cell, seed) for seed in SEEDS for cell in FIRST), *((cell, SEEDS[0]) for cell in NEXT)]


class Study:
    """Runs stages by content key under a folder that several workers share."""

    def __init__(self, data: Path, work: Path, out: Path, classes: int) -> None:
        self.work, self.out, self.classes, self.stages = work, out, classes, Stages(work)
        (work / "rows").mkdir(parents=True, exist_ok=True)
        self.catalogue, self.ingest = offline_catalogue(), ingest_of(data)

    def spec(self, cell: Cell, seed: int) -> JobSpec:
        return JobSpec(
            dataset="",
            classes=self.classes,
            seed=seed,
            views=VIEWS,
            **{
                "teacher": TEACHER,
                "teacher_size": TEACHER_SIZE,
                "epochs": EPOCHS,
                "codec_share": 0.0,
                "qualities": (),
                **WAYS[cell.way],
            },
        )

    def plans(self, cell: Cell, seed: int) -> tuple[StagePlan, ...]:
        """All stages of a cell, the student's last."""
        spec = self.spec(cell, seed)
        planner = Planner(spec, self.ingest.key, self.classes, self.catalogue)
        return (self.ingest, *planner.student(cell.candidate, spec.method))

    def advance(self, run: Run) -> bool:
        """Does one missing stage of a run, or its row; False when another worker is at it."""
        cell, seed = run
        for plan in self.plans(cell, seed):
            if self.stages.output(plan.key) is None:
                return self.stages.run(plan)
        with locked(self.work / f"{self.plans(cell, seed)[-1].key}-{cell.key(self.classes, seed)}.lock") as mine:
            if mine and self.row(run) is None:
                self._test(cell, seed)
            return mine

    def row(self, run: Run) -> dict[str, Any] | None:
        """The finished row of a run."""
        name = run[0].key(self.classes, run[1])
        known = json.loads(self.out.read_text())["rows"] if self.out.exists() else {}
        path = self._row_path(name)
        found: dict[str, Any] | None = known.get(name) or (json.loads(path.read_text()) if path.exists() else None)
        return found

    def _row_path(self, name: str) -> Path:
        return self.work / "rows" / (name.replace(" | ", "--").replace(" ", "_") + ".json")

    def _test(self, cell: Cell, seed: int) -> None:
        """Reads the test split, plain and as the device would send it, and writes the row."""
        spec, plans = self.spec(cell, seed), self.plans(cell, seed)
        done = {plan.key: self.stages.output(plan.key) for plan in plans}
        dataset, student = done[self.ingest.key], done[plans[-1].key]
        assert dataset is not None
        assert student is not None
        store = trainer.open_store({"dataset": InputFiles(dataset.files, {})}, self.work / "cache")
        network = zoo.load(student.files["weights"]).eval().to(memory_format=torch.channels_last)
        labels = store.labels("test", self.classes)
        size = cell.candidate.image_size
        plain = store.array("test", size, Fit.SQUASH, self.classes)
        coded = store.coded("test", size, Fit.SQUASH, spec.codec, spec.quality, self.classes)
        right = _predict(network, plain) == labels
        cost = Space(Catalogue.from_json(self.catalogue), dataset.metrics, spec).cost(cell.candidate)
        trained = [plan for plan in plans if plan.kind is not StageKind.INGEST]
        teacher = next((plan for plan in plans if plan.kind is StageKind.TEACHER), None)
        row = {
            **dataclasses.asdict(cell),
            "seed": seed,
            "classes": self.classes,
            "val": student.metrics["val"],
            "test": {"correct": int(right.sum()), "total": len(labels)},
            "coded": {"correct": int((_predict(network, coded) == labels).sum()), "total": len(labels)},
            "right": np.packbits(right).tobytes().hex(),
            "macs": cost.macs,
            "image_bytes": cost.image_bytes,
            "epochs": len(student.metrics["history"]),
            "student_s": student.metrics["seconds"],
            "mentors_s": sum(d.metrics.get("seconds", 0.0) for p in trained[:-1] if (d := done[p.key]) is not None),
            "threads": torch.get_num_threads(),
        }
        if teacher is not None:
            row["teacher"] = self._teacher(teacher, store, labels)
        path = self._row_path(cell.key(self.classes, seed))
        path.with_suffix(".tmp").write_text(json.dumps(row))
        path.with_suffix(".tmp").replace(path)
        say(f"{cell.key(self.classes, seed)}: {right.mean():.1%}")

    def _teacher(self, plan: StagePlan, store: Any, labels: np.ndarray) -> dict[str, int]:
        """The teacher's own test accuracy at its own size, read once a teacher."""
        path = self.work / plan.key / "test.json"
        if not path.exists():
            done = self.stages.output(plan.key)
            assert done is not None
            network = zoo.load(done.files["weights"]).eval().to(memory_format=torch.channels_last)
            pictures = store.array("test", network.image_size, Fit.SQUASH, self.classes)
            right = int((_predict(network, pictures) == labels).sum())
            path.write_text(json.dumps({"correct": right, "total": len(labels)}))
        found: dict[str, int] = json.loads(path.read_text())
        return found


def _predict(network: zoo.Network, pictures: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        parts = [
            network(to_tensor(pictures[start : start + 64])).argmax(1).numpy() for start in range(0, len(pictures), 64)
        ]
    return np.concatenate(parts)


def work(study: Study, wanted: list[Run], deadline: float) -> None:
    """One worker: ever the first run that is not finished and that no other worker is at."""
    torch.set_num_threads(1)
    while time.time() < deadline:
        left = [run for run in wanted if study.row(run) is None]
        if not left:
            return
        if not any(study.advance(run) for run in left):
            time.sleep(2)


def collect(study: Study, wanted: list[Run], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Adds finished rows to the file that is kept."""
    known = json.loads(study.out.read_text()) if study.out.exists() else {"rows": {}}
    rows = known["rows"] | {run[0].key(study.classes, run[1]): row for run in wanted if (row := study.row(run))}
    data = {**known, **facts, "rows": dict(sorted(rows.items()))}
    study.out.parent.mkdir(parents=True, exist_ok=True)
    study.out.with_suffix(".tmp").write_text(json.dumps(data, indent=1) + "\n")
    study.out.with_suffix(".tmp").replace(study.out)
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "birds100.zip")
    parser.add_argument("--work", type=Path, default=ROOT / "var" / "study")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "study.json")
    parser.add_argument("--quick", action="store_true", help="10 classes, four cells")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument(
        "--hours", type=float, default=2.0, help="no stage is begun after this long; run it again to go on"
    )
    parser.add_argument("--report", action="store_true", help="only write the tables and plots from the rows")
    options = parser.parse_args()
    classes = 10 if options.quick else CLASSES
    out = options.work / "quick.json" if options.quick else options.out
    study, wanted = Study(options.data.resolve(), options.work.resolve(), out, classes), runs(options.quick)
    if not options.report:
        began = time.time()
        context = multiprocessing.get_context("spawn")
        arguments = (study, wanted, began + 3600 * options.hours)
        workers = [context.Process(target=work, args=arguments) for _ in range(options.workers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(f"{time.time() - began:.0f} s")
    facts = {"teacher": f"{TEACHER} at {TEACHER_SIZE} px", "classes": classes, "torch": torch.__version__}
    report(collect(study, wanted, facts), None if options.quick else ROOT / "docs")


if __name__ == "__main__":
    main()
