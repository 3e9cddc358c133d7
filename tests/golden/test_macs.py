"""MACs against the published check figures (METHODS section 5), all for 200 classes."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import shufflenet_v2_x1_0

from stillhouse.distill.zoo import count_macs, macs_params
from stillhouse.search.domain import Size

CLASSES = 200


@pytest.mark.parametrize(
    ("arch", "side", "stem", "millions"),
    [
        ("resnet18", 224, "stock", 1813.7),
        ("resnet18", 112, "stock", 485.0),
        ("resnet18", 56, "stock", 129.2),
        ("resnet18", 56, "stride1", 485.0),
        ("resnet50", 224, "stock", 4087.5),
    ],
)
def test_resnets(arch: str, side: int, stem: str, millions: float) -> None:
    macs, _ = macs_params(arch, classes=CLASSES, network_size=Size(side, side), stem=stem)
    assert macs / 1e6 == pytest.approx(millions, abs=0.051)


@pytest.mark.parametrize(("side", "millions"), [(224, 1253.5), (112, 284.2)])
def test_vit_tiny(side: int, millions: float) -> None:
    macs, _ = macs_params("vit_tiny_patch16_224", classes=CLASSES, network_size=Size(side, side))
    assert macs / 1e6 == pytest.approx(millions, rel=0.005)
    assert macs == vit_macs(side, patch=16, width=192, depth=12)


def vit_macs(side: int, *, patch: int, width: int, depth: int) -> int:
    """The analytic figure: patch embedding on the patches; on patches + class token, in each block, query, key and
    value (3 d^2), both attention products (2 T^2 d in all), projection (d^2), MLP (8 d^2); the classifier once."""
    patches = (side // patch) ** 2
    tokens = patches + 1
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    return patches * 3 * patch**2 * width + depth * block + width * CLASSES


def test_shufflenet() -> None:
    with torch.device("meta"):
        network = shufflenet_v2_x1_0(num_classes=CLASSES)
    assert count_macs(network, Size(224, 224)) / 1e6 == pytest.approx(144.1, abs=0.051)


def test_parameters_of_resnet18() -> None:
    _, params = macs_params("resnet18", classes=1000, network_size=Size(224, 224))
    assert params == 11_689_512
