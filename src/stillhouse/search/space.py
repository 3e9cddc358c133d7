"""Catalogue x data set x budget -> candidates with costs known before anything is trained.

=============  =========================================================================
image size     what the device captures and sends; decides ``image_bytes``
network size   what the network computes at; decides MACs. 1 to 4 times the image size
curve          mean bytes per picture, from the user's own pictures
=============  =========================================================================

A network computes at the sizes that the catalogue counted; for oblong pictures also at sizes of their own shape, where
those counted tell the costs exactly (``formula``).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stillhouse.search.catalogue import Catalogue, by_pixels, lacking
from stillhouse.search.curve import ByteCurve
from stillhouse.search.domain import Budget, Candidate, Cost, Json, Size
from stillhouse.search.errors import InfeasibleError, UserError
from stillhouse.search.job import JobSpec

FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0)
"""How much larger than the picture the network may compute; more adds MACs and nothing to see."""

PARTS = (3 / 4, 1 / 2, 3 / 8, 1 / 4)
"""Of the sides of the largest picture that may be sent, where it is oblong: smaller pictures of its shape."""

SAME_SHAPE = 1.04
"""How much a picture may be stretched to a network size of its own shape, one side against the other."""

BYTES_PER_PARAM = {"fp32": 3.6, "fp16": 1.8, "int8": 0.9}
"""Least ONNX bytes per parameter: 4, 2 or 1, less the batch norms that the export folds away."""

_OTHER_ARCH, _OTHER_STEM = 1.0, 0.25
"""Distance of two candidates that differ in this alone; a doubled side or 4x the MACs count 1."""


class Space:
    """All candidates of one job with their costs.

    Args:
        catalogue: What can be built.
        summary: The data set's, with ``classes`` and the measured ``curve``.
        spec: The job.

    Raises:
        UnknownNameError: The job names an architecture that the catalogue does not hold.
        UserError: The job names more classes than there are, or a picture larger than any network size.
        DatasetError: The curve says nothing about the job's fit and codec.
    """

    def __init__(self, catalogue: Catalogue, summary: Mapping[str, Json], spec: JobSpec) -> None:
        self.catalogue = catalogue
        self.spec = spec
        self.classes = _classes(summary, spec)
        for name in spec.archs:
            catalogue.check_arch(name, spec.colour)
        self._archs = sorted(
            set(spec.archs) or (name for name in catalogue.archs if catalogue.reads(name, spec.colour))
        )
        rows = summary.get("curve", ())
        self._curves = {
            quality: ByteCurve(rows, fit=str(spec.fit), codec=spec.codec, quality=quality, colour=spec.colour)
            for quality in spec.sent_qualities
        }
        self._image_bytes: dict[Size, float] = {}
        image_sizes = self._image_sizes()
        self._costs = {
            candidate: self._compute(candidate)
            for arch in self._archs
            for size in image_sizes
            for candidate in self._cells(arch, size)
        }

    # ----------------------------------------------------------------------------------- costs

    def cost(self, candidate: Candidate) -> Cost:
        """Exact MACs, parameters and image size, and mean bytes per picture off the measured curve.

        Raises:
            UnknownNameError: The catalogue does not hold this architecture, network size or stem.
        """
        plain = dataclasses.replace(candidate, knobs=()) if candidate.knobs else candidate
        return self._costs.get(plain) or self._compute(plain)

    def bound(self, candidate: Candidate) -> Cost:
        """``cost`` with the least that the model file can take, at its lowest precision, as ``model_bytes``.

        To run it takes no less memory than its weights.
        """
        cost, least = self.cost(candidate), min(BYTES_PER_PARAM[name] for name in self.precisions(candidate))
        weights = math.ceil(least * (cost.params or 0))
        return dataclasses.replace(cost, model_bytes=weights, memory_bytes=weights)

    def precisions(self, candidate: Candidate) -> tuple[str, ...]:
        """Those of the job that the network has files of."""
        entry = self.catalogue.archs[candidate.arch]
        lacks = lacking(entry.lacks, candidate.network_size, candidate.stem)
        return tuple(name for name in self.spec.precisions if name not in lacks)

    def macs(self, candidate: Candidate) -> int | None:
        """MACs of a candidate of this space; None for a combination that is no cell."""
        cost = self._costs.get(candidate)
        return None if cost is None else cost.macs

    def promise(self, candidate: Candidate) -> tuple[bool, int, bool, int, Candidate]:
        """Sort key, greatest for the likely most accurate [ours].

        Pretrained weights, then large pictures, then a grid that is kept (computed at more pixels than are sent, or by
        a stem of smaller stride), then many MACs.
        """
        keeps_grid = candidate.network_size != candidate.image_size or candidate.stem != "stock"
        pretrained, macs = candidate.arch in self.catalogue.pretrained, self.cost(candidate).macs or 0
        return pretrained, candidate.image_size.pixels, keeps_grid, macs, candidate

    def extrapolated(self, image_size: Size) -> bool:
        """True when ``image_bytes`` at this size lies outside what was measured."""
        return self._curves[self.spec.quality].extrapolated(image_size)

    def sent_bytes(self, image_size: Size) -> dict[int, float]:
        """Mean bytes per picture at each of the job's qualities, the best first."""
        return {quality: curve.bytes(image_size) for quality, curve in self._curves.items()}

    # ------------------------------------------------------------------------------- candidates

    @functools.cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every cell, whatever it costs, in a fixed order."""
        return tuple(self._costs)

    @functools.cached_property
    def feasible(self) -> tuple[Candidate, ...]:
        """The candidates whose known costs meet the budget, in the same order.

        Latency is not known here, and of the model's bytes and of memory only a lower bound.
        ``min_accuracy`` is a matter of the front.
        """
        budget = self.spec.budget
        return tuple(candidate for candidate in self.candidates if not budget.excess(self.bound(candidate)))

    def check(self) -> None:
        """Makes sure that something can be tried.

        Raises:
            InfeasibleError: No candidate meets the budget; says which limit binds and what the nearest needs.
            UserError: More fit than trials were asked for, where all are to be tried (``brute_force``).
        """
        if not self.feasible:
            costs = [(candidate, self.bound(candidate)) for candidate in self.candidates]
            raise InfeasibleError(explain_infeasible(costs, self.spec.budget))
        fit, trials = len(self.feasible), self.spec.trials
        if self.spec.sampler == "brute_force" and fit > trials:
            raise UserError(
                f"brute_force tries every candidate: trials must be >= {fit}, the number that meet the known limits, "
                f"but got {trials}; set trials to {fit}, name fewer archs or image_sizes, or take another sampler"
            )

    def cheapest_by_arch(self) -> tuple[Candidate, ...]:
        """The feasible candidate with the fewest MACs of each architecture, cheapest first."""
        found: dict[str, Candidate] = {}
        for candidate in sorted(self.feasible, key=lambda item: (self.cost(item).macs or 0, item)):
            found.setdefault(candidate.arch, candidate)
        return tuple(found.values())

    def nearest(self, candidate: Candidate, seen: Collection[Candidate]) -> Candidate | None:
        """The feasible candidate nearest to this one that is not in ``seen``; None when all are."""
        return self._neighbourhood.nearest(candidate, seen)

    @functools.cached_property
    def _neighbourhood(self) -> Neighbourhood:
        return Neighbourhood(self.feasible, self)

    # ---------------------------------------------------------------------------------- helpers

    def _compute(self, candidate: Candidate) -> Cost:
        size, network = candidate.image_size, (candidate.arch, candidate.network_size, candidate.stem)
        macs, params = self.catalogue.costs(*network, self.classes, self.spec.colour)
        return Cost(macs=macs, params=params, image_bytes=self._bytes(size), image_size=size)

    def _bytes(self, size: Size) -> float:
        """At the best quality that meets the budget; at the lowest when none does."""
        if size not in self._image_bytes:
            found = list(self.sent_bytes(size).values())
            limit = self.spec.budget.max_image_bytes
            self._image_bytes[size] = next((each for each in found if limit is None or each <= limit), found[-1])
        return self._image_bytes[size]

    def _image_sizes(self) -> list[Size]:
        """The job's own sizes; else the catalogue's, with the budget's own and parts of its shape.

        Those that nobody named are no larger than the teacher's.
        """
        grids = {size for arch in self._archs for size in self._network_sizes(arch)}
        named = [Size.parse(text) for text in self.spec.image_sizes]
        for size in named:
            if all(size.ratio(grid) > 1 for grid in grids):
                raise UserError(
                    f"image size {size} is larger than every network size of the chosen architectures "
                    f"(largest {max(grids, key=by_pixels)}); name smaller image sizes"
                )
        if named:
            return sorted(set(named), key=by_pixels)
        teacher = Size(self.spec.teacher_size, self.spec.teacher_size)
        sizes = {*self.catalogue.image_sizes, *_shaped(self.spec.budget.max_image_size, self.catalogue.image_sizes)}
        return sorted((size for size in sizes if size.ratio(teacher) <= 1), key=by_pixels)

    def _network_sizes(self, arch: str) -> list[Size]:
        return sorted({size for size, _ in self.catalogue.archs[arch].cells}, key=by_pixels)

    def _cells(self, arch: str, image: Size) -> list[Candidate]:
        """For each factor and stem the smallest network size that reaches it, up to 4 times the picture."""
        stems = self.catalogue.archs[arch].stems
        chosen: dict[tuple[Size, str], None] = {}
        for stem in stems:
            sizes = self._grids(arch, stem, image)
            for factor in FACTORS:
                size = next((size for size in sizes if _scaled(image, factor).ratio(size) <= 1), None)
                if size is not None:
                    chosen[size, stem] = None
        ordered = sorted(chosen, key=lambda cell: (by_pixels(cell[0]), stems.index(cell[1])))
        return [Candidate(arch, image, size, stem) for size, stem in ordered]

    def _grids(self, arch: str, stem: str, image: Size) -> list[Size]:
        """Network sizes from the picture's to 4 times that, of its own shape; squares where there are none."""
        entry, largest = self.catalogue.archs[arch], _scaled(image, FACTORS[-1])
        listed = sorted({size for size, name in entry.cells if name == stem}, key=by_pixels)
        sizes = [size for size in listed if image.ratio(size) <= 1 and size.ratio(largest) <= 1]
        own = {size for size in sizes if _stretch(image, size) <= SAME_SHAPE}
        if image.height != image.width:
            covering = (entry.formulas.covering(_scaled(image, factor), stem) for factor in FACTORS)
            own |= {size for size in covering if size is not None and entry.body(size, stem) is not None}
        return sorted(own, key=by_pixels) or [size for size in sizes if size.height == size.width]


class Neighbourhood:
    """Distances from any candidate to a fixed list of them.

    The distance adds up differences in image side, network side and the square root of MACs, all in
    octaves, and a constant each for another architecture and another stem.

    Args:
        candidates: n of them, each a cell of the catalogue.
        space: Knows their costs.
    """

    def __init__(self, candidates: Sequence[Candidate], space: Space) -> None:
        self.candidates = tuple(candidates)
        self._space = space
        self._table = np.array([self._row(item) for item in candidates], dtype=np.float64).reshape(-1, 3)
        self._arch = np.array([item.arch for item in candidates], dtype=np.str_)
        self._stem = np.array([item.stem for item in candidates], dtype=np.str_)

    def distances(self, candidate: Candidate) -> NDArray[np.float64]:
        """(n,) distance of each from this candidate, which need not be a cell: then its MACs do not count."""
        octaves = np.abs(self._table - self._row(candidate))
        found: NDArray[np.float64] = np.nansum(octaves, axis=1)
        found += _OTHER_ARCH * (self._arch != candidate.arch)
        found += _OTHER_STEM * (self._stem != candidate.stem)
        return found

    def nearest(self, candidate: Candidate, seen: Collection[Candidate]) -> Candidate | None:
        """The nearest that is not in ``seen`` (of equally near ones the first); None when all are."""
        passed = frozenset(seen)
        order = np.argsort(self.distances(candidate), kind="stable").tolist()
        return next((self.candidates[index] for index in order if self.candidates[index] not in passed), None)

    def _row(self, candidate: Candidate) -> tuple[float, float, float]:
        macs = self._space.macs(candidate)
        sides = math.log2(candidate.image_size.pixels) / 2, math.log2(candidate.network_size.pixels) / 2
        return (*sides, math.nan if macs is None else math.log2(macs) / 2)


def explain_infeasible(costs: Sequence[tuple[Candidate, Cost]], budget: Budget) -> str:
    """Says why none of these candidates meets the budget, and what the nearest would need.

    The nearest is the one whose worst ratio of cost to limit is smallest.

    Args:
        costs: Each candidate with what is known of its costs; each beyond some limit.
        budget: The limits.
    """
    beyond = [(candidate, cost, budget.excess(cost)) for candidate, cost in costs]
    if not beyond or not all(excess for _, _, excess in beyond):
        raise ValueError("explain_infeasible needs at least one candidate, and each beyond a limit")
    total = len(beyond)
    against = Counter(name for _, _, excess in beyond for name in excess)
    alone = Counter(next(iter(excess)) for _, _, excess in beyond if len(excess) == 1)
    parts = []
    for name, count in against.most_common():
        share = f"all {total}" if count == total else f"{count} of {total}"
        parts.append(f"{name} {shown(getattr(budget, name))} rules out {share} candidates")
    if len(against) > 1:
        freed = [f"{count} would be left by lifting {name} alone" for name, count in alone.most_common()]
        parts.append(", ".join(freed) or "no single limit lifted would be enough")
    candidate, cost, excess = min(beyond, key=lambda row: (max(row[2].values()), sum(row[2].values())))
    needs = [
        f"{name} >= {shown(_needed(name, getattr(cost, name.removeprefix('max_'))))} (x{_ratio(ratio)})"
        for name, ratio in sorted(excess.items(), key=lambda pair: -pair[1])
    ]
    return (
        f"no candidate meets the budget: {'; '.join(parts)}. "
        f"The nearest is {candidate.arch} at {candidate.image_size}->{candidate.network_size} {candidate.stem}, "
        f"which needs {' and '.join(needs)}"
    )


# ---------------------------------------------------------------------------------------- helpers


def _shaped(limit: Size | None, listed: Sequence[Size]) -> list[Size]:
    """The largest size that may be sent; if it is oblong, parts of it down to the pixels of the least listed size.

    Sides of parts are even, for codecs that halve the colour.
    """
    if limit is None or limit.height == limit.width:
        return [] if limit is None else [limit]
    parts = [Size(max(1, int(limit.height * part / 2) * 2), max(1, int(limit.width * part / 2) * 2)) for part in PARTS]
    return [limit, *(size for size in parts if size.pixels >= min(listed, key=by_pixels).pixels)]


def _classes(summary: Mapping[str, Json], spec: JobSpec) -> int:
    there = len(summary["classes"])
    if spec.classes is not None and spec.classes > there:
        raise UserError(f"classes must be <= {there}, the number in the data set, but got {spec.classes}")
    return spec.classes or there


def _scaled(size: Size, factor: float) -> Size:
    return Size(min(4096, math.ceil(size.height * factor)), min(4096, math.ceil(size.width * factor)))


def _stretch(image: Size, grid: Size) -> float:
    """How much more one side grows than the other, at least 1."""
    ratio = (grid.height / image.height) / (grid.width / image.width)
    return max(ratio, 1 / ratio)


def _needed(name: str, value: Size | float) -> Size | float:
    """The least limit that would do: all but latency are whole numbers."""
    if isinstance(value, Size):
        return value
    return math.ceil(value * 100) / 100 if name == "max_latency_ms" else math.ceil(value)


def shown(value: Size | float) -> str:
    """A limit or a cost, for a person."""
    if isinstance(value, Size):
        return str(value)
    return f"{value:,.2f}".removesuffix(".00") if value >= 0.01 else f"{value:.3g}"


def _ratio(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{math.ceil(ratio * 100) / 100:g}"
