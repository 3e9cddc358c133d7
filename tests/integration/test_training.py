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
from stillhouse.distill.data.views import Views, render
from stillhouse.distill.loop import large_store_size, one_cycle, train
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
    plan = StagePlan(kind, spec, {role: role for role in inputs})
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
    common = {"task": "classification", "classes": CLASSES, "fit": "squash", "seed": 5, "views": 2, "weights": "none"}
    return {**common, "arch": arch, "epochs": epochs, **more}


@pytest.fixture(scope="module")
def teacher(root: Path, dataset: Output) -> Output:
    spec = recipe("lcnet_050", 3, size="64x64", checkpoint=None)
    return stage(root, StageKind.TEACHER, spec, {"dataset": dataset})


def targets_of(root: Path, dataset: Output, model: Output) -> Output:
    spec = {"classes": CLASSES, "size": "64x64", "fit": "squash", "views": 2, "seed": 5}
    return stage(root, StageKind.TARGETS, spec, {"dataset": dataset, "model": model})


@pytest.fixture(scope="module")
def targets(root: Path, dataset: Output, teacher: Output) -> Output:
    return targets_of(root, dataset, teacher)


def student_spec(arch: str, stem: str, epochs: int, **more: Any) -> dict[str, Any]:
    sizes = {"image_size": "32x32", "network_size": "48x48", "large_size": "64x64"}
    return recipe(arch, epochs, **sizes, stem=stem, **{"method": "tas", "knobs": {}, **more})


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
    assistant = stage(root, StageKind.ASSISTANT, spec, {"dataset": dataset, "targets": targets})
    own = targets_of(root, dataset, assistant)
    inputs = {"dataset": dataset, "targets": own, "assistant": assistant}
    student = stage(root, StageKind.STUDENT, student_spec(arch, stem, 2), inputs)
    network = zoo.load(student.files["weights"])
    assert (str(network.image_size), str(network.network_size), network.stem) == ("32x32", "48x48", stem)
    history = student.metrics["history"]
    assert [row["epoch"] for row in history] == [1, 2]
    assert set(history[0]["losses"]) == {"task", "distillation", "features", "isrd"}
    assert student.metrics["val"]["total"] == 15
    assert student.metrics["images_per_s"] > 0


class Stopped:
    """Raises as a lost lease does, at the n-th report after an epoch's end."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, progress: Mapping[str, Any]) -> None:
        if progress["epoch"] > self.epoch:
            raise LeaseLostError("stopped by the test")


@pytest.mark.parametrize("method", ["pixel", "tas"])
def test_a_stopped_student_goes_on_to_the_same_weights(
    method: str, root: Path, dataset: Output, teacher: Output, targets: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.distill.loop.REPORT_EVERY_S", 0.0)
    spec = student_spec("lcnet_050", "stock", 4, method=method)
    inputs = {"dataset": dataset, "targets": targets} | ({"assistant": teacher} if method == "tas" else {})
    whole = stage(root, StageKind.STUDENT, spec, inputs, work=root / f"whole-{method}")
    work = root / f"stopped-{method}"
    for epoch in (1, 3):
        with pytest.raises(LeaseLostError):
            stage(root, StageKind.STUDENT, spec, inputs, work=work, report=Stopped(epoch))
    resumed = stage(root, StageKind.STUDENT, spec, inputs, work=work)
    expected, found = load_file(whole.files["weights"]), load_file(resumed.files["weights"])
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [row["losses"] for row in whole.metrics["history"]] == [row["losses"] for row in resumed.metrics["history"]]


def test_a_loss_that_is_not_finite_stops_the_stage(
    root: Path, dataset: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, "loss", lambda _self, outputs, _labels: outputs.sum() * float("nan"))
    spec = recipe("lcnet_035", 1, size="64x64", checkpoint=None, seed=6)
    with pytest.raises(StageError, match=r"not finite in epoch 1 \(task nan\)"):
        stage(root, StageKind.TEACHER, spec, {"dataset": dataset})


def test_an_unknown_method_is_named(root: Path, dataset: Output, targets: Output) -> None:
    spec = student_spec("lcnet_035", "stock", 1, method="tass")
    with pytest.raises(UnknownNameError, match="did you mean tas"):
        stage(root, StageKind.STUDENT, spec, {"dataset": dataset, "targets": targets})


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


@pytest.mark.parametrize("steps", [1, 2, 4, 40, 1000])
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(steps: int) -> None:
    rates = [one_cycle(step, steps) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert steps < 3 or rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert peak == max(1, round(0.25 * steps)) - 1
