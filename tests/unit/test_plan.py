"""Plans: what is shared, what is not, and what decides a key."""

import dataclasses
import json
import subprocess
import sys

import pytest

from stillhouse.search.domain import Candidate, Size, StageKind, StagePlan
from stillhouse.search.errors import UnknownNameError
from stillhouse.search.job import Epochs, JobSpec
from stillhouse.search.plan import Planner, ingest_plan

CATALOGUE = {
    "code": {kind.value: f"code-of-{kind.value}" for kind in StageKind},
    "methods": {
        "tas": {"teacher": True, "assistant": True},
        "pixel": {"teacher": True, "assistant": False},
        "supervised": {"teacher": False, "assistant": False},
    },
    "weights": {"package": ["tf_efficientnet_lite0"], "hub": ["resnet18"]},
}
SMALL = Candidate("lcnet_050", Size(32, 32), Size(64, 64), "stride1")


def planner(**changes: object) -> Planner:
    return Planner(dataclasses.replace(JobSpec("ds"), **changes), "dataset-key", 5, CATALOGUE)


def kinds(stages: tuple[StagePlan, ...]) -> list[str]:
    return [str(stage.kind) for stage in stages]


def test_a_tas_trial_goes_from_teacher_to_measured_file() -> None:
    stages = planner().training(SMALL).stages
    assert kinds(stages) == ["teacher", "targets", "assistant", "targets", "student", "export", "measure"]
    known = {"dataset-key"}
    for stage in stages:
        assert set(stage.inputs.values()) <= known, "a stage reads only what stands before it"
        known.add(stage.key)


def test_one_assistant_serves_two_sizes_and_stems() -> None:
    other = dataclasses.replace(SMALL, image_size=Size(48, 48), stem="stock")
    first, second = (planner().training(c).stages for c in (SMALL, other))
    assert [s.key for s in first[:4]] == [s.key for s in second[:4]]
    assert not {s.key for s in first[4:]} & {s.key for s in second[4:]}


def test_another_architecture_shares_the_teacher_only() -> None:
    other = dataclasses.replace(SMALL, arch="resnet18")
    first, second = (planner().training(c).stages for c in (SMALL, other))
    assert [a.key == b.key for a, b in zip(first, second, strict=True)] == [True, True] + [False] * 5


@pytest.mark.parametrize(
    ("method", "expected"),
    [("pixel", ["teacher", "targets", "student"]), ("supervised", ["student"])],
)
def test_a_method_brings_only_the_stages_it_needs(method: str, expected: list[str]) -> None:
    assert kinds(planner(method=method).student(SMALL, method)) == expected


def test_costing_reads_no_picture_and_trains_nothing() -> None:
    stages = planner().costing(SMALL).stages
    assert kinds(stages) == ["export", "measure"]
    assert not stages[0].inputs
    assert stages[1].spec["split"] is None
    assert stages[1].spec["latency"] is True


def test_the_test_split_is_read_by_a_stage_of_its_own() -> None:
    training, testing = planner().training(SMALL).stages, planner().testing(SMALL).stages
    assert training[:-1] == testing[:-1]
    assert (training[-1].spec["split"], testing[-1].spec["split"]) == ("val", "test")


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"epochs": Epochs(6, 6, 13)}, {"views": 2}, {"knobs": {"gamma": 1.0}}, {"teacher_size": 160}],
)
def test_what_changes_the_result_changes_the_key(changes: dict[str, object]) -> None:
    assert planner().training(SMALL).last.key != planner(**changes).training(SMALL).last.key


def test_budget_and_trials_do_not_change_a_key() -> None:
    assert planner().training(SMALL).last.key == planner(trials=99).training(SMALL).last.key


def test_baseline_has_the_same_epochs_and_no_knob_of_the_method() -> None:
    plans = planner(knobs={"gamma": 1.0})
    distilled, plain = plans.student(SMALL, "tas")[-1].spec, plans.student(SMALL, "supervised")[-1].spec
    assert distilled["epochs"] == plain["epochs"]
    assert distilled["knobs"] == {"gamma": 1.0}
    assert plain["knobs"] == {}


def test_weights_come_from_package_then_hub_then_nowhere() -> None:
    specs = [planner().training(dataclasses.replace(SMALL, arch=a)).stages for a in ("resnet18", "lcnet_050")]
    assert specs[0][0].spec["weights"] == "package"
    assert [stages[4].spec["weights"] for stages in specs] == ["hub", "none"]


def test_an_unknown_method_is_named_with_those_known() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown method 'tass'; did you mean tas"):
        planner().training(SMALL, "tass")


def test_the_place_of_a_data_set_is_not_part_of_its_key() -> None:
    first, second = (ingest_plan(source, "abc", False, {"ingest": "1"}) for source in ("/a.zip", "/b.zip"))
    assert first.key == second.key
    assert first.hints != second.hints


def test_a_plan_survives_json_and_has_the_same_key_in_another_process() -> None:
    plan = planner().training(SMALL).last
    assert StagePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    code = "import json, sys; from stillhouse.search.domain import StagePlan as P; "
    code += "print(P.from_json(json.load(sys.stdin)).key)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(plan.to_json()), text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == plan.key
