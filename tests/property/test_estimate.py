import dataclasses
import functools

from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Budget, Cost, Size
from stillhouse.search.estimate import estimate
from stillhouse.search.job import JobSpec
from stillhouse.search.space import Space

SIDES = (32, 48, 64, 96)


@functools.cache
def catalogue():
    archs = {
        f"net{i}": {
            "family": "cnn",
            "stems": ["stock", "stride1"],
            "macs_per_class": 7,
            "params_per_class": 9,
            "cells": {
                f"{side}|{stem}": {"macs": (i + 1) * side**2 * factor, "params": 700 * (i + 1)}
                for side in SIDES
                for stem, factor in (("stock", 1), ("stride1", 4))
            },
        }
        for i in range(3)
    }
    sizes = [str(side) for side in SIDES]
    weights = {"package": ["net1"]}
    return Catalogue.from_json({"names": list(archs), "archs": archs, "image_sizes": sizes, "weights": weights})


CURVE = [
    {"fit": "squash", "codec": "jpeg", "quality": 90, "size": str(side), "mean_bytes": 200 + side**1.6}
    for side in SIDES
]


def space(budget):
    spec = JobSpec("d", budget, qualities=(), precisions=("fp32",))
    return Space(catalogue(), {"classes": ["a", "b"], "curve": CURVE}, spec)


def limit(low, high):
    return st.none() | st.integers(low, high)


BUDGETS = st.builds(
    Budget,
    max_macs=limit(500, 120_000),
    max_params=limit(500, 3000),
    max_model_bytes=limit(2000, 10_000),
    max_image_bytes=limit(300, 2000),
    max_image_size=st.none() | st.builds(Size, st.integers(20, 200), st.integers(20, 200)),
    max_latency_ms=st.none() | st.floats(0.5, 20),
    max_memory_bytes=limit(500, 20_000),
    min_accuracy=st.none() | st.floats(0.1, 0.9),
)


@st.composite
def situations(draw):
    """A space, and figures of some of its candidates."""
    found = space(draw(BUDGETS))
    some = draw(st.lists(st.sampled_from(found.candidates), unique=True, max_size=12))
    figure = st.builds(
        Cost, model_bytes=st.integers(2500, 12_000), latency_ms=st.floats(0.1, 30), memory_bytes=st.integers(1, 30_000)
    )
    return found, {candidate: {"fp32": draw(figure)} for candidate in some}


def known(found, measured, candidate):
    cost = found.bound(candidate)
    return cost.merged(measured[candidate]["fp32"]) if candidate in measured else cost


@settings(deadline=None)
@given(situations())
def test_what_fits_and_what_is_ruled_out_are_all_candidates(situation):
    found, measured = situation
    answer = estimate(found, measured)
    budget = found.spec.budget
    beyond = [set(budget.excess(known(found, measured, each))) for each in found.candidates]
    assert answer.fits + sum(bool(names) for names in beyond) == answer.candidates == len(found.candidates)
    assert answer.measured + answer.unmeasured == answer.fits
    for name, count in answer.ruled_out.items():
        assert count == sum(name in names for names in beyond)
        assert answer.ruled_out_alone[name] == sum(names == {name} for names in beyond) <= count
    assert set(answer.ruled_out) == {name for name in budget.to_json() if name.startswith("max_")}
    assert (answer.likely_best is None) == (answer.reason is not None) == (answer.fits == 0)
    assert measured or answer.fits == len(found.feasible)


@settings(deadline=None)
@given(situations())
def test_relaxing_opens_what_it_says_and_never_closes(situation):
    found, measured = situation
    answer = estimate(found, measured)
    budget = found.spec.budget
    costs = {each: known(found, measured, each) for each in found.candidates}
    before = {each for each, cost in costs.items() if not budget.excess(cost)}
    opens = dict.fromkeys(answer.ruled_out, 0)
    for each in answer.relax:
        relaxed = dataclasses.replace(budget, **{each.limit: each.value})
        after = {candidate for candidate, cost in costs.items() if not relaxed.excess(cost)}
        assert before <= after
        assert len(after - before) == each.opens >= opens[each.limit]
        assert each.likely_best is None if not each.opens else each.likely_best.candidate in after - before
        opens[each.limit] = each.opens
