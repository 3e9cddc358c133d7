"""What an estimate says beside its counts: what is not known yet, and what of the request does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from stillhouse.search.domain import Candidate, Cost, Size
from stillhouse.search.job import JobSpec
from stillhouse.search.space import Space, shown

MEASURED = {"max_latency_ms": "latency_ms", "max_memory_bytes": "memory_bytes", "max_model_bytes": "model_bytes"}
"""Limits on what a device or a file must tell -> the cost."""
_BOUNDED = "of the others only a lower bound is known, by their parameters"
_MOST_NAMES = 6


class Known(Protocol):
    """An option, as far as notes go."""

    @property
    def candidate(self) -> Candidate:
        """The candidate."""

    @property
    def cost(self) -> Cost:
        """What is known of its costs."""

    @property
    def measured(self) -> bool:
        """Whether they were measured on the device."""


def notes(space: Space, fits: Sequence[Known], alone: Mapping[str, Sequence[Known]]) -> tuple[str, ...]:
    """Sentences for a person, the most important first.

    Args:
        space: The job's candidates.
        fits: Those that meet every limit, as far as is known.
        alone: Limit -> what lies beyond that limit only.
    """
    spec = space.spec
    found = [*_unmeasured(spec, fits), *_far(spec, alone, nothing=not fits)]
    teacher = Size(spec.teacher_size, spec.teacher_size)
    larger = [size for size in map(Size.parse, spec.image_sizes) if size.ratio(teacher) > 1]
    if larger:
        found.append(
            f"pictures of {_listed(map(str, larger))} are larger than the teacher's, {teacher}: a run takes them, but "
            "trains on pictures scaled up from the teacher's; raise teacher_size or name smaller image_sizes"
        )
    inside = [each for each in space.candidates if not _is_square(each.image_size) and _in_square(space, each)]
    if inside:
        squares, sizes = sorted({each.arch for each in inside}), sorted({each.image_size for each in inside})
        found.append(
            f"{_listed(squares)} compute {_listed(map(str, sizes))} inside squares: "
            "what they cost at sizes of that shape is not known"
        )
    passed = [quality for quality in spec.qualities if quality > spec.quality]
    if passed and spec.sends:
        found.append(
            f"qualities {_listed(map(str, passed))} are passed over: only such as are lower than the quality, "
            f"{spec.quality}, are read too"
        )
    return tuple(found)


def _unmeasured(spec: JobSpec, fits: Sequence[Known]) -> list[str]:
    """What no run has measured yet: under a limit all such candidates count as fitting."""
    new = sum(not each.measured for each in fits)
    if not new:
        return []
    some = f"{len(fits) - new} of the {len(fits)} that fit" if new < len(fits) else f"none of the {len(fits)} that fit"
    found = []
    for limit, cost in MEASURED.items():
        value = getattr(spec.budget, limit)
        if value is None and cost not in spec.objectives:
            continue
        told = f"{cost} on {spec.budget.device} was measured for {some} so far"
        if value is not None:
            rest = "the others count as fitting" if cost == "latency_ms" else _BOUNDED
            told += f", so {limit} {shown(value)} may rule out more: {rest}"
        found.append(f"{told}; a run (stillhouse run) measures it")
    return found


def _far(spec: JobSpec, alone: Mapping[str, Sequence[Known]], *, nothing: bool) -> list[str]:
    """Where nothing fits: limits that half as much again does not help, and how much would."""
    if not nothing:
        return []
    found = []
    for limit, options in alone.items():
        ratios = [spec.budget.excess(each.cost)[limit] for each in options]
        if not ratios:
            found.append(f"{limit}: no value of it helps as long as the other limits stay")
        elif min(ratios) > 1.5:
            least = min(options, key=lambda each: spec.budget.excess(each.cost)[limit])
            value = getattr(least.cost, limit.removeprefix("max_"))
            found.append(
                f"{limit}: even 50 % more opens nothing; the first fits at {shown(value)} ({min(ratios):.3g} x)"
            )
    return found


def _in_square(space: Space, candidate: Candidate) -> bool:
    """Whether it computes at a square because its costs are known at no size of the picture's shape."""
    formulas = space.catalogue.archs[candidate.arch].formulas
    return _is_square(candidate.network_size) and formulas.covering(candidate.image_size, candidate.stem) is None


def _is_square(size: Size) -> bool:
    return size.height == size.width


def _listed(words: Iterable[str]) -> str:
    names = list(words)
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
