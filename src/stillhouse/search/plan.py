"""From a job and a candidate to stages with content keys.

A plan is pure data: the same job, data set, candidate and code give the same keys in every process,
and a stage's key takes in the keys of what it reads. So all keys of a trial are known before anything
runs, and trials and jobs that share a prefix (the teacher, its targets, an assistant) share the work.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from stillhouse.search.catalogue import lacking
from stillhouse.search.domain import (
    DISTILLED,
    LOCAL,
    PRECISIONS,
    Candidate,
    Cost,
    Json,
    Size,
    StageKind,
    StagePlan,
    TrialPlan,
)
from stillhouse.search.errors import UserError
from stillhouse.search.job import DatasetRecord, JobRecord, JobSpec
from stillhouse.search.offered import MethodNeeds, Weights, all_knobs, method_needs
from stillhouse.search.rungs import levels

BASELINES: Mapping[str, str] = {"no_teacher": "supervised", "plain_kd": "logits"}
"""What a front is compared with, by variant: the same network at the same size, trained by this method."""

PARTS = 4
"""Stages that share the views of one mentor: as many workers can tell what it says at once."""


def ingest_plan(source: str, digest: str, skip_faults: bool, code: Mapping[str, str]) -> StagePlan:
    """The stage that reads a data set; its key depends on content (``digest``), not on where it lies."""
    return StagePlan(
        StageKind.INGEST,
        spec={"digest": digest, "skip_faults": skip_faults},
        code=code.get("ingest", ""),
        hints={"source": source},
    )


@dataclass(frozen=True)
class Planner:
    """Plans the stages of one job.

    Attributes:
        spec: The job.
        dataset_key: Key of the ingest stage.
        classes: Number of classes used.
        catalogue: What the worker published: digests of its code, methods, weights.
    """

    spec: JobSpec
    dataset_key: str
    classes: int
    catalogue: Mapping[str, Json] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------- costs

    def precisions(self, candidate: Candidate) -> tuple[str, ...]:
        """Those of the job that the network has files of, what is trained first."""
        lacks = self.lacks(candidate)
        return tuple(name for name in self.spec.precisions if name not in lacks)

    def lacks(self, candidate: Candidate) -> dict[str, str]:
        """Those of the job that it has no files of -> why the catalogue's check of them failed."""
        entry = self.catalogue.get("archs", {}).get(candidate.arch, {})
        failed = lacking(entry.get("lacks", {}), candidate.network_size, candidate.stem)
        return {name: failed[name] for name in self.spec.precisions if name in failed}

    def costing(self, candidate: Candidate, precision: str = PRECISIONS[0]) -> TrialPlan:
        """Costs on the device, from an untrained export: no picture is read, nothing is trained."""
        return self._costing(candidate, self._untrained(candidate), precision)

    def costings(self, candidate: Candidate) -> dict[str, TrialPlan]:
        """``costing`` at each of its ``precisions``, by name."""
        export = self._untrained(candidate)
        return {name: self._costing(candidate, export, name) for name in self.precisions(candidate)}

    def _untrained(self, candidate: Candidate) -> StagePlan:
        return self._stage(StageKind.EXPORT, self._network(candidate) | {"precision": PRECISIONS[0]})

    def _costing(self, candidate: Candidate, export: StagePlan, precision: str) -> TrialPlan:
        exports = self._converted(candidate, export, precision, {})
        return TrialPlan(candidate, (*exports, self._measure(candidate, exports[-1], latency=True)))

    # ---------------------------------------------------------------------------------- training

    def training(self, candidate: Candidate, method: str | None = None, precision: str = PRECISIONS[0]) -> TrialPlan:
        """All stages from the teacher to a measured ONNX file on the validation split."""
        # A baseline is the same network: its trial's latency is its own.
        latency = method in (None, self.spec.method)
        return self._measured(candidate, method, precision, split="val", latency=latency)

    def family(self, candidate: Candidate) -> dict[str, tuple[StagePlan, ...]]:
        """``training`` of the job's own method at each of its ``precisions``, by name; what is trained first."""
        return {name: self.training(candidate, precision=name).stages for name in self.precisions(candidate)}

    def rung(self, candidate: Candidate, until: int) -> TrialPlan:
        """The stages up to a student that is trained for the first ``until`` epochs of its schedule."""
        return TrialPlan(candidate, self.student(candidate, self.spec.method, until))

    def testing(self, candidate: Candidate, method: str | None = None, precision: str = PRECISIONS[0]) -> TrialPlan:
        """The same file read on the test split: done for the networks of the final front only."""
        return self._measured(candidate, method, precision, split="test", latency=False)

    @functools.cached_property
    def levels(self) -> tuple[int, ...]:
        """Epochs at which a student of the job's own method may be stopped, its full training last."""
        return levels(self.spec.epochs.student, self.spec.eta)

    def student(self, candidate: Candidate, method: str, until: int | None = None) -> tuple[StagePlan, ...]:
        """The student's stage with all that comes before it.

        Where it goes on from what the rung below left is a hint: a resumed training equals an uninterrupted one.
        """
        knobs = dict(self.spec.knobs) | dict(candidate.knobs) if method == self.spec.method else {}
        needs = method_needs(self.catalogue, method, knobs)
        knobs = all_knobs(self.catalogue, method, knobs)
        before: tuple[StagePlan, ...] = ()
        inputs, large = {"dataset": self.dataset_key}, self.spec.teacher_size
        if needs.teacher:
            before, inputs, large = self._mentors(candidate, method, knobs, needs)
        spec = self._network(candidate) | self._recipe(candidate.arch, self.spec.epochs.student) | self._learning()
        spec |= {"method": method, "knobs": knobs, "large_size": _square(large)}
        if self.spec.codec_share:
            sent, share = self.spec.sent_qualities, self.spec.codec_share
            spec["codec"] = {"name": self.spec.codec, "quality": sent[0], "share": share}
            spec["codec"] |= {"lowest": sent[-1]} if len(sent) > 1 else {}
        stage: StagePlan | None = None
        for level in self.levels[:-1] if method == self.spec.method else ():
            stage = self._student(spec | {"until": level}, inputs, stage)
            if level == until:
                return (*before, stage)
        return (*before, self._student(spec, inputs, stage))

    def _student(self, spec: Mapping[str, Json], inputs: Mapping[str, str], rung: StagePlan | None) -> StagePlan:
        stage = self._stage(StageKind.STUDENT, spec, inputs)
        if rung is None:
            return stage
        return replace(stage, hints={**stage.hints, "resume": rung.key, "resumed": rung.spec["until"]})

    def _mentors(
        self, candidate: Candidate, method: str, knobs: Mapping[str, Json], needs: MethodNeeds
    ) -> tuple[tuple[StagePlan, ...], dict[str, str], int]:
        """All that stands before a student, what it reads of it, and the side of its mentor's pictures.

        The rungs of a ladder are assistants at ever smaller sizes, each taught by the one before it as the student
        is by the last; those not larger than the student's own picture are left out.
        """
        features = "" if needs.assistant else needs.features
        teacher, large = self.teacher(), self.spec.teacher_size
        before = (*self._probe(features), *self._teaching(teacher, large, features))
        inputs = {"dataset": self.dataset_key}
        if not needs.assistant:
            return before, inputs | _told(before) | ({"teacher": teacher.key} if features else {}), large
        mentor = self.assistant(candidate.arch, _told(before))
        before += self._teaching(mentor, large, needs.features)
        for side in self.spec.ladder:
            if side <= max(candidate.image_size.height, candidate.image_size.width):
                break
            spec = self._recipe(candidate.arch, self.spec.epochs.assistant) | self._learning()
            spec |= {"arch": candidate.arch, "size": _square(side), "method": method, "knobs": dict(knobs)}
            read = inputs | _told(before) | {"assistant": mentor.key}
            mentor = self._stage(StageKind.ASSISTANT, spec | {"large_size": _square(large)}, read)
            before, large = before + self._teaching(mentor, side, needs.features), side
        return before, inputs | _told(before) | {"assistant": mentor.key}, large

    def teacher(self) -> StagePlan:
        """The large network on large pictures."""
        spec = self._recipe(self.spec.teacher, self.spec.epochs.teacher)
        size = _square(self.spec.teacher_size)
        spec |= {"arch": self.spec.teacher, "size": size, "checkpoint": self.spec.teacher_checkpoint}
        if self.spec.teacher_checkpoint is not None:
            spec["weights"] = "none"
        return self._stage(StageKind.TEACHER, spec, {"dataset": self.dataset_key})

    def assistant(self, arch: str, told: Mapping[str, str]) -> StagePlan:
        """The student's architecture on large pictures, taught by what the teacher said: it knows no student's size."""
        spec = self._recipe(arch, self.spec.epochs.assistant) | self._learning()
        knobs = all_knobs(self.catalogue, "logits", {})
        spec |= {"arch": arch, "size": _square(self.spec.teacher_size), "method": "logits", "knobs": knobs}
        return self._stage(StageKind.ASSISTANT, spec, {"dataset": self.dataset_key, **told})

    def export(self, candidate: Candidate, student: StagePlan) -> StagePlan:
        """The student as an ONNX file, checked against torch on pictures of the data set."""
        spec = self._network(candidate) | {"precision": PRECISIONS[0]}
        return self._stage(StageKind.EXPORT, spec, {"model": student.key, "dataset": self.dataset_key})

    def _converted(
        self, candidate: Candidate, export: StagePlan, precision: str, inputs: Mapping[str, str]
    ) -> tuple[StagePlan, ...]:
        """An export, and after it the stage that makes it a file of a lower precision.

        Args:
            candidate: Its network.
            export: At the precision that is trained.
            precision: What is wanted.
            inputs: The data set to calibrate on and to compare with; none for an untrained network.
        """
        if precision == PRECISIONS[0]:
            return (export,)
        spec = self._network(candidate) | {"precision": precision}
        return export, self._stage(StageKind.EXPORT, spec, {"onnx": export.key, **inputs})

    def _measured(
        self, candidate: Candidate, method: str | None, precision: str, *, split: str, latency: bool
    ) -> TrialPlan:
        student = self.student(candidate, method or self.spec.method)
        data = {"dataset": self.dataset_key}
        exports = self._converted(candidate, self.export(candidate, student[-1]), precision, data)
        if not (latency and self.spec.budget.device != LOCAL):
            measure = self._measure(candidate, exports[-1], split=split, latency=latency)
            return TrialPlan(candidate, (*student, *exports, measure))
        # The pictures do not go to the device: it times the file, and a worker reads it.
        timed = self._measure(candidate, exports[-1], latency=True)
        measure = self._measure(candidate, exports[-1], split=split, timed=timed)
        return TrialPlan(candidate, (*student, *exports, timed, measure))

    # ----------------------------------------------------------------------------------- helpers

    def _probe(self, features: str) -> tuple[StagePlan, ...]:
        """Looks inside an untrained teacher for what will be read there: seconds, before hours.

        A stage of its own, so that a teacher which lacks it stays good for jobs that read logits alone.
        """
        if not features:
            return ()
        spec = {"arch": self.spec.teacher, "size": _square(self.spec.teacher_size), "features": features}
        return (self._stage(StageKind.PROBE, spec),)

    def _teaching(self, model: StagePlan, side: int, features: str) -> tuple[StagePlan, ...]:
        """A trained network and the cache of what it says of every view, in parts that several workers can fill."""
        spec: dict[str, Json] = {
            "classes": self.classes,
            "size": _square(side),
            "store_size": _square(self.spec.teacher_size),
            "fit": str(self.spec.fit),
            "views": self.spec.views,
            "seed": self.spec.seed,
            "mixup": self.spec.mixup,
        }
        if features:
            spec |= {"features": features, "feature_bytes": self.spec.feature_cache_bytes}
        count = min(PARTS, self.spec.views)
        cuts = [self.spec.views * index // count for index in range(count + 1)]
        inputs = {"dataset": self.dataset_key, "model": model.key}
        parts = (self._stage(StageKind.TARGETS, spec | {"part": list(cut)}, inputs) for cut in itertools.pairwise(cuts))
        return (model, *(replace(part, hints={**part.hints, "arch": model.spec["arch"]}) for part in parts))

    def _network(self, candidate: Candidate) -> dict[str, Json]:
        return {
            "arch": candidate.arch,
            "classes": self.classes,
            "image_size": str(candidate.image_size),
            "network_size": str(candidate.network_size),
            "stem": candidate.stem,
            "fit": str(self.spec.fit),
            **self._colour,
        }

    @property
    def _colour(self) -> dict[str, Json]:
        """What a student and its file read, where that is not RGB: keys of RGB stages stay what they were."""
        return {} if self.spec.colour == "rgb" else {"colour": self.spec.colour}

    def _recipe(self, arch: str, epochs: int) -> dict[str, Json]:
        return {
            "task": self.spec.task,
            "classes": self.classes,
            "fit": str(self.spec.fit),
            "epochs": epochs,
            "seed": self.spec.seed,
            "views": self.spec.views,
            "store_size": _square(self.spec.teacher_size),
            "schedule": self.spec.schedule,
            "weights": Weights.from_catalogue(self.catalogue).source(arch),
        }

    def _learning(self) -> dict[str, Json]:
        """How assistants and students learn, where it differs from the teacher."""
        return {"mixup": self.spec.mixup, "ema": self.spec.ema}

    def _measure(
        self,
        candidate: Candidate,
        export: StagePlan,
        *,
        split: str | None = None,
        latency: bool = False,
        timed: StagePlan | None = None,
    ) -> StagePlan:
        """What reads a file's costs on its device, its accuracy on a split, or both.

        Args:
            candidate: Its network.
            export: Makes the file.
            split: Pictures to read accuracy on, if any.
            latency: Whether latency and memory are measured.
            timed: The stage that measured them apart from this one.
        """
        spec: dict[str, Json] = {
            "device": self.spec.budget.device if latency else LOCAL,
            "threads": self.spec.latency_threads,
            "latency": latency,
            "split": split,
            "classes": self.classes,
            "image_size": str(candidate.image_size),
            "fit": str(self.spec.fit),
            **self._colour,
            "codec": self.spec.codec,
            "qualities": list(self.spec.sent_qualities),
        }
        inputs = {"onnx": export.key} | ({"dataset": self.dataset_key} if split else {})
        inputs |= {"timed": timed.key} if timed else {}
        stage = self._stage(StageKind.MEASURE, spec, inputs)
        return stage if stage.device is None else replace(stage, code=self._device_code)

    @property
    def _device_code(self) -> str:
        """Of the device's hardware and runtime, not of this machine's code."""
        return str(self.catalogue.get("devices", {}).get(self.spec.budget.device, ""))

    def _stage(self, kind: StageKind, spec: Mapping[str, Json], inputs: Mapping[str, str] | None = None) -> StagePlan:
        code = self.catalogue.get("code", {}).get(str(kind), "")
        hints = {"compile": True} if self.spec.compile and kind in _TRAINED else {}
        return StagePlan(kind, dict(spec), dict(inputs or {}), code, hints)


def variant_of(method: str) -> str:
    """The variant that a method makes: the name of a baseline, or ``distilled``."""
    return next((name for name, used in BASELINES.items() if used == method), DISTILLED)


def baselines(spec: JobSpec, catalogue: Mapping[str, Json]) -> dict[str, str]:
    """Variant -> method of what a job compares its front with; not its own method, and only what workers offer."""
    if spec.ablate == "none":
        return {}
    offered = catalogue.get("methods", {})
    return {name: method for name, method in BASELINES.items() if method != spec.method and method in offered}


def unique(plans: Sequence[StagePlan]) -> list[StagePlan]:
    """The plans in order, each key once."""
    return list({plan.key: plan for plan in plans}.values())


_TRAINED = (StageKind.TEACHER, StageKind.ASSISTANT, StageKind.STUDENT)


def _told(stages: Sequence[StagePlan]) -> dict[str, str]:
    """What the last mentor of these stages said, as inputs: the stages after it, one for each part of the views."""
    parts = [*itertools.takewhile(lambda plan: plan.kind is StageKind.TARGETS, reversed(stages))]
    return {f"targets{index}": part.key for index, part in enumerate(reversed(parts))}


def _square(side: int) -> str:
    return str(Size(side, side))


def planner(job: JobRecord, dataset: DatasetRecord, catalogue: Mapping[str, Json]) -> Planner:
    """The planner of a job whose data set is ready.

    Raises:
        UserError: More classes asked for than the data set has.
    """
    known = len(dataset.summary["classes"])
    classes = job.spec.classes or known
    if classes > known:
        raise UserError(f"classes must be <= {known}, the number that data set {dataset.name!r} has, but got {classes}")
    return Planner(job.spec, dataset.stage_key, classes, catalogue)


def measured_cost(metrics: Mapping[str, Json]) -> Cost:
    """The costs that a measure stage found."""
    names = ("model_bytes", "latency_ms", "latency_p95_ms", "memory_bytes")
    return Cost(**{name: metrics[name] for name in names})
