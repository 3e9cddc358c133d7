"""Counts of candidates against limits, told longhand."""

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Budget, Candidate, Cost, Size
from stillhouse.search.estimate import estimate, promise
from stillhouse.search.job import JobSpec
from stillhouse.search.space import Space

SIDES = (32, 64, 96)


def space(budget: Budget, archs: int = 3, sides: tuple[int, ...] = SIDES) -> Space:
    entries = {
        f"net{i}": {
            "family": "cnn",
            "stems": ["stock"],
            "macs_per_class": 0,
            "params_per_class": 0,
            "cells": {f"{side}x{side}|stock": {"macs": (i + 1) * side**2, "params": 1000 * (i + 1)} for side in sides},
        }
        for i in range(archs)
    }
    data = {"names": list(entries), "archs": entries, "image_sizes": [str(side) for side in sides]}
    curve = [
        {"fit": "squash", "codec": "jpeg", "quality": 90, "size": str(side), "mean_bytes": 10.0 * side}
        for side in sides
    ]
    found = Catalogue.from_json({**data, "weights": {"package": ["net1"]}})
    return Space(found, {"classes": ["a", "b"], "curve": curve}, JobSpec("d", budget))


def test_without_limits_all_fit_and_nothing_binds() -> None:
    found = estimate(space(Budget()), {})
    assert found.fits == found.candidates > 0
    assert found.binds is None
    assert found.relax == ()
    assert found.reason is None


def test_counts_are_those_of_the_list() -> None:
    budget = Budget(max_macs=9000, max_params=2000, max_image_size=Size(64, 64))
    given_space = space(budget)
    found = estimate(given_space, {})
    costs = [given_space.cost(candidate) for candidate in given_space.candidates]
    beyond = [budget.excess(cost) for cost in costs]
    assert found.fits == sum(not each for each in beyond)
    for name in ("max_macs", "max_params", "max_image_size"):
        assert found.ruled_out[name] == sum(name in each for each in beyond)
        assert found.ruled_out_alone[name] == sum(set(each) == {name} for each in beyond)
    assert found.binds == max(found.ruled_out_alone, key=lambda name: found.ruled_out_alone[name])
    assert found.cheapest["macs"].candidate == Candidate("net0", Size(32, 32), Size(32, 32))
    assert found.cheapest["macs"].cost.macs == 1024
    assert found.likely_best is not None
    assert found.likely_best.candidate.arch == "net1", "trained weights are there for it alone"


def test_relaxing_opens_what_lies_within_the_share() -> None:
    found = estimate(space(Budget(max_macs=3800)), {})
    opened = {each.by: (each.value, each.opens) for each in found.relax}
    # 32 px: 1024, 2048, 3072 MACs; 64 px: 4096, 8192, ...
    assert opened[0.10][0] == 4180
    assert opened[0.10][1] == opened[0.25][1] == opened[0.50][1] > 0
    best = next(each.likely_best for each in found.relax if each.by == 0.10)
    assert best is not None
    assert best.cost.macs == 4096


def test_a_budget_that_nothing_meets_is_answered_with_what_to_relax() -> None:
    found = estimate(space(Budget(max_macs=1000)), {})
    assert found.fits == 0
    assert found.likely_best is None
    assert found.reason is not None
    assert "max_macs >= 1,024" in found.reason
    assert [each.opens for each in found.relax] == [1, 1, 1]
    assert found.to_json()["relax"][0]["likely_best"]["candidate"]["arch"] == "net0"


def test_what_was_measured_counts_and_what_was_not_is_told() -> None:
    given_space = space(Budget(max_latency_ms=5.0))
    slow, quick = given_space.candidates[0], given_space.candidates[1]
    found = estimate(given_space, {slow: Cost(latency_ms=9.0), quick: Cost(latency_ms=1.0)})
    assert found.fits == found.candidates - 1
    assert found.unmeasured == found.candidates - 2
    assert found.ruled_out == {"max_latency_ms": 1}


@given(st.integers(500, 40_000), st.integers(800, 4000), st.sampled_from([None, 32, 64, 96]))
def test_relaxing_never_closes_a_candidate(macs: int, params: int, side: int | None) -> None:
    budget = Budget(max_macs=macs, max_params=params, max_image_size=None if side is None else Size(side, side))
    given_space = space(budget)
    found = estimate(given_space, {})
    assert found.fits == len(given_space.feasible) or budget.needs_device
    for each in found.relax:
        relaxed = dataclasses.replace(budget, **{each.limit: each.value})
        fits = sum(not relaxed.excess(given_space.cost(candidate)) for candidate in given_space.candidates)
        assert fits == found.fits + each.opens


def test_promise_puts_trained_weights_first_then_the_picture() -> None:
    given_space = space(Budget())
    ranked = sorted(given_space.candidates, key=lambda candidate: promise(given_space, candidate))
    assert ranked[-1].arch == "net1"
    assert ranked[-1].image_size == Size(96, 96)


@pytest.mark.parametrize("limit", [Budget(max_macs=200_000, max_params=30_000), Budget(max_latency_ms=3.0)])
def test_three_thousand_candidates_take_less_than_two_seconds(limit: Budget) -> None:
    sides = tuple(range(32, 160, 8))
    given_space = space(limit, archs=90, sides=sides)
    assert len(given_space.candidates) > 3000
    began = time.process_time()
    estimate(given_space, {})
    assert time.process_time() - began < 2.0
