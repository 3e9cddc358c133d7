"""Building, sizing, stems, starting from another network, and the file a network is kept in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from stillhouse.distill.network import merged
from stillhouse.distill.zoo import (
    Network,
    adapt,
    build,
    channel_costs,
    deployed,
    input_convolution,
    is_known,
    load,
    macs_params,
    save,
)
from stillhouse.search.domain import Size
from stillhouse.search.errors import StageError, UnknownNameError

VIT = "vit_tiny_patch16_224"


def network_of(arch: str = "lcnet_035", size: str = "32x32", seed: int = 0, **options: Any) -> Network:
    torch.manual_seed(seed)
    return build(arch, image_size=Size.parse(size), **{"classes": 3, **options}).eval()


@pytest.mark.parametrize(
    ("arch", "size", "options"),
    [
        ("lcnet_035", "32x48", {"network_size": Size(48, 64), "stem": "stride1"}),
        (VIT, "32x32", {"network_size": Size(48, 32), "stem": "half_patch"}),
        ("convnext_atto", "64", {"classes": 7}),
        ("lcnet_035", "32x32", {"colour": "grey", "stem": "stride1"}),
        (VIT, "32x32", {"colour": "grey", "stem": "half_patch"}),
        ("tiny_vit_5m_224", "64x64", {"colour": "grey"}),
    ],
)
def test_spec_builds_the_same_network(arch: str, size: str, options: dict[str, Any]) -> None:
    network = network_of(arch, size, **options)
    torch.manual_seed(0)
    again = build(**network.spec()).eval()
    assert again.spec() == network.spec()
    x = torch.rand(2, network.channels, network.image_size.height, network.image_size.width)
    assert network.channels == (1 if options.get("colour") == "grey" else 3)
    torch.testing.assert_close(again(x), network(x))
    assert network(x).shape == (2, options.get("classes", 3))


def test_pictures_are_normalised_and_upsampled_inside() -> None:
    network = network_of("tf_efficientnet_lite0", "32x32", network_size=Size(64, 64))
    x = torch.rand(2, 3, 32, 32)
    large = F.interpolate((x - 0.5) / 0.5, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(x), network.backbone(large))
    assert network_of("resnet10t").mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert {"mean", "std"}.isdisjoint(network.state_dict())


def test_stride1_keeps_the_grid_and_the_weights() -> None:
    stock, kept = network_of("resnet10t"), network_of("resnet10t", stem="stride1")
    assert input_convolution(stock).stride == (2, 2)
    assert input_convolution(kept).stride == (1, 1)
    assert {n: v.shape for n, v in stock.state_dict().items()} == {n: v.shape for n, v in kept.state_dict().items()}
    backbone: Any = kept.backbone
    assert backbone.forward_features(torch.rand(1, 3, 64, 64)).shape[2:] == (4, 4)
    assert backbone.maxpool.stride == 2


@pytest.mark.parametrize("arch", ["repvgg_a0", "mobileone_s0", "fastvit_t8"])
@pytest.mark.parametrize("stem", ["stock", "stride1"])
def test_merged_branches_compute_the_same_with_less(arch: str, stem: str) -> None:
    network = network_of(arch, stem=stem)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        wanted, deployed = network(x), merged(network).eval()
        torch.testing.assert_close(deployed(x), wanted, rtol=1e-3, atol=1e-4)
    assert any("conv_kxk" in name for name, _ in network.named_parameters()), "left as it was"
    assert not any("conv_kxk" in name for name, _ in deployed.named_parameters())
    params = macs_params(arch, classes=3, network_size=Size(32, 32), stem=stem)[1]
    assert params == sum(p.numel() for p in deployed.parameters()) < sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("arch", ["repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9"])
def test_stride1_reaches_every_branch_that_reads_the_picture(arch: str) -> None:
    stock, kept = (network_of(arch, "64x64", stem=stem).backbone for stem in ("stock", "stride1"))
    x = torch.rand(1, 3, 64, 64)
    coarse, fine = (backbone.forward_features(x).shape[2:] for backbone in (stock, kept))  # type: ignore[operator]
    assert (coarse, fine) == ((2, 2), (4, 4))


def test_half_patch_has_four_times_the_patches() -> None:
    backbone: Any = network_of(VIT, stem="half_patch").backbone
    assert backbone.patch_embed.grid_size == (4, 4)
    assert backbone.pos_embed.shape[1] == 17
    assert backbone.patch_embed.proj.kernel_size == (8, 8)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        (VIT, {"size": "56x56"}, "must be a multiple of its patch, 16, but got 56x56"),
        (VIT, {"size": "36x36", "stem": "half_patch"}, "must be a multiple of its patch, 8, but got 36x36"),
        ("convnext_atto", {"stem": "stride1"}, "first convolution of stride 2, but convnext_atto has"),
        ("lcnet_035", {"classes": 0}, "classes >= 1, but got 0"),
        ("crossvit_tiny_240", {"size": "64x64"}, "cannot compute at network size 64x64 .*; its own is 240x240"),
        ("xcit_nano_12_p16_224", {"size": "100x100"}, "cannot compute at network size 100x100 .*its own is 224x224"),
    ],
)
def test_what_cannot_be_computed_is_refused(arch: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        network_of(arch, **options)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("lcnet_53", {}, "unknown network 'lcnet_53'; did you mean lcnet_"),
        ("lcnet_050.ra2_in1k", {}, "unknown network"),
        ("lcnet_035", {"stem": "half_patch"}, "unknown stem of lcnet_035 'half_patch'"),
        (VIT, {"stem": "stride1"}, "unknown stem of vit_tiny_patch16_224 'stride1'"),
        ("lcnet_035", {"weights": "imagenet"}, "unknown source of weights 'imagenet'"),
        ("lcnet_035", {"colour": "gray"}, "unknown colour 'gray'; did you mean grey"),
    ],
)
def test_unknown_names_are_refused(arch: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        network_of(arch, **options)


def test_known_names_are_timms_without_tags() -> None:
    assert [is_known(name) for name in ("resnet18", "resnet18.a1_in1k", "resnet-18")] == [True, False, False]


def test_networks_of_a_fixed_input_size_are_built_for_the_size_asked_for() -> None:
    assert network_of("swin_tiny_patch4_window7_224", "64x64")(torch.rand(1, 3, 64, 64)).shape == (1, 3)


# ------------------------------------------------------------------------------------------- adapt


def test_a_cnn_starts_from_itself_at_another_size_and_stem() -> None:
    source = network_of(size="64x64", seed=1)
    student = network_of(size="32x32", network_size=Size(64, 64), stem="stride1")
    adapt(student, source)
    for (name, value), given in zip(student.state_dict().items(), source.state_dict().values(), strict=True):
        torch.testing.assert_close(value, given, msg=name)


def test_a_classifier_of_another_class_count_stays_new() -> None:
    source, student = network_of(classes=5, seed=1), network_of()
    own = student.backbone.get_parameter("classifier.weight").clone()
    adapt(student, source)
    torch.testing.assert_close(student.backbone.get_parameter("classifier.weight"), own)
    torch.testing.assert_close(
        student.backbone.get_parameter("conv_stem.weight"), source.backbone.get_parameter("conv_stem.weight")
    )


def test_a_vits_embeddings_are_resampled() -> None:
    source, student = network_of(VIT, "64x64", seed=1), network_of(VIT, "32x32", stem="half_patch")
    given: Any = source.backbone
    with torch.no_grad():
        # A ramp over the rows of the 4 x 4 grid: on the student's 4 x 4 grid of smaller patches it stays as it is.
        given.pos_embed[:, 1:] = torch.arange(4.0).repeat_interleave(4)[None, :, None]
        given.patch_embed.proj.weight.fill_(0.01)
    adapt(student, source)
    own: Any = student.backbone
    torch.testing.assert_close(own.pos_embed, given.pos_embed)
    # The same patch shown at half the size gives nearly the same token (Beyer et al. 2023, FlexiViT).
    patch = torch.rand(1, 3, 1, 1)
    torch.testing.assert_close(
        own.patch_embed.proj(patch.expand(1, 3, 8, 8)),
        given.patch_embed.proj(patch.expand(1, 3, 16, 16)),
        rtol=0.02,
        atol=0,
    )


def test_position_embeddings_follow_the_grid_not_the_number_of_patches() -> None:
    source, student = network_of(VIT, "64x64", seed=1), network_of(VIT, "32x128")
    given, own = source.backbone.get_parameter("pos_embed"), student.backbone.get_parameter("pos_embed")
    assert given.shape == own.shape
    with torch.no_grad():
        given[:, 1:] = torch.arange(4.0).repeat_interleave(4)[None, :, None]
    adapt(student, source)
    rows = own[0, 1:, 0].reshape(2, 8)
    torch.testing.assert_close(rows, rows[:, :1].expand(2, 8))
    assert rows[1, 0] > rows[0, 0]
    torch.testing.assert_close(own[:, 0], given[:, 0])


@pytest.mark.parametrize(
    ("arch", "stem"),
    [("tf_efficientnet_lite0", "stride1"), ("repvgg_a0", "stock"), ("fastvit_t8", "stride1"), (VIT, "stock")],
)
def test_a_grey_network_starts_from_a_colour_one_and_says_the_same_of_grey_pictures(arch: str, stem: str) -> None:
    source, student = network_of(arch, seed=1, stem=stem), network_of(arch, seed=2, stem=stem, colour="grey")
    for network in (source, student):  # one figure for all channels, as half of the architectures have
        network.mean.fill_(0.4)
        network.std.fill_(0.3)
    adapt(student, source)
    picture = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(student(picture), source(picture.expand(2, 3, 32, 32)), rtol=1e-4, atol=1e-4)
    kernel, given = input_convolution(student).weight, input_convolution(source).weight
    torch.testing.assert_close(kernel, given.sum(1, keepdim=True))


def test_the_means_of_a_grey_network_are_those_of_the_channels() -> None:
    network = network_of("resnet10t", colour="grey")
    assert (network.mean.shape, network.std.shape) == ((1, 1, 1, 1), (1, 1, 1, 1))
    assert float(network.mean) == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert float(network.std) == pytest.approx((0.229 + 0.224 + 0.225) / 3)


def test_a_colour_network_does_not_start_from_a_grey_one() -> None:
    with pytest.raises(StageError, match=r"of another shape \(conv_stem.weight\)"):
        adapt(network_of(), network_of(colour="grey"))


def test_another_architecture_is_no_start() -> None:
    with pytest.raises(StageError, match="but got lcnet_050 for lcnet_035"):
        adapt(network_of(), network_of("lcnet_050"))


# --------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("colour", ["rgb", "grey"])
def test_a_network_survives_its_file(tmp_path: Path, colour: str) -> None:
    network = network_of(VIT, "32x32", network_size=Size(48, 48), stem="half_patch", colour=colour)
    save(network, tmp_path / "student.safetensors", ["ant", "bee", "cat"])
    again = load(tmp_path / "student.safetensors").eval()
    x = torch.rand(2, network.channels, 32, 32)
    torch.testing.assert_close(again(x), network(x), rtol=0, atol=0)
    assert again.spec() == network.spec()
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights here", encoding="utf-8")
    for name, message in (("foreign", "its header tells of none"), ("text", "cannot be read"), ("gone", "cannot")):
        with pytest.raises(StageError, match=message):
            load(tmp_path / f"{name}.safetensors")


def test_costs_grow_with_classes_and_size() -> None:
    macs, params = macs_params("lcnet_035", classes=10, network_size=Size(64, 64))
    assert macs_params("lcnet_035", classes=11, network_size=Size(64, 64)) == (macs + 1280, params + 1281)
    larger, same = macs_params("lcnet_035", classes=10, network_size=Size(128, 128))
    assert same == params
    assert math.isclose(larger / macs, 4, rel_tol=0.2)


@pytest.mark.parametrize(("arch", "stem"), [("repvgg_a0", "stride1"), ("resnet18", "stock"), (VIT, "half_patch")])
def test_each_channel_costs_what_the_convolutions_that_read_it_take(arch: str, stem: str) -> None:
    size = Size(32, 64)
    network = deployed(arch, classes=3, network_size=size, stem=stem)
    kernel = {"repvgg_a0": 3 * 3 * 48, "resnet18": 7 * 7 * 64, VIT: 8 * 8 * 192}[arch]
    places = {"repvgg_a0": 32 * 64, "resnet18": 16 * 32, VIT: 4 * 8}[arch]
    assert channel_costs(network) == (kernel * places, kernel)
    colour, grey = (macs_params(arch, classes=3, network_size=size, stem=stem, colour=name) for name in ("rgb", "grey"))
    assert grey == (colour[0] - 2 * kernel * places, colour[1] - 2 * kernel)
