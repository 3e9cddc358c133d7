"""The policy: with a worker free, which trial trains on, or which candidate begins.

``auto`` begins with the likely best, so that a short search has what its user came for. Then it ranks what could be
done now, new candidates and the trials that wait at a rung alike, by the hypervolume that it is expected to add per
second that it still needs (``surrogate.py``, ``gain.py``, ``effort.py``). A candidate whose teacher and assistant exist
needs fewer seconds than one whose do not, so the search stays where it has paid already until something else is worth
its price. Where no more candidates fit than trials were asked for, all are tried.

Of the new candidates it takes the one with the greatest product of that rate and TPE's density ratio
(``Sampler.ratios``): TPE has no form that accuracies must have, so it makes good what the surrogate's lacks
(docs/decisions/0017). Before ``LEAST_TOLD`` accuracies the surrogate, which few trials teach, decides alone.

With the other samplers trials that ``rungs.py`` lets train on come first, then what the sampler proposes.

Whatever the sampler, once a model is there no candidate begins that is expected to add less than ``min_gain``; with
``auto`` nothing is weighed that waits at a rung and is expected to add less than that, or than ``LEAST_SHARE``.

All is a function of the ledger's trials, the job and its seed. Trials of earlier jobs (``warm.py``) are told to the
surrogate, and to TPE if their recipe is the job's; they are no part of this job's front.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.search.domain import Candidate
from stillhouse.search.effort import Mentors, Prices, unpaid
from stillhouse.search.gain import Boxes, Floats, Linear, Places, scaled, worst_accuracy
from stillhouse.search.job import JobSpec, TrialRecord
from stillhouse.search.sampler import Sampler
from stillhouse.search.space import Space
from stillhouse.search.surrogate import AT_WORK, Seen, Surrogate
from stillhouse.search.warm import Earlier

PROXY = {"latency_ms": "macs", "memory_bytes": "macs", "model_bytes": "params"}
"""What stands for a cost that only a device tells: it rises with it."""

LEAST_STEPS = 100
"""Training steps below which networks from random weights, which learn nothing by then, wait until all others are tried
(docs/log.md, 2026-11-23)."""

LEAST_SHARE = 0.0005
"""Of the front's hypervolume: what a trial that waits at a rung must promise to train on (``auto``)."""


@dataclass(frozen=True)
class Move:
    """What to do next: a paused trial to promote, or a candidate to begin.

    Attributes:
        trial: The trial, or None for a new candidate.
        candidate: The candidate.
    """

    trial: TrialRecord | None
    candidate: Candidate


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
        self._space, self._spec, self._prices = space, spec, prices
        self._earlier, self._surrogate = tuple(earlier), Surrogate(space, spec, levels, earlier)

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
        trials, seen = self._surrogate.read(trials)
        untried = np.full(len(self._space.feasible), new)
        untried[seen.places] = False
        untried[[self._surrogate.index[candidate] for candidate in left_out]] = False
        if self._prices.steps < LEAST_STEPS and (untried & self._surrogate.pretrained).any():
            untried &= self._surrogate.pretrained
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
        self, trials: Sequence[TrialRecord], seen: Seen, ready: Places, untried: Places, paid: Collection[str]
    ) -> Move | None:
        """The move that is expected to add most hypervolume a second.

        Args:
            trials: All of the job.
            seen: The same.
            ready: Places in them of those that may train on.
            untried: Places of the candidates that may begin.
            paid: Keys of the stages that are done or at work.
        """
        model, hopes, spread = self._surrogate.hopes(seen)
        before, move, waits = self._unpaid(paid), None, 0.0
        ready, shares = self._promising(seen, hopes, spread, ready)
        if len(ready):
            places = seen.places[ready]
            rates = shares / (self._student_s[places] - seen.epochs[ready] * self._epoch_s[places] + before[places])
            best = int(np.argmax(rates))
            trial, waits = trials[ready[best]], rates[best]
            move = Move(trial, trial.candidate)
        worthy, shares = self._worthy(model, seen, hopes, untried)
        rates = shares / (self._student_s + before)[worthy]
        if len(worthy) and (move is None or rates.max() > waits):  # else what waits comes first, whatever TPE says
            best = int(np.argmax(rates * self._ratios(trials, hopes, worthy)))
            if move is None or rates[best] > waits:
                move = Move(None, self._space.feasible[worthy[best]])
        return move

    def _ratios(self, trials: Sequence[TrialRecord], hopes: Floats, places: Places) -> Floats:
        """(n,) TPE's ratios of these candidates, up to a factor; a trial at a rung is told as it is foretold."""
        pairs = zip(trials, hopes.tolist(), strict=True)
        foretold = {trial.number: hope for trial, hope in pairs if trial.state == "paused"}
        ratios = self._sampler.ratios(trials, self._spec.objectives, foretold, places)
        found: Floats = np.exp(ratios - ratios.max())
        return found

    # ---------------------------------------------------------------------------------------- gain

    def _promising(self, seen: Seen, hopes: Floats, spread: Floats, ready: Places) -> tuple[Places, Floats]:
        """Those of these trials that are expected to add enough to train on, and by what share of the hypervolume."""
        if not len(ready):
            return ready, np.zeros(0)
        boxes = self._boxes(seen, hopes, np.isin(seen.state, ("done", *AT_WORK)))
        gains = boxes.gains(hopes[ready], spread[ready], self._scaled[seen.places[ready]])
        return self._enough(seen, ready, gains, max(self._spec.min_gain, LEAST_SHARE))

    def _worthy(self, model: Linear, seen: Seen, hopes: Floats, places: Places) -> tuple[Places, Floats]:
        """Those of these candidates that are expected to add enough to begin, and by what share of the hypervolume."""
        mean, sd = self._surrogate.predict(model, places)
        boxes = self._boxes(seen, hopes, np.isin(seen.state, ("done", "paused", *AT_WORK)))
        return self._enough(seen, places, boxes.gains(mean, sd, self._scaled[places]), self._spec.min_gain)

    def _enough(self, seen: Seen, places: Places, gains: Floats, least: float) -> tuple[Places, Floats]:
        """Those of these that add enough, and their shares; as long as there is no model, all do."""
        shares = gains / self._volume(seen)
        enough = (shares >= least) | ~(seen.state == "done").any()
        return places[enough], shares[enough]

    def _poor(self, trials: Sequence[TrialRecord]) -> list[Candidate]:
        """The feasible candidates that are not worth their beginning (``min_gain``)."""
        if self._spec.min_gain == 0:
            return []
        _, seen = self._surrogate.read(trials)
        model, hopes, _ = self._surrogate.hopes(seen)
        every = np.arange(len(self._space.feasible), dtype=np.intp)
        worthy, _ = self._worthy(model, seen, hopes, every)
        return [self._space.feasible[place] for place in np.setdiff1d(every, worthy)]

    def _volume(self, seen: Seen) -> float:
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

    @functools.cached_property
    def _scaled(self) -> Floats:
        """(n, m) costs of every feasible candidate, in octaves, scaled to [0, 1) over them."""
        names = [PROXY.get(name, name) for name in self._spec.objectives]
        costs = [self._space.cost(candidate) for candidate in self._space.feasible]
        return scaled(np.log2([[getattr(cost, name) for name in names] for cost in costs]))

    def _boxes(self, seen: Seen, accuracy: Floats, which: NDArray[np.bool_]) -> Boxes:
        """The front of those trials, with these accuracies (n,)."""
        worst = worst_accuracy(self._space.classes, self._spec.budget)
        return Boxes(accuracy[which], self._scaled[seen.places[which]], worst)
