"""The taps give what the losses' formulas name, with gradient, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.distill.taps import classifier
from stillhouse.distill.zoo import Network, build, input_convolution, input_shape, tap
from stillhouse.search.domain import Size
from stillhouse.search.errors import StageError

SIDE = 32


def network_of(arch: str, stem: str = "stock", side: int = SIDE) -> Network:
    torch.manual_seed(0)
    return build(arch, classes=3, image_size=Size(SIDE, SIDE), network_size=Size(side, side), stem=stem)


def pictures() -> Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def hooks(network: Network) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


@pytest.mark.parametrize(
    ("arch", "stem", "shape"),
    [
        ("resnet10t", "stock", (24, 16, 16)),
        ("lcnet_035", "stride1", (8, 32, 32)),
        ("tf_efficientnet_lite0", "stock", (32, 16, 16)),
        ("tf_efficientnet_lite0", "stride1", (32, 32, 32)),
        ("convnext_atto", "stock", (40, 8, 8)),
        ("vit_tiny_patch16_224", "stock", (192, 2, 2)),
        ("vit_tiny_patch16_224", "half_patch", (192, 4, 4)),
    ],
)
def test_input_is_the_first_convolutions_raw_output(arch: str, stem: str, shape: tuple[int, int, int]) -> None:
    network = network_of(arch, stem).train()
    x = pictures()
    with tap(network, input=True) as taps:
        network(x)
    assert input_shape(network) == shape
    assert taps.input is not None
    assert taps.input.shape == (2, *shape)
    # An in-place activation after the convolution would have changed what was tapped.
    torch.testing.assert_close(taps.input, input_convolution(network)(network.normalise(x)))
    assert taps.levels == []
    assert taps.attention == []


def test_input_loss_reaches_the_input_convolution_only() -> None:
    network = network_of("lcnet_035").train()
    with tap(network, input=True) as taps:
        network(pictures())
    assert taps.input is not None
    taps.input.square().mean().backward()
    reached = [name for name, value in network.named_parameters() if value.grad is not None]
    assert reached == ["backbone.conv_stem.weight"]


@pytest.mark.parametrize(
    ("arch", "shapes"),
    [
        ("resnet10t", [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]),
        ("mobilenetv3_small_050", [(8, 16, 16), (16, 8, 8), (24, 4, 4), (288, 2, 2)]),
        ("convnext_atto", [(40, 16, 16), (80, 8, 8), (160, 4, 4), (320, 2, 2)]),
    ],
)
def test_levels_are_the_stages_outputs(arch: str, shapes: list[tuple[int, int, int]]) -> None:
    network = network_of(arch, side=64).train()
    kept: list[Tensor] = []
    with tap(network, levels=True) as taps:
        handle = network.backbone.register_forward_pre_hook(lambda *_: kept.clear())
        stages = [module for name, module in network.backbone.named_modules() if name in LAST_STAGE]
        assert len(stages) == 1
        last = stages[0].register_forward_hook(lambda _m, _a, out: kept.append(out.detach().clone()))
        logits = network(pictures())
        handle.remove()
        last.remove()
    assert [tuple(level.shape[1:]) for level in taps.levels] == shapes
    torch.testing.assert_close(taps.levels[-1], kept[0])
    torch.stack([level.mean() for level in taps.levels]).sum().backward()
    assert input_convolution(network).weight.grad is not None
    assert logits.requires_grad


LAST_STAGE = ("layer4", "blocks.5", "stages.3")


def attention_longhand(block: Any, tokens: Tensor) -> Tensor:
    n, count, width = tokens.shape
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(tokens)).reshape(n, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = qkv[0] @ qkv[1].transpose(-2, -1) / (width // heads) ** 0.5
    return scores.softmax(dim=-1)[:, :, 1:, 1:]


@pytest.mark.parametrize(("stem", "side"), [("stock", 2), ("half_patch", 4)])
def test_attention_is_softmaxed_without_the_class_token(stem: str, side: int) -> None:
    network = network_of("vit_tiny_patch16_224", stem).train()
    backbone: Any = network.backbone
    entered: list[Tensor] = []
    handle = backbone.blocks[0].register_forward_pre_hook(lambda _m, args: entered.append(args[0]))
    with tap(network, attention=True) as taps:
        network(pictures())
    handle.remove()
    assert taps.grid == (side, side)
    assert len(taps.attention) == 12
    assert all(found.shape == (2, 3, side**2, side**2) for found in taps.attention)
    torch.testing.assert_close(taps.attention[0], attention_longhand(backbone.blocks[0], entered[0]))
    torch.stack([found.square().sum() for found in taps.attention]).sum().backward()
    assert backbone.blocks[-1].attn.qkv.weight.grad is not None
    assert backbone.blocks[-1].mlp.fc1.weight.grad is None


def test_tapping_changes_neither_logits_nor_network() -> None:
    network = network_of("vit_tiny_patch16_224").eval()
    backbone: Any = network.backbone
    fused = [block.attn.fused_attn for block in backbone.blocks]
    plain = network(pictures())
    with tap(network, input=True, attention=True) as taps:
        assert not any(block.attn.fused_attn for block in backbone.blocks)
        torch.testing.assert_close(network(pictures()), plain)
        network(pictures())
        assert len(taps.attention) == 12  # of the last pass alone
    assert [block.attn.fused_attn for block in backbone.blocks] == fused
    assert hooks(network) == 0


@pytest.mark.parametrize("arch", ["lcnet_035", "vit_tiny_patch16_224"])
def test_an_error_inside_leaves_no_hooks(arch: str) -> None:
    network = network_of(arch)
    with pytest.raises(RuntimeError, match="on purpose"), tap(network, input=True, levels=True, attention=True):
        assert hooks(network) > 0
        raise RuntimeError("on purpose")
    assert hooks(network) == 0


def test_a_cnn_has_no_attention() -> None:
    cnn = network_of("lcnet_035").eval()
    with tap(cnn, attention=True) as taps:
        cnn(pictures())
    assert (taps.attention, taps.levels, taps.grid) == ([], [], None)


@pytest.mark.parametrize("stem", ["stock", "half_patch"])
def test_levels_of_a_vit_are_its_patch_tokens_on_their_grid(stem: str) -> None:
    """After each quarter of the 12 blocks; position (r, c) is token r * columns + c, the class token not counted."""
    torch.manual_seed(0)
    size = Size(32, 64)
    network = build("vit_tiny_patch16_224", classes=3, image_size=size, stem=stem).train()
    backbone: Any = network.backbone
    left: dict[int, Tensor] = {}
    for place, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda _m, _a, out, place=place: left.__setitem__(place, out))
    with tap(network, levels=True) as taps:
        logits = network(torch.rand(2, 3, 32, 64))
    rows, columns = (2, 4) if stem == "stock" else (4, 8)
    assert taps.grid == (rows, columns)
    assert [tuple(level.shape) for level in taps.levels] == [(2, 192, rows, columns)] * 4
    for level, place in zip(taps.levels, (2, 5, 8, 11), strict=True):
        assert left[place].shape[1] == rows * columns + 1
        for r in range(rows):
            for c in range(columns):
                assert torch.equal(level[:, :, r, c], left[place][:, 1 + r * columns + c])
    assert taps.attention == []
    assert logits.requires_grad
    taps.levels[1].square().mean().backward()
    assert backbone.blocks[5].mlp.fc1.weight.grad is not None
    assert backbone.blocks[6].mlp.fc1.weight.grad is None


@pytest.mark.parametrize(
    ("arch", "width"),
    [("lcnet_035", 1280), ("resnet10t", 512), ("convnext_atto", 320), ("vit_tiny_patch16_224", 192)],
)
def test_pooled_is_what_the_classifier_reads(arch: str, width: int) -> None:
    network = network_of(arch).train()
    with tap(network, pooled=True) as taps:
        logits = network(pictures())
    assert taps.pooled is not None
    assert taps.pooled.shape == (2, width)
    head = classifier(network)
    torch.testing.assert_close(head(taps.pooled), logits)
    taps.pooled.square().mean().backward()
    assert input_convolution(network).weight.grad is not None
    assert all(value.grad is None for value in head.parameters())
    with tap(network) as nothing:
        network(pictures())
    assert nothing.pooled is None


@pytest.mark.parametrize("arch", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
def test_all_taps_together_read_what_each_reads_alone(arch: str) -> None:
    network = network_of(arch).eval()
    with tap(network, input=True, levels=True, attention=True, pooled=True) as together:
        network(pictures())
    with tap(network, pooled=True) as alone:
        network(pictures())
    assert len(together.levels) == 4
    assert len(together.attention) == (12 if network.family == "vit" else 0)
    assert together.input is not None
    torch.testing.assert_close(together.pooled, alone.pooled)
    assert hooks(network) == 0


def test_a_network_without_a_linear_classifier_is_refused() -> None:
    network = network_of("lcnet_035")
    backbone: Any = network.backbone
    backbone.reset_classifier(0)
    with pytest.raises(StageError, match="lcnet_035 has no single linear classifier"), tap(network, pooled=True):
        pass
    assert hooks(network) == 0


def test_a_network_without_a_convolution_for_pictures_is_refused() -> None:
    network = network_of("lcnet_035")
    bare = nn.Sequential(nn.Linear(3, 3))
    bare.pretrained_cfg = {}  # type: ignore[assignment]
    network.backbone = bare
    with pytest.raises(Exception, match="no convolution that reads a picture"):
        input_convolution(network)
