import pytest

from stillhouse.search.domain import Candidate, Cost, Size
from stillhouse.search.job import TrialRecord
from stillhouse.search.rungs import levels, promotable


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
