"""The policy: with a worker free, which trial trains on, or which candidate begins.

``auto`` ranks what could be done now, new candidates and the trials that wait at a rung alike, by the hypervolume
that it is expected to add per second that it still needs (``gain.py``, ``effort.py``). A candidate whose teacher and
assistant exist needs fewer seconds than one whose do not, so the search stays where it has paid already until
something else is worth its price. Where no more candidates fit than trials were asked for, all are tried.

The other samplers are Optuna's: trials that ``rungs.py`` lets train on come first, then what the sampler proposes.

The accuracy of a candidate that was not trained is foretold by a linear model with a prior [ours]: it rises with the
picture's side, with MACs and with parameters, and is higher from pretrained weights; each architecture and each stem
has an offset of its own, and so has each rung. All is a function of the ledger's trials, the job and its seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.search.domain import Candidate
from stillhouse.search.effort import Mentors, Prices, unpaid
from stillhouse.search.gain import Boxes, Floats, Linear, quadratic
from stillhouse.search.job import JobSpec, TrialRecord
from stillhouse.search.sampler import Sampler
from stillhouse.search.space import Space

PROXY = {"latency_ms": "macs", "memory_bytes": "macs", "model_bytes": "params"}
"""What stands for a cost that only a device tells: it rises with it."""

LEAST_STEPS = 100
"""Training steps below which networks from random weights, which learn nothing by then, wait until all others are tried
(docs/log.md, 2026-11-23)."""

FULL_SD, RUNG_SD = 0.02, 0.05
"""Standard deviation of an accuracy read at the end of a training and at a rung, beyond what the model explains."""
OWN_SD = 0.03
"""Of what is particular to one candidate."""

_LINEAR = {"bias": (0.5, 0.2), "image side": (0.08, 0.06), "macs": (0.06, 0.06), "params": (0.0, 0.03)}
_PRETRAINED, _SQUARE, _ARCH, _STEM, _RUNG = (0.15, 0.1), (0.0, 0.03), (0.0, 0.1), (0.0, 0.05), (-0.1, 0.1)
"""Prior mean and standard deviation of a weight; picture side in octaves, MACs and parameters in 4 octaves."""


@dataclass(frozen=True)
class Move:
    """What to do next: a paused trial to promote, or a candidate to begin; and what it is expected to add.

    Attributes:
        trial: The trial, or None for a new candidate.
        candidate: The candidate.
        share: Expected gain as a share of the front's hypervolume now; None where it was not asked for.
    """

    trial: TrialRecord | None
    candidate: Candidate
    share: float | None = None


class Chooser:
    """Decides for one job.

    Args:
        space: All candidates and their costs.
        spec: The job.
        levels: Epochs of each rung, the whole training last.
        prices: Knows the seconds that a candidate still needs.
    """

    def __init__(self, space: Space, spec: JobSpec, levels: Sequence[int], prices: Prices) -> None:
        self._space, self._spec, self._levels, self._prices = space, spec, tuple(levels), prices

    def next(
        self,
        trials: Sequence[TrialRecord],
        promotable: Sequence[TrialRecord],
        *,
        new: bool,
        left_out: Collection[Candidate],
        paid: Collection[str],
    ) -> Move | None:
        """The next move; None when nothing is left to do.

        Args:
            trials: All of the job.
            promotable: Those that may train on, best first.
            new: Whether candidates may still begin.
            left_out: Candidates known to lie beyond the budget.
            paid: Keys of the stages that are done or at work.
        """
        if self._spec.sampler != "auto":
            if promotable:
                return Move(promotable[0], promotable[0].candidate)
            candidate = self._sampler.propose(trials, len(trials), self._spec.objectives, left_out) if new else None
            return None if candidate is None else Move(None, candidate)
        untried = np.full(len(self._space.feasible), new)
        untried[[self._index[trial.candidate] for trial in trials if trial.candidate in self._index]] = False
        untried[[self._index[candidate] for candidate in left_out]] = False
        if self._prices.steps < LEAST_STEPS and (untried & self._pretrained).any():
            untried &= self._pretrained
        return self._best(trials, promotable, np.flatnonzero(untried), paid)

    @functools.cached_property
    def _sampler(self) -> Sampler:
        spec = self._spec
        return Sampler(self._space.feasible, self._space, spec.seed, planned_trials=spec.trials, kind=spec.sampler)

    def _best(
        self,
        trials: Sequence[TrialRecord],
        promotable: Sequence[TrialRecord],
        untried: NDArray[np.intp],
        paid: Collection[str],
    ) -> Move | None:
        """The move that is expected to add most hypervolume a second."""
        model = self._model(trials)
        done = [trial for trial in trials if trial.state == "done" and trial.accuracy is not None]
        expected = [trial for trial in trials if trial.at_work or trial.state == "paused"]
        means, _ = self._foretold(model, expected)
        sure = self._boxes(done, [trial.accuracy or 0.0 for trial in done])
        running = [i for i, trial in enumerate(expected) if trial.at_work]
        busy = self._boxes(
            [*done, *(expected[i] for i in running)], [*(t.accuracy or 0.0 for t in done), *(means[i] for i in running)]
        )
        hoped = self._boxes([*done, *expected], [*(t.accuracy or 0.0 for t in done), *means])
        now = max(sure.hypervolume, 1e-9)
        found: list[tuple[float, Move]] = []
        if promotable:
            mean, sd = self._foretold(model, promotable)
            gains = busy.gains(mean, sd, self._costs([trial.candidate for trial in promotable]))
            left = [self._prices.remaining(trial.candidate, trial.epochs or 0, paid) for trial in promotable]
            rates = gains / np.array(left)
            best = int(np.argmax(rates))
            found.append((rates[best], Move(promotable[best], promotable[best].candidate, gains[best] / now)))
        if len(untried):
            mean, sd = model.predict(self._table[untried])
            gains = hoped.gains(mean, np.hypot(sd, OWN_SD), self._scaled[untried])
            rates = gains / self._seconds(paid)[untried]
            best = int(np.argmax(rates))
            found.append((rates[best], Move(None, self._space.feasible[untried[best]], gains[best] / now)))
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def _seconds(self, paid: Collection[str]) -> Floats:
        """(n,) that each feasible candidate needs from its beginning."""
        students, groups, group_of = self._needs
        before = np.array([unpaid(mentors, paid) for mentors in groups])
        found: Floats = students + before[group_of]
        return found

    @functools.cached_property
    def _needs(self) -> tuple[Floats, list[Mentors], NDArray[np.intp]]:
        """Seconds of each feasible candidate's own, the sets of mentors, and which set each has."""
        groups: dict[Mentors, int] = {}
        of = [groups.setdefault(self._prices.mentors(each), len(groups)) for each in self._space.feasible]
        students = [self._prices.student(each, 0) for each in self._space.feasible]
        return np.array(students), list(groups), np.array(of, dtype=np.intp)

    # ------------------------------------------------------------------------------------ accuracy

    def _model(self, trials: Sequence[TrialRecord]) -> Linear:
        told = [trial for trial in trials if trial.accuracy is not None and trial.epochs is not None]
        x = self._rows([trial.candidate for trial in told], [trial.epochs or 0 for trial in told])
        noise = np.array([FULL_SD if trial.epochs == self._levels[-1] else RUNG_SD for trial in told])
        return self._prior.told(x, np.array([trial.accuracy or 0.0 for trial in told]), np.hypot(noise, OWN_SD))

    def _foretold(self, model: Linear, trials: Sequence[TrialRecord]) -> tuple[Floats, Floats]:
        """Mean and sd of the accuracy at the end of trials that have not come there.

        What the model says of the candidate and what its own rung says are weighed by their precisions.
        """
        candidates = [trial.candidate for trial in trials]
        mean, sd = model.predict(self._rows(candidates))
        sd = np.hypot(sd, OWN_SD)
        at = [trial.epochs or self._levels[0] for trial in trials]
        offset = self._rows(candidates, at) @ model.mean - mean
        seen = np.array([math.nan if trial.accuracy is None else trial.accuracy for trial in trials])
        weight = np.where(np.isnan(seen), 0.0, sd**2 / (sd**2 + RUNG_SD**2))
        own = np.where(np.isnan(seen), 0.0, seen - offset)
        return (1 - weight) * mean + weight * own, sd * np.sqrt(1 - weight)

    @functools.cached_property
    def _prior(self) -> Linear:
        names = len(self._archs), len(self._stems), len(self._levels) - 1
        counts = len(_LINEAR) - 1
        weights = [
            *_LINEAR.values(),
            _PRETRAINED,
            *[_SQUARE] * (counts * (counts + 1) // 2),
            *[_ARCH] * names[0],
            *[_STEM] * names[1],
            *[pair for level in self._levels[:-1] for pair in self._rung_prior(level)],
        ]
        mean, sd = np.array(weights).T
        return Linear.prior(mean, sd)

    def _rung_prior(self, level: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Of the offset of a rung, for pretrained networks and for others: the less trained, the lower."""
        steps = math.log(self._levels[-1] / level) / math.log(self._spec.eta)
        return (_RUNG[0] * steps, _RUNG[1]), (_RUNG[0] * steps, _RUNG[1])

    # ------------------------------------------------------------------------------------ features

    @functools.cached_property
    def _archs(self) -> list[str]:
        return sorted({candidate.arch for candidate in self._space.feasible})

    @functools.cached_property
    def _stems(self) -> list[str]:
        return sorted({candidate.stem for candidate in self._space.feasible})

    @functools.cached_property
    def _pretrained(self) -> NDArray[np.bool_]:
        """(n,) whether each feasible candidate starts from trained weights."""
        known = self._space.catalogue.pretrained
        return np.array([candidate.arch in known for candidate in self._space.feasible], dtype=np.bool_)

    @functools.cached_property
    def _index(self) -> dict[Candidate, int]:
        return {candidate: index for index, candidate in enumerate(self._space.feasible)}

    @functools.cached_property
    def _table(self) -> Floats:
        """(n, d) features of every feasible candidate, at the end of a training."""
        features, known, named = [], [], []
        for candidate in self._space.feasible:
            cost = self._space.cost(candidate)
            features.append(
                [
                    math.log2(candidate.image_size.pixels / 64**2) / 2,
                    math.log2((cost.macs or 1) / 50e6) / 4,
                    math.log2((cost.params or 1) / 3e6) / 4,
                ]
            )
            known.append(float(candidate.arch in self._space.catalogue.pretrained))
            names = [candidate.arch == name for name in self._archs], [candidate.stem == name for name in self._stems]
            named.append([*names[0], *names[1]])
        x = np.array(features, dtype=np.float64)
        squares = quadratic(x)[:, x.shape[1] :]
        rungs = np.zeros((len(x), 2 * (len(self._levels) - 1)))
        return np.column_stack((np.ones(len(x)), x, known, squares, named, rungs))

    def _rows(self, candidates: Sequence[Candidate], epochs: Sequence[int] | None = None) -> Floats:
        """(n, d) features; at the end of a training unless epochs are given."""
        places = [self._index[candidate] for candidate in candidates]
        rows = self._table[places]
        rungs = 2 * (len(self._levels) - 1)
        for row, place, level in zip(rows, places, epochs or (), strict=bool(epochs)):
            if level in self._levels[:-1]:
                pretrained = int(self._table[place, len(_LINEAR)])
                row[len(row) - rungs + 2 * self._levels.index(level) + pretrained] = 1.0
        return rows

    @functools.cached_property
    def _scaled(self) -> Floats:
        """(n, m) costs of every feasible candidate, in octaves, scaled to [0, 1) over them."""
        names = [PROXY.get(name, name) for name in self._spec.objectives]
        costs = [self._space.cost(candidate) for candidate in self._space.feasible]
        octaves = np.log2([[getattr(cost, name) for name in names] for cost in costs])
        low, high = octaves.min(axis=0), octaves.max(axis=0)
        found: Floats = (octaves - low) / (1.05 * np.where(high > low, high - low, 1.0))
        return found

    def _costs(self, candidates: Sequence[Candidate]) -> Floats:
        return self._scaled[[self._index[candidate] for candidate in candidates]]

    def _boxes(self, trials: Sequence[TrialRecord], accuracy: Sequence[float]) -> Boxes:
        costs = np.empty((0, len(self._spec.objectives)))
        if trials:
            costs = self._costs([trial.candidate for trial in trials])
        worst = max(1 / self._space.classes, self._spec.budget.min_accuracy or 0.0)
        return Boxes(np.array(accuracy, dtype=np.float64), costs, worst)
