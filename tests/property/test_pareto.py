import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.search.pareto import dominates, front, hypervolume, knee

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
