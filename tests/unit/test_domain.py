import dataclasses

import pytest

from stillhouse.search.domain import (
    Accuracy,
    Candidate,
    Cost,
    Deployment,
    Size,
    StageKind,
    StagePlan,
    StageResult,
    TrialPlan,
    canonical_json,
    content_key,
)
from stillhouse.search.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "size"), [("64", Size(64, 64)), (32, Size(32, 32)), ("48X64", Size(48, 64)), (Size(3, 4), Size(3, 4))]
)
def test_size_reads_height_by_width(text, size):
    assert Size.parse(text) == size
    assert Size.parse(str(size)) == size


@pytest.mark.parametrize("text", ["", "x64", "64x", "-4", "6.4", "64x64x3", "0", "4097", "²"])
def test_size_refuses_what_is_no_size(text):
    with pytest.raises(BudgetError):
        Size.parse(text)


def test_size_measures_itself():
    assert Size(48, 64).pixels == 3072
    assert Size(48, 64).ratio(Size(64, 32)) == 2.0
    assert Size(48, 64).ratio(Size(48, 64)) == 1.0


def test_canonical_json_is_one_text_for_one_value():
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) != content_key({"a": 1, "b": 3})
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


CANDIDATE = Candidate("net", Size(48, 64), Size(96, 128), "stride1", (("lr", 0.1), ("mixup", True)))


def test_candidate_and_cost_survive_json():
    assert Candidate.from_json(CANDIDATE.to_json()) == CANDIDATE
    assert str(CANDIDATE) == "net 48x64->96x128 stride1"
    cost = Cost(macs=5, image_bytes=1.5, image_size=Size(48, 64))
    assert Cost.from_json(cost.to_json()) == cost
    assert cost.to_json() == {"macs": 5, "image_bytes": 1.5, "image_size": "48x64"}


def test_merged_cost_takes_what_the_other_knows():
    merged = Cost(macs=5, params=6).merged(Cost(params=7, latency_ms=1.0))
    assert merged == Cost(macs=5, params=7, latency_ms=1.0)


def test_stage_key_names_all_that_decides_and_no_more():
    plan = StagePlan(StageKind.STUDENT, {"seed": 0}, {"dataset": "abc"}, "code1", {"source": "/here"})
    assert StagePlan.from_json(plan.to_json()) == plan
    assert dataclasses.replace(plan, hints={"source": "/there"}).key == plan.key
    others = [
        dataclasses.replace(plan, kind=StageKind.TEACHER),
        dataclasses.replace(plan, spec={"seed": 1}),
        dataclasses.replace(plan, inputs={"dataset": "abd"}),
        dataclasses.replace(plan, inputs={"targets": "abc"}),
        dataclasses.replace(plan, code="code2"),
    ]
    assert len({plan.key, *(other.key for other in others)}) == 6
    assert TrialPlan(CANDIDATE, (others[0], plan)).last == plan


def test_stage_result_survives_json():
    result = StageResult({"onnx": "ab"}, {"latency_ms": 1.5})
    assert StageResult.from_json(result.to_json()) == result


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe (1998), table I, method 3: the Wilson score interval to four places.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(correct, total, low, high):
    assert Accuracy(correct, total).interval() == pytest.approx((low, high), abs=6e-5)
    assert Accuracy(correct, total).value == correct / total


@pytest.mark.parametrize("correct", [0, 3, 10, 20])
def test_wilson_interval_mirrors(correct):
    low, high = Accuracy(correct, 20).interval()
    assert Accuracy(20 - correct, 20).interval() == pytest.approx((1 - high, 1 - low))
    assert 0 <= low <= correct / 20 <= high <= 1


@pytest.mark.parametrize(("correct", "total"), [(-1, 5), (6, 5), (0, 0)])
def test_accuracy_refuses_what_cannot_be(correct, total):
    with pytest.raises(ValueError, match="must hold"):
        Accuracy(correct, total)


def test_deployment_knows_its_objectives():
    deployment = Deployment("m", "j", 0, CANDIDATE, Cost(macs=5), "fp32", Accuracy(1, 2), "0" * 64, {})
    assert deployment.objective("macs") == 5.0
    with pytest.raises(ValueError, match="deployment m has no latency_ms"):
        deployment.objective("latency_ms")
