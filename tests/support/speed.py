"""Processor time in seconds of the machine for which the tests' limits are written.

A slower one, or one that others use as well, takes longer for the same work: no fault of what is tested.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_NOMINAL_S = 0.12
"""What ``_work`` took on that machine, two cores of a Xeon with Python 3.11: 0.09 to 0.18, mostly 0.1 to 0.13."""


def _work() -> None:
    """Objects made, compared and sorted by the interpreter, and by NumPy: what the tested code does."""
    values = np.random.default_rng(0).random(30_000)
    rows = [{"id": str(index), "cost": (value, index)} for index, value in enumerate(values.tolist())]
    rows.sort(key=lambda row: (row["cost"], row["id"]))
    kept = np.lexsort((values, values[::-1]))
    assert len({row["id"] for row in rows}) == len(kept)


def _cpu_s(function: Callable[[], T]) -> tuple[float, T]:
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


def slowness() -> float:
    """How many times as long as there a fixed piece of work takes here and now; at least 1."""
    return max(1.0, min(_cpu_s(_work)[0] for _ in range(3)) / _NOMINAL_S)


def standard_seconds(function: Callable[[], T]) -> tuple[float, T]:
    """Least processor time [s] of three calls, divided by the machine's slowness; and what the last call gave."""
    calls, works = [], []
    for _ in range(3):
        works.append(_cpu_s(_work)[0])
        took, result = _cpu_s(function)
        calls.append(took)
    return min(calls) / max(1.0, min(works) / _NOMINAL_S), result
