"""What a user asks for (``JobSpec``) and what the ledger keeps about the work (``*Record``).

Their states, and the moves between them, are drawn in ``states.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from stillhouse.search.devices import check_name
from stillhouse.search.domain import (
    CHANNELS,
    COST_OBJECTIVES,
    PRECISIONS,
    Budget,
    Candidate,
    Cost,
    Fit,
    Json,
    StagePlan,
    StageResult,
)
from stillhouse.search.errors import UnknownNameError, UserError
from stillhouse.search.owner import DEFAULT_TENANT
from stillhouse.search.wanted import NO_ONE, Asker

_ABLATE: Mapping[bool | str, str] = {True: "all", False: "none", "true": "all", "false": "none"}

SAMPLERS = ("auto", "tpe", "gp", "nsga2", "random", "brute_force")
"""``auto`` takes what is expected to add most hypervolume a second; ``brute_force`` takes every candidate, fewest MACs
first, where no more fit than ``trials``; the others are Optuna's."""

SCHEDULES = ("one_cycle", "cosine")
CODECS = ("jpeg", "webp")
ABLATIONS = ("none", "best", "all")

UNMET = "nothing meets the budget"
"""How the reason of a job begins whose budget nothing can meet."""


@dataclass(frozen=True)
class Epochs:
    """Passes over the training split, by role."""

    teacher: int = 6
    assistant: int = 6
    student: int = 12

    def __post_init__(self) -> None:
        if min(self.teacher, self.assistant, self.student) < 1:
            raise UserError(f"epochs must each be >= 1, but got {self}")

    @classmethod
    def parse(cls, text: str) -> Epochs:
        """Reads ``6,6,12``: teacher, assistant, student."""
        parts = text.split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
            raise UserError(
                f"epochs are three whole numbers (teacher,assistant,student) such as 6,6,12, but got {text!r}"
            )
        return cls(*(int(part) for part in parts))


@dataclass(frozen=True)
class JobSpec:
    """One search: a data set, a budget and how to look.

    Attributes:
        dataset: Id of the data set.
        budget: Limits that every deployment must meet.
        classes: Take the first N classes by name; None takes all.
        trials: Candidates to train.
        seed: Makes a serial run repeatable.
        sampler: Who proposes candidates, by name in ``SAMPLERS``. ``auto`` is TPE, weighed by the gain per second that
            a Gaussian process expects; the process alone while few trials are told.
        eta: Trainings pause at rungs, each ``eta`` times as long as the one below; 1 trains each to the end. ``auto``
            sends on whoever promises most a second, the other samplers about one in ``eta`` (MO-ASHA) and, when no new
            candidate can begin, whoever may yet come onto the front.
        max_wall_s: Seconds since its start in which a job may train, comparisons (``ablate``) included. Then the search
            stops; what has been trained by then is still exported, measured and read on the test split.
        max_device_s: The same by the summed seconds of all workers at stages that were run for this job: costs on a
            device, teachers, assistants, students, exports, measurements, comparisons; a stage that takes two slots
            counts in both. A comparison that is not
            trained by then is left out, and the job says so.
        min_gain: Share of the front's hypervolume that a candidate must be expected to add to be begun, whatever the
            sampler; the search ends when none is left that does. ``auto`` asks it of trials that wait at a rung too.
        task: Name in the task registry.
        method: Name in the method registry; ``tas`` goes through an assistant.
        knobs: Values that override the method's defaults, by name.
        teacher: timm name of the teacher.
        teacher_checkpoint: sha256 of a safetensors artifact to start the teacher from, or None.
        teacher_size: Side of the pictures that teacher and assistants read, pixels.
        epochs: Passes by role.
        views: Augmented crops per picture whose teacher outputs are cached.
        ladder: Sides of further assistants between the teacher's size and the student's, falling (resolution ladder).
        mixup: Share of the views of assistants and students that are mixed with another picture's.
        ema: Decay of a moving average of the weights of assistants and students, which is then kept; 0 for none.
        schedule: ``one_cycle`` or ``cosine``: how the learning rate falls.
        codec_share: Share of the student's views that go through ``codec`` around ``quality``, as the device's do.
        feature_cache_bytes: A mentor's features are cached up to this size; beyond it the mentor runs in each step.
        compile: Compiles networks in training where that is possible; for workers with a GPU.
        fit: How pictures are brought to the student's size.
        colour: ``rgb``, or ``grey`` for monochrome cameras: students then read one channel, and pictures are sent in
            grey. Teacher and assistants go on reading colours.
        codec, quality: What ``image_bytes`` is measured with.
        qualities: Lower qualities (higher ones are passed over) at which each student is read too; where bytes per
            picture count (``sends``), each is a deployment of its own.
        precisions: Each trained student is made into a file of each; a lower one is kept where it wins on the device.
        objectives: Costs that the front is drawn over.
        archs: Architectures to consider; empty takes the whole catalogue.
        image_sizes: Picture sizes to consider; empty takes the catalogue's.
        ablate: ``none``, ``best`` or ``all`` (false or true): which members of the front are also trained without a
            teacher and by plain KD; of these variants the best on validation takes the place on the front.
        latency_threads: CPU threads that latency is measured with.
    """

    dataset: str
    budget: Budget = field(default_factory=Budget)
    classes: int | None = None
    trials: int = 8
    seed: int = 0
    sampler: str = "auto"
    eta: int = 1
    max_wall_s: float | None = None
    max_device_s: float | None = None
    min_gain: float = 0.0
    task: str = "classification"
    method: str = "tas"
    knobs: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    teacher: str = "tf_efficientnet_lite0"
    teacher_checkpoint: str | None = None
    teacher_size: int = 192
    epochs: Epochs = field(default_factory=Epochs)
    views: int = 4
    ladder: tuple[int, ...] = ()
    mixup: float = 0.0
    ema: float = 0.0
    schedule: str = "one_cycle"
    codec_share: float = 0.5
    feature_cache_bytes: int = 1 << 30
    compile: bool = False
    fit: Fit = Fit.SQUASH
    colour: str = "rgb"
    codec: str = "jpeg"
    quality: int = 90
    qualities: tuple[int, ...] = (50, 75)
    precisions: tuple[str, ...] = PRECISIONS
    objectives: tuple[str, ...] = ("macs", "image_bytes")
    archs: tuple[str, ...] = ()
    image_sizes: tuple[str, ...] = ()
    ablate: bool | str = "none"
    latency_threads: int = 1

    def __post_init__(self) -> None:
        _need(self.trials >= 1, "trials must be >= 1", self.trials)
        if self.sampler not in SAMPLERS:
            raise UnknownNameError.among("sampler", self.sampler, SAMPLERS)
        _need(1 <= self.eta <= 16, "1 <= eta <= 16 must hold", self.eta)
        for name in ("max_wall_s", "max_device_s"):
            value = getattr(self, name)
            _need(value is None or (math.isfinite(value) and value > 0), f"{name} must be > 0", value)
        _need(0 <= self.min_gain < 1, "0 <= min_gain < 1 must hold", self.min_gain)
        _need(self.views >= 1, "views must be >= 1", self.views)
        _need(0 <= self.seed < 2**31, "0 <= seed < 2**31 must hold", self.seed)
        _need(32 <= self.teacher_size <= 512, "32 <= teacher_size <= 512 must hold", self.teacher_size)
        _need(
            self.classes is None or self.classes >= 2,
            "classes must be >= 2",
            self.classes,
        )
        falling = all(high > low for high, low in itertools.pairwise((self.teacher_size, *self.ladder)))
        _need(falling, f"ladder must fall from below teacher_size, {self.teacher_size}", self.ladder)
        _need(min(self.ladder, default=1) >= 1, "every side of ladder must be >= 1", self.ladder)
        _need(0 <= self.mixup <= 1, "0 <= mixup <= 1 must hold", self.mixup)
        _need(0 <= self.ema < 1, "0 <= ema < 1 must hold", self.ema)
        _need(self.schedule in SCHEDULES, "schedule must be one_cycle or cosine", self.schedule)
        _need(0 <= self.codec_share <= 1, "0 <= codec_share <= 1 must hold", self.codec_share)
        _need(self.feature_cache_bytes >= 0, "feature_cache_bytes must be >= 0", self.feature_cache_bytes)
        if self.colour not in CHANNELS:
            raise UnknownNameError.among("colour", self.colour, CHANNELS)
        _need(self.codec in CODECS, "codec must be jpeg or webp", self.codec)
        _need(1 <= self.quality <= 100, "1 <= quality <= 100 must hold", self.quality)
        _need(all(1 <= q <= 100 for q in self.qualities), "1 <= q <= 100 must hold in qualities", self.qualities)
        for name in self.precisions:
            if name not in PRECISIONS:
                raise UnknownNameError.among("precision", name, PRECISIONS)
        object.__setattr__(self, "precisions", tuple(name for name in PRECISIONS if name in self.precisions))
        _need(PRECISIONS[0] in self.precisions, "precisions must hold fp32, which is what is trained", self.precisions)
        object.__setattr__(self, "ablate", _ABLATE.get(self.ablate, self.ablate))
        _need(self.ablate in ABLATIONS, "ablate must be none, best, all, true or false", self.ablate)
        _need(1 <= self.latency_threads <= 64, "1 <= latency_threads <= 64 must hold", self.latency_threads)
        _need(len(self.objectives) >= 1, "at least one cost objective must be named", self.objectives)
        for name in self.objectives:
            if name not in COST_OBJECTIVES:
                raise UnknownNameError.among("cost objective", name, COST_OBJECTIVES)
        check_name(self.budget.device)

    @property
    def sends(self) -> bool:
        """True when bytes per picture are limited or minimised: accuracy is then that of pictures as sent."""
        return "image_bytes" in self.objectives or self.budget.max_image_bytes is not None

    @property
    def sent_qualities(self) -> tuple[int, ...]:
        """Qualities that make a deployment each, best first; ``quality`` alone where no picture is sent."""
        lower = {quality for quality in self.qualities if quality < self.quality and self.sends}
        return tuple(sorted({self.quality, *lower}, reverse=True))

    def to_json(self) -> dict[str, Json]:
        """JSON form; ``from_json`` reads it back."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        data["budget"], data["epochs"] = self.budget.to_json(), asdict(self.epochs)
        data["fit"], data["knobs"] = str(self.fit), dict(self.knobs)
        for name in _LISTS:
            data[name] = list(data[name])
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> JobSpec:
        """Reads what ``to_json`` wrote."""
        left: dict[str, Any] = dict(data)
        left["budget"], left["epochs"] = Budget.from_json(left["budget"]), Epochs(**left["epochs"])
        left["fit"] = Fit(left["fit"])
        for name in _LISTS & left.keys():
            left[name] = tuple(left[name])
        return cls(**left)


_LISTS = frozenset({"objectives", "archs", "image_sizes", "ladder", "qualities", "precisions"})


def _need(holds: bool, what: str, came: object) -> None:
    if not holds:
        raise UserError(f"{what}, but got {came!r}")


# ---------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class DatasetRecord:
    """A data set as stored; ``summary`` is the ingest stage's metrics once ready."""

    id: str
    name: str
    stage_key: str
    state: str
    reason: str | None = None
    faults: tuple[str, ...] = ()
    summary: Mapping[str, Json] = field(default_factory=dict)
    created_at: float = 0.0
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True)
class JobRecord:
    """A job as stored; times are Unix seconds."""

    id: str
    spec: JobSpec
    state: str
    reason: str | None = None
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True)
class TrialRecord:
    """A trial as stored; ``stages`` lists every stage key of its current phase in order.

    ``accuracy`` is read on the validation split, after ``epochs`` of training.
    """

    job_id: str
    number: int
    candidate: Candidate
    state: str
    cost: Cost = field(default_factory=Cost)
    stages: tuple[str, ...] = ()
    accuracy: float | None = None
    reason: str | None = None
    epochs: int | None = None

    @property
    def ended(self) -> bool:
        """True when nothing more will happen to it."""
        return self.state in ("done", "failed", "infeasible", "stopped")

    @property
    def at_work(self) -> bool:
        """True while stages are run for it."""
        return self.state in ("costing", "training")


@dataclass(frozen=True)
class StageRecord:
    """A stage as stored; ``progress`` is what the running attempt last reported.

    A pending stage that lost its last attempt keeps the ``reason``, and is tried again ``not_before`` (Unix seconds).
    """

    plan: StagePlan
    state: str
    attempts: int = 0
    result: StageResult | None = None
    reason: str | None = None
    faults: tuple[str, ...] = ()
    seconds: float | None = None
    progress: Mapping[str, Json] = field(default_factory=dict)
    not_before: float | None = None

    @property
    def key(self) -> str:
        """The stage's content key."""
        return self.plan.key


@dataclass(frozen=True)
class AttemptRecord:
    """One try at a stage, held under a lease: ``token`` proves it, ``expires_at`` ends it. Times are Unix seconds.

    ``asker`` was the first to want the stage; others may share what it gives. ``slots`` are the engine's that it takes.
    """

    id: str
    stage_key: str
    token: str
    state: str
    expires_at: float
    threads: int = 1
    opened_at: float = 0.0
    ended_at: float | None = None
    asker: Asker = NO_ONE
    slots: int = 1


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, in order of ``id``."""

    id: int
    job_id: str
    at: float
    kind: str
    data: Mapping[str, Json] = field(default_factory=dict)
