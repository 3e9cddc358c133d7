import itertools
import math

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.search.pareto import (
    cheapest_within,
    dominates,
    front,
    hypervolume,
    knee,
    mcnemar,
    net_order,
    promotion_order,
    ranks,
)

# A coarse grid, so that ties and duplicates are common.
NUMBERS = st.integers(0, 6).map(float)


def tables(objectives, *, least=0, most=12):
    return st.lists(st.tuples(*[NUMBERS] * objectives), min_size=least, max_size=most)


ANY = st.integers(1, 4).flatmap(tables)
SOME = st.integers(1, 4).flatmap(lambda m: tables(m, least=1))
THREE = st.integers(1, 4).flatmap(lambda m: st.tuples(*[st.tuples(*[NUMBERS] * m)] * 3))


@given(THREE)
def test_dominance_is_a_strict_partial_order(points):
    a, b, c = points
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))
    if dominates(a, b) and dominates(b, c):
        assert dominates(a, c)


@given(ANY)
def test_front_holds_exactly_what_nothing_dominates(points):
    members = front(points)
    assert members == sorted(set(members))
    for index, point in enumerate(points):
        beaten = any(dominates(other, point) for other in points)
        first = points.index(point) == index
        assert (index in members) == (not beaten and first)


@given(ANY, st.randoms(use_true_random=False))
def test_front_does_not_depend_on_the_order(points, random):
    shuffled = random.sample(points, len(points))
    assert sorted(points[i] for i in front(points)) == sorted(shuffled[i] for i in front(shuffled))


@given(SOME)
def test_knee_lies_on_the_front(points):
    assert knee(points) in front(points)


def by_inclusion_and_exclusion(points, reference):
    total = 0.0
    for count in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, count):
            accuracy = min(point[0] for point in chosen) - reference[0]
            costs = [limit - max(point[i] for point in chosen) for i, limit in enumerate(reference[1:], start=1)]
            total += (-1) ** (count + 1) * math.prod(max(0.0, side) for side in (accuracy, *costs))
    return total


@given(st.integers(1, 4).flatmap(lambda m: st.tuples(tables(m, most=6), st.just((1.0, *[5.0] * (m - 1))))))
def test_hypervolume_is_that_of_the_union_of_boxes(case):
    points, reference = case
    assert hypervolume(points, reference) == pytest.approx(by_inclusion_and_exclusion(points, reference))


@given(st.integers(2, 4).flatmap(lambda m: tables(m, least=1, most=9)))
def test_hypervolume_never_falls_and_only_the_front_counts(points):
    reference = (0.0, *[7.0] * (len(points[0]) - 1))
    whole = hypervolume(points, reference)
    assert whole >= hypervolume(points[:-1], reference) - 1e-9
    assert whole == pytest.approx(hypervolume([points[i] for i in front(points)], reference))


@given(st.integers(2, 4).flatmap(lambda m: tables(m, least=1, most=9)))
def test_hypervolume_is_that_of_the_reference_library(points):
    reference = (0.0, *[7.0] * (len(points[0]) - 1))
    signs = np.array([-1.0, *[1.0] * (len(points[0]) - 1)])
    expected = moocore.hypervolume(np.array(points) * signs, ref=np.array(reference) * signs)
    assert hypervolume(points, reference) == pytest.approx(expected)


@given(ANY)
def test_each_rank_is_beaten_by_the_one_above_it(points):
    found = ranks(points)
    for index, point in enumerate(points):
        better = [found[other] for other, rival in enumerate(points) if dominates(rival, point)]
        assert found[index] == max(better, default=-1) + 1


@given(ANY)
def test_promotion_goes_rank_by_rank_and_leaves_none_out(points):
    order = promotion_order(points)
    assert sorted(order) == list(range(len(points)))
    found = ranks(points)
    assert [found[index] for index in order] == sorted(found)


@given(SOME)
def test_a_net_begins_with_the_most_accurate_and_each_next_is_the_farthest(points):
    order = net_order(points)
    assert sorted(order) == list(range(len(points)))
    assert points[order[0]][0] == max(point[0] for point in points)
    table = np.array(points)
    scaled = (table - table.min(0)) / np.where(np.ptp(table, axis=0) > 0, np.ptp(table, axis=0), 1.0)
    for place in range(1, len(order)):
        gap = [min(np.sum((scaled[i] - scaled[j]) ** 2) for j in order[:place]) for i in order[place:]]
        assert gap[0] == pytest.approx(max(gap))


@given(st.integers(2, 4).flatmap(lambda m: tables(m, least=1)))
def test_the_cheapest_within_a_margin_is_accurate_enough_and_cheapest(points):
    index, best = cheapest_within(points, margin=1.0), max(point[0] for point in points)
    assert points[index][0] >= best - 1
    assert points[index][1] == min(point[1] for point in points if point[0] >= best - 1)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_test(a, b):
    n = a + b
    chances = [math.comb(n, k) / 2**n for k in range(n + 1)]
    expected = sum(chance for chance in chances if chance <= chances[a] * (1 + 1e-9))
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(expected)
