"""How accurate a candidate will be, before it is trained: the surrogate of the search.

A linear model with a prior [ours]: accuracy rises with the picture's side, with MACs and with parameters, and is higher
from pretrained weights; each architecture and each stem has an offset of its own, and so has each rung. With normal
priors it is a Gaussian process (Rasmussen & Williams 2006, section 2.1.2), one that a few trials teach, and a thousand
take milliseconds.

What earlier jobs on the data set found out (``warm.py``) is told to the model too; a job that trained in another way
has an offset.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.search.domain import Candidate
from stillhouse.search.gain import Floats, Linear, Places, Prior, quadratic
from stillhouse.search.job import JobSpec, TrialRecord
from stillhouse.search.space import Space
from stillhouse.search.warm import Earlier, usable

FULL_SD, RUNG_SD = 0.02, 0.05
"""Standard deviation of an accuracy read at the end of a training and at a rung, beyond what the model explains."""
OWN_SD = 0.03
"""Of what is particular to one candidate."""

_LINEAR = {"bias": (0.5, 0.2), "image side": (0.08, 0.06), "macs": (0.06, 0.06), "params": (0.0, 0.03)}
_PRETRAINED, _SQUARE, _STEM, _RUNG, _JOB = (0.15, 0.1), (0.0, 0.03), (0.0, 0.05), (-0.1, 0.1), (0.0, 0.1)
_ARCH_SD = 0.1
"""Prior mean and standard deviation of a weight; picture side in octaves, MACs and parameters in 4 octaves."""

AT_WORK = ("costing", "training")


@dataclass(frozen=True)
class Seen:
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

    def __getitem__(self, which: NDArray[np.bool_] | Places) -> Seen:
        return Seen(self.places[which], self.epochs[which], self.accuracy[which], self.state[which])


class Surrogate:
    """Foretells accuracies for one job.

    Args:
        space: All candidates and their costs.
        spec: The job.
        levels: Epochs of each rung, the whole training last.
        earlier: What earlier jobs on the data set found out.
    """

    def __init__(self, space: Space, spec: JobSpec, levels: Sequence[int], earlier: Sequence[Earlier] = ()) -> None:
        self._space, self._spec, self._levels = space, spec, tuple(levels)
        self._usable = usable(earlier, space)

    @functools.cached_property
    def pretrained(self) -> NDArray[np.bool_]:
        """(n,) whether each feasible candidate starts from trained weights."""
        known = self._space.catalogue.pretrained
        return np.array([candidate.arch in known for candidate in self._space.feasible], dtype=np.bool_)

    @functools.cached_property
    def index(self) -> dict[Candidate, int]:
        """The place of each feasible candidate."""
        return {candidate: index for index, candidate in enumerate(self._space.feasible)}

    def read(self, trials: Iterable[TrialRecord]) -> tuple[list[TrialRecord], Seen]:
        """The trials of feasible candidates, also as columns.

        One whose candidate is none any more (the catalogue was published anew) is left out: it says nothing here.
        """
        pairs = [(trial, self.index.get(trial.candidate)) for trial in trials]
        trials = [trial for trial, place in pairs if place is not None]
        return trials, Seen(
            np.array([place for _, place in pairs if place is not None], dtype=np.intp),
            np.array([trial.epochs or 0 for trial in trials], dtype=np.int64),
            np.array([math.nan if trial.accuracy is None else trial.accuracy for trial in trials], dtype=np.float64),
            np.array([trial.state for trial in trials], dtype=np.str_),
        )

    def fit(self, seen: Seen) -> Linear:
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

    def hopes(self, seen: Seen) -> tuple[Linear, Floats, Floats]:
        """The model, and (n,) accuracies with their (n,) sd: foretold of trials on their way, 0 sd of others."""
        model, hopes, spread = self.fit(seen), seen.accuracy.copy(), np.zeros(len(seen.accuracy))
        way = np.isin(seen.state, ("paused", *AT_WORK))
        hopes[way], spread[way] = self._foretold(model, seen[way])
        return model, hopes, spread

    def predict(self, model: Linear, places: Places) -> tuple[Floats, Floats]:
        """Mean and sd, (n,) each, of the accuracy at the end of a training of these feasible candidates (n,)."""
        mean, sd = model.predict(self._table[places], self._groups[places])
        return mean, np.hypot(sd, OWN_SD)

    def _foretold(self, model: Linear, seen: Seen) -> tuple[Floats, Floats]:
        """Mean and sd of the accuracy at the end of trials that have not come there.

        What the model says of the candidate and what its own rung says are weighed by their precisions.
        """
        mean, sd = self.predict(model, seen.places)
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

    def _rung_columns(self, seen: Seen) -> Places:
        """(n,) column of the offset of each trial's rung; 0 at the end of a training and before the first rung."""
        level = np.searchsorted(self._levels, seen.epochs)
        at_rung = np.isin(seen.epochs, self._levels[:-1])
        return np.where(at_rung, self._first_rung + 2 * level + self.pretrained[seen.places], 0)
