"""What the losses read inside a network, by forward hooks that go when the tap closes.

- ``input``: GSFP (METHODS section 1), the raw output of the first convolution, before BN and activation:
  (N, C_g, H_g, W_g). For a ViT that convolution is the patch embedding, so the same hook gives the patch
  tokens on their grid, class token and position embedding not in it.
- ``levels``: outputs of the stages that timm lists in ``feature_info`` (CNN): (N, C_l, H_l, W_l) each, the stem's
  own output left out.
- ``attention``: softmaxed maps of each block (ViT), prefix tokens dropped: (N, heads, P, P), P the number of
  patches. Fused attention never forms the map, so it is switched off while the tap is open.

What is read carries gradient in training. Asking a CNN for attention or a ViT for levels leaves the list empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.distill.network import Network, input_convolution

STEM_MODULES = ("conv_stem", "bn1", "act1", "stem")


@dataclass
class Taps:
    """What the last forward pass left; ``grid`` is the patches' (rows, columns) of a ViT."""

    input: Tensor | None = None
    levels: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    grid: tuple[int, int] | None = None


@contextmanager
def tap(network: Network, *, input: bool = False, levels: bool = False, attention: bool = False) -> Iterator[Taps]:
    """Reads what is asked for at each forward pass of ``network`` until the block ends.

    The tensors of the last pass stay readable after the block.
    """
    taps = Taps()
    with ExitStack() as stack:

        def hook(handle: torch.utils.hooks.RemovableHandle) -> None:
            stack.callback(handle.remove)

        hook(network.register_forward_pre_hook(_clear(taps)))
        if input:
            hook(input_convolution(network).register_forward_hook(_keep_input(taps)))
        if levels and network.family == "cnn":
            for module in level_modules(network):
                hook(module.register_forward_hook(_append(taps)))
        if attention and network.family == "vit":
            vit: Any = network.backbone
            rows, columns = vit.patch_embed.grid_size
            taps.grid = (int(rows), int(columns))
            for block in vit.blocks:
                stack.callback(setattr, block.attn, "fused_attn", block.attn.fused_attn)
                block.attn.fused_attn = False
                hook(block.attn.attn_drop.register_forward_pre_hook(_append_map(taps, int(vit.num_prefix_tokens))))
        yield taps


def input_shape(network: Network) -> tuple[int, int, int]:
    """(C_g, H_g, W_g) of the input tap."""
    convolution = input_convolution(network)
    size, weight = network.network_size, convolution.weight
    with torch.no_grad():
        grid = convolution(torch.zeros(1, 3, size.height, size.width, device=weight.device, dtype=weight.dtype))
    return int(grid.shape[1]), int(grid.shape[2]), int(grid.shape[3])


def level_modules(network: Network) -> list[nn.Module]:
    """The modules whose outputs are a CNN's feature levels, from fine to coarse."""
    info: Any = network.backbone.feature_info
    names = info.module_name() if hasattr(info, "module_name") else [entry["module"] for entry in info]
    return [network.backbone.get_submodule(name) for name in names if name not in STEM_MODULES]


def _clear(taps: Taps) -> Callable[..., None]:
    def hook(*_: object) -> None:
        # New lists, not emptied ones: what a caller took from the last pass stays his.
        taps.input, taps.levels, taps.attention = None, [], []

    return hook


def _keep_input(taps: Taps) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
        taps.input = output

    return hook


def _append(taps: Taps) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
        taps.levels.append(output)

    return hook


def _append_map(taps: Taps, prefix: int) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        taps.attention.append(args[0][:, :, prefix:, prefix:])

    return hook
