import dataclasses
import time

import numpy as np
import pytest

from stillhouse.search.domain import Accuracy, Budget, Candidate, Cost, Deployment, Size
from stillhouse.search.pareto import deployment_front, dominates, front, hypervolume, knee


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


def test_front_of_a_hundred_thousand_points_is_fast():
    points = np.random.default_rng(0).random((100_000, 2))
    started = time.process_time()
    members = front(points)
    assert time.process_time() - started < 0.5
    assert 2 < len(members) < 100


def test_hypervolume_by_hand():
    assert hypervolume([(0.6,)], (0.5,)) == pytest.approx(0.1)
    # Two boxes 2 x 3 and 1 x 5 (accuracy x cost) that share 1 x 3.
    assert hypervolume([(2, 7), (1, 5)], (0, 10)) == pytest.approx(2 * 3 + 1 * 5 - 1 * 3)
    # Three unit-thick boxes around a corner.
    assert hypervolume([(3, 9, 9), (1, 7, 9), (1, 9, 7)], (0, 10, 10)) == pytest.approx(3 + 3 + 3 - 1 - 1 - 1 + 1)
    assert hypervolume([], (0, 1)) == 0.0
    assert hypervolume([(0, 5), (-1, 2), (1, 10)], (0, 10)) == 0.0


def test_hypervolume_refuses_another_number_of_objectives():
    with pytest.raises(ValueError, match="same number of objectives"):
        hypervolume([(1, 2)], (0, 1, 2))


def test_knee_is_the_bend():
    points = [(0.50, 1), (0.45, 50), (0.85, 20), (0.90, 100)]
    assert knee(points) == 2
    assert knee([(0.5, 1)]) == 0
    with pytest.raises(ValueError, match="at least one point"):
        knee([])


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
