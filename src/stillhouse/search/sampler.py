"""What to try next. The only file that imports Optuna.

- A proposal is a pure function of (candidates, history, seed, number, objectives): the Optuna study is
  rebuilt from the ledger's trials at every call and then dropped, so nothing can drift apart.
- For TPE and GP the first trials are a spread design: the likely best, the end farthest from it, then ever the
  candidate farthest from all tried (maximin). Once ``LEAST_TOLD`` trials are told, the sampler takes over.
- A sampler proposes any combination of categories; the nearest candidate that is feasible and not tried yet is
  taken. What was really tried is what the next call's study holds, since that is what the ledger holds.
- Trials found infeasible, or failed, are told as constrained, with the costs that are known of them and, for what
  nobody knows, the mean of what was told, so that nothing but the constraint speaks against them. Running ones are
  told as such: TPE takes them for bad ones (constant liar), GP for ones whose outcome is uncertain.
- NSGA-II breeds from the best of all trials that were told, not of the last whole generation: see ``_Nsga2``.
- Trials of earlier jobs that trained in the same way stand first in the study, as if this job had tried them. So the
  sampler takes over sooner.
- ``brute_force`` asks nobody: every candidate, fewest MACs first. Those are trained soonest, and a search that is cut
  short has the whole cheap end of the front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from stillhouse.search.domain import Candidate, Size
from stillhouse.search.job import TrialRecord
from stillhouse.search.space import Neighbourhood, Space

LEAST_TOLD = 5
"""Trials with an accuracy before TPE is asked: fewer tell it nothing that the spread design does not know."""

SENSIBLE_SIDE = 96
"""Least side of the network's input, doubled by a stem that keeps the grid, that the spread design tries:
stock networks at 64 pixels lost 28 points to the same ones at 128 inside (METHODS section 4)."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


class _Nsga2(optuna.samplers.NSGAIISampler):
    """NSGA-II in its steady state: parents are the best of all told trials, however many generations those would be.

    Optuna counts generations in attributes that it leaves on each trial it was asked for, and a study that is rebuilt
    has none. Steady state needs none either, and suits few trials and workers that finish at odd times: each told trial
    counts at the next ask (Durillo et al. 2009, "On the Effect of the Steady-State Selection Scheme in Multi-Objective
    Genetic Algorithms"). What broke a constraint is no parent.
    """

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:  # noqa: ARG002
        """1, which has parents, once there are enough to choose from; 0 is drawn at random."""
        return int(len(self.get_population(study, 0)) >= (self.population_size or 0))

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:  # noqa: ARG002
        """All that were told and are feasible."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]


_SAMPLERS: Mapping[str, Callable[[int, int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed, _: optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True
    ),
    "gp": lambda seed, _: optuna.samplers.GPSampler(seed=seed, n_startup_trials=0),  # imports torch when it is asked
    "nsga2": lambda seed, parents: _Nsga2(seed=seed, population_size=parents),
    "random": lambda seed, _: optuna.samplers.RandomSampler(seed=seed),
}
"""By a seed and the number of parents (NSGA-II)."""

Mask = NDArray[np.bool_]


def parents(planned_trials: int) -> int:
    """Parents that NSGA-II keeps, which is also how many trials it draws at random before it breeds.

    A quarter of the job, so that three of four trials come of selection; 4 to 20, since fewer hold no front, and more
    would let in what is far from it.
    """
    return max(4, min(20, math.ceil(planned_trials / 4)))


class Sampler:
    """Proposes candidates.

    Args:
        candidates: Those that may be proposed; all cells of ``space``.
        space: Knows MACs and distances.
        seed: With the trial's number, seeds Optuna's samplers and breaks ties.
        planned_trials: Trials of the job. The spread design uses at most half as many architectures,
            since trials of one architecture share its assistant; NSGA-II has ``parents`` of them.
        kind: ``tpe``, ``gp``, ``nsga2``, ``random`` or ``brute_force``.
        earlier: Trials of earlier jobs with the same recipe.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        space: Space,
        seed: int,
        *,
        planned_trials: int,
        kind: str = "tpe",
        earlier: Sequence[TrialRecord] = (),
    ) -> None:
        self._candidates = tuple(candidates)
        self._space = space
        self._seed, self._kind = seed, kind
        self._max_archs, self._parents = math.ceil(planned_trials / 2), parents(planned_trials)
        self._near = Neighbourhood(self._candidates, space)
        self._earlier = tuple(earlier)

    def propose(
        self,
        history: Sequence[TrialRecord],
        number: int,
        objectives: Sequence[str],
        left_out: Collection[Candidate] = (),
    ) -> Candidate | None:
        """The candidate for trial ``number``; None when every candidate was tried.

        Args:
            history: All trials so far, in any state; order does not matter.
            number: Of the trial to be; with the seed it fixes what chance decides.
            objectives: Costs to minimise beside the error, by name in ``Cost``.
            left_out: Candidates that are known to lie beyond the budget.
        """
        history = sorted(history, key=lambda trial: trial.number)
        seen = {trial.candidate for trial in history} | set(left_out)
        unseen = np.array([candidate not in seen for candidate in self._candidates], dtype=np.bool_)
        if not unseen.any():
            return None
        if self._kind == "brute_force":
            left = (self._candidates[index] for index in np.flatnonzero(unseen))
            return min(left, key=lambda candidate: (self._space.cost(candidate).macs or 0, candidate))
        earlier = [trial for trial in self._earlier if _told(trial, objectives) is not None]
        told = len(earlier) + sum(_told(trial, objectives) is not None for trial in history)
        if self._kind in ("tpe", "gp") and told < LEAST_TOLD:
            return self._spread(history, unseen, number)
        return self._near.nearest(self._ask([*earlier, *history], number, objectives), seen)

    # ----------------------------------------------------------------------------- spread design

    def _spread(self, history: Sequence[TrialRecord], unseen: Mask, number: int) -> Candidate:
        tried = [trial.candidate for trial in history if trial.state not in ("infeasible", "failed")]
        pool = self._worth_trying(tried, unseen)
        worthy = [self._candidates[index] for index in np.flatnonzero(pool)]
        if not tried:
            return max(worthy, key=self._space.promise)
        if len(tried) == 1:
            ends = (min(worthy, key=self._expense), max(worthy, key=self._expense))
            return max(ends, key=lambda end: self._distance(end, tried[0]))
        gaps = np.min([self._near.distances(candidate) for candidate in tried], axis=0)
        ties = np.random.default_rng((self._seed, number)).random(len(gaps))
        return self._candidates[int(np.argmax(np.where(pool, gaps + 1e-6 * ties, -1.0)))]

    def _worth_trying(self, tried: Sequence[Candidate], unseen: Mask) -> Mask:
        """The unseen candidates that are worth a first try; a wish that nothing meets is dropped."""
        pretrained = self._space.catalogue.pretrained
        archs = {candidate.arch for candidate in tried}
        wishes = [
            [candidate.arch in pretrained for candidate in self._candidates],
            [_grid_side(candidate) >= SENSIBLE_SIDE for candidate in self._candidates],
            [candidate.arch in archs or len(archs) < self._max_archs for candidate in self._candidates],
        ]
        pool = unseen
        for wish in wishes:
            narrowed = pool & np.array(wish, dtype=np.bool_)
            pool = narrowed if narrowed.any() else pool
        return pool

    def _expense(self, candidate: Candidate) -> tuple[float, Candidate]:
        """MACs times picture bytes (in logarithms), so that neither end is cheap in one alone."""
        cost = self._space.cost(candidate)
        return math.log(cost.macs or 1) + math.log(cost.image_bytes or 1), candidate

    def _distance(self, a: Candidate, b: Candidate) -> float:
        return float(Neighbourhood([a], self._space).distances(b)[0])

    # ------------------------------------------------------------------------------------ Optuna

    def _ask(self, history: Sequence[TrialRecord], number: int, objectives: Sequence[str]) -> Candidate:
        """One combination of categories by Optuna's sampler; it need be no candidate."""
        known = [*self._candidates, *(trial.candidate for trial in history)]
        choices: dict[str, BaseDistribution] = {
            "arch": CategoricalDistribution(sorted({item.arch for item in known})),
            "image_size": CategoricalDistribution([str(size) for size in sorted({item.image_size for item in known})]),
            "scale": CategoricalDistribution(sorted({_scale(item) for item in known})),
            "stem": CategoricalDistribution(sorted({item.stem for item in known})),
        }
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        study = optuna.create_study(
            directions=[StudyDirection.MAXIMIZE, *(StudyDirection.MINIMIZE for _ in objectives)],
            sampler=_SAMPLERS[self._kind](seed, self._parents),
        )
        told = [values for trial in history if (values := _told(trial, objectives)) is not None]
        middle = np.mean(told, axis=0).tolist() if told else [0.0] * (1 + len(objectives))
        study.add_trials([_frozen(trial, choices, objectives, middle) for trial in history])
        asked = study.ask(choices).params
        return _candidate(asked)


def _frozen(
    trial: TrialRecord, choices: Mapping[str, BaseDistribution], objectives: Sequence[str], middle: Sequence[float]
) -> FrozenTrial:
    """A trial as Optuna keeps it; ``middle`` holds the means of what was told."""
    state, values, constraints = TrialState.RUNNING, _told(trial, objectives), None
    if values is not None:
        state, constraints = TrialState.COMPLETE, {"feasible": -1.0}
    elif trial.state in ("infeasible", "failed"):
        # Complete, for GP reads no others. A violation as large as the slack of the others lets GP tell them apart.
        state, constraints = TrialState.COMPLETE, {"feasible": 1.0}
        values = [middle[0], *_octaves(trial, objectives, middle[1:])]
    candidate = trial.candidate
    return optuna.trial.create_trial(
        state=state,
        values=values,
        params={
            "arch": candidate.arch,
            "image_size": str(candidate.image_size),
            "scale": _scale(candidate),
            "stem": candidate.stem,
        },
        distributions=dict(choices),
        constraints=constraints,
    )


def _told(trial: TrialRecord, objectives: Sequence[str]) -> list[float] | None:
    """Accuracy and log2 of the costs (they span decades); None while not all are known."""
    costs = _octaves(trial, objectives, [math.nan] * len(objectives))
    if trial.state not in ("done", "stopped", "paused") or trial.accuracy is None or any(map(math.isnan, costs)):
        return None
    return [trial.accuracy, *costs]


def _octaves(trial: TrialRecord, objectives: Sequence[str], instead: Sequence[float]) -> list[float]:
    """log2 of its costs; of one that is not known, what is given instead."""
    costs = [getattr(trial.cost, name) for name in objectives]
    return [other if cost is None else math.log2(cost) for cost, other in zip(costs, instead, strict=True)]


def _scale(candidate: Candidate) -> float:
    """How much larger than the picture the network computes, side by side."""
    return round(math.sqrt(candidate.network_size.pixels / candidate.image_size.pixels), 2)


def _grid_side(candidate: Candidate) -> int:
    """Network side that a stock stem would need for the same grid."""
    side = min(candidate.network_size.height, candidate.network_size.width)
    return side if candidate.stem == "stock" else 2 * side


def _candidate(asked: Mapping[str, str | float]) -> Candidate:
    """The combination that was asked for, as a candidate."""
    image, scale = Size.parse(str(asked["image_size"])), float(asked["scale"])
    sides = (min(4096, max(1, round(side * scale))) for side in (image.height, image.width))
    return Candidate(str(asked["arch"]), image, Size(*sides), str(asked["stem"]))
