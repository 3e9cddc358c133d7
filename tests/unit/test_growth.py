"""How the front grew."""

import time

import numpy as np
import pytest

from stillhouse.search.domain import Budget, Cost
from stillhouse.search.growth import growth
from stillhouse.search.job import Event, JobSpec
from stillhouse.search.pareto import hypervolume

SPEC = JobSpec("d", objectives=("macs", "image_bytes"))


def events(rows: list[tuple[float, int, float]], state: str = "done") -> list[Event]:
    costs = [Cost(macs=macs, image_bytes=count).to_json() for _, macs, count in rows]
    data = [{"state": state, "accuracy": row[0], "cost": cost} for row, cost in zip(rows, costs, strict=True)]
    return [Event(i, "j", 100.0 + i, "trial", one) for i, one in enumerate(data, start=1)]


@pytest.mark.parametrize("objectives", [("macs",), ("macs", "image_bytes"), ("macs", "image_bytes", "params")])
def test_each_share_is_the_hypervolume_by_then_over_that_of_all(objectives: tuple[str, ...]) -> None:
    rng = np.random.default_rng(1)
    costs = np.exp2(rng.uniform(10, 16, (40, len(objectives)))).round()
    accuracy = rng.uniform(0.1, 0.9, 40)
    data = [
        {"state": "done", "accuracy": a, "cost": dict(zip(objectives, c, strict=True))}
        for a, c in zip(accuracy.tolist(), costs.tolist(), strict=True)
    ]
    told = [Event(i, "j", float(i), "trial", one) for i, one in enumerate(data)]
    steps = growth(told, JobSpec("d", objectives=objectives), started_at=0.0, classes=4)
    octaves = np.log2(costs)
    low, high = octaves.min(axis=0), octaves.max(axis=0)
    points, corner = np.column_stack((accuracy, octaves)), (0.25, *(low + 1.05 * (high - low)))
    whole = hypervolume(points, corner)
    exact = [hypervolume(points[: n + 1], corner) / whole for n in range(40)]
    assert [step.hypervolume for step in steps] == pytest.approx(exact, abs=0.01)
    assert steps[-1].hypervolume == 1.0
    assert [step.trials for step in steps] == list(range(1, 41))


def test_a_trial_that_is_beaten_adds_nothing() -> None:
    steps = growth(events([(0.8, 100, 50), (0.7, 200, 60), (0.9, 400, 90)]), SPEC, started_at=100.0, classes=10)
    assert [(step.at, step.trials) for step in steps] == [(1.0, 1), (2.0, 2), (3.0, 3)]
    assert 0.5 < steps[0].hypervolume == steps[1].hypervolume < steps[2].hypervolume == 1.0


def test_only_trials_that_are_done_and_meet_the_budget_count() -> None:
    told = events([(0.9, 100, 50)], "paused") + events([(0.8, 900, 50), (0.6, 100, 50), (0.7, 80, 50)])
    told.append(Event(9, "j", 200.0, "job", {"state": "done"}))
    tight = JobSpec("d", objectives=("macs", "image_bytes"), budget=Budget(max_macs=500, min_accuracy=0.65))
    steps = growth(told, tight, started_at=150.0, classes=10)
    assert [step.hypervolume for step in steps] == [0.0, 0.0, 1.0], "beyond the budget, below its accuracy, fits"
    assert [step.at for step in steps] == [0.0, 0.0, 0.0], "an earlier start's trials stand at the beginning"


def test_nothing_done_is_nothing_grown() -> None:
    assert growth([], SPEC, started_at=0.0, classes=2) == []
    assert growth(events([(0.1, 100, 50)]), SPEC, started_at=0.0, classes=2)[0].hypervolume == 0.0
    unknown = Event(1, "j", 1.0, "trial", {"state": "done", "accuracy": 0.9, "cost": {"macs": 5}})
    assert growth([unknown], SPEC, started_at=0.0, classes=2)[0].hypervolume == 0.0


def test_a_thousand_trials_take_no_time() -> None:
    rng = np.random.default_rng(2)
    costs = np.exp2(rng.uniform(10, 16, (1000, 2)))
    rows = [(float(np.log2(c).sum() / 40), int(c[0]), float(c[1])) for c in costs]
    told, best = events(rows), float("inf")
    for _ in range(3):
        began = time.perf_counter()
        growth(told, SPEC, started_at=0.0, classes=2)
        best = min(best, time.perf_counter() - began)
    assert best < 0.3
