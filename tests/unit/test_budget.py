import pytest

from stillhouse.search.domain import Budget, Cost, Size
from stillhouse.search.errors import BudgetError


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({}, Budget()),
        ({"max_macs": "60e6"}, Budget(max_macs=60_000_000)),
        ({"max_flops": 120e6}, Budget(max_macs=60_000_000)),
        ({"max_kbit_per_s": 64, "frames_per_s": 5}, Budget(max_image_bytes=1600)),
        ({"max_kbit_per_s": 64, "frames_per_s": 0.1}, Budget(max_image_bytes=80_000)),
        ({"max_image_bytes": 1500.9}, Budget(max_image_bytes=1500)),
        ({"max_image_size": 64}, Budget(max_image_size=Size(64, 64))),
        ({"max_image_size": "48x64", "max_latency_ms": 2}, Budget(max_image_size=Size(48, 64), max_latency_ms=2.0)),
        ({"max_params": None, "min_accuracy": "0.9"}, Budget(min_accuracy=0.9)),
    ],
)
def test_reads_what_users_write(written, read):
    assert Budget.from_json(written) == read


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"max_mac": 1}, "unknown limit 'max_mac'; known: .*max_flops.*max_macs"),
        ({"max_macs": "many"}, "max_macs must be a number, but got 'many'"),
        ({"max_macs": -5}, "max_macs must be a number > 0"),
        ({"max_latency_ms": 0}, "max_latency_ms must be a number > 0"),
        ({"max_params": float("nan")}, "max_params must be a number > 0, but got nan"),
        ({"max_model_bytes": float("inf")}, "max_model_bytes must be a number > 0, but got inf"),
        ({"min_accuracy": 90}, "min_accuracy must lie between 0 and 1 .*got 90"),
        ({"max_macs": 1, "max_flops": 2}, "max_macs or max_flops .*not both"),
        ({"max_kbit_per_s": 64}, "max_kbit_per_s and frames_per_s go together"),
        ({"frames_per_s": 2}, "max_kbit_per_s and frames_per_s go together"),
        ({"max_kbit_per_s": 64, "frames_per_s": 0}, "frames_per_s must be > 0"),
        ({"max_kbit_per_s": 64, "frames_per_s": 1, "max_image_bytes": 9}, "not both"),
        ({"max_image_size": "64x64x3"}, "a size is written 64 or 48x64"),
        ({"max_image_size": "9999"}, "1 <= height, width <= 4096"),
    ],
)
def test_refuses_what_makes_no_limit(written, message):
    with pytest.raises(BudgetError, match=message):
        Budget.from_json(written)


def test_excess_is_the_ratio_to_each_limit_that_is_passed():
    budget = Budget(max_macs=100, max_image_bytes=50, max_image_size=Size(32, 64), max_latency_ms=2.0, max_params=10)
    cost = Cost(macs=150, image_bytes=50.0, image_size=Size(48, 64), params=None, latency_ms=1.0)
    assert budget.excess(cost) == {"max_macs": 1.5, "max_image_size": 1.5}
    assert Budget().excess(cost) == {}


@pytest.mark.parametrize(
    ("budget", "needed"),
    [
        (Budget(max_macs=1, max_params=1, max_image_bytes=1, min_accuracy=0.5), False),
        (Budget(max_latency_ms=1), True),
        (Budget(max_memory_bytes=1), True),
        (Budget(max_model_bytes=1), True),
    ],
)
def test_says_when_a_device_is_needed(budget, needed):
    assert budget.needs_device is needed
