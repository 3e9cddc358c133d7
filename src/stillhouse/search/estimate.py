"""What a budget leaves, before anything is trained: how many candidates fit, which limit binds, what relaxing opens.

Costs known by counting (MACs, parameters, bytes per picture) are exact. Latency, memory and the model file's bytes are
known where an earlier search measured the untrained network on the device; of the others only a lower bound of the
file's bytes is known, so a count that includes them is an upper bound, and ``unmeasured`` says how many they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.search.domain import Candidate, Cost, Json, Size
from stillhouse.search.space import Space, explain_infeasible

RELAXED = (0.10, 0.25, 0.50)
"""Shares by which each limit is relaxed."""
DEVICE = ("model_bytes", "latency_ms", "memory_bytes")


@dataclass(frozen=True)
class Option:
    """A candidate with what is known of its costs."""

    candidate: Candidate
    cost: Cost

    def to_json(self) -> dict[str, Json]:
        """JSON form."""
        return {"candidate": self.candidate.to_json(), "cost": self.cost.to_json()}


@dataclass(frozen=True)
class Relaxation:
    """One limit, relaxed.

    Attributes:
        limit: Its name, such as ``max_macs``.
        by: Share: 0.1 is 10 %.
        value: The relaxed limit.
        opens: Candidates that fit beyond those that fit now.
        likely_best: The most promising of them; None when it opens nothing.
    """

    limit: str
    by: float
    value: float | Size
    opens: int
    likely_best: Option | None


@dataclass(frozen=True)
class Estimate:
    """The answer.

    Attributes:
        candidates: All that the job names.
        fits: Those that meet every limit, as far as is known.
        unmeasured: Of those, how many have a limit on a cost that no one has measured yet.
        ruled_out: Limit -> candidates beyond it.
        ruled_out_alone: Limit -> candidates that meet every other limit.
        binds: The limit that alone rules out most; None when none does.
        cheapest: Objective -> the candidate that fits at least cost.
        likely_best: The most promising one that fits.
        relax: Each limit relaxed by each share.
        reason: Why nothing fits; None when something does.
    """

    candidates: int
    fits: int
    unmeasured: int
    ruled_out: Mapping[str, int]
    ruled_out_alone: Mapping[str, int]
    binds: str | None
    cheapest: Mapping[str, Option]
    likely_best: Option | None
    relax: tuple[Relaxation, ...]
    reason: str | None

    def to_json(self) -> dict[str, Json]:
        """JSON form."""
        found = dataclasses.asdict(self)
        found["cheapest"] = {name: option.to_json() for name, option in self.cheapest.items()}
        found["likely_best"] = None if self.likely_best is None else self.likely_best.to_json()
        found["relax"] = [
            {
                "limit": each.limit,
                "by": each.by,
                "value": str(each.value) if isinstance(each.value, Size) else each.value,
                "opens": each.opens,
                "likely_best": None if each.likely_best is None else each.likely_best.to_json(),
            }
            for each in self.relax
        ]
        return found


def estimate(space: Space, measured: Mapping[Candidate, Cost]) -> Estimate:
    """Counts what fits.

    Args:
        space: All candidates of the job with their counted costs.
        measured: Costs of the candidates that were measured on the job's device.
    """
    return _Counter(space, measured).answer()


class _Counter:
    """n candidates against k limits."""

    def __init__(self, space: Space, measured: Mapping[Candidate, Cost]) -> None:
        self._space, self._budget = space, space.spec.budget
        self._candidates = space.candidates
        self._costs = [space.cost(c).merged(measured[c]) if c in measured else space.bound(c) for c in self._candidates]
        self._measured = np.array([candidate in measured for candidate in self._candidates], dtype=np.bool_)
        costs = {f"max_{field.name}" for field in dataclasses.fields(Cost)}
        self._limits = [name for name in self._budget.to_json() if name in costs]

    def answer(self) -> Estimate:
        beyond = {name: self._beyond(name, getattr(self._budget, name)) for name in self._limits}
        every = np.sum(list(beyond.values()), axis=0) if beyond else np.zeros(len(self._candidates), dtype=np.int64)
        alone = {name: int(np.sum(out & (every == 1))) for name, out in beyond.items()}
        fits = every == 0
        binds = max(alone, key=lambda name: alone[name], default=None)
        needs_device = any(name.removeprefix("max_") in DEVICE for name in self._limits)
        nothing = not fits.any()
        return Estimate(
            candidates=len(self._candidates),
            fits=int(fits.sum()),
            unmeasured=int(np.sum(fits & ~self._measured)) if needs_device else 0,
            ruled_out={name: int(out.sum()) for name, out in beyond.items()},
            ruled_out_alone=alone,
            binds=binds if binds is not None and alone[binds] else None,
            cheapest=self._cheapest(fits),
            likely_best=self._likely_best(fits),
            relax=tuple(self._relaxed(name, by, beyond, every) for name in self._limits for by in RELAXED),
            reason=explain_infeasible(list(zip(self._candidates, self._costs, strict=True)), self._budget)
            if nothing
            else None,
        )

    def _beyond(self, name: str, limit: float | Size) -> NDArray[np.bool_]:
        """(n,) whether each lies beyond a limit; a cost that is not known does not."""
        values = [getattr(cost, name.removeprefix("max_")) for cost in self._costs]
        if isinstance(limit, Size):
            return np.array([value.ratio(limit) > 1 for value in values], dtype=np.bool_)
        known = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        found: NDArray[np.bool_] = known > limit
        return found

    def _relaxed(
        self, name: str, by: float, beyond: Mapping[str, NDArray[np.bool_]], every: NDArray[np.int64]
    ) -> Relaxation:
        limit = getattr(self._budget, name)
        value = _more(limit, by)
        opened = beyond[name] & (every == 1) & ~self._beyond(name, value)
        return Relaxation(name, by, value, int(opened.sum()), self._likely_best(opened))

    def _cheapest(self, among: NDArray[np.bool_]) -> dict[str, Option]:
        found = {}
        for name in self._space.spec.objectives:
            known = [i for i in np.flatnonzero(among).tolist() if getattr(self._costs[i], name) is not None]
            if known:
                found[name] = self._option(min(known, key=lambda i: (getattr(self._costs[i], name), self._macs(i), i)))
        return found

    def _likely_best(self, among: NDArray[np.bool_]) -> Option | None:
        places: Sequence[int] = np.flatnonzero(among).tolist()
        return self._option(max(places, key=lambda i: promise(self._space, self._candidates[i]))) if places else None

    def _option(self, place: int) -> Option:
        return Option(self._candidates[place], self._costs[place])

    def _macs(self, place: int) -> int:
        return self._costs[place].macs or 0


def promise(space: Space, candidate: Candidate) -> tuple[bool, int, bool, int, Candidate]:
    """Sort key, greatest for the likely most accurate: pretrained, large pictures, a grid that is kept, many MACs."""
    keeps_grid = candidate.network_size != candidate.image_size or candidate.stem != "stock"
    known = candidate.arch in space.catalogue.pretrained
    return known, candidate.image_size.pixels, keeps_grid, space.macs(candidate) or 0, candidate


def _more(limit: float | Size, by: float) -> float | Size:
    """A limit relaxed by a share; sides in whole pixels."""
    if isinstance(limit, Size):
        return Size(min(4096, int(limit.height * (1 + by))), min(4096, int(limit.width * (1 + by))))
    relaxed = limit * (1 + by)
    return int(relaxed) if isinstance(limit, int) else relaxed
