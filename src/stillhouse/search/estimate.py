"""What a budget leaves, before anything is trained: how many candidates fit, which limit binds, what relaxing opens.

MACs (1 MAC = 2 FLOPs), parameters and bytes per picture are exact. Latency, peak memory and the model file's bytes are
exact where an earlier search measured the untrained network on the job's device. Of the other candidates only a lower
bound of the file's bytes and of memory is known, so a count that includes them is an upper bound, and says so.

A candidate fits by the search's own rule, ``Budget.excess``. The set of candidates stays the same while a limit is
relaxed, so relaxing never closes one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Candidate, Cost, Json, Size
from stillhouse.search.errors import ConflictError
from stillhouse.search.job import DatasetRecord, JobSpec
from stillhouse.search.notes import notes
from stillhouse.search.plan import Planner, measured_cost
from stillhouse.search.ports import Ledger
from stillhouse.search.space import Space, explain_infeasible

RELAXED = (0.10, 0.25, 0.50)
"""Shares by which each limit is relaxed."""


@dataclass(frozen=True)
class Option:
    """A candidate with what is known of its costs.

    Attributes:
        candidate: The candidate.
        cost: Its costs; ``model_bytes`` and ``memory_bytes`` are lower bounds unless they were measured.
        measured: Whether latency, memory and the file's bytes were measured on the job's device.
    """

    candidate: Candidate
    cost: Cost
    measured: bool

    def to_json(self) -> dict[str, Json]:
        """JSON form."""
        return {"candidate": self.candidate.to_json(), "cost": self.cost.to_json(), "measured": self.measured}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Option:
        """Reads what ``to_json`` wrote."""
        return cls(Candidate.from_json(data["candidate"]), Cost.from_json(data["cost"]), data["measured"])


@dataclass(frozen=True)
class Relaxation:
    """One limit, relaxed.

    Attributes:
        limit: Its name, such as ``max_macs``.
        by: Share: 0.1 is 10 %.
        value: The relaxed limit, in the limit's own unit.
        opens: Candidates that fit beyond those that fit now.
        likely_best: The most promising of them; None when it opens nothing.
    """

    limit: str
    by: float
    value: float | Size
    opens: int
    likely_best: Option | None

    def to_json(self) -> dict[str, Json]:
        """JSON form."""
        return {
            "limit": self.limit,
            "by": self.by,
            "value": str(self.value) if isinstance(self.value, Size) else self.value,
            "opens": self.opens,
            "likely_best": None if self.likely_best is None else self.likely_best.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Relaxation:
        """Reads what ``to_json`` wrote."""
        value = Size.parse(data["value"]) if isinstance(data["value"], str) else data["value"]
        best = data["likely_best"]
        return cls(data["limit"], data["by"], value, data["opens"], None if best is None else Option.from_json(best))


@dataclass(frozen=True)
class Estimate:
    """The answer.

    Attributes:
        candidates: All that the job names.
        fits: Those that meet every limit, as far as is known.
        measured: Of those, how many were measured on the job's device.
        unmeasured: Of those, how many were not.
        is_upper_bound: Whether ``fits`` may be too high: a limit is set on what those have not been measured for.
        ruled_out: Limit -> candidates beyond it, in the budget's order.
        ruled_out_alone: Limit -> candidates that meet every other limit.
        binds: The limit that alone rules out most; None when none alone rules out any.
        cheapest: ``macs`` and the job's objectives -> the candidate that fits at least cost, where it is known.
        likely_best: The most promising one that fits (``Space.promise``); None when nothing fits.
        why: Why that one, in words; None when nothing fits.
        relax: Each limit relaxed by each share. ``min_accuracy`` is no cost, and is not relaxed.
        reason: Why nothing fits and what the nearest would need; None when something fits.
        notes: What is not known yet, and what of the request does nothing, in words.
    """

    candidates: int
    fits: int
    measured: int
    unmeasured: int
    is_upper_bound: bool
    ruled_out: Mapping[str, int]
    ruled_out_alone: Mapping[str, int]
    binds: str | None
    cheapest: Mapping[str, Option]
    likely_best: Option | None
    why: str | None
    relax: tuple[Relaxation, ...]
    reason: str | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """JSON form."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return plain | {
            "ruled_out": dict(self.ruled_out),
            "ruled_out_alone": dict(self.ruled_out_alone),
            "cheapest": {name: option.to_json() for name, option in self.cheapest.items()},
            "likely_best": None if self.likely_best is None else self.likely_best.to_json(),
            "relax": [each.to_json() for each in self.relax],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Estimate:
        """Reads what ``to_json`` wrote."""
        best = data["likely_best"]
        read = {
            "cheapest": {name: Option.from_json(option) for name, option in data["cheapest"].items()},
            "likely_best": None if best is None else Option.from_json(best),
            "relax": tuple(map(Relaxation.from_json, data["relax"])),
            "notes": tuple(data["notes"]),
        }
        return cls(**{**data, **read})


def estimate_job(ledger: Ledger, catalogue: Mapping[str, Json], dataset: DatasetRecord, spec: JobSpec) -> Estimate:
    """The estimate of a job, with what earlier searches measured. Stores nothing.

    Args:
        ledger: Holds the measurements.
        catalogue: What the workers published.
        dataset: The job's data set.
        spec: The job, its names checked.

    Raises:
        ConflictError: The data set has not been read, or could not be.
        UserError: The job does not fit the data set.
    """
    if dataset.state != "ready":
        advice = "wait until it is ready" if dataset.state == "pending" else f"the reason: {dataset.reason}"
        raise ConflictError(f"costs are known once a data set is ready, but {dataset.id} is {dataset.state}; {advice}")
    space = Space(Catalogue.from_json(catalogue), dataset.summary, spec)
    planner = Planner(spec, dataset.stage_key, space.classes, catalogue)
    return estimate(space, device_figures(ledger, planner, space.candidates))


Figures = Mapping[Candidate, Mapping[str, Cost]]
"""What was measured on the job's device, by candidate and precision."""


def device_figures(ledger: Ledger, planner: Planner, candidates: Iterable[Candidate]) -> Figures:
    """What has been measured of untrained networks on the job's device, read in one question to the ledger."""
    keys = {plan.last.key: (each, name) for each in candidates for name, plan in planner.costings(each).items()}
    found: dict[Candidate, dict[str, Cost]] = {}
    for key, result in ledger.results(keys).items():
        candidate, name = keys[key]
        found.setdefault(candidate, {})[name] = measured_cost(result.metrics)
    return found


def estimate(space: Space, measured: Figures) -> Estimate:
    """Counts what fits.

    Args:
        space: All candidates of the job with their counted costs.
        measured: What was measured on the job's device.
    """
    budget = space.spec.budget
    options = [_option(space, candidate, measured.get(candidate, {})) for candidate in space.candidates]
    beyond = [set(budget.excess(option.cost)) for option in options]
    limits = [name for name in budget.to_json() if name.startswith("max_")]
    fits = [option for option, names in zip(options, beyond, strict=True) if not names]
    alone = {name: [o for o, names in zip(options, beyond, strict=True) if names == {name}] for name in limits}
    counts = {name: len(found) for name, found in alone.items()}
    binds = max(limits, key=lambda name: counts[name], default=None)
    unmeasured = sum(not option.measured for option in fits)
    best = _likely_best(space, fits)
    return Estimate(
        candidates=len(options),
        fits=len(fits),
        measured=len(fits) - unmeasured,
        unmeasured=unmeasured,
        is_upper_bound=budget.needs_device and unmeasured > 0,
        ruled_out={name: sum(name in names for names in beyond) for name in limits},
        ruled_out_alone=counts,
        binds=binds if binds is not None and counts[binds] else None,
        cheapest=_cheapest(fits, space.spec.objectives),
        likely_best=best,
        why=None if best is None else _why(space, best),
        relax=tuple(_relaxed(space, name, by, alone[name]) for name in limits for by in RELAXED),
        reason=None if fits else explain_infeasible([(o.candidate, o.cost) for o in options], budget),
        notes=notes(space, fits, alone),
    )


# ---------------------------------------------------------------------------------------- helpers


def _option(space: Space, candidate: Candidate, measured: Mapping[str, Cost]) -> Option:
    """At the first precision that is known to fit; else at the first, unless one that may fit was not measured."""
    bound, precisions = space.bound(candidate), space.precisions(candidate)
    names = [name for name in precisions if name in measured]
    costs = [bound.merged(measured[name]) for name in names]
    fits = next((cost for cost in costs if not space.spec.budget.excess(cost)), None)
    if fits is not None:
        return Option(candidate, fits, measured=True)
    if len(costs) < len(precisions):
        return Option(candidate, bound, measured=False)
    return Option(candidate, costs[0], measured=True)


def _likely_best(space: Space, options: Sequence[Option]) -> Option | None:
    return max(options, key=lambda option: space.promise(option.candidate), default=None)


def _why(space: Space, best: Option) -> str:
    """What sets the likely best apart, in the order of ``Space.promise``."""
    candidate = best.candidate
    pretrained, _, keeps_grid, macs, _ = space.promise(candidate)
    first = (
        "it starts from pretrained weights, and of those that do"
        if pretrained
        else "none that fits is pretrained; of all"
    )
    grid = (
        f"keeps their grid ({candidate.network_size} inside, stem {candidate.stem})"
        if keeps_grid
        else "at their own size inside"
    )
    return (
        f"{first} it reads the largest pictures ({candidate.image_size}), {grid}, with the most MACs of these "
        f"({macs / 1e6:,.1f} million, which is {2 * macs / 1e6:,.1f} million FLOPs)"
    )


def _cheapest(options: Sequence[Option], objectives: Sequence[str]) -> dict[str, Option]:
    """For MACs and each objective the option of least cost; of equally cheap ones that of fewest MACs."""
    found: dict[str, Option] = {}
    for name in dict.fromkeys(("macs", *objectives)):
        there = [option for option in options if option.measured] if name == "memory_bytes" else options
        known = [(value, option) for option in there if (value := getattr(option.cost, name)) is not None]
        if known:
            found[name] = min(known, key=lambda pair: (pair[0], pair[1].cost.macs or 0, pair[1].candidate))[1]
    return found


def _relaxed(space: Space, limit: str, by: float, alone: Sequence[Option]) -> Relaxation:
    """One limit relaxed; ``alone`` are the options that no other limit rules out."""
    budget = space.spec.budget
    value = _more(getattr(budget, limit), by, [candidate.image_size for candidate in space.candidates])
    change: dict[str, Json] = {limit: value}
    relaxed = dataclasses.replace(budget, **change)
    opened = [option for option in alone if not relaxed.excess(option.cost)]
    return Relaxation(limit, by, value, len(opened), _likely_best(space, opened))


def _more(limit: float | Size, by: float, sizes: Sequence[Size]) -> float | Size:
    """A limit relaxed by a share; sides in whole pixels, and no farther than the largest of ``sizes``."""
    if isinstance(limit, Size):
        height = max([limit.height, *(size.height for size in sizes)])
        width = max([limit.width, *(size.width for size in sizes)])
        return Size(min(int(limit.height * (1 + by)), height), min(int(limit.width * (1 + by)), width))
    relaxed = limit * (1 + by)
    return int(relaxed) if isinstance(limit, int) else relaxed
