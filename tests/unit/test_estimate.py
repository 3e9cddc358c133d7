"""Counts of candidates against limits, told longhand; the command's table."""

import io
import json
import time

import pytest
from rich.console import Console

from speed import slowness
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Budget, Candidate, Cost, Json, Size, StageResult
from stillhouse.search.errors import ConflictError
from stillhouse.search.estimate import Estimate, Figures, device_figures, estimate, estimate_job
from stillhouse.search.job import DatasetRecord, JobSpec
from stillhouse.search.plan import Planner
from stillhouse.search.space import Space
from stillhouse.service.cli_estimate import show
from stillhouse.service.db.memory import MemoryLedger

SIDES = (32, 64, 96)
FIGURES = {"model_bytes": 5000, "latency_ms": 9.0, "latency_p95_ms": 10.0, "memory_bytes": 2_000_000}


def catalogue(archs: int = 3, sides: tuple[int, ...] = SIDES, stems: tuple[str, ...] = ("stock",)) -> dict[str, Json]:
    """net0, net1 ...: net i has (i + 1) MACs a pixel; net1 alone has trained weights."""
    entries = {
        f"net{i}": {
            "family": "cnn",
            "stems": list(stems),
            "macs_per_class": 0,
            "params_per_class": 0,
            "cells": {
                f"{side}x{side}|{stem}": {"macs": (i + 1) * side**2, "params": 1000 * (i + 1)}
                for side in sides
                for stem in stems
            },
        }
        for i in range(archs)
    }
    weights = {"package": ["net1"], "hub": []}
    return {"names": list(entries), "archs": entries, "image_sizes": [str(side) for side in sides], "weights": weights}


def summary(sides: tuple[int, ...] = SIDES) -> dict[str, Json]:
    row = {"fit": "squash", "codec": "jpeg", "quality": 90}
    return {"classes": ["a", "b"], "curve": [{**row, "size": str(side), "mean_bytes": 10.0 * side} for side in sides]}


def space(budget: Budget, known: dict[str, Json] | None = None, **spec: Json) -> Space:
    given = JobSpec("d", budget, qualities=(), precisions=("fp32",), **spec)
    return Space(Catalogue.from_json(known or catalogue()), summary(), given)


def candidate(name: str, image: int, network: int) -> Candidate:
    return Candidate(name, Size(image, image), Size(network, network))


def test_a_budget_worked_out_longhand() -> None:
    # MACs       32>32  32>64  32>96  64>64  64>96  96>96
    #   net0      1024   4096   9216   4096   9216   9216
    #   net1      2048   8192  18432   8192  18432  18432
    #   net2      3072  12288  27648  12288  27648  27648
    found = estimate(space(Budget(max_macs=9000, max_image_size=Size(64, 64))), {})
    assert (found.candidates, found.fits) == (18, 7)
    assert (found.measured, found.unmeasured, found.is_upper_bound) == (0, 7, False)
    assert found.ruled_out == {"max_macs": 11, "max_image_size": 3}
    assert found.ruled_out_alone == {"max_macs": 8, "max_image_size": 0}
    assert found.binds == "max_macs"
    assert found.reason is None
    assert set(found.cheapest) == {"macs", "image_bytes"}
    assert found.cheapest["macs"].candidate == candidate("net0", 32, 32)
    assert found.cheapest["macs"].cost == Cost(1024, 1000, 3600, pytest.approx(320.0), Size(32, 32), memory_bytes=3600)
    assert found.likely_best is not None
    assert found.likely_best.candidate == candidate("net1", 64, 64)
    opened = {(each.limit, each.by): (each.value, each.opens) for each in found.relax}
    assert opened == {
        ("max_macs", 0.10): (9900, 2),  # net0 32>96 and 64>96
        ("max_macs", 0.25): (11250, 2),
        ("max_macs", 0.50): (13500, 4),  # net2 32>64 and 64>64 too
        ("max_image_size", 0.10): (Size(70, 70), 0),
        ("max_image_size", 0.25): (Size(80, 80), 0),
        ("max_image_size", 0.50): (Size(96, 96), 0),  # 96>96 has more MACs than are allowed
    }
    best = {each.by: each.likely_best for each in found.relax if each.limit == "max_macs"}[0.50]
    assert best is not None
    assert best.candidate == candidate("net0", 64, 96)


def test_without_limits_all_fit_and_nothing_binds() -> None:
    found = estimate(space(Budget(min_accuracy=0.9)), {})
    assert found.fits == found.candidates == 18
    assert found.binds is None
    assert found.relax == ()
    assert found.ruled_out == {}


def test_no_limit_binds_where_each_candidate_lies_beyond_two() -> None:
    found = estimate(space(Budget(max_macs=1000, max_params=900)), {})
    assert (found.fits, found.binds) == (0, None)
    assert found.ruled_out == {"max_macs": 18, "max_params": 18}


def test_a_relaxed_size_ends_at_the_largest_picture() -> None:
    found = estimate(space(Budget(max_image_size=Size(80, 90))), {})
    assert [each.value for each in found.relax] == [Size(88, 96), Size(96, 96), Size(96, 96)]
    assert [each.opens for each in found.relax] == [0, 3, 3]


def test_a_budget_that_nothing_meets_is_answered_with_what_to_relax() -> None:
    found = estimate(space(Budget(max_macs=1000)), {})
    assert (found.fits, found.likely_best, found.why, found.cheapest) == (0, None, None, {})
    assert found.reason is not None
    assert "max_macs >= 1,024" in found.reason
    assert [each.opens for each in found.relax] == [1, 1, 1]
    assert found.to_json()["relax"][0]["likely_best"]["candidate"]["arch"] == "net0"


def test_what_was_measured_counts_and_what_was_not_is_told() -> None:
    slow, quick, large = candidate("net0", 32, 32), candidate("net1", 32, 32), candidate("net2", 32, 32)
    figures = {
        slow: {"fp32": Cost(latency_ms=9.0, model_bytes=5000)},
        quick: {"fp32": Cost(latency_ms=1.0, model_bytes=8000)},
        large: {"fp32": Cost(latency_ms=1.0, model_bytes=90_000)},
    }
    found = estimate(space(Budget(max_latency_ms=5.0, max_model_bytes=20_000), objectives=("latency_ms",)), figures)
    assert found.ruled_out == {"max_model_bytes": 1, "max_latency_ms": 1}
    assert (found.fits, found.measured, found.unmeasured, found.is_upper_bound) == (16, 1, 15, True)
    assert found.cheapest["latency_ms"].candidate == quick, "nobody knows of the others"
    assert found.cheapest["latency_ms"].cost.model_bytes == 8000, "measured, not the lower bound"
    assert found.likely_best is not None
    assert (found.cheapest["latency_ms"].measured, found.likely_best.measured) == (True, False)
    assert estimate(space(Budget(max_latency_ms=9.5)), figures).ruled_out == {"max_latency_ms": 0}


def test_a_candidate_fits_if_any_precision_does() -> None:
    whole = Space(Catalogue.from_json(catalogue()), summary(), JobSpec("d", Budget(max_latency_ms=5.0), qualities=()))
    slow, mixed, half = (candidate(f"net{number}", 32, 32) for number in range(3))
    figures = {
        slow: dict.fromkeys(("fp32", "fp16", "int8"), Cost(latency_ms=9.0)),
        mixed: {"fp32": Cost(latency_ms=9.0), "fp16": Cost(latency_ms=9.0), "int8": Cost(latency_ms=3.0)},
        half: {"fp32": Cost(latency_ms=9.0)},
    }
    found = estimate(whole, figures)
    assert found.ruled_out == {"max_latency_ms": 1}, "what was not measured at each precision may fit"
    assert (found.measured, found.unmeasured) == (1, 16)
    assert found.cheapest["macs"].candidate != slow


def test_promise_is_trained_weights_then_the_picture_then_its_grid_then_macs() -> None:
    whole = space(Budget())
    ranked = sorted(whole.candidates, key=whole.promise, reverse=True)
    trained = [(each.image_size.height, each.network_size.height) for each in ranked if each.arch == "net1"]
    assert [each.arch for each in ranked[:6]] == ["net1"] * 6
    assert trained == [(96, 96), (64, 96), (64, 64), (32, 96), (32, 64), (32, 32)]
    assert ranked[6:8] == [candidate("net2", 96, 96), candidate("net0", 96, 96)]


def measured_ledger(planner: Planner, each: Candidate) -> MemoryLedger:
    """A ledger in which this candidate was measured."""
    ledger = MemoryLedger()
    plan = planner.costing(each).last
    ledger.ensure_stage(plan)
    attempt = ledger.open_attempt(plan.key, lease_s=60, threads=1)
    assert attempt is not None
    assert ledger.commit(attempt.id, attempt.token, StageResult({}, FIGURES), seconds=1.0)
    return ledger


def test_figures_are_those_of_the_same_device_and_threads() -> None:
    spec, each = JobSpec("d", precisions=("fp32",)), candidate("net0", 32, 32)
    planner = Planner(spec, "k", 2, catalogue())
    ledger = measured_ledger(planner, each)
    ledger.ensure_stage(planner.costing(candidate("net1", 32, 32)).last)  # not done
    found = device_figures(ledger, planner, space(Budget()).candidates)
    cost = Cost(model_bytes=5000, latency_ms=9.0, latency_p95_ms=10.0, memory_bytes=2_000_000)
    assert found == {each: {"fp32": cost}}
    other = Planner(JobSpec("d", precisions=("fp32",), latency_threads=2), "k", 2, catalogue())
    assert device_figures(ledger, other, space(Budget()).candidates) == {}


@pytest.mark.parametrize(("state", "advice"), [("pending", "wait until it is ready"), ("failed", "the reason: torn")])
def test_a_data_set_that_is_not_ready_has_no_costs(state: str, advice: str) -> None:
    dataset = DatasetRecord("ds", "d", "k", state, "torn" if state == "failed" else None)
    with pytest.raises(ConflictError, match=advice):
        estimate_job(MemoryLedger(), catalogue(), dataset, JobSpec("ds", qualities=()))


@pytest.mark.parametrize("budget", [Budget(max_macs=200_000, max_params=30_000), Budget(max_latency_ms=3.0)])
def test_three_thousand_candidates_take_less_than_two_seconds(budget: Budget) -> None:
    sides = tuple(range(32, 257, 16))
    known = catalogue(45, sides, ("stock", "stride1"))
    dataset = DatasetRecord("ds", "d", "k", "ready", summary=summary(sides))
    began = time.process_time()
    found = estimate_job(MemoryLedger(), known, dataset, JobSpec("ds", budget, qualities=()))
    assert (time.process_time() - began) / slowness() < 2.0
    assert found.candidates > 3000


def printed(budget: Budget, figures: Figures | None = None, *, whole: Space | None = None, width: int = 100) -> str:
    whole = whole or space(budget)
    console = Console(file=io.StringIO(), width=width)
    show(estimate(whole, figures or {}), whole.spec.budget, whole.spec.objectives, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_of_80_columns_cuts_no_name_of_a_network() -> None:
    name = "tf_efficientnet_lite2"
    known = json.loads(json.dumps(catalogue()).replace("net1", name))
    budget = Budget(max_macs=80_000, max_image_size=Size(64, 64), max_model_bytes=16_000_000)
    lines = [line.rstrip() for line in printed(budget, whole=space(budget, known), width=80).splitlines()]
    assert [line.split()[2] for line in lines if line.startswith("likely best ")] == [name]
    assert next(line for line in lines if line.startswith("max_image_size") and "+0" in line).split()[-1] == name
    assert max(len(line) for line in lines if not line.startswith(("likely best:", "note:"))) <= 80


@pytest.mark.parametrize("budget", [Budget(max_macs=9000, max_image_size=Size(64, 64)), Budget(max_macs=1)])
def test_an_estimate_is_read_as_it_was_written(budget: Budget) -> None:
    found = estimate(space(budget), {})
    assert Estimate.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_table_says_what_fits_what_binds_and_what_relaxing_opens() -> None:
    text = printed(Budget(max_macs=9000, max_image_size=Size(64, 64), max_latency_ms=2.5))
    assert "at most 7 of 18 candidates fit (0 measured on local, 7 not yet)" in text
    assert "max_macs binds: it alone rules out 8" in text
    assert "likely best: it starts from pretrained weights" in text
    assert "1 MAC = 2 FLOPs" in text
    row = next(line for line in text.splitlines() if line.split()[:2] == ["max_macs", "9,000"])
    assert row.split() == ["max_macs", "9,000", "11", "8", "+2", "+2", "+4", "net0", "64>96", "stock"]


def test_the_table_shows_measured_figures() -> None:
    figures = {candidate("net0", 32, 32): {"fp32": Cost(model_bytes=5000, latency_ms=1.25, memory_bytes=2_000_000)}}
    text = printed(Budget(max_latency_ms=5), figures)
    row = next(line for line in text.splitlines() if line.split()[:1] == ["macs"])
    assert row.split() == ["macs", "net0", "32>32", "stock", "0.0", "0.00", "320", "5", "1.25", "2"]
    best = next(line for line in text.splitlines() if line.split()[:2] == ["likely", "best"])
    assert best.split()[-3:] == [">=7", "-", "-"]


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(max_macs=1000), "max_macs binds: it alone rules out 18"),
        (Budget(max_macs=1000, max_params=900), "no limit binds alone"),
    ],
)
def test_the_table_says_why_nothing_fits(budget: Budget, said: str) -> None:
    text = printed(budget)
    assert "0 of 18 candidates fit" in text
    assert said in text
    assert "no candidate meets the budget" in text
    assert "likely best:" not in text


# ------------------------------------------------------------------------------------------- notes


def noted(budget: Budget, figures: Figures | None = None, **spec: Json) -> str:
    return " | ".join(estimate(space(budget, **spec), figures or {}).notes)


def test_nothing_is_noted_of_a_request_that_is_plain() -> None:
    assert noted(Budget(max_macs=9000, max_image_size=Size(64, 64))) == ""


def test_latency_that_nobody_measured_is_said_to_be_unknown() -> None:
    said = noted(Budget(max_latency_ms=1e-9))
    assert "latency_ms on local was measured for none of the 18 that fit so far" in said
    assert "max_latency_ms 1e-09 may rule out more" in said
    assert "stillhouse run" in said
    figures = {candidate("net0", 32, 32): {"fp32": Cost(latency_ms=1.0)}}
    assert "measured for 1 of the 18 that fit" in noted(Budget(max_latency_ms=2.0), figures)
    whole = space(Budget(max_latency_ms=2.0))
    assert estimate(whole, {each: {"fp32": Cost(latency_ms=1.0)} for each in whole.candidates}).notes == ()


def test_memory_is_bounded_by_the_weights() -> None:
    # Parameters: 1000, 2000, 3000; of fp32 each takes 3.6 bytes at least.
    found = estimate(space(Budget(max_memory_bytes=7200)), {})
    assert (found.fits, found.ruled_out) == (12, {"max_memory_bytes": 6})
    assert "memory_bytes on local was measured for none of the 12" in found.notes[0]
    assert "lower bound" in found.notes[0]
    assert "memory_bytes" not in estimate(space(Budget(), objectives=("memory_bytes",)), {}).cheapest


def test_an_objective_that_nobody_measured_has_a_row_that_says_so() -> None:
    whole = space(Budget(), objectives=("latency_ms", "image_bytes"))
    console = Console(file=io.StringIO(), width=100)
    show(estimate(whole, {}), whole.spec.budget, whole.spec.objectives, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    (row,) = [line for line in text.splitlines() if line.split()[:2] == ["latency", "ms"]]
    assert "not measured yet" in row
    assert "latency_ms on local was measured for none" in text


def test_what_of_the_request_does_nothing_is_said() -> None:
    named = JobSpec("d", quality=50, qualities=(75, 90, 40), precisions=("fp32",), image_sizes=("96",), teacher_size=64)
    rows = [{**row, "quality": q} for row in summary()["curve"] for q in (40, 50)]
    whole = Space(Catalogue.from_json(catalogue()), {**summary(), "curve": rows}, named)
    said = " | ".join(estimate(whole, {}).notes)
    assert "qualities 75, 90 are passed over: only such as are lower than the quality, 50" in said
    assert "pictures of 96x96 are larger than the teacher's, 64x64" in said


def test_oblong_pictures_that_are_computed_inside_squares_are_named() -> None:
    assert "net0, net1, net2 compute 50x61 inside squares" in noted(Budget(), image_sizes=("50x61",))


def test_a_limit_that_half_as_much_again_does_not_help_says_how_much_would() -> None:
    said = noted(Budget(max_macs=100))
    assert "max_macs: even 50 % more opens nothing; the first fits at 1,024 (10.2 x)" in said
    both = noted(Budget(max_macs=100, max_params=9))
    assert "max_macs: no value of it helps as long as the other limits stay" in both
    assert noted(Budget(max_macs=1000)) == "", "10 % more are enough: the table says it"
