import pytest

from stillhouse.search.domain import Candidate, Cost, Size
from stillhouse.search.job import TrialRecord
from stillhouse.search.rungs import hopeful, leading, levels, promotable


@pytest.mark.parametrize(
    ("epochs", "eta", "expected"),
    [(12, 3, (1, 4, 12)), (9, 3, (1, 3, 9)), (12, 1, (12,)), (2, 3, (2,)), (16, 2, (1, 2, 4, 8, 16)), (1, 3, (1,))],
)
def test_levels_rise_by_eta_up_to_the_whole_training(epochs, eta, expected):
    assert levels(epochs, eta) == expected


def trial(number, accuracy, macs, *, epochs=1, state="paused"):
    size = Size(64, 64)
    return TrialRecord(
        "j", number, Candidate("a", size, size), state, Cost(macs=macs), accuracy=accuracy, epochs=epochs
    )


def numbers(trials, eta=3, levels=(1, 3, 9)):
    return [found.number for found in promotable(trials, levels, eta, ("macs",))]


def test_one_in_eta_of_a_rung_trains_on_and_the_front_comes_first():
    rung = [trial(0, 0.5, 100), trial(1, 0.4, 100), trial(2, 0.7, 100), trial(3, 0.3, 100), trial(4, 0.6, 100)]
    assert numbers(rung) == [2, 4]
    assert numbers(rung[:2]) == [0], "a rung of any size lets one train on"


def test_equal_ranks_are_taken_far_from_each_other():
    rung = [trial(0, 0.9, 2**20), trial(1, 0.89, 2**19), trial(2, 0.2, 2**4), trial(3, 0.88, 2**18)]
    assert numbers(rung, eta=2) == [0, 2]


def test_who_has_gone_on_still_counts_and_is_not_named_again():
    rung = [trial(0, 0.9, 100, epochs=9, state="done"), trial(1, 0.5, 100), trial(2, 0.4, 100)]
    assert numbers(rung) == []
    assert numbers([*rung, trial(3, 0.6, 100)]) == [3]


def test_higher_rungs_come_first():
    assert numbers([trial(0, 0.5, 100, epochs=3), trial(1, 0.9, 100)]) == [0, 1]


def test_nothing_is_promoted_from_trials_at_work_stopped_or_at_the_end():
    states = ("training", "stopped", "failed", "costing")
    assert numbers([trial(i, 0.5 + i / 10, 100, state=state) for i, state in enumerate(states)]) == []
    assert numbers([trial(0, 0.9, 100, epochs=9, state="done")]) == []


LEVELS = (1, 3, 9)


def curve(*accuracies):
    return dict(zip(LEVELS, accuracies, strict=False))


def left(rule, trials, curves):
    return [found.number for found in rule(trials, curves, LEVELS, ("macs",))]


def test_all_may_hope_until_one_has_come_to_its_end():
    rung = [trial(0, 0.1, 100), trial(1, 0.5, 100), trial(2, 0.3, 50)]
    assert left(hopeful, rung, {0: curve(0.1), 1: curve(0.5), 2: curve(0.3)}) == [1, 2, 0], "by rank"


def test_who_could_not_catch_up_with_one_that_costs_no_more_is_given_up():
    ended = [trial(0, 0.8, 100, epochs=9, state="done"), trial(1, 0.5, 40, epochs=9, state="done")]
    curves = {0: curve(0.5, 0.7, 0.8), 1: curve(0.3, 0.4, 0.5)}
    rung = [trial(2, 0.51, 100), trial(3, 0.49, 100), trial(4, 0.21, 50), trial(5, 0.1, 50), trial(6, 0.0, 30)]
    rung.append(trial(7, 0.65, 100, epochs=3))
    curves |= {n: curve(rung[n - 2].accuracy) for n in (2, 3, 4, 5, 6)} | {7: curve(0.2, 0.65)}
    assert left(hopeful, [*ended, *rung], curves) == [2, 6, 4], "at most 0.3 is gained from epoch 1, and 0.1 from 3"


def test_a_cost_that_is_not_known_gives_nobody_up():
    ended, waits = trial(0, 0.9, 100, epochs=9, state="done"), trial(1, 0.1, None)
    assert left(hopeful, [ended, waits], {0: curve(0.9, 0.9, 0.9), 1: curve(0.1)}) == [1]


def test_who_leads_a_rung_is_told_by_what_all_had_there():
    ended = trial(0, 0.9, 100, epochs=9, state="done")
    rung = [trial(1, 0.6, 100), trial(2, 0.4, 100), trial(3, 0.3, 50)]
    curves = {0: curve(0.5, 0.7, 0.9), 1: curve(0.6), 2: curve(0.4), 3: curve(0.3)}
    assert left(leading, [ended, *rung], curves) == [1, 3]
    assert left(leading, [ended, *rung[1:], trial(4, 0.1, 10, epochs=3)], curves) == [4, 3]
