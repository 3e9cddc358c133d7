"""The trainer's stages on small pictures: what they leave, and that a killed one goes on to the same weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stillhouse.distill import zoo
from stillhouse.distill.data.reader import Codec
from stillhouse.distill.data.views import ViewPolicy, Views, render
from stillhouse.distill.feed import Pictures
from stillhouse.distill.loop import Recipe, large_store_size, train
from stillhouse.distill.method import Method
from stillhouse.distill.stage import InputFiles, Output, open_store, run
from stillhouse.distill.tasks.classification import Classification
from stillhouse.search.domain import Fit, Size, StageKind, StagePlan
from stillhouse.search.errors import LeaseLostError, StageError, UnknownNameError

CLASSES = 3
Runner = Callable[..., Output]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


def quiet(_: Mapping[str, Any]) -> None:
    pass


def stage(root: Path, kind: StageKind, spec: dict[str, Any], inputs: dict[str, Output], **more: Any) -> Output:
    plan = StagePlan(kind, spec, {role: str(sorted(output.files.items())) for role, output in inputs.items()})
    work = more.pop("work", root / plan.key)
    work.mkdir(exist_ok=True)
    files = {role: InputFiles(output.files, output.metrics) for role, output in inputs.items()}
    return run(plan, files, work, cache=root / "cache", threads=1, report=more.pop("report", quiet))


@pytest.fixture(scope="module")
def dataset(root: Path) -> Output:
    rng = np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 5), ("test", 5)):
        for label in range(CLASSES):
            folder = root / "pictures" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                y, x = np.mgrid[0:40, 0:52]
                wave = np.sin((x * (label == 0) + y * (label == 1) + (x + y) * (label == 2)) / rng.uniform(1.2, 2.0))
                grey = np.clip(128 + 80 * wave + rng.normal(0, 10, wave.shape), 0, 255).astype(np.uint8)
                Image.fromarray(grey).convert("RGB").save(folder / f"{number}.png")
    source = {"source": str(root / "pictures"), "digest": "test", "skip_faults": False}
    return stage(root, StageKind.INGEST, source, {})


def recipe(arch: str, epochs: int, **more: Any) -> dict[str, Any]:
    common = {
        "task": "classification",
        "classes": CLASSES,
        "fit": "squash",
        "seed": 5,
        "views": 2,
        "weights": "none",
        "store_size": "64x64",
    }
    return {**common, "arch": arch, "epochs": epochs, **more}


@pytest.fixture(scope="module")
def teacher(root: Path, dataset: Output) -> Output:
    spec = recipe("lcnet_050", 3, size="64x64", checkpoint=None)
    return stage(root, StageKind.TEACHER, spec, {"dataset": dataset})


def test_a_probe_says_whether_what_will_be_read_is_there(root: Path) -> None:
    spec = {"arch": "lcnet_050", "size": "64x64", "features": "levels"}
    found = stage(root, StageKind.PROBE, spec, {})
    assert len(found.metrics["outline"]["features"]) == 3
    with pytest.raises(StageError, match=r"mambaout_femto has none.*take a method that reads logits only"):
        stage(root, StageKind.PROBE, spec | {"arch": "mambaout_femto"}, {})


def targets_of(root: Path, dataset: Output, model: Output, **more: Any) -> Output:
    spec = {"classes": CLASSES, "size": "64x64", "store_size": "64x64", "fit": "squash", "views": 2, "seed": 5, **more}
    return stage(root, StageKind.TARGETS, spec, {"dataset": dataset, "model": model})


@pytest.fixture(scope="module")
def targets(root: Path, dataset: Output, teacher: Output) -> Output:
    return targets_of(root, dataset, teacher)


KEPT = {"features": "native", "feature_bytes": 1 << 30}


def test_a_student_of_parts_is_that_of_the_whole(root: Path, dataset: Output, teacher: Output, targets: Output) -> None:
    """Which stage told of which view makes no difference, nor does the order in which they are named."""
    parts = {f"targets{1 - view}": targets_of(root, dataset, teacher, part=[view, view + 1]) for view in (1, 0)}
    spec = recipe("lcnet_050", 2, size="64x64", method="logits", knobs={})
    learned = []
    for inputs in ({"targets0": targets}, parts):
        one = stage(root, StageKind.ASSISTANT, spec, {"dataset": dataset, **inputs})
        learned.append([(row["losses"], row["val_accuracy"]) for row in one.metrics["history"]])
    assert learned[0] == learned[1]
    assert learned[0][0][0]["distillation"] > 0


@pytest.fixture(scope="module")
def told(root: Path, dataset: Output, teacher: Output) -> Output:
    """What the teacher, taken for an assistant, tells of its inside too."""
    return targets_of(root, dataset, teacher, **KEPT)


FULL = {"beta": 0.1, "gamma": 1.0}
"""Knobs of ``tas`` with its feature loss and ISRD at work."""


def student_spec(arch: str, stem: str, epochs: int, **more: Any) -> dict[str, Any]:
    sizes = {"image_size": "32x32", "network_size": "48x48", "large_size": "64x64"}
    learns = {"method": "tas", "knobs": FULL if more.get("method", "tas") == "tas" else {}}
    return recipe(arch, epochs, stem=stem, **sizes | learns | more)


def test_targets_are_the_teachers_logits_for_each_view(
    root: Path, dataset: Output, teacher: Output, targets: Output
) -> None:
    logits = np.load(targets.files["logits"])
    assert logits.shape == (2, 42, CLASSES)
    assert logits.dtype == np.float16
    assert not np.array_equal(logits[0], logits[1]), "each view is another crop"
    store = open_store({"dataset": InputFiles(dataset.files, {})}, root / "cache")
    stored = store.array("train", large_store_size(Size(64, 64)), Fit.SQUASH, CLASSES)
    indices = np.array([3, 17])
    crops = render(torch.from_numpy(stored[indices]), Views(store.digest, 5).draw(indices, 1), Size(64, 64))
    with torch.no_grad():
        expected = zoo.load(teacher.files["weights"]).eval()(crops).numpy()
    assert np.allclose(logits[1, indices], expected, atol=0.02)


@pytest.mark.parametrize(("arch", "stem"), [("lcnet_050", "stride1"), ("vit_tiny_patch16_224", "half_patch")])
def test_teacher_assistant_student(arch: str, stem: str, root: Path, dataset: Output, targets: Output) -> None:
    spec = recipe(arch, 1, size="64x64", method="logits", knobs={})
    assistant = stage(root, StageKind.ASSISTANT, spec, {"dataset": dataset, "targets0": targets})
    own = targets_of(root, dataset, assistant, **KEPT)
    inputs = {"dataset": dataset, "targets0": own, "assistant": assistant}
    student = stage(root, StageKind.STUDENT, student_spec(arch, stem, 2), inputs)
    network = zoo.load(student.files["weights"])
    assert (str(network.image_size), str(network.network_size), network.stem) == ("32x32", "48x48", stem)
    history = student.metrics["history"]
    assert [row["epoch"] for row in history] == [1, 2]
    assert set(history[0]["losses"]) == {"task", "distillation", "features", "isrd"}
    assert student.metrics["val"]["total"] == 15
    assert student.metrics["images_per_s"] > 0


def test_a_grey_student_of_a_colour_assistant(root: Path, dataset: Output, targets: Output) -> None:
    spec = recipe("lcnet_050", 1, size="64x64", method="logits", knobs={})
    assistant = stage(root, StageKind.ASSISTANT, spec, {"dataset": dataset, "targets0": targets})
    own = targets_of(root, dataset, assistant, **KEPT)
    inputs = {"dataset": dataset, "targets0": own, "assistant": assistant}
    codec = {"name": "jpeg", "quality": 80, "lowest": 50, "share": 0.5}
    spec = student_spec("lcnet_050", "stock", 2, colour="grey", codec=codec, mixup=0.3)
    student = stage(root, StageKind.STUDENT, spec, inputs)
    network = zoo.load(student.files["weights"]).eval()
    assert (network.colour, zoo.load(assistant.files["weights"]).colour) == ("grey", "rgb")
    store = open_store({"dataset": InputFiles(dataset.files, {})}, root / "cache")
    grey = store.array("val", Size(32, 32), Fit.SQUASH, CLASSES, "grey")
    with torch.no_grad():
        told = network(torch.from_numpy(np.array(grey)).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    right = int((told == store.labels("val")).sum())
    assert student.metrics["val"] == {"correct": right, "total": 15}


class Stopped:
    """Raises as a lost lease does, at the n-th report after an epoch's end."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, progress: Mapping[str, Any]) -> None:
        if progress["epoch"] > self.epoch:
            raise LeaseLostError("stopped by the test")


CODED = {"mixup": 0.5, "ema": 0.9, "codec": {"name": "jpeg", "quality": 75, "share": 0.5}}


@pytest.mark.parametrize(
    ("method", "live", "more"),
    [
        ("pixel", False, {}),
        ("tas", False, {}),
        ("tas", True, {"schedule": "cosine"}),
        ("adversarial_mmd", False, {}),
        ("tas", False, CODED),
    ],
    ids=["pixel", "tas", "live", "adversarial_mmd", "coded"],
)
def test_a_stopped_student_goes_on_to_the_same_weights(
    method: str,
    live: bool,
    more: dict[str, Any],
    root: Path,
    dataset: Output,
    teacher: Output,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("stillhouse.distill.progress.REPORT_EVERY_S", 0.0)
    spec = student_spec("lcnet_050", "stock", 4, method=method, **more)
    mixed = {"mixup": more["mixup"]} if "mixup" in more else {}
    features = {"tas": "native", "adversarial_mmd": "pooled"}.get(method)
    kept = {"features": features, "feature_bytes": 0 if live else 1 << 30} if features else {}
    own = targets_of(root, dataset, teacher, **kept, **mixed)
    inputs = {"dataset": dataset, "targets0": own} | ({} if method == "pixel" else {"assistant": teacher})
    works = [tmp_path / "whole", tmp_path / "stopped"]
    whole = stage(root, StageKind.STUDENT, spec, inputs, work=works[0])
    for epoch in (1, 3):
        with pytest.raises(LeaseLostError):
            stage(root, StageKind.STUDENT, spec, inputs, work=works[1], report=Stopped(epoch))
    resumed = stage(root, StageKind.STUDENT, spec, inputs, work=works[1])
    expected, found = load_file(whole.files["weights"]), load_file(resumed.files["weights"])
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in ("losses", "val_accuracy"):
        rows = [[row[name] for row in output.metrics["history"]] for output in (whole, resumed)]
        assert rows[0] == rows[1]
    assert whole.metrics["val"] == resumed.metrics["val"]


def test_a_student_trained_rung_by_rung_has_the_same_weights(
    root: Path, dataset: Output, teacher: Output, tmp_path: Path
) -> None:
    """Each rung is a stage of its own that reads what the one below it left."""
    spec = student_spec("lcnet_050", "stock", 4, method="tas", **CODED)
    own = targets_of(root, dataset, teacher, features="native", feature_bytes=1 << 30, mixup=CODED["mixup"])
    inputs = {"dataset": dataset, "targets0": own, "assistant": teacher}
    whole = stage(root, StageKind.STUDENT, spec, inputs, work=tmp_path / "whole")
    first = stage(root, StageKind.STUDENT, spec | {"until": 1}, inputs, work=tmp_path / "first")
    second = stage(root, StageKind.STUDENT, spec | {"until": 3}, inputs | {"resume": first}, work=tmp_path / "second")
    last = stage(root, StageKind.STUDENT, spec, inputs | {"resume": second}, work=tmp_path / "last")
    assert set(first.files) == set(second.files) == {"checkpoint"}
    accuracies = [[row["val_accuracy"] for row in each.metrics["history"]] for each in (first, second, last, whole)]
    assert [len(rows) for rows in accuracies] == [1, 3, 4, 4]
    assert accuracies[2] == accuracies[3]
    assert accuracies[2][:3] == accuracies[1]
    expected, found = load_file(whole.files["weights"]), load_file(last.files["weights"])
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("more", [{}, CODED], ids=["plain", "coded"])
def test_a_live_mentor_teaches_what_its_cache_does(
    more: dict[str, Any], root: Path, dataset: Output, teacher: Output, tmp_path: Path
) -> None:
    mixed = {"mixup": more["mixup"]} if more else {}
    spec, losses = student_spec("lcnet_050", "stock", 3, **more), {}
    for way, room in (("cached", 1 << 30), ("live", 0)):
        own = targets_of(root, dataset, teacher, **KEPT | {"feature_bytes": room}, **mixed)
        assert own.metrics["features"] == ("native" if way == "cached" else "")
        assert ("feature0" in own.files) is (way == "cached")
        inputs = {"dataset": dataset, "targets0": own, "assistant": teacher}
        output = stage(root, StageKind.STUDENT, spec, inputs, work=tmp_path / way)
        losses[way] = [row["losses"] for row in output.metrics["history"]]
    for kept, live in zip(losses["cached"], losses["live"], strict=True):
        assert kept.keys() == live.keys() == {"task", "distillation", "features", "isrd"}
        for name, value in kept.items():
            assert live[name] == pytest.approx(value, rel=1e-2)
    # The first epoch starts from the same weights: there the figures differ by float16's rounding alone.
    assert losses["live"][0]["features"] == pytest.approx(losses["cached"][0]["features"], rel=2e-3)


def test_a_rung_of_a_ladder_is_an_assistant_that_learns_as_a_student_does(
    root: Path, dataset: Output, teacher: Output, told: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, torch.Tensor]] = []

    def looked_at(method: Method, *args: Any, **more: Any) -> list[dict[str, Any]]:
        started.append({name: value.clone() for name, value in method.student.state_dict().items()})
        return train(method, *args, **more)

    monkeypatch.setattr("stillhouse.distill.stage.train", looked_at)
    spec = recipe("lcnet_050", 1, size="48x48", large_size="64x64", method="tas", knobs=FULL, ema=0.5)
    inputs = {"dataset": dataset, "targets0": told, "assistant": teacher}
    rung = stage(root, StageKind.ASSISTANT, spec, inputs)
    network = zoo.load(rung.files["weights"])
    assert (str(network.image_size), str(network.network_size), network.stem) == ("48x48", "48x48", "stock")
    assert set(rung.metrics["history"][0]["losses"]) == {"task", "distillation", "features", "isrd"}
    given = load_file(teacher.files["weights"])
    assert all(torch.equal(value, given[name]) for name, value in started[0].items()), "it starts from its mentor"
    below = targets_of(root, dataset, rung, **KEPT | {"size": "48x48"})
    spec = student_spec("lcnet_050", "stock", 1, large_size="48x48", image_size="24x24")
    student = stage(root, StageKind.STUDENT, spec, {"dataset": dataset, "targets0": below, "assistant": rung})
    assert set(student.metrics["history"][0]["losses"]) == {"task", "distillation", "features", "isrd"}
    start = load_file(rung.files["weights"])
    assert all(torch.equal(value, start[name]) for name, value in started[1].items())


def test_how_a_plan_wants_it_trained_reaches_the_loop(
    root: Path, dataset: Output, teacher: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[Method, Pictures, Recipe]] = []

    def caught(method: Method, pictures: Pictures, recipe: Recipe, **_: Any) -> list[dict[str, Any]]:
        seen.append((method, pictures, recipe))
        raise LeaseLostError("seen")

    monkeypatch.setattr("stillhouse.distill.stage.train", caught)
    how = {"mixup": 0.5, "ema": 0.9, "schedule": "cosine", "compile": True}
    codec = {"codec": {"name": "webp", "quality": 75, "share": 0.5}}
    own = targets_of(root, dataset, teacher, mixup=0.5, features="pooled", feature_bytes=1 << 30)
    inputs = {"dataset": dataset, "targets0": own, "assistant": teacher}
    plans = [
        (StageKind.STUDENT, student_spec("lcnet_050", "stock", 4, method="adversarial_mmd", **how, **codec)),
        (StageKind.ASSISTANT, recipe("lcnet_050", 4, size="64x64", method="logits", knobs={"alpha": 0.5}, **how)),
        (StageKind.TEACHER, recipe("lcnet_050", 4, size="64x64", checkpoint=None)),
        (StageKind.TEACHER, recipe("vit_tiny_patch16_224", 4, size="64x64", checkpoint=None)),
    ]
    for number, (kind, spec) in enumerate(plans):
        with pytest.raises(LeaseLostError, match="seen"):
            stage(root, kind, spec, inputs, work=tmp_path / str(number))
    for _, pictures, used in seen[:2]:
        assert pictures.views.policy == ViewPolicy(mixup=0.5)
        assert pictures.views.count == len(pictures.labels) == 3 * 14
        assert (used.ema, used.schedule, used.compile, used.epochs, used.seed) == (0.9, "cosine", True, 4, 5)
    assert [pictures.codec for _, pictures, _ in seen] == [Codec("webp", 75, 0.5), None, None, None]
    assert [used.rate for *_, used in seen] == pytest.approx([1e-3, 1e-3, 3e-3, 0.6e-3]), "a ViT learns more slowly"
    assert seen[1][0].params.alpha == 0.5  # type: ignore[attr-defined]
    assert [pictures.cache is None for _, pictures, _ in seen] == [False, False, True, True]
    assert seen[2][1].views.policy == ViewPolicy()
    assert (seen[2][2].ema, seen[2][2].schedule, seen[2][2].compile) == (0.0, "one_cycle", False)


@pytest.mark.parametrize("method", ["hints", "attention_transfer"])
def test_the_teacher_itself_is_the_mentor_of_methods_without_an_assistant(
    method: str, root: Path, dataset: Output, teacher: Output
) -> None:
    own = targets_of(root, dataset, teacher, features="levels", feature_bytes=0)
    spec = student_spec("lcnet_035", "stock", 1, method=method)
    student = stage(root, StageKind.STUDENT, spec, {"dataset": dataset, "targets0": own, "teacher": teacher})
    assert {"task", "distillation"} < set(student.metrics["history"][0]["losses"])


def test_a_loss_that_is_not_finite_stops_the_stage(
    root: Path, dataset: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, "loss", lambda _self, outputs, *_, **__: outputs.sum() * float("nan"))
    spec = recipe("lcnet_035", 1, size="64x64", checkpoint=None, seed=6)
    with pytest.raises(StageError, match=r"not finite in epoch 1 \(task nan\)"):
        stage(root, StageKind.TEACHER, spec, {"dataset": dataset})


def test_an_unknown_method_is_named(root: Path, dataset: Output, targets: Output) -> None:
    spec = student_spec("lcnet_035", "stock", 1, method="tass")
    with pytest.raises(UnknownNameError, match="did you mean tas"):
        stage(root, StageKind.STUDENT, spec, {"dataset": dataset, "targets0": targets})


def test_a_teacher_starts_from_a_users_checkpoint(
    root: Path, dataset: Output, teacher: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, torch.Tensor]] = []

    def looked_at(method: Method, *args: Any, **more: Any) -> list[dict[str, Any]]:
        started.append({name: value.clone() for name, value in method.student.state_dict().items()})
        return train(method, *args, **more)

    monkeypatch.setattr("stillhouse.distill.stage.train", looked_at)
    spec = recipe("lcnet_050", 1, size="64x64", checkpoint="sha")
    stage(root, StageKind.TEACHER, spec, {"dataset": dataset, "checkpoint": teacher})
    given = load_file(teacher.files["weights"])
    assert all(torch.equal(value, given[name]) for name, value in started[0].items())
