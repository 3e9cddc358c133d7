"""Plans: what is shared, what is not, and what decides a key."""

import dataclasses
import itertools
import json
import subprocess
import sys

import pytest

from stillhouse.search.domain import Candidate, Size, StageKind, StagePlan
from stillhouse.search.errors import UnknownNameError
from stillhouse.search.job import Epochs, JobSpec
from stillhouse.search.plan import Planner, baselines, ingest_plan, variant_of

CATALOGUE = {
    "code": {kind.value: f"code-of-{kind.value}" for kind in StageKind},
    "methods": {
        "tas": {"teacher": True, "assistant": True, "features": "native"},
        "adversarial_mmd": {"teacher": True, "assistant": True, "features": "pooled"},
        "hints": {"teacher": True, "assistant": False, "features": "levels"},
        "pixel": {"teacher": True, "assistant": False},
        "supervised": {"teacher": False, "assistant": False},
    },
    "weights": {"package": ["tf_efficientnet_lite0"], "hub": ["resnet18"]},
}
SMALL = Candidate("lcnet_050", Size(32, 32), Size(64, 64), "stride1")


def planner(**changes: object) -> Planner:
    """Of a job with one view a picture, so that one stage tells what a mentor says."""
    return Planner(dataclasses.replace(JobSpec("ds", views=1), **changes), "dataset-key", 5, CATALOGUE)


def kinds(stages: tuple[StagePlan, ...]) -> list[str]:
    return [str(stage.kind) for stage in stages]


def test_a_tas_trial_goes_from_teacher_to_measured_file() -> None:
    stages = planner().training(SMALL).stages
    assert kinds(stages) == ["teacher", "targets", "assistant", "targets", "student", "export", "measure"]
    known = {"dataset-key"}
    for stage in stages:
        assert set(stage.inputs.values()) <= known, "a stage reads only what stands before it"
        known.add(stage.key)


LACKING = {**CATALOGUE, "archs": {"lcnet_050": {"lacks": {"stride1": {"fp16": "logits are not finite"}}}}}


def test_a_precision_that_the_network_lacks_is_not_planned() -> None:
    plain, lacking = planner(), dataclasses.replace(planner(), catalogue=LACKING)
    assert lacking.precisions(SMALL) == tuple(lacking.family(SMALL)) == ("fp32", "int8")
    assert tuple(plain.family(SMALL)) == ("fp32", "fp16", "int8")
    other = dataclasses.replace(SMALL, stem="stock")
    assert tuple(lacking.family(other)) == ("fp32", "fp16", "int8"), "in this stem it works"
    assert plain.training(SMALL).last.key == lacking.training(SMALL).last.key, "what can be made is made as before"
    costing = {name: lacking.costing(SMALL, name).stages for name in ("fp32", "int8")}
    assert kinds(costing["fp32"]) == ["export", "measure"]
    assert costing["fp32"] != costing["int8"]
    assert {name: plan.stages for name, plan in lacking.costings(SMALL).items()} == costing
    assert lacking.lacks(SMALL) == {"fp16": "logits are not finite"}


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


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("tas", {"no_teacher": "supervised", "plain_kd": "logits"}),
        ("supervised", {"plain_kd": "logits"}),
        ("logits", {"no_teacher": "supervised"}),
    ],
)
def test_a_front_is_compared_with_other_methods_that_workers_offer(method: str, expected: dict[str, str]) -> None:
    offered = {"methods": {"tas": {}, "supervised": {}, "logits": {}}}
    assert baselines(JobSpec("ds", method=method, ablate="best"), offered) == expected
    assert baselines(JobSpec("ds", method=method), offered) == {}
    assert "plain_kd" not in baselines(JobSpec("ds", method=method, ablate="all"), CATALOGUE)


@pytest.mark.parametrize(
    ("method", "name"), [("tas", "distilled"), ("supervised", "no_teacher"), ("logits", "plain_kd")]
)
def test_a_variant_is_named_by_its_method(method: str, name: str) -> None:
    assert variant_of(method) == name


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


# ------------------------------------------------------------------------------------------ ladder


def of(stages: tuple[StagePlan, ...], kind: StageKind) -> list[StagePlan]:
    return [stage for stage in stages if stage.kind is kind]


@pytest.mark.parametrize("ladder", [(), (128,), (160, 128, 96), (160, 128, 96, 80, 64, 48)])
@pytest.mark.parametrize("method", ["tas", "adversarial_mmd"])
def test_a_ladder_is_a_chain_of_assistants(ladder: tuple[int, ...], method: str) -> None:
    stages = planner(ladder=ladder, method=method, knobs={"a": 1.0}).student(SMALL, method)
    assert kinds(stages) == [
        "teacher",
        "targets",
        "assistant",
        "targets",
        *["assistant", "targets"] * len(ladder),
        "student",
    ]
    known = {"dataset-key"}
    for stage in stages:
        assert set(stage.inputs.values()) <= known
        known.add(stage.key)
    learners = [*of(stages, StageKind.ASSISTANT), stages[-1]]
    assert [stage.spec["size"] for stage in learners[:-1]] == [f"{side}x{side}" for side in (192, *ladder)]
    assert (learners[0].spec["method"], learners[0].spec["knobs"]) == ("logits", {})
    told = of(stages, StageKind.TARGETS)
    for place, (mentor, learner) in enumerate(itertools.pairwise(learners), start=1):
        assert learner.spec["method"] == method
        assert learner.spec["knobs"] == {"a": 1.0}
        assert learner.spec["large_size"] == mentor.spec["size"], "what it sees large is what its mentor sees"
        assert learner.inputs["assistant"] == mentor.key
        assert told[place].inputs["model"] == mentor.key
        assert told[place].spec["size"] == mentor.spec["size"]
        assert learner.inputs["targets0"] == told[place].key


@pytest.mark.parametrize(
    ("image", "left"),
    [
        (Size(32, 32), [160, 96, 48]),
        (Size(48, 48), [160, 96]),
        (Size(32, 96), [160]),
        (Size(100, 32), [160]),
        (Size(176, 176), []),
    ],
)
def test_rungs_that_are_not_larger_than_the_picture_are_left_out(image: Size, left: list[int]) -> None:
    candidate = dataclasses.replace(SMALL, image_size=image, network_size=Size(192, 192))
    stages = planner(ladder=(160, 96, 48)).student(candidate, "tas")
    sizes = [stage.spec["size"] for stage in of(stages, StageKind.ASSISTANT)]
    assert sizes == [f"{side}x{side}" for side in (192, *left)]
    assert stages[-1].spec["large_size"] == sizes[-1]


def test_students_of_one_architecture_share_rungs() -> None:
    larger = dataclasses.replace(SMALL, image_size=Size(48, 48), stem="stock")
    plans = planner(ladder=(128, 64, 40))
    first, second = (plans.student(candidate, "tas") for candidate in (SMALL, larger))
    assert [stage.key for stage in first[:8]] == [stage.key for stage in second[:8]]
    assert (len(first), len(second)) == (11, 9), "one rung lies between the two sizes"
    other = plans.student(dataclasses.replace(SMALL, arch="resnet18"), "tas")
    shared = {stage.key for stage in first} & {stage.key for stage in other}
    assert shared == {stage.key for stage in first[:2]}, "the teacher and what it told"
    longer = planner(ladder=(128, 64, 40, 36)).student(SMALL, "tas")
    assert [stage.key for stage in first[:-1]] == [stage.key for stage in longer[: len(first) - 1]]


@pytest.mark.parametrize("method", ["pixel", "hints", "supervised"])
def test_a_ladder_is_nothing_to_a_method_without_assistants(method: str) -> None:
    plain, laddered = (planner(ladder=ladder).student(SMALL, method) for ladder in ((), (128, 64)))
    assert [stage.key for stage in plain] == [stage.key for stage in laddered]


# -------------------------------------------------------------------------------- what mentors keep


@pytest.mark.parametrize(
    ("method", "ladder", "kept"),
    [
        ("supervised", (), []),
        ("pixel", (), [""]),
        ("hints", (), ["levels"]),
        ("tas", (), ["", "native"]),
        ("tas", (128, 64), ["", "native", "native", "native"]),
        ("adversarial_mmd", (128,), ["", "pooled", "pooled"]),
    ],
)
def test_features_are_kept_of_the_mentors_that_they_are_read_from(
    method: str, ladder: tuple[int, ...], kept: list[str]
) -> None:
    stages = planner(ladder=ladder, feature_cache_bytes=7).student(SMALL, method)
    told = of(stages, StageKind.TARGETS)
    assert [stage.spec.get("features", "") for stage in told] == kept
    for stage in told:
        assert stage.spec.get("feature_bytes") == (7 if "features" in stage.spec else None)
        assert "features" not in stage.spec or stage.spec["features"], "no need is no entry, so keys are shared"
    assert all("feature_bytes" not in stage.spec for stage in stages if stage.kind is not StageKind.TARGETS)


def test_a_teacher_that_may_have_to_run_is_among_the_inputs() -> None:
    hinted, plain = (planner().student(SMALL, method) for method in ("hints", "pixel"))
    assert kinds(hinted) == ["probe", *kinds(plain)], "what is read inside a teacher is looked for before it trains"
    assert hinted[0].spec["features"] == "levels"
    assert hinted[-1].inputs["teacher"] == hinted[1].key
    assert set(plain[-1].inputs) == {"dataset", "targets0"}
    assert hinted[1].key == plain[0].key
    assert hinted[2].key != plain[1].key


@pytest.mark.parametrize(
    ("views", "parts"),
    [
        (1, [[0, 1]]),
        (3, [[0, 1], [1, 2], [2, 3]]),
        (4, [[0, 1], [1, 2], [2, 3], [3, 4]]),
        (10, [[0, 2], [2, 5], [5, 7], [7, 10]]),
    ],
)
@pytest.mark.parametrize("method", ["tas", "hints"])
def test_the_views_of_a_mentor_are_shared_among_stages(views: int, parts: list[list[int]], method: str) -> None:
    stages = planner(views=views, ladder=(128,)).student(SMALL, method)
    mentors = [stage for stage in stages if stage.kind in (StageKind.TEACHER, StageKind.ASSISTANT)]
    for mentor, learner in itertools.pairwise([*mentors, stages[-1]]):
        told = [stage for stage in of(stages, StageKind.TARGETS) if stage.inputs["model"] == mentor.key]
        assert [stage.spec["part"] for stage in told] == parts
        assert {stage.spec["views"] for stage in told} == {views}
        assert {stage.hints["arch"] for stage in told} == {mentor.spec["arch"]}
        read = {role: key for role, key in learner.inputs.items() if role.startswith("targets")}
        assert read == {f"targets{index}": stage.key for index, stage in enumerate(told)}
    assert len({stage.key for stage in stages}) == len(stages)


# ------------------------------------------------------------------------------- keys, stage by stage


def test_a_default_and_the_same_value_given_are_one_training() -> None:
    logits = {"teacher": True, "assistant": False, "knobs": [{"name": "alpha", "default": 0.9}]}
    catalogue = CATALOGUE | {"methods": CATALOGUE["methods"] | {"logits": logits}}
    plain, given, other = (
        dataclasses.replace(planner(method="logits", knobs=knobs), catalogue=catalogue).student(SMALL, "logits")[-1].key
        for knobs in ({}, {"alpha": 0.9}, {"alpha": 0.8})
    )
    assert plain == given != other


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"mixup": 0.5}, ["teacher"]),
        ({"ema": 0.9}, ["teacher", "targets"]),
        ({"codec_share": 0.25}, ["teacher", "targets", "assistant", "targets", "assistant", "targets"]),
        ({"feature_cache_bytes": 0}, ["teacher", "targets", "assistant"]),
        ({"knobs": {"gamma": 2.0}}, ["teacher", "targets", "assistant", "targets"]),
        ({"ladder": (96,)}, ["teacher", "targets", "assistant", "targets"]),
        ({"schedule": "cosine"}, []),
        ({"compile": True}, ["teacher", "targets", "assistant", "targets", "assistant", "targets", "student"]),
    ],
)
def test_a_change_reaches_the_stages_that_it_concerns_and_those_after(
    changes: dict[str, object], same: list[str]
) -> None:
    plain, changed = (planner(**{"ladder": (128,), **more}).student(SMALL, "tas") for more in ({}, changes))
    assert kinds(plain) == kinds(changed)
    equal = [a.key == b.key for a, b in zip(plain, changed, strict=True)]
    assert equal == [True] * len(same) + [False] * (len(plain) - len(same))
    assert kinds(plain)[: len(same)] == same


@pytest.mark.parametrize("method", ["tas", "pixel", "supervised"])
def test_how_a_network_learns_is_in_its_plan(method: str) -> None:
    plans = planner(mixup=0.5, ema=0.9, schedule="cosine", codec_share=0.25, codec="webp", quality=60)
    stages = plans.student(SMALL, method)
    student = stages[-1].spec
    assert (student["mixup"], student["ema"], student["schedule"]) == (0.5, 0.9, "cosine")
    assert student["codec"] == {"name": "webp", "quality": 60, "lowest": 50, "share": 0.25}
    for stage in stages[:-1]:
        assert "codec" not in stage.spec, "teacher and assistants see pictures as they are"
        assert stage.spec.get("mixup") == (None if stage.kind is StageKind.TEACHER else 0.5)
        assert stage.spec.get("ema") == (0.9 if stage.kind is StageKind.ASSISTANT else None)
    assert "codec" not in planner(codec_share=0.0).student(SMALL, method)[-1].spec


def test_compiling_is_a_hint_to_the_stages_that_train() -> None:
    for compiled in (True, False):
        for stage in planner(compile=compiled, ladder=(128,)).training(SMALL).stages:
            trains = stage.kind in (StageKind.TEACHER, StageKind.ASSISTANT, StageKind.STUDENT)
            assert stage.hints.get("compile", False) == (compiled and trains)
            assert "compile" not in stage.spec


@pytest.mark.parametrize("method", ["tas", "supervised", "hints"])
def test_grey_is_the_students_and_leaves_every_key_of_a_colour_job(method: str) -> None:
    colour, grey = (planner(colour=name, method=method) for name in ("rgb", "grey"))
    assert not any("colour" in stage.spec for stage in colour.training(SMALL).stages)
    pairs = list(zip(colour.training(SMALL).stages, grey.training(SMALL).stages, strict=True))
    for one, other in pairs:
        reads = str(one.kind) in ("student", "export", "measure")
        assert (one.key == other.key) is not reads
        assert dict(other.spec) == dict(one.spec) | ({"colour": "grey"} if reads else {})
    assert all(stage.spec["colour"] == "grey" for stage in grey.costing(SMALL, "int8").stages)
    assert grey.costing(SMALL).last.key != colour.costing(SMALL).last.key
