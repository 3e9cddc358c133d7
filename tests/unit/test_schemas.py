"""Request bodies become specs and nothing else; records become what pages and scripts read."""

import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from stillhouse.search.domain import Budget, Candidate, Cost, Fit, Size, StageKind, StagePlan
from stillhouse.search.errors import BudgetError
from stillhouse.search.job import Epochs, JobRecord, JobSpec, StageRecord, TrialRecord
from stillhouse.service.problems import documented, explain
from stillhouse.service.schemas import JobRequest, Limits, Search, job_json

CANDIDATE = Candidate("lcnet_050", Size(32, 32), Size(64, 64))
SPEC = JobSpec("ds_1", trials=4)
PLANS = tuple(StagePlan(StageKind.STUDENT, {"number": number}) for number in range(4))


def trial(number: int, state: str, stages: tuple[str, ...] = (), accuracy: float | None = None) -> TrialRecord:
    return TrialRecord("job_1", number, CANDIDATE, state, Cost(macs=10), stages, accuracy)


def test_a_body_of_a_data_set_alone_is_the_default_search() -> None:
    assert JobRequest.model_validate({"dataset": "ds_1"}).to_spec() == JobSpec("ds_1")


def test_every_field_of_a_spec_can_be_sent() -> None:
    search: dict[str, Any] = {
        "classes": 20, "trials": 3, "seed": 7, "task": "classification", "method": "pixel", "knobs": {"gamma": 10.0},
        "teacher": "resnet50", "teacher_checkpoint": "0" * 64, "teacher_size": 160,
        "epochs": {"teacher": 1, "assistant": 2, "student": 3}, "views": 2, "fit": "letterbox", "codec": "webp",
        "colour": "grey", "quality": 80, "objectives": ["latency_ms"], "archs": ["lcnet_050"], "image_sizes": ["48x64"],
        "ablate": "best", "latency_threads": 2, "ladder": [128, 96], "mixup": 0.5, "ema": 0.9, "schedule": "cosine",
        "codec_share": 0.25, "feature_cache_bytes": 0, "compile": True, "sampler": "tpe",
        "qualities": [40, 60], "precisions": ["fp32", "int8"], "eta": 2,
        "max_wall_s": 3600.0, "max_device_s": 1e5, "min_gain": 0.01,
    }  # fmt: skip
    names = {field.name for field in dataclasses.fields(JobSpec)} - {"dataset", "budget"}
    assert set(search) == names == set(Search.model_fields)
    body = {"dataset": "ds_1", "budget": {"max_kbit_per_s": 80, "frames_per_s": 10}, "search": search}
    spec = JobRequest.model_validate(body).to_spec()
    assert spec.budget == Budget(max_image_bytes=1000)
    assert (spec.epochs, spec.fit, spec.archs) == (Epochs(1, 2, 3), Fit.LETTERBOX, ("lcnet_050",))
    default = JobSpec("ds_1")
    assert all(getattr(spec, name) != getattr(default, name) for name in names - {"task"})
    assert JobSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(("sent", "kept"), [(True, "all"), (False, "none"), ("best", "best"), ("all", "all")])
def test_ablate_is_a_truth_value_or_a_word(sent: Any, kept: str) -> None:
    assert JobRequest.model_validate({"dataset": "ds_1", "search": {"ablate": sent}}).to_spec().ablate == kept


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "dataset"),
        ({"dataset": 3}, "dataset"),
        ({"dataset": "d", "surprise": 1}, "surprise"),
        ({"dataset": "d", "search": {"surprise": 1}}, "search.surprise"),
        ({"dataset": "d", "search": {"epochs": {"teacher": "x"}}}, "search.epochs.teacher"),
        ({"dataset": "d", "search": {"fit": "stretch"}}, "search.fit"),
        ({"dataset": "d", "search": {"ablate": ["best"]}}, "search.ablate"),
        ({"dataset": "\ud800"}, "surrogates"),
        ({"dataset": "d", "search": {"knobs": {"a\0": 1}}}, "NUL"),
        ({"dataset": "d", "budget": {"max_macs": -(2**63)}}, "2**63"),
        ([], "body"),
    ],
)
def test_a_malformed_body_is_told_by_field(body: Any, place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate(body)
    assert place in explain(list(caught.value.errors()))


def test_a_job_is_told_with_its_counts() -> None:
    trials = [
        trial(0, "done", accuracy=0.5),
        trial(1, "failed"),
        trial(2, "infeasible"),
        trial(3, "done", accuracy=0.7),
    ]
    told = job_json(JobRecord("job_1", SPEC, "done"), trials, {}, dataset_name="birds", eta_s=None)
    assert told["counts"] == {"done": 2, "failed": 1, "infeasible": 1}
    assert (told["trials_ended"], told["best_accuracy"], told["dataset_name"]) == (3, 0.7, "birds")
    assert told["eta_s"] is None


def test_a_trial_is_told_with_what_runs_for_it() -> None:
    keys = tuple(plan.key for plan in PLANS)
    stages = {
        keys[0]: StageRecord(PLANS[0], "done"),
        keys[1]: StageRecord(PLANS[1], "running", progress={"done": 5, "total": 10}),
        keys[2]: StageRecord(PLANS[2], "pending"),
    }
    running = JobRecord("job_1", SPEC, "running")
    told = job_json(running, [trial(0, "training", keys)], stages, dataset_name="birds", eta_s=12.5)
    assert told["eta_s"] == 12.5
    (shown,) = told["trials"]
    assert (shown["stages_done"], shown["stages"]) == (1, 4)
    assert shown["running"] == {"kind": "student", "progress": {"done": 5, "total": 10}}


def test_documented_errors_carry_an_example_each() -> None:
    for status, entry in documented(404, 413, 422, 503).items():
        content = entry["content"]["application/problem+json"]
        assert content["example"]["status"] == status
        assert set(content["example"]) <= set(content["schema"]["properties"])


def test_every_field_of_a_request_is_described() -> None:
    for model in (Search, Limits):
        for name, schema in model.model_json_schema()["properties"].items():
            assert len(schema.get("description", "")) > 10, f"{model.__name__}.{name}: say it in the class's docstring"


@pytest.mark.parametrize(("limit", "told"), [("max_macs", "must be a number"), ("max_image_size", "48x64")])
def test_a_limit_that_is_no_number_is_told_by_the_budget(limit: str, told: str) -> None:
    with pytest.raises(BudgetError, match=told):
        JobRequest.model_validate({"dataset": "d", "budget": {limit: "many"}}).to_spec()
