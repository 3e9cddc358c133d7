"""What the losses read inside a network, by forward hooks that go when the tap closes.

- ``input``: GSFP (METHODS section 1), the raw output of the first convolution, before BN and activation:
  (N, C_g, H_g, W_g). For a ViT that convolution is the patch embedding, so the same hook gives the patch
  tokens on their grid, class token and position embedding not in it.
- ``levels``: outputs of the stages that timm lists in ``feature_info`` (CNN): (N, C_l, H_l, W_l) each, the stem's
  own output left out. Of a ViT: the patch tokens after each quarter of the blocks, on their grid, (N, D, G_h, G_w).
- ``attention``: softmaxed maps of each block (ViT), prefix tokens dropped: (N, heads, P, P), P the number of
  patches. Fused attention never forms the map, so it is switched off while the tap is open.

- ``pooled``: what the classifier reads: (N, d).

What is read carries gradient in training. Asking a CNN for attention leaves the list empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.distill.network import Network, input_convolution
from stillhouse.search.errors import StageError

STEM_MODULES = ("conv_stem", "bn1", "act1", "stem")


@dataclass
class Taps:
    """What the last forward pass left; ``grid`` is the patches' (rows, columns) of a ViT."""

    input: Tensor | None = None
    levels: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    pooled: Tensor | None = None
    grid: tuple[int, int] | None = None


@contextmanager
def tap(
    network: Network, *, input: bool = False, levels: bool = False, attention: bool = False, pooled: bool = False
) -> Iterator[Taps]:
    """Reads what is asked for at each forward pass of ``network`` until the block ends.

    The tensors of the last pass stay readable after the block.
    """
    taps = Taps()
    if not (input or levels or attention or pooled):
        yield taps  # no hook at all, so that a compiled network stays as it is
        return
    with ExitStack() as stack:

        def hook(handle: torch.utils.hooks.RemovableHandle) -> None:
            stack.callback(handle.remove)

        hook(network.register_forward_pre_hook(_clear(taps)))
        if input:
            hook(input_convolution(network).register_forward_hook(_keep_input(taps)))
        if pooled:
            hook(classifier(network).register_forward_pre_hook(_keep_pooled(taps)))
        if levels and network.family == "cnn":
            for module, channels in zip(level_modules(network), _level_channels(network), strict=True):
                hook(module.register_forward_hook(_append_level(taps, network.arch, channels)))
        if network.family == "vit" and (levels or attention):
            vit: Any = network.backbone
            rows, columns = vit.patch_embed.grid_size
            taps.grid = (int(rows), int(columns))
            for module in level_modules(network) if levels else ():
                hook(module.register_forward_hook(_append_tokens(taps, int(vit.num_prefix_tokens))))
            for block in vit.blocks if attention else ():
                stack.callback(setattr, block.attn, "fused_attn", block.attn.fused_attn)
                block.attn.fused_attn = False
                hook(block.attn.attn_drop.register_forward_pre_hook(_append_map(taps, int(vit.num_prefix_tokens))))
        yield taps


def input_shape(network: Network) -> tuple[int, int, int]:
    """(C_g, H_g, W_g) of the input tap."""
    convolution = input_convolution(network)
    size, weight = network.network_size, convolution.weight
    shape = (1, network.channels, size.height, size.width)
    with torch.no_grad():
        grid = convolution(torch.zeros(shape, device=weight.device, dtype=weight.dtype))
    return int(grid.shape[1]), int(grid.shape[2]), int(grid.shape[3])


def level_modules(network: Network) -> list[nn.Module]:
    """The modules whose outputs are the feature levels, from fine to coarse.

    Raises:
        StageError: The network does not say which they are.
    """
    if network.family == "vit":
        vit: Any = network.backbone
        depth = len(vit.blocks)
        return [vit.blocks[math.ceil(depth * quarter / 4) - 1] for quarter in range(1, 5)]
    try:
        found = [network.backbone.get_submodule(name) for name, _ in _feature_info(network)]
    except AttributeError:
        found = []
    if not found:
        raise StageError(_no_levels(network.arch, "it does not say which modules give them"))
    return found


def _feature_info(network: Network) -> list[tuple[str, int]]:
    """(module, channels) of each level as timm lists them, the stem's own output left out."""
    info: Any = getattr(network.backbone, "feature_info", ())
    rows = info.get_dicts() if hasattr(info, "get_dicts") else info
    return [(row["module"], int(row["num_chs"])) for row in rows if row["module"] not in STEM_MODULES]


def _level_channels(network: Network) -> list[int]:
    return [channels for _, channels in _feature_info(network)]


def _no_levels(arch: str, why: str) -> str:
    return (
        f"feature levels must be maps (N, C, H, W), but {arch} has none: {why}; "
        "take a method that reads logits only, or a CNN or plain ViT"
    )


def classifier(network: Network) -> nn.Module:
    """The linear layer that gives the logits.

    Raises:
        StageError: The network has no single one.
    """
    backbone: Any = network.backbone
    found = backbone.get_classifier()
    if not isinstance(found, nn.Linear):
        raise StageError(
            f"{network.arch} has no single linear classifier ({type(found).__name__}); choose another network"
        )
    return found


def _clear(taps: Taps) -> Callable[..., None]:
    def hook(*_: object) -> None:
        # New lists, not emptied ones: what a caller took from the last pass stays his.
        taps.input, taps.pooled, taps.levels, taps.attention = None, None, [], []

    return hook


def _keep_input(taps: Taps) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
        taps.input = output

    return hook


def _keep_pooled(taps: Taps) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        taps.pooled = args[0]

    return hook


def _append_tokens(taps: Taps, prefix: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
        if taps.grid is None:
            raise ValueError("patch tokens need their grid")
        tokens = output[:, prefix:].transpose(1, 2)
        taps.levels.append(tokens.reshape(*tokens.shape[:2], *taps.grid))

    return hook


def _append_level(taps: Taps, arch: str, channels: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: object, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[1] != channels:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise StageError(_no_levels(arch, f"a level of {channels} channels came as {what}"))
        taps.levels.append(output)

    return hook


def _append_map(taps: Taps, prefix: int) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        taps.attention.append(args[0][:, :, prefix:, prefix:])

    return hook
