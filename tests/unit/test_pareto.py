import dataclasses
from functools import partial

import moocore
import numpy as np
import pytest

from speed import standard_seconds
from stillhouse.search.domain import Accuracy, Budget, Candidate, Cost, Deployment, Size
from stillhouse.search.pareto import (
    cheapest_within,
    deployment_front,
    dominates,
    front,
    hypervolume,
    knee,
    net_order,
    promotion_order,
    ranks,
)


def test_accuracy_counts_upward_and_costs_downward():
    assert dominates((0.9, 5), (0.8, 5))
    assert dominates((0.9, 4), (0.9, 5))
    assert not dominates((0.9, 5), (0.9, 5))
    assert not dominates((0.9, 5), (0.8, 4))


@pytest.mark.parametrize(
    ("points", "members"),
    [
        ([], []),
        ([(0.5,), (0.7,), (0.7,)], [1]),
        ([(0.5, 1), (0.9, 9), (0.7, 9), (0.7, 5), (0.4, 2)], [0, 1, 3]),
        ([(0.7, 5), (0.5, 5), (0.7, 5)], [0]),
        ([(0.5, 1, 9), (0.5, 9, 1), (0.5, 9, 9), (0.4, 1, 1), (0.5, 1, 9)], [0, 1, 3]),
    ],
)
def test_front_of_small_cases(points, members):
    assert front(points) == members


@pytest.mark.parametrize("points", [[0.5, 0.7], [(0.5, float("nan"))], [(0.5, float("inf"))]])
def test_front_refuses_what_cannot_be_compared(points):
    with pytest.raises(ValueError, match="finite numbers"):
        front(points)


def many(objectives, noise):
    """100,000 points as searches give them: costs over decades, accuracy that grows with all of them, in 1 / 5000."""
    rng = np.random.default_rng(0)
    costs = 2 ** rng.uniform(0, 12, (100_000, objectives - 1))
    accuracy = 1 - 0.6 * np.prod(costs, axis=1) ** (-0.12 / (objectives - 1)) + rng.normal(0, noise, len(costs))
    return np.column_stack((np.round(np.clip(accuracy, 0, 1) * 5000) / 5000 if noise else accuracy, costs))


@pytest.mark.parametrize(
    ("objectives", "noise", "least"), [(2, 0.05, 10), (2, 0.0, 99_000), (3, 0.05, 100), (3, 0.0, 90_000)]
)
def test_front_of_a_hundred_thousand_points_is_fast(objectives, noise, least):
    took, members = standard_seconds(partial(front, many(objectives, noise)))
    assert took < 0.5
    assert len(members) > least


def test_front_of_three_objectives_is_fast_where_the_costs_trade_off():
    rng = np.random.default_rng(0)
    cost = rng.random(100_000)
    took, members = standard_seconds(partial(front, np.column_stack((rng.random(100_000), cost, 1 - cost))))
    assert took < 0.5
    assert len(members) > 99_000


def test_promotion_order_of_a_thousand_points_is_fast():
    took, order = standard_seconds(partial(promotion_order, many(3, 0.05)[:1000]))
    assert took < 0.1
    assert len(order) == 1000


def test_hypervolume_by_hand():
    assert hypervolume([(0.6,)], (0.5,)) == pytest.approx(0.1)
    # Two boxes 2 x 3 and 1 x 5 (accuracy x cost) that share 1 x 3.
    assert hypervolume([(2, 7), (1, 5)], (0, 10)) == pytest.approx(2 * 3 + 1 * 5 - 1 * 3)
    # Three unit-thick boxes around a corner.
    assert hypervolume([(3, 9, 9), (1, 7, 9), (1, 9, 7)], (0, 10, 10)) == pytest.approx(3 + 3 + 3 - 1 - 1 - 1 + 1)
    assert hypervolume([], (0, 1)) == 0.0
    assert hypervolume([(0, 5), (-1, 2), (1, 10)], (0, 10)) == 0.0


def test_hypervolume_of_two_thousand_members_in_three_objectives_is_exact_and_fast():
    on_a_sphere = np.abs(np.random.default_rng(0).normal(size=(2000, 3)))
    on_a_sphere /= np.linalg.norm(on_a_sphere, axis=1, keepdims=True)
    took, found = standard_seconds(partial(hypervolume, on_a_sphere * (1, -1, -1), (0, 0, 0)))
    assert took < 0.5
    assert found == pytest.approx(moocore.hypervolume(-on_a_sphere, ref=np.zeros(3)))


def test_hypervolume_refuses_another_number_of_objectives():
    with pytest.raises(ValueError, match="same number of objectives"):
        hypervolume([(1, 2)], (0, 1, 2))


def test_knee_is_the_bend():
    points = [(0.50, 1), (0.45, 50), (0.85, 20), (0.90, 100)]
    assert knee(points) == 2
    assert knee([(0.5, 1)]) == 0
    with pytest.raises(ValueError, match="at least one point"):
        knee([])


def test_knee_is_the_same_in_any_unit():
    points = np.array([(0.50, 1, 9), (0.85, 20, 5), (0.90, 100, 1)])
    assert knee(points) == knee(points * [1, 1e6, 1e-3]) == 1


def test_cheapest_within_a_point():
    points = [(0.92, 100, 1), (0.91, 40, 9), (0.909, 5, 5), (0.915, 60, 2)]
    assert cheapest_within(points) == 1
    assert cheapest_within(points, cost=2) == 0
    assert cheapest_within(points, margin=0.02) == 2
    assert cheapest_within(points, margin=0.0) == 0
    # Equal in accuracy and in the cost asked for: the one that is no dearer in the rest.
    assert cheapest_within([(0.9, 5, 9), (0.9, 5, 3)]) == 1


@pytest.mark.parametrize(
    ("points", "cost", "margin", "said"),
    [
        ([], 1, 0.01, "at least one point"),
        ([(0.9, 5)], 0, 0.01, "1 <= cost < 2"),
        ([(0.9, 5)], 2, 0.01, "1 <= cost < 2"),
        ([(0.9, 5)], 1, -0.01, "margin must be >= 0"),
    ],
)
def test_cheapest_within_refuses_what_makes_no_sense(points, cost, margin, said):
    with pytest.raises(ValueError, match=said):
        cheapest_within(points, cost, margin)


def test_ranks_peel_the_points():
    points = [(0.9, 9), (0.5, 1), (0.5, 2), (0.8, 9), (0.4, 3), (0.9, 9)]
    assert ranks(points).tolist() == [0, 0, 1, 1, 2, 0]
    assert ranks([(0.5,), (0.7,), (0.7,), (0.6,)]).tolist() == [2, 0, 0, 1]
    assert ranks([]).tolist() == []


def test_a_net_spreads_from_the_most_accurate():
    # On a line, in units of its length: 1, then the other end 0, then the middle, then the middle of the wider gap.
    points = [(0.5, 0), (0.6, 20), (0.7, 50), (0.8, 100), (0.8, 100)]
    assert net_order(points) == [3, 0, 2, 1, 4]
    assert net_order([]) == []


def test_promotion_takes_the_front_first_and_spreads_over_it():
    points = [(0.5, 1), (0.7, 50), (0.8, 100), (0.79, 101), (0.79, 100)]
    assert promotion_order(points) == [2, 0, 1, 4, 3]
    assert promotion_order([]) == []


def deployment(number, correct, macs, image_bytes, *, model_bytes=100, identity=None):
    return Deployment(
        id=identity or f"m{number}",
        job_id="j",
        trial_number=number,
        candidate=Candidate("net", Size(32, 32), Size(64, 64)),
        cost=Cost(macs=macs, image_bytes=image_bytes, model_bytes=model_bytes),
        precision="fp32",
        validation=Accuracy(correct, 100),
        onnx_sha256="0" * 64,
        preprocess={},
        test=Accuracy(100 - correct, 100),
    )


def test_deployment_front_reads_validation_and_the_budget():
    best, cheap, beaten = deployment(2, 90, 50, 900), deployment(0, 60, 5, 300), deployment(1, 55, 6, 400)
    heavy, weak = deployment(3, 95, 40, 200, model_bytes=999), deployment(4, 30, 1, 100)
    budget = Budget(max_model_bytes=500, min_accuracy=0.5)
    found = deployment_front([best, heavy, beaten, cheap, weak], ("macs", "image_bytes"), budget)
    assert found == [cheap, best]
    assert deployment_front([best, weak], ("macs",), Budget()) == [best, weak]
    assert deployment_front([weak], ("macs",), budget) == []


def test_of_equal_deployments_the_earlier_trial_stays():
    late, early = deployment(5, 80, 10, 10, identity="a"), deployment(1, 80, 10, 10, identity="b")
    assert deployment_front([late, early], ("macs",), Budget()) == [early]


def test_of_equal_variants_the_jobs_own_stays():
    own = deployment(1, 80, 10, 10, identity="z")
    plain, bare = (
        dataclasses.replace(own, id=identity, details={"variant": name, "is_baseline": True})
        for identity, name in (("a", "plain_kd"), ("b", "no_teacher"))
    )
    assert deployment_front([plain, bare, own], ("macs",), Budget()) == [own]
    assert deployment_front([plain, bare], ("macs",), Budget()) == [bare]
    better = dataclasses.replace(plain, validation=Accuracy(81, 100))
    assert deployment_front([better, bare, own], ("macs",), Budget()) == [better]


def test_a_deployment_without_the_objective_is_refused():
    with pytest.raises(ValueError, match="no latency_ms"):
        deployment_front([deployment(0, 50, 1, 1)], ("latency_ms",), Budget())


def test_the_front_of_a_hundred_thousand_deployments_is_fast():
    points = many(3, 0.05)
    deployments = [
        deployment(number, round(accuracy * 100), macs, image_bytes)
        for number, (accuracy, macs, image_bytes) in enumerate(points)
    ]
    budget = Budget(max_model_bytes=500, min_accuracy=0.2)
    took, members = standard_seconds(partial(deployment_front, deployments, ("macs",), budget))
    assert took < 0.5
    assert len(members) > 10


def test_a_front_of_a_hundred_thousand_deployments_takes_less_than_half_a_second():
    rng = np.random.default_rng(0)
    candidate = Candidate("net", Size(32, 32), Size(32, 32))
    right = rng.integers(100, 900, 100_000).tolist()
    macs = (1e6 * 2 ** (np.array(right) / 100 + rng.normal(size=100_000))).astype(int).tolist()
    sent = rng.uniform(300, 3000, 100_000).tolist()
    costs = [Cost(macs=m, params=1, model_bytes=1, image_bytes=b) for m, b in zip(macs, sent, strict=True)]
    judged = {"judged": "coded", "picture": {"codec": "jpeg", "quality": 90}}
    deployments = [
        Deployment(
            id=str(index), job_id="j", trial_number=index // 3, candidate=candidate, cost=cost, precision="fp32",
            validation=Accuracy(900, 1000), onnx_sha256="x", preprocess={},
            details={**judged, "coded_val": {"correct": told, "total": 1000}},
        )
        for index, (told, cost) in enumerate(zip(right, costs, strict=True))
    ]  # fmt: skip
    budget = Budget(max_macs=10**9, max_image_bytes=2500, min_accuracy=0.2)
    took, members = standard_seconds(partial(deployment_front, deployments, ("macs", "image_bytes"), budget))
    assert took < 0.5
    assert {member.chosen_by for member in members} < {Accuracy(told, 1000) for told in right}
    assert all(member.chosen_share == member.chosen_by.value for member in members)
    plain = dataclasses.replace(members[0], details={})
    assert plain.chosen_share == plain.chosen_by.value == 0.9
