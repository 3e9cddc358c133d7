"""How the front of a job grew: its hypervolume over time, as a share of what it has come to.

==========  =========================================================================
``point``   (accuracy, cost, cost, ...): costs in octaves, for costs span decades
``corner``  what guessing reaches, at the worst costs seen and 5 % of their range more
==========  =========================================================================

The volume is the mean, over a lattice in the box of the costs, of the best accuracy at costs no greater than there: n
trials take n times the lattice, however large the front and however many its costs. The share is good to about a
hundredth. Trials beyond the budget add nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from stillhouse.search.domain import Cost, Json
from stillhouse.search.gain import Floats, scaled, worst_accuracy
from stillhouse.search.job import Event, JobSpec

PLACES = 8192
"""Of the lattice."""


@dataclass(frozen=True)
class Step:
    """What a job had come to when a trial of it was done.

    Attributes:
        at: Seconds since the job started; 0 for what an earlier start of it did.
        trials: Trials done by then.
        hypervolume: Share of the present front's, from 0 to 1.
    """

    at: float
    trials: int
    hypervolume: float

    def to_json(self) -> dict[str, Json]:
        """JSON form."""
        return asdict(self)


def growth(events: Iterable[Event], spec: JobSpec, *, started_at: float, classes: int) -> list[Step]:
    """One step for each trial that was done, in order of time.

    Args:
        events: Of the job, in order.
        spec: The job: its objectives and budget.
        started_at: Unix seconds.
        classes: That are told apart.
    """
    done = [event for event in events if event.kind == "trial" and event.data["state"] == "done"]
    points = [_point(event, spec) for event in done]
    known = [point for point in points if point is not None]
    table, least = np.array(known), worst_accuracy(classes, spec.budget)
    volumes = iter(_volumes(np.column_stack((table[:, 0], scaled(table[:, 1:]))), least) if known else ())
    reached, found = 0.0, []
    for count, (event, point) in enumerate(zip(done, points, strict=True), start=1):
        reached = reached if point is None else next(volumes)
        found.append((max(0.0, event.at - started_at), count, reached))
    return [Step(at, count, min(1.0, volume / reached) if reached > 0 else 0.0) for at, count, volume in found]


# ---------------------------------------------------------------------------------------- helpers


def _point(event: Event, spec: JobSpec) -> list[float] | None:
    """Accuracy and costs in octaves; None where one is unknown or the budget is not met."""
    cost, accuracy = Cost.from_json(event.data["cost"]), event.data["accuracy"]
    values = [getattr(cost, name) for name in spec.objectives]
    if accuracy is None or accuracy < (spec.budget.min_accuracy or 0.0) or spec.budget.excess(cost):
        return None
    return None if any(not value for value in values) else [accuracy, *(math.log2(value) for value in values)]


def _volumes(points: Floats, least: float) -> list[float]:
    """Hypervolume after each of the points (n, m), which count below the costs of 1 and above an accuracy."""
    places = _lattice(points.shape[1] - 1)
    best, found = np.full(places.shape[1], least), []
    for accuracy, *costs in points.tolist():
        reached = np.ones(len(best), dtype=np.bool_)
        for place, cost in zip(places, costs, strict=True):
            reached &= place >= cost
        best[reached] = np.maximum(best[reached], accuracy)
        found.append(float(best.mean()) - least)
    return found


def _lattice(dims: int) -> Floats:
    """(dims, PLACES) points that fill the unit box evenly: multiples, modulo 1, of the powers of 1 / g.

    g solves g^(dims + 1) = g + 1, so that in one dimension it is the golden ratio (Roberts 2018, "The Unreasonable
    Effectiveness of Quasirandom Sequences").
    """
    ratio = 2.0
    for _ in range(40):
        ratio = (1 + ratio) ** (1 / (dims + 1))
    steps = ratio ** -np.arange(1.0, dims + 1)
    found: Floats = (0.5 + np.outer(steps, np.arange(PLACES))) % 1.0
    return found
