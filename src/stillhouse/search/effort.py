"""Seconds that stages take, by a rule known beforehand.

The rule counts pictures and MACs. The search weighs candidates by it, not by the clock, because measured seconds differ
from run to run and a seed must make a serial run repeatable.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Candidate, Json, Knobs, Size, StageKind, StagePlan
from stillhouse.search.plan import Planner

TRAIN_S_PER_MAC, TRAIN_S_PER_PICTURE = 1.6e-10, 2e-3
"""Of one picture through forward, backward and step on one CPU thread (docs/benchmarks/search_table.json)."""
FORWARD = 1 / 3
"""Share of a training step that a forward pass takes."""
EXPORT_S, CONVERT_S, MEASURE_S, PROBE_S, INGEST_S_PER_PICTURE = 10.0, 4.0, 3.0, 1.0, 0.01
BATCH = 32
"""Pictures a training step."""
UNKNOWN_MACS = 4e9
"""Taken for a network that the catalogue does not hold (a teacher), at 224 x 224."""


def pictures_of(summary: Mapping[str, Json], classes: int) -> int:
    """Pictures in the training split of the first so many classes; 0 of no data set."""
    if "histogram" in summary:
        return sum(int(summary["histogram"][name]["train"]) for name in summary["classes"][:classes])
    return int(summary["splits"]["train"]) if "splits" in summary else 0


class Effort:
    """The rule.

    Args:
        catalogue: Knows MACs.
        pictures: In the training split.
        classes: That are told apart.
    """

    def __init__(self, catalogue: Catalogue, pictures: int, classes: int) -> None:
        self._catalogue, self.pictures, self._classes = catalogue, pictures, classes
        self._macs: dict[tuple[str, Size, str], float] = {}

    def seconds(self, plan: StagePlan) -> float:
        """Expected seconds of a stage on one CPU thread; epochs that a lower rung has done are not counted again."""
        spec = plan.spec
        if plan.kind in (StageKind.TEACHER, StageKind.ASSISTANT, StageKind.STUDENT):
            epochs: int = spec.get("until", spec["epochs"]) - plan.hints.get("resumed", 0)
            size, stem = spec.get("network_size", spec.get("size")), spec.get("stem", "stock")
            return epochs * self.epoch(spec["arch"], Size.parse(size), stem)
        if plan.kind is StageKind.TARGETS:
            macs = self.macs(plan.hints.get("arch", ""), Size.parse(spec["size"]), "stock")
            first, end = spec.get("part", (0, spec["views"]))
            return FORWARD * int(end - first) * self.pictures * self._picture(macs)
        if plan.kind is StageKind.INGEST:
            return INGEST_S_PER_PICTURE * self.pictures
        if plan.kind is StageKind.EXPORT and "onnx" in plan.inputs:
            return CONVERT_S
        return {StageKind.EXPORT: EXPORT_S, StageKind.MEASURE: MEASURE_S}.get(plan.kind, PROBE_S)

    def epoch(self, arch: str, size: Size, stem: str) -> float:
        """Expected seconds of an epoch of training on one CPU thread."""
        return self.trained(self.macs(arch, size, stem))

    def trained(self, macs: float) -> float:
        """Expected seconds of an epoch of training of a network with so many MACs."""
        return self.pictures * self._picture(macs)

    def macs(self, arch: str, size: Size, stem: str) -> float:
        """MACs at any size: of the nearest cell, scaled by pixels."""
        if (arch, size, stem) not in self._macs:
            self._macs[arch, size, stem] = self._nearest(arch, size, stem)
        return self._macs[arch, size, stem]

    def _nearest(self, arch: str, size: Size, stem: str) -> float:
        entry = self._catalogue.archs.get(arch)
        cells = [cell for cell in entry.cells if cell[1] == stem] if entry else []
        if not cells:
            return UNKNOWN_MACS * size.pixels / 224**2
        nearest = min(cells, key=lambda cell: (abs(math.log(cell[0].pixels / size.pixels)), cell))
        return self._catalogue.macs(arch, *nearest, self._classes) * size.pixels / nearest[0].pixels

    @staticmethod
    def _picture(macs: float) -> float:
        return TRAIN_S_PER_PICTURE + TRAIN_S_PER_MAC * macs


Mentors = tuple[tuple[str, float], ...]
"""Key and seconds of the stages that come before a student."""


def unpaid(mentors: Mentors, paid: Collection[str]) -> float:
    """Seconds of those whose keys are not among those paid for."""
    return sum(seconds for key, seconds in mentors if key not in paid)


class Prices:
    """Seconds, by the rule, that candidates still need.

    Args:
        planner: Plans the job's stages.
        effort: The rule.
    """

    def __init__(self, planner: Planner, effort: Effort) -> None:
        self._planner, self._effort = planner, effort
        self._known: dict[Candidate, tuple[Mentors, float]] = {}
        self._mentors: dict[tuple[str, Size, Knobs], Mentors] = {}

    def remaining(self, candidate: Candidate, epochs: int, paid: Collection[str]) -> float:
        """From now to a measured file.

        Args:
            candidate: The candidate.
            epochs: Of its student that are done.
            paid: Keys of stages that are done or at work.
        """
        return self.student(candidate, epochs) + unpaid(self.mentors(candidate), paid)

    @property
    def steps(self) -> float:
        """Training steps of a student."""
        return self._planner.spec.epochs.student * self._effort.pictures / BATCH

    def student(self, candidate: Candidate, epochs: int) -> float:
        """From its student's start, or what is left after so many epochs, to a measured file."""
        spec = self._planner.spec
        files = EXPORT_S + MEASURE_S + (len(self._planner.precisions(candidate)) - 1) * (CONVERT_S + MEASURE_S)
        return (spec.epochs.student - epochs) * self._priced(candidate)[1] + files

    def mentors(self, candidate: Candidate) -> Mentors:
        """Key and seconds of each stage that comes before its student."""
        return self._priced(candidate)[0]

    def _priced(self, candidate: Candidate) -> tuple[Mentors, float]:
        """Its mentors' stages, and seconds of an epoch."""
        if candidate not in self._known:
            alike = candidate.arch, candidate.image_size, candidate.knobs
            if alike not in self._mentors:
                *mentors, _ = self._planner.student(candidate, self._planner.spec.method)
                self._mentors[alike] = tuple((plan.key, self._effort.seconds(plan)) for plan in mentors)
            epoch = self._effort.epoch(candidate.arch, candidate.network_size, candidate.stem)
            self._known[candidate] = self._mentors[alike], epoch
        return self._known[candidate]
