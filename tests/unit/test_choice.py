"""What the policy prefers, and what it thinks that things cost."""

import time

import numpy as np
import pytest

from instant import SUMMARY, catalogue
from stillhouse.search.advance import Desk
from stillhouse.search.domain import Candidate, Size
from stillhouse.search.effort import EXPORT_S, MEASURE_S, unpaid
from stillhouse.search.job import DatasetRecord, Epochs, JobRecord, JobSpec, TrialRecord

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
    for arch in ("small", "middle"):  # the large one is not worth its own training here
        paid = {key for c in found.space.feasible if c.arch == arch for key, _ in found.chooser._prices.mentors(c)}
        assert choose(found, paid=paid).candidate.arch == arch


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
    model = found.chooser._model(told)
    means = [model.predict(found.chooser._rows(group[4:]))[0].mean() for group in (small, large)]
    assert means[0] > means[1] + 0.2


def test_seconds_count_pictures_epochs_and_macs():
    found = desk()
    effort, candidate = found.chooser._prices._effort, Candidate("small", Size(32, 32), Size(32, 32))
    (*_, student) = found.planner.student(candidate, "tas")
    first = found.planner.rung(candidate, 1).last
    assert first.spec["until"] == 1
    # The last stage goes on from epoch 3 of 9.
    assert effort.seconds(student) == pytest.approx(6 * effort.seconds(first))
    whole = found.chooser._prices.student(candidate, 0)
    assert whole == pytest.approx(9 * effort.seconds(first) + EXPORT_S + MEASURE_S)
    assert found.chooser._prices.student(candidate, 9) == EXPORT_S + MEASURE_S


def test_mentors_that_are_paid_for_cost_nothing():
    found = desk()
    mentors = found.chooser._prices.mentors(found.space.feasible[0])
    assert unpaid(mentors, ()) == pytest.approx(sum(seconds for _, seconds in mentors))
    assert unpaid(mentors, {key for key, _ in mentors[1:]}) == mentors[0][1]
    assert unpaid(mentors, {key for key, _ in mentors}) == 0


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
    assert (time.process_time() - began) / 5 < 0.2
