import itertools
import math

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.search.compare import mcnemar, significant_front, tied_with
from stillhouse.search.pareto import (
    cheapest_within,
    dominates,
    front,
    hypervolume,
    knee,
    net_order,
    promotion_order,
    ranks,
)

# A coarse grid, so that ties and duplicates are common.
NUMBERS = st.integers(0, 6).map(float)


def tables(objectives, *, least=0, most=12):
    return st.lists(st.tuples(*[NUMBERS] * objectives), min_size=least, max_size=most)


ANY = st.integers(1, 5).flatmap(tables)
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


@given(SOME, st.data())
def test_front_does_not_depend_on_duplicates(points, data):
    more = points + data.draw(st.lists(st.sampled_from(points), max_size=4))
    assert front(more) == front(points)


@pytest.mark.parametrize("spread", [3, 12, 1000])
@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
def test_front_of_many_points_is_that_of_longhand(objectives, spread):
    """More than are compared at once, with few values (many ties and duplicates) and with many."""
    points = np.random.default_rng(spread).integers(0, spread, (800, objectives)).astype(float)
    cheap = points * np.array([-1, *[1] * (objectives - 1)])
    no_worse = np.all(cheap[:, None] <= cheap[None], axis=2)
    beaten = np.any(no_worse & ~no_worse.T, axis=0)
    # Of equal points the first: argmax finds the first that is no worse, which for a member is its first equal.
    first = no_worse.argmax(axis=0) == np.arange(len(points))
    assert front(points) == np.flatnonzero(~beaten & first).tolist()


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
def test_rank_nought_is_the_front_and_the_equals_of_its_members(points):
    members = {points[index] for index in front(points)}
    assert [point in members for point in points] == [rank == 0 for rank in ranks(points)]


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


@given(st.integers(2, 4).flatmap(lambda m: st.tuples(tables(m, least=1), st.integers(1, m - 1))), st.integers(0, 3))
def test_the_cheapest_within_a_margin_is_a_member_accurate_enough_and_cheapest(case, margin):
    points, cost = case
    index, best = cheapest_within(points, cost, margin), max(point[0] for point in points)
    assert index in front(points)
    assert points[index][0] >= best - margin
    assert points[index][cost] == min(point[cost] for point in points if point[0] >= best - margin)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_test(a, b):
    n = a + b
    chances = [math.comb(n, k) / 2**n for k in range(n + 1)]
    expected = sum(chance for chance in chances if chance <= chances[a] * (1 + 1e-9))
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(expected)


@st.composite
def answers(draw):
    """(n, 2) costs and (n, pictures) what is told right: rows are nearly nested, so that leads of all sizes occur."""
    count, pictures = draw(st.integers(1, 7)), draw(st.integers(1, 30))
    costs = draw(st.lists(st.tuples(*[st.integers(0, 3)] * 2), min_size=count, max_size=count))
    levels = draw(st.lists(st.sampled_from([0, pictures // 2, pictures - 1, pictures]), min_size=count, max_size=count))
    flips = draw(st.lists(st.sets(st.integers(0, pictures - 1), max_size=2), min_size=count, max_size=count))
    right = np.arange(pictures) < np.array(levels)[:, None]
    for row, flipped in zip(right, flips, strict=True):
        row[list(flipped)] ^= True
    return np.array(costs, dtype=float), right


LEVELS = st.sampled_from([0.0, 0.01, 0.05, 0.5])


def longhand_p(a, b):
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n)


def plain(costs, right):
    return front(np.column_stack((right.mean(axis=1), costs)))


@given(answers(), LEVELS)
def test_significant_front_drops_what_a_no_dearer_one_significantly_beats_and_copies_alone(case, alpha):
    costs, right = case
    members = significant_front(costs, right, alpha)
    for index in range(len(costs)):
        ruled_out = any(
            np.all(costs[rival] <= costs[index])
            and right[rival].sum() > right[index].sum()
            and longhand_p(right[rival], right[index]) < alpha
            for rival in range(len(costs))
        )
        copy = any(
            np.array_equal(costs[i], costs[index]) and np.array_equal(right[i], right[index]) for i in range(index)
        )
        assert (index in members) == (not ruled_out and not copy)


@given(answers(), LEVELS)
def test_significant_front_holds_the_plain_one_and_shrinks_as_the_level_rises(case, alpha):
    costs, right = case
    members = set(significant_front(costs, right, alpha))
    assert set(plain(costs, right)) <= members <= set(significant_front(costs, right, alpha / 2))


@given(answers(), st.randoms(use_true_random=False))
def test_what_noise_leaves_open_does_not_depend_on_the_order(case, random):
    costs, right = case
    order = random.sample(range(len(costs)), len(costs))

    def kept(costs, right):
        return sorted((*costs[i], *right[i]) for i in significant_front(costs, right))

    assert kept(costs, right) == kept(costs[order], right[order])


@given(answers(), LEVELS)
def test_a_tie_is_with_the_most_accurate_cheaper_member_and_is_not_significant(case, alpha):
    costs, right = case
    members, found = plain(costs, right), tied_with(costs, right, alpha)
    assert list(found) == members
    for member, rival in found.items():
        cheaper = [i for i in members if i != member and np.all(costs[i] <= costs[member])]
        most = max((right[i].sum() for i in cheaper), default=None)
        nearest = [i for i in cheaper if right[i].sum() == most]
        if rival is None:
            assert not nearest or any(longhand_p(right[member], right[i]) < alpha for i in nearest)
        else:
            assert rival in nearest
            assert right[rival].sum() < right[member].sum()
            assert longhand_p(right[member], right[rival]) >= alpha
