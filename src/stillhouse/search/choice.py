"""The policy: with a worker free, which trial trains on, or which candidate begins.

``auto`` begins with the likely best, so that a short search has what its user came for. Then it ranks what could be
done now, new candidates and the trials that wait at a rung alike, by the hypervolume that it is expected to add per
second that it still needs (``gain.py``, ``effort.py``). A candidate whose teacher and assistant exist needs fewer
seconds than one whose do not, so the search stays where it has paid already until something else is worth its
price. Where no more candidates fit than trials were asked for, all are tried.

With the other samplers trials that ``rungs.py`` lets train on come first, then what the sampler proposes.

Whatever the sampler, once a model is there no candidate begins that is expected to add less than ``min_gain``.

The accuracy of a candidate that was not trained is foretold by a linear model with a prior [ours]: it rises with the
picture's side, with MACs and with parameters, and is higher from pretrained weights; each architecture and each stem
has an offset of its own, and so has each rung. All is a function of the ledger's trials, the job and its seed.

What earlier jobs on the data set found out (``warm.py``) is told to the model too; a job that trained in another way
has an offset. Their trials are no part of this job's front.
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
from stillhouse.search.gain import Boxes, Floats, Linear, Places, Prior, quadratic, scaled, worst_accuracy
from stillhouse.search.job import JobSpec, TrialRecord
from stillhouse.search.sampler import Sampler
from stillhouse.search.space import Space
from stillhouse.search.warm import Earlier, usable

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
_PRETRAINED, _SQUARE, _STEM, _RUNG, _JOB = (0.15, 0.1), (0.0, 0.03), (0.0, 0.05), (-0.1, 0.1), (0.0, 0.1)
_ARCH_SD = 0.1
"""Prior mean and standard deviation of a weight; picture side in octaves, MACs and parameters in 4 octaves."""

_AT_WORK = ("costing", "training")


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


@dataclass(frozen=True)
class _Seen:
    """Trials as columns, one entry a trial.

    Attributes:
        places: (n,) index of its candidate among the feasible ones.
        epochs: (n,) done so far.
        accuracy: (n,) after them; NaN where there is none.
        state: (n,) its state.
    """

    places: Places
    epochs: NDArray[np.int64]
    accuracy: Floats
    state: NDArray[np.str_]

    def __getitem__(self, which: NDArray[np.bool_] | Places) -> _Seen:
        return _Seen(self.places[which], self.epochs[which], self.accuracy[which], self.state[which])


class Chooser:
    """Decides for one job.

    Args:
        space: All candidates and their costs.
        spec: The job.
        levels: Epochs of each rung, the whole training last.
        prices: Knows the seconds that a candidate still needs.
        earlier: What earlier jobs on the data set found out.
    """

    def __init__(
        self, space: Space, spec: JobSpec, levels: Sequence[int], prices: Prices, earlier: Sequence[Earlier] = ()
    ) -> None:
        self._space, self._spec, self._levels, self._prices = space, spec, tuple(levels), prices
        self._earlier, self._usable = tuple(earlier), usable(earlier, space)

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
            promotable: Those of them that may train on, best first.
            new: Whether candidates may still begin.
            left_out: Candidates known to lie beyond the budget.
            paid: Keys of the stages that are done or at work.
        """
        if self._spec.sampler != "auto":
            if promotable:
                return Move(promotable[0], promotable[0].candidate)
            passed = {*left_out, *self._poor(trials)}
            candidate = self._sampler.propose(trials, len(trials), self._spec.objectives, passed) if new else None
            return None if candidate is None else Move(None, candidate)
        # A trial of a candidate that is none any more (the catalogue was published anew) says nothing here.
        trials = [trial for trial in trials if trial.candidate in self._index]
        seen = self._read(trials)
        untried = np.full(len(self._space.feasible), new)
        untried[seen.places] = False
        untried[[self._index[candidate] for candidate in left_out]] = False
        if self._prices.steps < LEAST_STEPS and (untried & self._pretrained).any():
            untried &= self._pretrained
        if untried.any() and all(trial.state in ("infeasible", "failed") for trial in trials):
            first = max((self._space.feasible[place] for place in np.flatnonzero(untried)), key=self._space.promise)
            return Move(None, first)
        numbers = {trial.number for trial in promotable}
        ready = np.array([index for index, trial in enumerate(trials) if trial.number in numbers], dtype=np.intp)
        return self._best(trials, seen, ready, np.flatnonzero(untried), paid)

    @functools.cached_property
    def _sampler(self) -> Sampler:
        spec = self._spec
        known = [trial for job in self._earlier if job.same_recipe for trial in job.trials]
        return Sampler(
            self._space.feasible, self._space, spec.seed, planned_trials=spec.trials, kind=spec.sampler, earlier=known
        )

    def _best(
        self, trials: Sequence[TrialRecord], seen: _Seen, ready: Places, untried: Places, paid: Collection[str]
    ) -> Move | None:
        """The move that is expected to add most hypervolume a second.

        Args:
            trials: All of the job.
            seen: The same.
            ready: Places in them of those that may train on.
            untried: Places of the candidates that may begin.
            paid: Keys of the stages that are done or at work.
        """
        model, hopes, spread = self._hopes(seen)
        found: list[tuple[float, TrialRecord | None, Candidate, float]] = []
        before = self._unpaid(paid)
        if len(ready):
            place, others = seen.places[ready], np.isin(seen.state, ("done", *_AT_WORK))
            gains = self._boxes(seen, hopes, others).gains(hopes[ready], spread[ready], self._scaled[place])
            shares = gains / self._volume(seen)
            rates = shares / (self._student_s[place] - seen.epochs[ready] * self._epoch_s[place] + before[place])
            best = int(np.argmax(rates))
            trial = trials[ready[best]]
            found.append((rates[best], trial, trial.candidate, shares[best]))
        worthy, shares = self._worthy(model, seen, hopes, untried)
        if len(worthy):
            rates = shares / (self._student_s + before)[worthy]
            best = int(np.argmax(rates))
            found.append((rates[best], None, self._space.feasible[worthy[best]], shares[best]))
        if not found:
            return None
        _, chosen, candidate, share = max(found, key=lambda row: row[0])
        return Move(chosen, candidate, share)

    # ---------------------------------------------------------------------------------------- gain

    def _worthy(self, model: Linear, seen: _Seen, hopes: Floats, places: Places) -> tuple[Places, Floats]:
        """Those of these candidates that are expected to add enough to begin, and each one's share (``Move.share``)."""
        mean, sd = model.predict(self._table[places], self._groups[places])
        boxes = self._boxes(seen, hopes, np.isin(seen.state, ("done", "paused", *_AT_WORK)))
        shares = boxes.gains(mean, np.hypot(sd, OWN_SD), self._scaled[places]) / self._volume(seen)
        enough = (shares >= self._spec.min_gain) | ~(seen.state == "done").any()
        return places[enough], shares[enough]

    def _poor(self, trials: Sequence[TrialRecord]) -> list[Candidate]:
        """The feasible candidates that are not worth their beginning (``min_gain``)."""
        if self._spec.min_gain == 0:
            return []
        seen = self._read([trial for trial in trials if trial.candidate in self._index])
        model, hopes, _ = self._hopes(seen)
        every = np.arange(len(self._space.feasible), dtype=np.intp)
        worthy, _ = self._worthy(model, seen, hopes, every)
        return [self._space.feasible[place] for place in np.setdiff1d(every, worthy)]

    def _volume(self, seen: _Seen) -> float:
        """Hypervolume of the front now."""
        return max(self._boxes(seen, seen.accuracy, seen.state == "done").hypervolume, 1e-9)

    # ------------------------------------------------------------------------------------- seconds

    def _unpaid(self, paid: Collection[str]) -> Floats:
        """(n,) seconds of what comes before each feasible candidate's student and is not paid for."""
        groups, group_of = self._mentors
        found: Floats = np.array([unpaid(mentors, paid) for mentors in groups])[group_of]
        return found

    @functools.cached_property
    def _mentors(self) -> tuple[list[Mentors], Places]:
        """The sets of mentors, and which of them each feasible candidate has."""
        groups: dict[Mentors, int] = {}
        of = [groups.setdefault(self._prices.mentors(each), len(groups)) for each in self._space.feasible]
        return list(groups), np.array(of, dtype=np.intp)

    @functools.cached_property
    def _student_s(self) -> Floats:
        """(n,) seconds of each feasible candidate from its student's start to a measured file."""
        return np.array([self._prices.student(each, 0) for each in self._space.feasible])

    @functools.cached_property
    def _epoch_s(self) -> Floats:
        """(n,) seconds of an epoch of each feasible candidate's student."""
        found: Floats = self._student_s - [self._prices.student(each, 1) for each in self._space.feasible]
        return found

    # ------------------------------------------------------------------------------------ accuracy

    def _read(self, trials: Sequence[TrialRecord]) -> _Seen:
        """Trials of feasible candidates as columns."""
        return _Seen(
            np.array([self._index[trial.candidate] for trial in trials], dtype=np.intp),
            np.array([trial.epochs or 0 for trial in trials], dtype=np.int64),
            np.array([math.nan if trial.accuracy is None else trial.accuracy for trial in trials], dtype=np.float64),
            np.array([trial.state for trial in trials], dtype=np.str_),
        )

    def _model(self, seen: _Seen) -> Linear:
        """What all trials, earlier ones included, say."""
        told = seen[~np.isnan(seen.accuracy) & (seen.epochs > 0)]
        x, groups, y = self._past
        noise = np.concatenate((np.full(len(y), FULL_SD), np.where(told.epochs == self._levels[-1], FULL_SD, RUNG_SD)))
        rows = self._table[told.places]
        column = self._rung_columns(told)
        at_rung = np.flatnonzero(column)
        rows[at_rung, column[at_rung]] = 1.0
        return self._prior.told(
            np.concatenate((x, rows)),
            np.concatenate((groups, self._groups[told.places])),
            np.concatenate((y, told.accuracy)),
            np.hypot(noise, OWN_SD),
        )

    def _hopes(self, seen: _Seen) -> tuple[Linear, Floats, Floats]:
        """The model, and (n,) accuracies with their (n,) sd: foretold of trials on their way, 0 sd of others."""
        model, hopes, spread = self._model(seen), seen.accuracy.copy(), np.zeros(len(seen.accuracy))
        way = np.isin(seen.state, ("paused", *_AT_WORK))
        hopes[way], spread[way] = self._foretold(model, seen[way])
        return model, hopes, spread

    def _foretold(self, model: Linear, seen: _Seen) -> tuple[Floats, Floats]:
        """Mean and sd of the accuracy at the end of trials that have not come there.

        What the model says of the candidate and what its own rung says are weighed by their precisions.
        """
        mean, sd = model.predict(self._table[seen.places], self._groups[seen.places])
        sd = np.hypot(sd, OWN_SD)
        column = self._rung_columns(seen)
        offset = np.where(column > 0, model.mean[column], 0.0)
        unseen = np.isnan(seen.accuracy)
        weight = np.where(unseen, 0.0, sd**2 / (sd**2 + RUNG_SD**2))
        own = np.where(unseen, 0.0, seen.accuracy - offset)
        return (1 - weight) * mean + weight * own, sd * np.sqrt(1 - weight)

    @functools.cached_property
    def _prior(self) -> Prior:
        counts = len(_LINEAR) - 1
        weights = [
            *_LINEAR.values(),
            _PRETRAINED,
            *[_SQUARE] * (counts * (counts + 1) // 2),
            *[_STEM] * len(self._stems),
            *[self._rung_prior(level) for level in self._levels[:-1] for _ in ("random", "pretrained")],
            *[_JOB] * sum(not job.same_recipe for job in self._usable),
        ]
        mean, sd = np.array(weights).T
        return Prior(mean, sd, np.full(len(self._archs), _ARCH_SD))

    def _rung_prior(self, level: int) -> tuple[float, float]:
        """Of the offset of a rung: the less trained, the lower."""
        steps = math.log(self._levels[-1] / level) / math.log(self._spec.eta)
        return _RUNG[0] * steps, _RUNG[1]

    # ------------------------------------------------------------------------------------ features

    @functools.cached_property
    def _past(self) -> tuple[Floats, Places, Floats]:
        """Features (p, k), groups (p,) and accuracies (p,) of the trials of earlier jobs."""
        trials = [trial for job in self._usable for trial in job.trials]
        x = self._features([trial.candidate for trial in trials])
        place, column = 0, self._first_rung + 2 * (len(self._levels) - 1)
        for job in self._usable:
            if not job.same_recipe:
                x[place : place + len(job.trials), column] = 1.0
                column += 1
            place += len(job.trials)
        y = np.array([trial.accuracy or 0.0 for trial in trials], dtype=np.float64)
        return x, self._groups_of([trial.candidate for trial in trials]), y

    @functools.cached_property
    def _all(self) -> list[Candidate]:
        """Every candidate that the model is told of or asked about."""
        return [*self._space.feasible, *(trial.candidate for job in self._usable for trial in job.trials)]

    @functools.cached_property
    def _archs(self) -> list[str]:
        return sorted({candidate.arch for candidate in self._all})

    @functools.cached_property
    def _stems(self) -> list[str]:
        return sorted({candidate.stem for candidate in self._all})

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
        """(n, k) features of every feasible candidate, at the end of a training."""
        return self._features(self._space.feasible)

    @functools.cached_property
    def _groups(self) -> Places:
        """(n,) group of every feasible candidate: its architecture."""
        return self._groups_of(self._space.feasible)

    def _groups_of(self, candidates: Sequence[Candidate]) -> Places:
        index = {name: place for place, name in enumerate(self._archs)}
        return np.array([index[candidate.arch] for candidate in candidates], dtype=np.intp)

    def _features(self, candidates: Sequence[Candidate]) -> Floats:
        """(n, k) features at the end of a training of this job: offsets of rungs and of other jobs, the last, are 0."""
        x = np.empty((len(candidates), len(_LINEAR) - 1))
        known = np.empty((len(candidates), 1 + len(self._stems)))
        for place, candidate in enumerate(candidates):
            cost = self._space.cost(candidate)
            x[place] = (
                math.log2(candidate.image_size.pixels / 64**2) / 2,
                math.log2((cost.macs or 1) / 50e6) / 4,
                math.log2((cost.params or 1) / 3e6) / 4,
            )
            pretrained = candidate.arch in self._space.catalogue.pretrained
            known[place] = (pretrained, *(candidate.stem == name for name in self._stems))
        offsets = np.zeros((len(x), len(self._prior.mean) - self._first_rung))
        squares = quadratic(x)[:, x.shape[1] :]
        return np.column_stack((np.ones(len(x)), x, known[:, 0], squares, known[:, 1:], offsets))

    @property
    def _first_rung(self) -> int:
        """Column of the first rung's offset."""
        return len(_LINEAR) + 1 + (len(_LINEAR) - 1) * len(_LINEAR) // 2 + len(self._stems)

    def _rung_columns(self, seen: _Seen) -> Places:
        """(n,) column of the offset of each trial's rung; 0 at the end of a training and before the first rung."""
        level = np.searchsorted(self._levels, seen.epochs)
        at_rung = np.isin(seen.epochs, self._levels[:-1])
        return np.where(at_rung, self._first_rung + 2 * level + self._pretrained[seen.places], 0)

    @functools.cached_property
    def _scaled(self) -> Floats:
        """(n, m) costs of every feasible candidate, in octaves, scaled to [0, 1) over them."""
        names = [PROXY.get(name, name) for name in self._spec.objectives]
        costs = [self._space.cost(candidate) for candidate in self._space.feasible]
        return scaled(np.log2([[getattr(cost, name) for name in names] for cost in costs]))

    def _boxes(self, seen: _Seen, accuracy: Floats, which: NDArray[np.bool_]) -> Boxes:
        """The front of those trials, with these accuracies (n,)."""
        worst = worst_accuracy(self._space.classes, self._spec.budget)
        return Boxes(accuracy[which], self._scaled[seen.places[which]], worst)
