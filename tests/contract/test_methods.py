"""What every method of the registry must do on every task, for CNN and ViT students: there by being in the folder."""

from pathlib import Path

import pytest
import torch

from stillhouse.distill import methods, tasks, zoo
from stillhouse.distill.method import Batch, Method
from stillhouse.distill.zoo import Network, input_convolution
from stillhouse.search.domain import Size
from stillhouse.search.errors import UnknownNameError, UserError

LARGE, SMALL, CLASSES = Size(64, 64), Size(32, 32), 4
ARCHS = {"cnn": ("lcnet_035", "stride1"), "vit": ("vit_tiny_patch16_224", "half_patch")}
EVERY = [(m, t, f) for m in methods.registry() for t in tasks.registry() for f in ARCHS]
RECONSTRUCTING = [row for row in EVERY if "gamma" in {knob["name"] for knob in methods.registry()[row[0]].describe()}]


def made(method: str, task: str, family: str) -> Method:
    torch.manual_seed(0)
    arch, stem = ARCHS[family]
    student = zoo.build(arch, classes=CLASSES, image_size=SMALL, network_size=Size(48, 48), stem=stem)
    kind = methods.registry()[method]
    assistant = None
    if kind.needs.starts_from_assistant:
        assistant = zoo.build(arch, classes=CLASSES, image_size=LARGE).eval().requires_grad_(False)
        zoo.adapt(student, assistant)
    return kind(kind.params_from({}), tasks.registry()[task](), student.train(), assistant, LARGE)


def batch(method: Method) -> Batch:
    large = torch.rand(6, 3, 64, 64)
    small = torch.nn.functional.interpolate(large, size=(32, 32), mode="bilinear", antialias=True)
    targets = torch.randn(6, CLASSES) if method.needs.targets else None
    return Batch(small, large if method.reads_large else None, torch.arange(6) % CLASSES, targets)


def gradients(network: Network) -> dict[str, float]:
    return {n: float(p.grad.abs().sum()) for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("method", "task", "family"), EVERY)
def test_a_step_has_finite_named_losses_and_moves_the_student_alone(method: str, task: str, family: str) -> None:
    under = made(method, task, family)
    frozen = {n: v.clone() for n, v in under.assistant.state_dict().items()} if under.assistant else {}
    optimiser = torch.optim.SGD([*under.student.parameters(), *under.extra.parameters()], lr=0.1)
    before = {n: p.detach().clone() for n, p in under.student.named_parameters()}
    losses = under.losses(batch(under))
    assert losses
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    optimiser.step()
    moved = [n for n, p in under.student.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > len(before) / 2
    if under.assistant is not None:
        assert all(torch.equal(v, frozen[n]) for n, v in under.assistant.state_dict().items()), "to the bit"


@pytest.mark.parametrize(("method", "task", "family"), RECONSTRUCTING)
def test_isrd_reaches_the_input_convolution_and_the_decoder_only(method: str, task: str, family: str) -> None:
    under = made(method, task, family)
    losses = under.losses(batch(under))
    losses["isrd"].backward()
    names = {id(p): n for n, p in under.student.named_parameters()}
    expected = {names[id(p)] for p in input_convolution(under.student).parameters()}
    assert {n for n, size in gradients(under.student).items() if size > 0} == expected
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in under.extra["decoder"].convolution.parameters())


@pytest.mark.parametrize(("method", "task", "family"), EVERY)
def test_what_is_saved_is_the_student_alone(method: str, task: str, family: str, tmp_path: Path) -> None:
    under = made(method, task, family)
    zoo.save(under.student, tmp_path / "student.safetensors", list("abcd"))
    loaded = zoo.load(tmp_path / "student.safetensors").eval()
    assert not [name for name in loaded.state_dict() if "decoder" in name]
    assert loaded.spec() == under.student.spec()
    picture = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(picture), under.student.eval()(picture))


@pytest.mark.parametrize("name", methods.registry())
def test_a_methods_knobs_say_their_ranges_and_hold_to_them(name: str) -> None:
    kind = methods.registry()[name]
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


def test_tas_adds_up_as_the_paper_says() -> None:
    """L_pkd(teacher := assistant) + beta * sum_l L_fkd^l + gamma * L_isrd, each part at its weight."""
    torch.manual_seed(0)
    parts = {}
    for beta, gamma in ((1.0, 1.0), (3.0, 7.0)):
        under = made("tas", "classification", "cnn")
        kind = methods.registry()["tas"]
        under.params = kind.params_from({"beta": beta, "gamma": gamma})
        torch.manual_seed(1)
        under.student.eval()
        parts[beta] = {name: float(value.detach()) for name, value in under.losses(batch(under)).items()}
    assert set(parts[1.0]) == {"task", "distillation", "features", "isrd"}
    assert parts[3.0]["features"] == pytest.approx(3 * parts[1.0]["features"], rel=1e-5)
    assert parts[3.0]["isrd"] == pytest.approx(7 * parts[1.0]["isrd"], rel=1e-5)
    assert parts[3.0]["distillation"] == pytest.approx(parts[1.0]["distillation"], rel=1e-5)


def test_two_plug_ins_of_one_name_are_refused() -> None:
    from stillhouse.distill.plugins import scan

    found = scan(methods, Method)  # type: ignore[type-abstract]
    assert list(found) == sorted(found)
    assert {"supervised", "logits", "pixel", "tas"} <= set(found)
