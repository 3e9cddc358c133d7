import math

import numpy as np
import pytest

from stillhouse.search.gain import Boxes, Prior, _merged, expected_improvement, quadratic
from stillhouse.search.pareto import hypervolume

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("best", [0.2, 0.5, 0.9])
def test_expected_improvement_is_the_mean_over_draws(best):
    draws = np.maximum(0.0, RNG.normal(0.5, 0.1, 2_000_000) - best).mean()
    found = expected_improvement(np.array([0.5]), np.array([0.1]), np.array([best]))
    assert found[0] == pytest.approx(draws, abs=2e-4)


def test_a_sure_improvement_is_the_difference():
    found = expected_improvement(np.array([0.7, 0.3]), np.array([1e-9, 1e-9]), np.array([0.5, 0.5]))
    assert found == pytest.approx([0.2, 0.0], abs=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_gain_of_a_sure_accuracy_is_the_hypervolume_that_it_adds(dims):
    for _ in range(20):
        accuracy, costs = RNG.uniform(0.1, 0.9, 6), RNG.uniform(0, 1, (6, dims))
        new = np.column_stack((RNG.uniform(0.1, 0.9, 4), RNG.uniform(0, 1, (4, dims))))
        corner = (0.05, *[1.0] * dims)
        old = np.column_stack((accuracy, costs))
        boxes = Boxes(accuracy, costs, 0.05)
        assert boxes.hypervolume == pytest.approx(hypervolume(old, corner))
        added = [hypervolume([*old, point], corner) - hypervolume(old, corner) for point in new]
        assert boxes.gains(new[:, 0], np.full(4, 1e-9), new[:, 1:]) == pytest.approx(added, abs=1e-6)


def test_the_expected_gain_is_the_mean_over_draws():
    accuracy, costs = np.array([0.5, 0.7]), np.array([[0.2, 0.6], [0.5, 0.3]])
    boxes, at = Boxes(accuracy, costs, 0.1), np.array([[0.4, 0.4]])
    draws = RNG.normal(0.6, 0.1, 4000)
    mean = boxes.gains(draws, np.full(4000, 1e-9), np.repeat(at, 4000, axis=0)).mean()
    assert boxes.gains(np.array([0.6]), np.array([0.1]), at)[0] == pytest.approx(mean, rel=0.03)


def test_an_empty_front_leaves_everything_to_be_won():
    boxes = Boxes(np.empty(0), np.empty((0, 2)), 0.1)
    assert boxes.hypervolume == 0
    assert boxes.gains(np.array([0.6]), np.array([1e-9]), np.array([[0.5, 0.5]]))[0] == pytest.approx(0.5 * 0.25)


def test_a_large_front_is_thinned_and_still_ranks():
    costs = RNG.uniform(0, 0.9, (400, 3))
    boxes = Boxes(1 - costs.sum(axis=1) / 3, costs, 0.0)
    gains = boxes.gains(np.array([0.99, 0.2]), np.array([0.01, 0.01]), np.array([[0.05] * 3, [0.9] * 3]))
    assert gains[0] > 10 * gains[1]


def test_points_worse_than_the_reference_and_equal_costs_add_what_hypervolume_says():
    for dims in (1, 2, 3):
        for count in range(9):
            accuracy, costs = RNG.integers(0, 11, count) / 10, RNG.integers(0, 11, (count, dims)) / 10
            new = np.column_stack((RNG.uniform(0, 1, 8), RNG.integers(0, 11, (8, dims)) / 10))
            corner, old = (0.35, *[1.0] * dims), np.column_stack((accuracy, costs))
            boxes = Boxes(accuracy, costs, 0.35)
            assert boxes.hypervolume == pytest.approx(hypervolume(old, corner))
            added = [hypervolume([*old, point], corner) - hypervolume(old, corner) for point in new]
            assert boxes.gains(new[:, 0], np.full(8, 1e-9), new[:, 1:]) == pytest.approx(added, abs=1e-6)


def test_boxes_of_one_level_are_joined():
    costs = RNG.uniform(0, 0.9, (300, 2))
    boxes = Boxes(costs.mean(axis=1), costs, 0.0)
    assert boxes._low.shape[1] < 0.1 * (len(boxes.levels) - 1) ** 2
    assert boxes.volumes(np.zeros((1, 2))).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(7,), (5, 6), (3, 4, 5)])
def test_joined_boxes_cover_each_cell_once_at_its_level(shape):
    cells, level = np.indices(shape).reshape(len(shape), -1), RNG.integers(0, 2, math.prod(shape))
    low, high, levels = _merged(cells, cells + 1, level)
    inside = ((low[:, :, None] <= cells[:, None, :]) & (cells[:, None, :] < high[:, :, None])).all(axis=0)
    assert inside.sum(axis=0).tolist() == [1] * len(level)
    assert (levels[inside.argmax(axis=0)] == level).all()
    assert len(levels) < len(level) and (np.diff(levels) >= 0).all()


def test_the_linear_model_is_weighted_least_squares_with_a_prior():
    x, weights = RNG.normal(size=(400, 3)), np.array([0.3, -0.2, 0.1])
    y, one = x @ weights + RNG.normal(0, 0.05, 400), np.zeros(400, dtype=np.intp)
    model = Prior(np.zeros(3), np.full(3, 10.0), np.array([1e-6])).told(x, one, y, np.full(400, 0.05))
    expected, *_ = np.linalg.lstsq(x, y, rcond=None)
    assert model.mean == pytest.approx(expected, abs=1e-4)
    _, sd = model.predict(np.eye(3), one[:3])
    assert sd == pytest.approx(np.full(3, 0.05 / math.sqrt(400)), rel=0.15)


def test_offsets_of_groups_are_weights_of_features_that_say_who_is_in_them():
    """Against the whole table longhand, with a column a group; the last group is never seen."""
    x, group, y = RNG.normal(size=(50, 3)), RNG.integers(0, 4, 50), RNG.normal(size=50)
    noise, mean = RNG.uniform(0.1, 1.0, 50), RNG.normal(size=3)
    sd, group_sd = np.array([0.5, 1.0, 2.0]), np.array([0.3, 0.4, 0.5, 0.6, 0.7])
    model = Prior(mean, sd, group_sd).told(x, group, y, noise)
    whole = np.hstack((x, np.eye(5)[group])) / noise[:, None]
    precision = np.diag(np.concatenate((sd, group_sd)) ** -2.0)
    covariance = np.linalg.inv(precision + whole.T @ whole)
    weights = covariance @ (precision @ np.concatenate((mean, np.zeros(5))) + whole.T @ (y / noise))
    new, groups = RNG.normal(size=(10, 3)), np.arange(10) % 5
    asked = np.hstack((new, np.eye(5)[groups]))
    found, spread = model.predict(new, groups)
    assert found == pytest.approx(asked @ weights)
    assert spread**2 == pytest.approx(np.diag(asked @ covariance @ asked.T))


def test_before_anything_is_seen_the_model_is_its_prior():
    nothing = np.empty((0, 2)), np.empty(0, dtype=np.intp), np.empty(0), np.empty(0)
    model = Prior(np.ones(2), np.full(2, 2.0), np.full(3, 4.0)).told(*nothing)
    mean, sd = model.predict(np.array([[1.0, 2.0]]), np.array([1]))
    assert mean == pytest.approx([3.0]) and sd == pytest.approx([math.sqrt(4 + 16 + 16)])


def test_quadratic_features_are_all_products_of_two():
    assert quadratic(np.array([[2.0, 3.0]])).tolist() == [[2, 3, 4, 6, 9]]
