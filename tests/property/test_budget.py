import dataclasses
import json

from hypothesis import assume, given
from hypothesis import strategies as st

from stillhouse.search.domain import Budget, Cost, Size

WHOLE = st.none() | st.integers(1, 10**12)
REAL = st.none() | st.floats(1e-6, 1e9)
SIZES = st.builds(Size, st.integers(1, 4096), st.integers(1, 4096))
BUDGETS = st.builds(
    Budget,
    max_macs=WHOLE,
    max_params=WHOLE,
    max_model_bytes=WHOLE,
    max_image_bytes=WHOLE,
    max_image_size=st.none() | SIZES,
    max_latency_ms=REAL,
    max_memory_bytes=WHOLE,
    min_accuracy=st.none() | st.floats(0.001, 0.999),
)
COSTS = st.builds(
    Cost,
    macs=WHOLE,
    params=WHOLE,
    model_bytes=WHOLE,
    image_bytes=REAL,
    image_size=st.none() | SIZES,
    latency_ms=REAL,
    memory_bytes=WHOLE,
)


@given(BUDGETS)
def test_a_budget_survives_json(budget):
    assert Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget


@given(COSTS)
def test_a_cost_survives_json(cost):
    assert Cost.from_json(json.loads(json.dumps(cost.to_json()))) == cost


@given(st.integers(2, 10**12))
def test_flops_are_two_macs_each(flops):
    assert Budget.from_json({"max_flops": flops}) == Budget(max_macs=flops // 2)


@given(BUDGETS, COSTS, COSTS)
def test_what_is_known_later_never_mends_an_excess_of_another_limit(budget, cost, more):
    merged = cost.merged(more)
    untouched = {name for name in budget.excess(cost) if getattr(more, name.removeprefix("max_")) is None}
    assert untouched <= set(budget.excess(merged))


@given(BUDGETS, COSTS)
def test_a_limit_set_to_the_cost_is_met(budget, cost):
    excess = budget.excess(cost)
    assume(excess)
    raised = {name: getattr(cost, name.removeprefix("max_")) for name in excess}
    wider = dataclasses.replace(budget, **raised)
    assert not budget.excess(cost).keys() & wider.excess(cost).keys()
    assert all(ratio > 1 for ratio in excess.values())
