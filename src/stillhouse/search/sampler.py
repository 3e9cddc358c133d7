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
- ``auto`` proposes nothing by itself: ``ratios`` says what TPE thinks of given candidates, for ``choice.py`` to weigh.
- Optuna is told of ``MOST_TOLD`` trials at most, so that the thousandth ask takes hardly longer than the hundredth.
- ``brute_force`` asks nobody: every candidate, fewest MACs first. Those are trained soonest, and a search that is cut
  short has the whole cheap end of the front.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from stillhouse.search.domain import Candidate, Size
from stillhouse.search.job import TrialRecord
from stillhouse.search.pareto import front, net_order
from stillhouse.search.space import Neighbourhood, Space
from stillhouse.search.spread import Spread

LEAST_TOLD = 5
"""Trials with an accuracy before TPE or GP is asked: fewer tell them nothing that the spread design does not know, or
the surrogate of ``auto``."""

MOST_TOLD = 64
"""Trials that Optuna is told of. TPE takes a tenth of them for good ones, and of the others old ones weigh least;
NSGA-II breeds from 20 at most."""

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


class _Row(NamedTuple):
    """A trial, and its accuracy and log2 costs; None while not all of them are known."""

    trial: TrialRecord
    values: list[float] | None


class _Rating(optuna.samplers.TPESampler):
    """TPE that rates combinations which are given, besides those that it draws.

    Args:
        columns: By part of a candidate, (n,) index of its category.
    """

    def __init__(self, columns: Mapping[str, NDArray[np.float64]]) -> None:
        super().__init__(seed=0, n_startup_trials=0, n_ei_candidates=1, **_TPE)
        self._columns = columns
        self.ratios: NDArray[np.float64] | None = None
        """(n,) log of the density of good trials over that of the others; None while nothing was asked."""

    def _compute_acquisition_func(self, samples: Any, mpe_below: Any, mpe_above: Any) -> Any:
        given = {name: self._columns[name] for name in samples}
        self.ratios = super()._compute_acquisition_func(given, mpe_below, mpe_above)
        return super()._compute_acquisition_func(samples, mpe_below, mpe_above)


class _Shown(optuna.storages.InMemoryStorage):
    """Shows trials as they are, and after them those that are asked for; to add them to a study would copy each.

    Args:
        trials: Of a study that is to be, in order.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._shown = list(trials)
        for number, trial in enumerate(self._shown, 1):  # the one that is asked for is 0
            trial.number = number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        shown = [trial for trial in self._shown if states is None or trial.state in states]
        return [*shown, *super().get_all_trials(study_id, deepcopy, states)]


class _Choices(CategoricalDistribution):
    """Categories that Optuna may compare and copy by identity: it does both for each trial, one category at a time."""

    def __eq__(self, other: object) -> bool:
        return self is other or bool(super().__eq__(other))

    __hash__ = CategoricalDistribution.__hash__

    def __deepcopy__(self, memo: dict[int, Any]) -> _Choices:
        return self


_TPE: Mapping[str, Any] = {"multivariate": True, "constant_liar": True}
_SAMPLERS: Mapping[str, Callable[[int, int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed, _: optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, **_TPE),
    "gp": lambda seed, _: optuna.samplers.GPSampler(seed=seed, n_startup_trials=0),  # imports torch when it is asked
    "nsga2": lambda seed, parents: _Nsga2(seed=seed, population_size=parents),
    "random": lambda seed, _: optuna.samplers.RandomSampler(seed=seed),
}
"""By a seed and the number of parents (NSGA-II)."""

Choices = Mapping[str, BaseDistribution]


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
        kind: ``tpe``, ``gp``, ``nsga2``, ``random`` or ``brute_force``; ``auto`` for ``ratios`` alone.
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
        self._parents, self._earlier = parents(planned_trials), tuple(earlier)
        self._near = Neighbourhood(self._candidates, space)
        self._spread = Spread(self._near, space, seed, max_archs=math.ceil(planned_trials / 2))

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
        history = _in_order(history)
        seen = {trial.candidate for trial in history} | set(left_out)
        unseen = np.array([candidate not in seen for candidate in self._candidates], dtype=np.bool_)
        if not unseen.any():
            return None
        if self._kind == "brute_force":
            left = (self._candidates[index] for index in np.flatnonzero(unseen))
            return min(left, key=lambda candidate: (self._space.cost(candidate).macs or 0, candidate))
        rows, known = self._rows(history, objectives)
        if self._kind in ("tpe", "gp") and known < LEAST_TOLD:
            return self._spread.propose(history, unseen, number)
        return self._near.nearest(self._ask(rows, number, objectives), seen)

    def ratios(
        self,
        history: Sequence[TrialRecord],
        objectives: Sequence[str],
        foretold: Mapping[int, float],
        places: NDArray[np.intp],
    ) -> NDArray[np.float64]:
        """(n,) what TPE thinks of each of n candidates: log of the density of good trials, less that of the others.

        TPE proposes the greatest of those that it draws (Bergstra et al. 2011; Ozaki et al. 2020 for several
        objectives). All are 0 while fewer than ``LEAST_TOLD`` trials are told.

        Args:
            history: All trials so far, in any state; order does not matter.
            objectives: Costs to minimise beside the error, by name in ``Cost``.
            foretold: By number, accuracies that stand for those that trials have now.
            places: (n,) which candidates.

        Raises:
            RuntimeError: This version of Optuna does not say.
        """
        rows, known = self._rows(_in_order(history), objectives, foretold)
        choices = self._choices(rows)
        if known < LEAST_TOLD or all(each.single() for each in choices.values()):
            return np.zeros(len(places))
        columns = self._columns if choices is self._own_choices else _places(self._candidates, choices)
        rating = _Rating({name: column[places] for name, column in columns.items()})
        _study(rating, rows, choices, objectives).ask(dict(choices))
        if rating.ratios is None:
            raise RuntimeError(f"TPE of optuna {optuna.__version__} rates no candidates; install optuna 5.0")
        return rating.ratios

    def _rows(
        self, history: Sequence[TrialRecord], objectives: Sequence[str], foretold: Mapping[int, float] | None = None
    ) -> tuple[list[_Row], int]:
        """What Optuna is told, and of how many trials all figures are known.

        It is told of trials of earlier jobs whose figures are known, and of all of this one; of ``MOST_TOLD`` at most.
        """
        past, own = _figures(self._earlier, objectives, {}), _figures(history, objectives, foretold or {})
        there = np.flatnonzero(_known(past))
        trials, figures = [*(self._earlier[place] for place in there), *history], np.concatenate((past[there], own))
        known = _known(figures)
        kept = _kept(figures, known)
        return [_Row(trials[at], figures[at].tolist() if known[at] else None) for at in kept], int(known.sum())

    # ------------------------------------------------------------------------------------ Optuna

    def _ask(self, rows: list[_Row], number: int, objectives: Sequence[str]) -> Candidate:
        """One combination of categories by Optuna's sampler; it need be no candidate."""
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        choices = self._choices(rows)
        study = _study(_SAMPLERS[self._kind](seed, self._parents), rows, choices, objectives)
        asked = study.ask(dict(choices)).params
        image, scale = Size.parse(str(asked["image_size"])), float(asked["scale"])
        sides = (min(4096, max(1, round(side * scale))) for side in (image.height, image.width))
        return Candidate(str(asked["arch"]), image, Size(*sides), str(asked["stem"]))

    def _choices(self, rows: Sequence[_Row]) -> Choices:
        """The categories of all candidates, and of those in the history that are none any more."""
        gone = [row.trial.candidate for row in rows if row.trial.candidate not in self._known]
        return _categories([*self._known, *gone]) if gone else self._own_choices

    @functools.cached_property
    def _known(self) -> dict[Candidate, None]:
        return dict.fromkeys([*self._candidates, *(trial.candidate for trial in self._earlier)])

    @functools.cached_property
    def _own_choices(self) -> Choices:
        return _categories(self._known)

    @functools.cached_property
    def _columns(self) -> dict[str, NDArray[np.float64]]:
        return _places(self._candidates, self._own_choices)


def _categories(candidates: Collection[Candidate]) -> Choices:
    sizes = [str(size) for size in sorted({item.image_size for item in candidates})]
    return {
        "arch": _Choices(sorted({item.arch for item in candidates})),
        "image_size": _Choices(sizes),
        "scale": _Choices(sorted({_scale(item) for item in candidates})),
        "stem": _Choices(sorted({item.stem for item in candidates})),
    }


def _places(candidates: Sequence[Candidate], choices: Choices) -> dict[str, NDArray[np.float64]]:
    """By part, (n,) place of each candidate's category among the choices."""
    rows = [_parts(candidate) for candidate in candidates]
    columns = {name: [each.to_internal_repr(row[name]) for row in rows] for name, each in choices.items()}
    return {name: np.array(column, dtype=np.float64) for name, column in columns.items()}


def _in_order(history: Sequence[TrialRecord]) -> list[TrialRecord]:
    return sorted(history, key=lambda trial: trial.number)


def _parts(candidate: Candidate) -> dict[str, str | float]:
    """A candidate as Optuna knows it."""
    return {
        "arch": candidate.arch,
        "image_size": str(candidate.image_size),
        "scale": _scale(candidate),
        "stem": candidate.stem,
    }


def _study(
    sampler: optuna.samplers.BaseSampler, rows: Sequence[_Row], choices: Choices, objectives: Sequence[str]
) -> optuna.Study:
    """What Optuna is told of these trials, which are in order."""
    known = [row.values for row in rows if row.values is not None]
    middle = np.mean(known, axis=0).tolist() if known else [0.0] * (1 + len(objectives))
    trials = [_frozen(row, choices, objectives, middle) for row in rows]
    directions = [StudyDirection.MAXIMIZE, *(StudyDirection.MINIMIZE for _ in objectives)]
    return optuna.create_study(storage=_Shown(trials), directions=directions, sampler=sampler)


def _kept(figures: NDArray[np.float64], known: NDArray[np.bool_]) -> list[int]:
    """Places of those that Optuna is told of: the front, or a net of it if that is large, and the newest of the others.

    Args:
        figures: (n, 1 + m) accuracy and log2 costs.
        known: (n,) whether all of them are.
    """
    if len(figures) <= MOST_TOLD:
        return list(range(len(figures)))
    with_figures, without = np.flatnonzero(known).tolist(), np.flatnonzero(~known).tolist()[-MOST_TOLD // 4 :]
    best: set[int] = set()
    if with_figures:
        members = [with_figures[place] for place in front(figures[with_figures])]
        best = {members[place] for place in net_order(figures[members])[: MOST_TOLD // 2]}
    others = [place for place in with_figures if place not in best][len(best) + len(without) - MOST_TOLD :]
    return sorted([*best, *others, *without])


def _frozen(row: _Row, choices: Choices, objectives: Sequence[str], middle: Sequence[float]) -> FrozenTrial:
    """A trial as Optuna keeps it; ``middle`` holds the means of what was told."""
    trial, values, constraints = row.trial, row.values, {"feasible": -1.0}
    if values is None and trial.state in ("infeasible", "failed"):
        # Complete, for GP reads no others. A violation as large as the slack of the others lets GP tell them apart.
        costs = zip((getattr(trial.cost, name) for name in objectives), middle[1:], strict=True)
        octaves = (other if cost is None else math.log2(cost) for cost, other in costs)
        values, constraints = [middle[0], *octaves], {"feasible": 1.0}
    return optuna.trial.create_trial(
        state=TrialState.RUNNING if values is None else TrialState.COMPLETE,
        values=values,
        params=_parts(trial.candidate),
        distributions=dict(choices),
        constraints=None if values is None else constraints,
    )


def _figures(
    trials: Sequence[TrialRecord], objectives: Sequence[str], foretold: Mapping[int, float]
) -> NDArray[np.float64]:
    """(n, 1 + m) accuracy and log2 costs; NaN for what is not known.

    ``foretold`` holds, by number, accuracies that stand for those that trials have now.
    """
    accuracies = [
        foretold.get(trial.number, trial.accuracy) if trial.state in ("done", "stopped", "paused") else None
        for trial in trials
    ]
    costs = [[getattr(trial.cost, name) for name in objectives] for trial in trials]
    octaves = np.log2(np.array(costs, dtype=np.float64).reshape(len(trials), len(objectives)))
    return np.column_stack((np.array(accuracies, dtype=np.float64), octaves))  # NaN for None


def _known(figures: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) whether all of them are."""
    return np.asarray(~np.isnan(figures).any(axis=1))


def _scale(candidate: Candidate) -> float:
    """How much larger than the picture the network computes, side by side."""
    return round(math.sqrt(candidate.network_size.pixels / candidate.image_size.pixels), 2)
