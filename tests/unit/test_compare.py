import time
from dataclasses import replace

import numpy as np
import pytest

from speed import slowness
from stillhouse.search.compare import in_doubt, mcnemar, significant_front, tied_with, ties
from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Size
from stillhouse.search.pareto import front


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (7, 1, 2 * (1 + 8) / 256),
        (4, 4, 1.0),
        # scipy.stats.binomtest(4800, 10_000).pvalue
        (4800, 5200, 6.593515598672e-05),
    ],
)
def test_mcnemar_by_hand(only_a, only_b, expected):
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="counts must be >= 0, but got -1 and 3"):
        mcnemar(-1, 3)


def told(*rows, pictures=100):
    """(n, pictures): each row tells its first so many pictures right, less those named after it."""
    right = np.zeros((len(rows), pictures), dtype=np.bool_)
    for row, (count, *wrong) in zip(right, rows, strict=True):
        row[:count] = True
        row[wrong] = False
    return right


def test_a_dearer_model_that_is_less_accurate_by_noise_stays():
    costs, right = [[1.0], [2.0], [3.0]], told((90,), (89,), (80,))
    assert front(np.column_stack((right.mean(axis=1), costs))) == [0]
    # One picture is luck; ten that the cheaper one alone tells right are not: p = 2 / 2^10.
    assert significant_front(costs, right) == [0, 1]
    assert significant_front(costs, right, alpha=0.001) == [0, 1, 2]


def test_a_lead_counts_by_the_pictures_not_by_its_size():
    # Each leads by 8 pictures, but the second pair disagrees on 12 + 20 of them.
    steady, shaky = told((90,), (82,)), told((90, *range(12)), (90, *range(70, 90)))
    assert mcnemar(8, 0) < 0.05 < mcnemar(20, 12)
    assert significant_front([[1.0], [2.0]], steady) == [0]
    assert significant_front([[1.0], [2.0]], shaky) == [0, 1]


def test_a_model_that_is_cheaper_in_something_is_never_ruled_out():
    assert significant_front([[1.0, 2.0], [2.0, 1.0]], told((90,), (10,))) == [0, 1]


def test_a_rival_that_is_itself_ruled_out_still_rules_out():
    costs = [[1.0], [2.0], [3.0]]
    right = told((90,), (80,), (70,))
    assert significant_front(costs, right) == [0]


def test_equally_accurate_models_stay_but_copies_do_not():
    costs = [[1.0], [1.0], [2.0], [1.0], [-0.0], [0.0]]
    right = told((90,), (90,), (90,), (91, 0), (50,), (50,))
    assert significant_front(costs, right) == [0, 2, 3, 4]


def test_tied_with_names_the_next_cheaper_member():
    costs = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [0.5, 9.0], [4.0, 4.0]]
    right = told((70,), (90,), (91,), (95,), (60,))
    # 90 against 70: significant. 91 against 90: not. 95 costs less in one thing and more in another than they do.
    assert tied_with(costs, right) == {0: None, 1: None, 2: 1, 3: None}
    assert tied_with(costs, right, alpha=0.0) == {0: None, 1: 0, 2: 1, 3: None}


def test_of_equally_accurate_cheaper_members_the_cheapest_in_the_first_cost_is_named():
    costs = [[2.0, 1.0], [1.0, 2.0], [3.0, 3.0]]
    assert tied_with(costs, told((90,), (90,), (91,))) == {0: None, 1: None, 2: 1}


def test_no_deployments_leave_nothing_open():
    none, right = np.empty((0, 2)), np.empty((0, 5), dtype=np.bool_)
    assert significant_front(none, right) == []
    assert tied_with(none, right) == {}


@pytest.mark.parametrize("function", [significant_front, tied_with])
@pytest.mark.parametrize(
    ("costs", "right", "alpha", "said"),
    [
        ([1.0], [[True]], 0.05, "costs must be a table"),
        ([[float("nan")]], [[True]], 0.05, "finite numbers"),
        ([[1.0]], [[1]], 0.05, "of bool, but got int64"),
        ([[1.0]], [[True], [False]], 0.05, r"table \(1, pictures >= 1\)"),
        ([[1.0]], np.empty((1, 0), dtype=np.bool_), 0.05, "pictures >= 1"),
        ([[1.0]], [[True]], 1.0, "0 <= alpha < 1"),
        ([[1.0]], [[True]], -0.1, "0 <= alpha < 1"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(function, costs, right, alpha, said):
    with pytest.raises(ValueError, match=said):
        function(costs, right, alpha)


def deployment(name, macs, right, *, kept=True):
    bits = {"right": np.packbits(right).tobytes().hex()} if kept else {}
    candidate = Candidate("a", Size(32, 32), Size(32, 32))
    accuracy = Accuracy(int(right.sum()), len(right))
    return Deployment(name, "j", 0, candidate, Cost(macs=macs), "fp32", accuracy, "0", {}, details=bits)


def test_ties_are_told_by_id_where_it_is_kept_what_each_tells_right():
    right = told([50], [52], [80])
    members = [deployment(name, macs, row) for name, macs, row in zip("abc", (1, 2, 3), right, strict=True)]
    assert ties(members, ("macs",)) == {"b": "a"}
    assert ties(members[:1], ("macs",)) == {}
    assert ties([members[0], deployment("b", 2, right[1], kept=False)], ("macs",)) == {}


def test_what_is_beaten_by_noise_alone_is_in_doubt():
    right = told([50], [49], [20])
    members = [deployment(name, macs, row) for name, macs, row in zip("abc", (1, 2, 3), right, strict=True)]
    assert in_doubt(members, {"a"}, ("macs",)) == ["b"]
    assert in_doubt(members[:1], {"a"}, ("macs",)) == []


def test_only_the_front_rules_out_what_is_in_doubt():
    front_member, rival, other = (np.zeros(100, dtype=np.bool_) for _ in range(3))
    other[:50] = True
    rival[:59] = True  # right wherever the other is, and on nine more: p = 2 / 2^9
    front_member[[*range(40), *range(70, 90)]] = True  # on 20 that the other is not, and not on 10 that it is: p = 0.1
    rows = (("a", 1, front_member), ("b", 3, other), ("c", 2, rival))
    members = [replace(deployment(name, macs, row), trial_number=macs) for name, macs, row in rows]
    assert significant_front([[1.0], [3.0], [2.0]], np.array([row for _, _, row in rows])) == [0, 2]
    assert in_doubt(members, {"a"}, ("macs",)) == ["b", "c"]


def test_in_doubt_is_what_the_tests_pair_by_pair_say():
    rng = np.random.default_rng(3)
    skill = rng.random((60, 1))
    right = rng.random((60, 203)) < 0.5 + 0.4 * skill
    costs = [(float(1 + round(40 * skill[i, 0]) + rng.integers(9)), float(rng.integers(1, 4))) for i in range(60)]
    members = [
        replace(deployment(f"m{i}", 0, right[i]), trial_number=i, cost=Cost(macs=macs, params=params))
        for i, (macs, params) in enumerate(costs)
    ]
    on_front = front(np.column_stack((right.mean(axis=1), costs)))

    def beats(a, b):
        cheaper = all(x <= y for x, y in zip(costs[a], costs[b], strict=True))
        only_a, only_b = np.count_nonzero(right[a] & ~right[b]), np.count_nonzero(right[b] & ~right[a])
        return cheaper and only_a > only_b and mcnemar(int(only_a), int(only_b)) < 0.05

    doubted = [f"m{i}" for i in range(60) if i not in on_front and not any(beats(member, i) for member in on_front)]
    assert in_doubt(members, {f"m{i}" for i in on_front}, ("macs", "params")) == doubted
    everybody = [i for i in range(60) if not any(beats(other, i) for other in range(60))]
    assert significant_front(costs, right) == everybody
    assert 0 < len(doubted) < 50


def test_a_hundred_thousand_deployments_are_told_apart_soon():
    rng = np.random.default_rng(0)
    count, pictures = 100_000, 500
    skill = rng.random(count).astype(np.float32)
    right = rng.random((count, pictures), dtype=np.float32) < (0.3 + 0.6 * skill)[:, None]
    costs = 2 ** (10 * skill + rng.uniform(0, 3, count))
    members = [
        replace(deployment(str(i), float(costs[i]), right[i]), trial_number=i, cost=Cost(macs=costs[i], params=1))
        for i in range(count)
    ]
    on_front = {str(i) for i in front(np.column_stack((right.mean(axis=1), costs)))}
    began = time.process_time()
    found = in_doubt(members, on_front, ("macs", "params"))
    assert (time.process_time() - began) / slowness() < 3.0
    assert 0 < len(found) < count / 2
