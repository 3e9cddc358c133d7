"""What the policy prefers, and what it thinks that things cost."""

import time

import numpy as np
import pytest

from instant import SUMMARY, catalogue
from speed import slowness
from stillhouse.search import choice
from stillhouse.search.advance import Desk
from stillhouse.search.domain import Candidate, Size
from stillhouse.search.effort import CONVERT_S, EXPORT_S, MEASURE_S, unpaid
from stillhouse.search.job import DatasetRecord, Epochs, JobRecord, JobSpec, TrialRecord
from stillhouse.search.surrogate import OWN_SD, RUNG_SD

MANY = {**SUMMARY, "splits": {"train": 100_000, "val": 12, "test": 18}}
DATASET = DatasetRecord("d", "d", "key", "ready", summary=MANY)


def desk(**changes):
    spec = JobSpec("d", teacher="huge", **{"epochs": Epochs(2, 2, 9), "eta": 3, **changes})
    return Desk(JobRecord("j", spec, "running"), DATASET, catalogue())


def choose(found, trials=(), ready=(), *, new=True, left_out=(), paid=()):
    return found.chooser.next(trials, ready, new=new, left_out=left_out, paid=paid)


def trial(found, candidate, accuracy, *, epochs=9, state="done", number=0):
    cost = found.space.cost(candidate)
    return TrialRecord("j", number, candidate, state, cost, accuracy=accuracy, epochs=epochs)


def test_the_same_question_has_the_same_answer():
    assert choose(desk()) == choose(desk())


def test_a_candidate_is_never_proposed_twice_nor_one_that_is_left_out():
    found = desk()
    trials, proposed = [], []
    for number in range(len(found.space.feasible) - 1):
        move = choose(found, trials, left_out={found.space.feasible[0]})
        proposed.append(move.candidate)
        trials.append(trial(found, move.candidate, 0.5, number=number))
    assert len(set(proposed)) == len(proposed) == len(found.space.feasible) - 1
    assert choose(found, trials, left_out={found.space.feasible[0]}) is None


def test_what_is_paid_for_is_preferred():
    found = desk()
    begun = [trial(found, found.space.feasible[-1], 0.3, epochs=9, state="done")]
    for arch in ("small", "middle"):  # the large one is not worth its own training here
        paid = {key for c in found.space.feasible if c.arch == arch for key, _ in found.chooser._prices.mentors(c)}
        assert choose(found, begun, paid=paid).candidate.arch == arch


@pytest.mark.parametrize("state", [None, "infeasible", "failed"])
def test_the_likely_best_comes_first(state):
    found = desk()
    best = sorted(found.space.feasible, key=found.space.promise)
    ended = [trial(found, best[-1], None, epochs=None, state=state)] if state else []
    assert choose(found, ended).candidate == (best[-2] if state else best[-1])


def test_a_trial_that_promises_more_trains_on_before_new_ones_begin():
    found = desk()
    best, poor = found.space.feasible[-1], found.space.feasible[0]
    trials = [
        trial(found, best, 0.95, epochs=3, state="paused"),
        trial(found, poor, 0.1, epochs=3, state="paused", number=1),
    ]
    paid = found.mentors
    assert choose(found, trials, trials, paid=paid, new=False).trial == trials[0]


def test_in_a_few_steps_networks_from_random_weights_come_last():
    few = DatasetRecord("d", "d", "key", "ready", summary={**SUMMARY, "splits": {"train": 60, "val": 12, "test": 18}})
    data = {**catalogue(), "weights": {"package": ["large"], "hub": []}}
    found = Desk(JobRecord("j", JobSpec("d", teacher="huge", epochs=Epochs(1, 1, 2)), "running"), few, data)
    trials, archs = [], []
    for number in range(len(found.space.feasible)):
        move = choose(found, trials)
        archs.append(move.candidate.arch)
        trials.append(trial(found, move.candidate, 0.5, epochs=2, number=number))
    own = archs.count("large")
    assert archs[:own] == ["large"] * own


def test_the_model_follows_what_it_is_told():
    found = desk()
    small = [c for c in found.space.feasible if c.arch == "small"]
    large = [c for c in found.space.feasible if c.arch == "large"]
    told = [trial(found, c, 0.9, number=i) for i, c in enumerate(small[:4])]
    told += [trial(found, c, 0.2, number=10 + i) for i, c in enumerate(large[:4])]
    surrogate = found.chooser._surrogate
    model = surrogate.fit(surrogate.read(told)[1])
    groups = ([surrogate.index[candidate] for candidate in group[4:]] for group in (small, large))
    means = [surrogate.predict(model, np.array(places))[0].mean() for places in groups]
    assert means[0] > means[1] + 0.2


def test_an_accuracy_at_a_rung_is_read_as_one_that_will_rise():
    found = desk()
    candidate = found.space.feasible[0]
    means = []
    for epochs in (1, 3, 9):
        surrogate = found.chooser._surrogate
        model = surrogate.fit(surrogate.read([trial(found, candidate, 0.5, epochs=epochs)])[1])
        means.append(surrogate.predict(model, np.array([0]))[0][0])
    assert means[0] > means[1] > means[2]


def test_trials_of_an_older_catalogue_do_no_harm():
    found = desk()
    gone = TrialRecord("j", 0, Candidate("gone", Size(32, 32), Size(32, 32)), "done", accuracy=0.9, epochs=9)
    assert choose(found, [gone]) == choose(found)


def test_what_a_rung_says_of_the_end_is_its_accuracy_less_its_offset():
    found = desk()
    surrogate, candidate = found.chooser._surrogate, found.space.feasible[0]
    paused = surrogate.read([trial(found, candidate, 0.5, epochs=epochs, state="paused") for epochs in (1, 3)])[1]
    model = surrogate.fit(surrogate.read(())[1])
    mean, sd = surrogate._foretold(model, paused)
    plain, spread = surrogate.predict(model, np.array([0]))
    assert spread**2 == pytest.approx(model.predict(surrogate._table[:1], surrogate._groups[:1])[1] ** 2 + OWN_SD**2)
    kept = spread**2 / (spread**2 + RUNG_SD**2)
    expected = [(1 - kept) * plain + kept * (0.5 + rise) for rise in (0.2, 0.1)]  # a rung below is 0.1 lower
    assert mean == pytest.approx(np.concatenate(expected))
    assert (sd < spread).all()


def test_of_equal_gains_the_trial_with_the_fewest_seconds_left_trains_on(monkeypatch):
    found = desk()
    monkeypatch.setattr(choice.Boxes, "gains", lambda *given: np.ones(len(given[1])))
    cheap, dear = sorted(found.space.feasible, key=lambda each: found.space.cost(each).macs)[:2]
    prices = found.chooser._prices
    trials = [
        trial(found, cheap, 0.5, epochs=1, state="paused"),
        trial(found, dear, 0.5, epochs=3, state="paused", number=1),
    ]
    for keys in ((), found.mentors):
        left = [prices.remaining(each.candidate, each.epochs, keys) for each in trials]
        move = choose(found, trials, trials, new=False, paid=keys)
        assert move.trial == trials[int(np.argmin(left))] == trials[1]


def test_a_trial_that_promises_next_to_nothing_does_not_stand_before_others(monkeypatch):
    """It would be worth its few seconds, and would wait at its rung with every other trial behind it."""
    found = desk()
    cheap, *_, dear = sorted(found.space.feasible, key=lambda each: found.space.cost(each).macs)
    trials = [
        trial(found, cheap, 0.5, epochs=3, state="paused"),
        trial(found, dear, 0.5, epochs=1, state="paused", number=1),
        trial(found, found.space.feasible[3], 0.6, number=2),
    ]
    shares = np.array([0.9, 1.5]) * choice.LEAST_SHARE
    seconds = [found.chooser._prices.remaining(each.candidate, each.epochs, found.mentors) for each in trials[:2]]
    assert shares[0] / seconds[0] > shares[1] / seconds[1]
    volume = found.chooser._volume(found.chooser._surrogate.read(trials)[1])
    monkeypatch.setattr(choice.Boxes, "gains", lambda *given: shares[2 - len(given[1]) :] * volume)
    assert choose(found, trials, trials[:2], new=False, paid=found.mentors).trial == trials[1]
    assert choose(found, trials, trials[:1], new=False, paid=found.mentors).trial == trials[0]
    shares[:] = 0.9 * choice.LEAST_SHARE
    assert choose(found, trials, trials[:2], new=False, paid=found.mentors) is None
    shares[:] = 0.0
    assert choose(found, trials[:2], trials[:2], new=False, paid=found.mentors) is not None, (
        "the first model is worth any"
    )


def test_a_trial_at_a_rung_must_promise_the_least_gain_too(monkeypatch):
    found, least = desk(min_gain=0.02), 0.02
    waiting, done = trial(found, found.space.feasible[0], 0.5, epochs=3, state="paused"), found.space.feasible[3]
    trials = [waiting, trial(found, done, 0.6, number=1)]
    volume = found.chooser._volume(found.chooser._surrogate.read(trials)[1])
    for share, moves in ((1.01 * least, True), (0.99 * least, False)):
        monkeypatch.setattr(choice.Boxes, "gains", lambda *given, share=share: np.full(len(given[1]), share * volume))
        assert (choose(found, trials, [waiting], new=False) is not None) == moves


def test_seconds_count_pictures_epochs_and_macs():
    found = desk()
    effort, candidate = found.chooser._prices._effort, Candidate("small", Size(32, 32), Size(32, 32))
    (*_, student) = found.planner.student(candidate, "tas")
    first = found.planner.rung(candidate, 1).last
    assert first.spec["until"] == 1
    # The last stage goes on from epoch 3 of 9.
    assert effort.seconds(student) == pytest.approx(6 * effort.seconds(first))
    files = EXPORT_S + MEASURE_S + 2 * (CONVERT_S + MEASURE_S)
    whole = found.chooser._prices.student(candidate, 0)
    assert whole == pytest.approx(9 * effort.seconds(first) + files)
    assert found.chooser._prices.student(candidate, 9) == files


def test_mentors_that_are_paid_for_cost_nothing():
    found = desk()
    mentors = found.chooser._prices.mentors(found.space.feasible[0])
    assert unpaid(mentors, ()) == pytest.approx(sum(seconds for _, seconds in mentors))
    assert unpaid(mentors, {key for key, _ in mentors[1:]}) == mentors[0][1]
    assert unpaid(mentors, {key for key, _ in mentors}) == 0


def shares(found, trials):
    """By candidate that has not begun, the share of the front's hypervolume that it promises to add."""
    surrogate, count = found.chooser._surrogate, len(found.space.feasible)
    _, seen = surrogate.read(trials)
    model, hopes, _ = surrogate.hopes(seen)
    places, promised = found.chooser._worthy(model, seen, hopes, np.setdiff1d(np.arange(count), seen.places))
    return {found.space.feasible[place]: share for place, share in zip(places, promised, strict=True)}


@pytest.mark.parametrize("sampler", ["auto", "tpe", "nsga2", "random", "brute_force"])
def test_what_promises_less_than_the_least_gain_is_passed_over(sampler):
    """The search goes on with what promises more; it ends when nothing does."""
    found, least, plain = desk(sampler=sampler, min_gain=0.02, trials=100), 0.02, desk()
    trials = [trial(found, found.space.feasible[0], 0.7)]
    while (promised := shares(plain, trials)) and (move := choose(found, trials)) is not None:
        assert promised[move.candidate] >= least
        trials.append(trial(found, move.candidate, 0.7, number=len(trials)))
    assert promised
    assert max(promised.values()) < least
    assert len(trials) > 1


def test_before_the_first_model_no_gain_is_asked_for():
    for sampler in ("auto", "random"):
        found = desk(sampler=sampler, min_gain=0.99)
        at_work = [trial(found, found.space.feasible[0], None, epochs=None, state="training")]
        assert choose(found, at_work) is not None


def test_one_ask_takes_little_beside_a_thousand_trials():
    found = desk()
    rng = np.random.default_rng(0)
    trials = [
        trial(found, found.space.feasible[i % 10], float(rng.uniform()), number=i, epochs=1, state="paused")
        for i in range(1000)
    ]
    began = time.process_time()
    for _ in range(5):
        choose(found, trials, trials[:300])
    assert (time.process_time() - began) / 5 / slowness() < 0.1


def rated(monkeypatch, found, favourite, asked=None):
    """TPE that likes one candidate beyond all others."""

    def ratios(_, history, objectives, foretold, places):
        if asked is not None:
            asked.append((tuple(history), tuple(objectives), dict(foretold)))
        return np.array([20.0 if found.space.feasible[place] == favourite else 0.0 for place in places])

    monkeypatch.setattr(choice.Sampler, "ratios", ratios)


def test_of_new_candidates_the_product_of_rate_and_ratio_decides(monkeypatch):
    found = desk()
    done = [trial(found, found.space.feasible[-1], 0.9)]
    plain = choose(found, done)
    favourite = next(c for c in found.space.feasible if c.arch != plain.candidate.arch)
    rated(monkeypatch, found, favourite)
    assert choose(found, done).candidate == favourite
    promised = shares(found, done)
    assert 0 < promised[favourite] < promised[plain.candidate], "what it is expected to add is the surrogate's to say"


def test_a_trial_that_waits_is_weighed_by_its_rate_alone(monkeypatch):
    found = desk()
    best, poor = found.space.feasible[-1], found.space.feasible[0]
    trials = [trial(found, best, 0.95, epochs=3, state="paused"), trial(found, poor, 0.1, number=1)]
    paid = {key for key, _ in found.chooser._prices.mentors(best)}
    asked = []
    rated(monkeypatch, found, found.space.feasible[1], asked)
    assert choose(found, trials, trials[:1], paid=paid).trial == trials[0]
    ((told, objectives, foretold),) = asked
    assert (list(told), objectives) == (trials, found.planner.spec.objectives)
    surrogate = found.chooser._surrogate
    assert foretold == {0: surrogate.hopes(surrogate.read(trials)[1])[1][0]}, "as it will be at its end"
