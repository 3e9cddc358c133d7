"""What every method of the registry must do on every task, for CNN and ViT students and mentors.

A method is tested because it lies in the folder: those whose mentor is the teacher with each pair of families, those
that start from an assistant with each family, those without a mentor with each student.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knobs import at_work
from stillhouse.distill import methods, tasks, zoo
from stillhouse.distill.data.reader import Reader
from stillhouse.distill.data.views import ViewPolicy, Views, to_grey
from stillhouse.distill.feed import Pictures
from stillhouse.distill.knowledge import observe, outline
from stillhouse.distill.loop import Recipe, train
from stillhouse.distill.method import Batch, Method
from stillhouse.distill.taps import classifier, level_modules, tap
from stillhouse.distill.targets import Cache, write_targets
from stillhouse.distill.tasks.classification import Classification
from stillhouse.distill.zoo import Network, input_convolution
from stillhouse.export.onnx import export
from stillhouse.search.domain import Size
from stillhouse.search.errors import UnknownNameError, UserError

LARGE, SMALL, INSIDE, CLASSES = Size(64, 64), Size(32, 32), Size(48, 48), 4
STUDENTS = {"cnn": ("lcnet_035", "stride1"), "vit": ("vit_tiny_patch16_224", "half_patch")}
EXPORTED = {"exported": ("resnet10t", "stock")}  # few nodes: the exporter takes seconds
ARCHS = STUDENTS | EXPORTED
TEACHERS = {"cnn": "resnet10t", "vit": "deit_tiny_patch16_224"}
REGISTRY = methods.registry()


def pairs(method: type[Method]) -> list[str]:
    """``student<-mentor`` by family."""
    if not method.needs.targets:
        return list(STUDENTS)
    if method.needs.starts_from_assistant:
        return [f"{family}<-{family}" for family in STUDENTS]
    return [f"{student}<-{mentor}" for student, mentor in product(STUDENTS, TEACHERS)]


EVERY = [(name, task, pair) for name, kind in REGISTRY.items() for task in tasks.registry() for pair in pairs(kind)]
every_case = pytest.mark.parametrize(("name", "task", "pair"), EVERY)


def cases_of(wanted: Any) -> Any:
    return pytest.mark.parametrize(("name", "task", "pair"), [row for row in EVERY if wanted(REGISTRY[row[0]])])


@dataclass(frozen=True)
class Made:
    method: Method
    mentor: Network | None

    @property
    def student(self) -> Network:
        return self.method.student


@cache
def built(arch: str, image_size: Size, network_size: Size, stem: str, colour: str = "rgb") -> Network:
    torch.manual_seed(0)
    return zoo.build(arch, classes=CLASSES, image_size=image_size, network_size=network_size, stem=stem, colour=colour)


@cache
def started(family: str, from_assistant: bool, colour: str = "rgb") -> Network:
    arch, stem = ARCHS[family]
    student = deepcopy(built(arch, SMALL, INSIDE, stem, colour))
    if from_assistant:
        zoo.adapt(student, built(arch, LARGE, LARGE, "stock"))
    return student


def made(name: str, task: str, pair: str, knobs: Mapping[str, float] | None = None, colour: str = "rgb") -> Made:
    kind = REGISTRY[name]
    assists = kind.needs.starts_from_assistant
    family, _, of_mentor = pair.partition("<-")
    student, mentor, told = deepcopy(started(family, assists, colour)), None, None
    if kind.needs.targets:
        arch = ARCHS[family][0] if assists else TEACHERS[of_mentor]
        mentor = deepcopy(built(arch, LARGE, LARGE, "stock"))
        told = outline(mentor, kind.needs.features)
    torch.manual_seed(0)
    under = kind(at_work(kind, knobs), tasks.registry()[task](), student, told, LARGE)
    student.train()
    return Made(under, mentor)


def batch_for(case: Made) -> Batch:
    torch.manual_seed(1)
    large = torch.rand(6, 3, 64, 64)
    small = F.interpolate(large, size=(32, 32), mode="bilinear", antialias=True)
    small = to_grey(small) if case.student.colour == "grey" else small
    taught = None if case.mentor is None else observe(case.mentor, large, case.method.features)
    return Batch(small, large if case.method.reads_large else None, torch.arange(6) % CLASSES, taught)


def state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, also those that a state dict leaves out."""
    found = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in found}


def reached(module: nn.Module) -> set[str]:
    return {name for name, value in module.named_parameters() if value.grad is not None}


def hooks(network: Network) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def pictures_for(case: Made, folder: Path) -> Pictures:
    """12 pictures of one mixed view; the mentor's features are left out of the cache, so it is run live."""
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (12, 72, 72, 3), dtype=np.uint8)
    views = Views("digest", 0, ViewPolicy(mixup=0.5), len(stored))
    told = None
    if case.mentor is not None:
        reader = Reader(stored, views, LARGE, view_count=1, keep_bytes=0)
        wanted = {"features": case.method.features, "most_bytes": 0}
        told = Cache.open(*write_targets(case.mentor, reader, 1, folder, **wanted, report=lambda _: None))
        assert told.features == ()
    labels = np.arange(12) % CLASSES
    val = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return Pictures(stored, labels, val, labels[:4], views, 1, cache=told, mentor=case.mentor)


def trained(case: Made, folder: Path) -> list[dict[str, Any]]:
    recipe = Recipe(epochs=1, rate=1e-2, seed=0, batch=6)
    return train(case.method, pictures_for(case, folder), recipe, work=folder / "work", report=lambda _: None)


# ------------------------------------------------------------------------------------------- one step


@every_case
@pytest.mark.parametrize(("mixed", "colour"), [(False, "rgb"), (True, "rgb"), (True, "grey")])
def test_losses_are_finite_named_scalars(name: str, task: str, pair: str, mixed: bool, colour: str) -> None:
    case = made(name, task, pair, colour=colour)
    batch = batch_for(case)
    if mixed:
        labels = case.method.task.mixed(batch.labels, batch.labels.flip(0), torch.linspace(0.5, 1, 6), CLASSES)
        batch = replace(batch, labels=labels)
    losses = case.method.losses(batch)
    assert "task" in losses
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
    assert all(float(value.detach()) > 0 for value in losses.values()), "a part that is 0 teaches nothing"
    assert all(value.requires_grad for value in losses.values())
    total(losses).backward()
    kernel = input_convolution(case.student).weight
    assert kernel.shape[1] == (1 if colour == "grey" else 3)
    assert float(kernel.grad.abs().max()) > 0  # type: ignore[union-attr]


@every_case
def test_training_with_a_live_mentor_moves_the_student_alone(name: str, task: str, pair: str, tmp_path: Path) -> None:
    case = made(name, task, pair)
    if case.mentor is not None:
        case.mentor.train()  # a mentor left in training mode must not learn statistics either
    before = state(case.mentor) if case.mentor is not None else {}
    start = {"student": state(case.student), "extra": state(case.method.extra)}
    history = trained(case, tmp_path)
    assert all(np.isfinite(value) for value in history[0]["losses"].values())
    for module, was in ((case.student, start["student"]), (case.method.extra, start["extra"])):
        parameters = dict(module.named_parameters())
        still = [key for key, value in parameters.items() if torch.equal(value, was[key])]
        assert len(still) <= 0.05 * len(parameters), still
    assert hooks(case.student) == 0
    if case.mentor is not None:
        after = state(case.mentor)
        assert after.keys() == before.keys()
        assert all(torch.equal(value, before[key]) for key, value in after.items()), "to the bit"
        assert reached(case.mentor) == set()
        assert hooks(case.mentor) == 0


@cases_of(lambda kind: kind.needs.targets)
def test_no_gradient_goes_to_what_the_mentor_told(name: str, task: str, pair: str) -> None:
    case = made(name, task, pair)
    batch = batch_for(case)
    assert batch.taught is not None
    told = (batch.taught.logits, *batch.taught.features)
    assert len(batch.taught.features) == len(case.method.outline().features)
    assert not any(value.requires_grad for value in told)
    was = [value.clone() for value in told]
    total(case.method.losses(batch)).backward()
    assert case.mentor is not None
    assert reached(case.mentor) == set()
    assert all(torch.equal(a, b) for a, b in zip(told, was, strict=True)), "it may be read from a cache"


@cases_of(lambda kind: kind.needs.targets)
def test_a_method_says_that_it_misses_its_mentor(name: str, task: str, pair: str) -> None:
    case = made(name, task, pair)
    with pytest.raises(ValueError, match=f"method {name} needs what its mentor told"):
        case.method.losses(replace(batch_for(case), taught=None))


@every_case
def test_only_a_method_that_reads_inside_the_student_is_not_compiled(name: str, task: str, pair: str) -> None:
    case, kind = made(name, task, pair), REGISTRY[name]
    default = kind(kind.params_from({}), case.method.task, case.student, case.method.mentor, LARGE)
    seen: list[int] = []
    probe = case.student.register_forward_pre_hook(lambda *_: seen.append(hooks(case.student) - 1))
    for method in (case.method, default):
        seen.clear()
        method.losses(batch_for(case))
        assert len(seen) == 1, "one pass a step"
        assert (seen[0] == 0) is method.compiles
    probe.remove()
    assert hooks(case.student) == 0


@pytest.mark.parametrize("pair", ["cnn<-cnn", "vit<-vit"])
def test_knobs_at_zero_take_their_part_away(pair: str) -> None:
    bare = made("tas", "classification", pair, {"beta": 0.0, "gamma": 0.0})
    assert (bare.method.features, bare.method.reads_large, list(bare.method.extra)) == ("", False, [])
    assert bare.method.compiles, "nothing is read inside a student of a job that names no knobs"
    assert set(bare.method.losses(batch_for(bare))) == {"task", "distillation"}
    assert made("tas", "classification", pair).method.features == "native"


def test_tas_adds_up_as_the_paper_says() -> None:
    """L_pkd(teacher := assistant) + beta * sum_l L_fkd^l + gamma * L_isrd, each part at its weight."""
    parts = {}
    for beta, gamma in ((1.0, 1.0), (3.0, 7.0)):
        case = made("tas", "classification", "cnn<-cnn", {"beta": beta, "gamma": gamma})
        parts[beta] = {name: float(value.detach()) for name, value in case.method.losses(batch_for(case)).items()}
    assert set(parts[1.0]) == {"task", "distillation", "features", "isrd"}
    assert parts[3.0]["features"] == pytest.approx(3 * parts[1.0]["features"], rel=1e-5)
    assert parts[3.0]["isrd"] == pytest.approx(7 * parts[1.0]["isrd"], rel=1e-5)
    assert parts[3.0]["distillation"] == pytest.approx(parts[1.0]["distillation"], rel=1e-5)


# ------------------------------------------------------------------------- where each loss's gradient goes


@cases_of(lambda kind: hasattr(kind.Params, "gamma"))
def test_isrd_reaches_the_input_convolution_and_the_decoder_only(name: str, task: str, pair: str) -> None:
    case, params = made(name, task, pair), at_work(REGISTRY[name])
    batch = batch_for(case)
    with torch.no_grad(), tap(case.student, input=True) as taps:
        case.student(batch.small)
        wanted = case.student.normalise(batch.large) - case.method.extra["decoder"](taps.input)
    loss = case.method.losses(batch)["isrd"]
    assert float(loss.detach()) == pytest.approx(params.gamma * float(wanted.abs().mean()), rel=1e-5)
    loss.backward()
    names = {id(value): key for key, value in case.student.named_parameters()}
    assert reached(case.student) == {names[id(value)] for value in input_convolution(case.student).parameters()}
    for part in (input_convolution(case.student), case.method.extra["decoder"].convolution):
        assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in part.parameters())


@cases_of(lambda kind: kind.name == "hints")
def test_a_hint_reaches_its_regressor_and_nothing_after_the_tapped_level(name: str, task: str, pair: str) -> None:
    case = made(name, task, pair)
    case.method.losses(batch_for(case))["hint"].backward()
    in_order = [key for key, _ in case.student.named_parameters()]
    tapped = {id(value) for value in level_modules(case.student)[-2].parameters()}
    last = max(place for place, value in enumerate(case.student.parameters()) if id(value) in tapped)
    assert last < len(in_order) - 1
    assert reached(case.student) == set(in_order[: last + 1])
    assert all(value.grad.abs().sum() > 0 for value in case.method.extra["regressor"].parameters())


@cases_of(lambda kind: kind.name == "adversarial_mmd")
def test_the_student_gets_the_discriminators_gradient_with_its_sign_turned(name: str, task: str, pair: str) -> None:
    case = made(name, task, pair)
    batch, judge = batch_for(case), case.method.extra["discriminator"]
    assert batch.taught is not None
    found = {}
    for way in ("method", "plain"):
        case.student.zero_grad()
        judge.zero_grad()
        if way == "method":
            loss = case.method.losses(batch)["adversarial"]
        else:
            with tap(case.student, pooled=True) as taps:
                case.student(batch.small)
            guess = judge(torch.cat([taps.pooled, *batch.taught.features])).squeeze(1)
            truth = torch.tensor([0.0] * 6 + [1.0] * 6)  # 1: comes from the large picture
            weight = case.method.params.adversarial  # type: ignore[attr-defined]
            loss = weight * F.binary_cross_entropy_with_logits(guess, truth)
        loss.backward()
        parts = ((case.student, "student"), (judge, "judge"))
        found[way] = {
            f"{label} {key}": value.grad.clone()
            for module, label in parts
            for key, value in module.named_parameters()
            if value.grad is not None
        }
    assert found["method"].keys() == found["plain"].keys()
    assert reached(classifier(case.student)) == set(), "it reads the pooled feature, which comes before"
    for key, gradient in found["method"].items():
        sign = -1 if key.startswith("student") else 1
        torch.testing.assert_close(gradient, sign * found["plain"][key], rtol=1e-4, atol=1e-8)
    for label in ("student", "judge"):
        assert sum(float(value.abs().sum()) for key, value in found["plain"].items() if key.startswith(label)) > 1e-4


# ------------------------------------------------------------------------------------ what is kept


@every_case
def test_what_is_saved_is_the_student_alone(name: str, task: str, pair: str, tmp_path: Path) -> None:
    case = made(name, task, pair)
    zoo.save(case.student, tmp_path / "student.safetensors", list("abcd"))
    loaded = zoo.load(tmp_path / "student.safetensors").eval()
    assert loaded.state_dict().keys() == started(pair.partition("<-")[0], False).state_dict().keys()
    assert not {id(value) for value in case.method.extra.parameters()} & {id(value) for value in loaded.parameters()}
    assert loaded.spec() == case.student.spec()
    picture = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(picture), case.student.eval()(picture))


def tensors(network: Network, path: Path) -> dict[str, list[int]]:
    export(network, image_size=SMALL, path=path, metadata={})
    return {item.name: list(item.dims) for item in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    network = deepcopy(started("exported", False))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # the exporter joins tensors of equal content, such as biases of 0
            for value in (module.bias.data, module.running_mean):
                value.normal_()
    return tensors(network, tmp_path_factory.mktemp("onnx") / "untrained.onnx")


@pytest.mark.parametrize(("name", "extra"), [("pixel", "decoder"), ("adversarial_mmd", "discriminator")])
def test_the_exported_file_holds_the_student_alone(
    name: str, extra: str, untrained: dict[str, list[int]], tmp_path: Path
) -> None:
    case = made(name, "classification", "exported<-cnn")
    assert list(case.method.extra) == [extra]
    trained(case, tmp_path)
    assert tensors(case.student, tmp_path / "student.onnx") == untrained


# ------------------------------------------------------------------------------------------- knobs


class Listening(Classification):
    """Remembers the smoothing that it was asked for."""

    asked: list[float]

    def loss(self, outputs: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
        self.asked.append(smoothing)
        return super().loss(outputs, labels, smoothing=smoothing)


@pytest.mark.parametrize("name", REGISTRY)
def test_labels_are_smoothed_where_no_teacher_does_it(name: str) -> None:
    case = made(name, "classification", pairs(REGISTRY[name])[0], {"smoothing": 0.1} if name == "supervised" else {})
    case.method.task = task = Listening()
    task.asked = []
    case.method.losses(batch_for(case))
    assert task.asked == [0.1 if name == "supervised" else 0.0]
    if name != "supervised":
        with pytest.raises(UnknownNameError, match="smoothing"):
            REGISTRY[name].params_from({"smoothing": 0.1})


@pytest.mark.parametrize("name", REGISTRY)
def test_a_methods_knobs_say_their_ranges_and_hold_to_them(name: str) -> None:
    kind = REGISTRY[name]
    assert kind.__doc__
    for row in kind.describe():
        assert set(row) == {"name", "type", "default", "low", "high", "search", "help"}
        assert row["low"] <= row["default"] <= row["high"]
        assert row["help"]
        if row["search"]:
            assert row["low"] <= row["search"][0] < row["search"][1] <= row["high"]
        assert getattr(kind.params_from({row["name"]: row["high"]}), row["name"]) == row["high"]
        for wrong in (row["high"] + 1, row["low"] - 1, "much", True):
            with pytest.raises(UserError, match=row["name"]):
                kind.params_from({row["name"]: wrong})
    with pytest.raises(UnknownNameError, match="no_such_knob"):
        kind.params_from({"no_such_knob": 1})
