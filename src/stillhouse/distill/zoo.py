"""Networks by name: build, adapt, save, load, and what each computes before it is trained.

Stems (METHODS section 4, "keep the grid"): ``stock``; ``stride1`` sets the first convolution's stride from 2
to 1 and keeps its weights and any max-pool; ``half_patch`` halves a ViT's patch. Each starts from the stock
weights: patch and position embeddings are resampled by timm.

The parts lie beside this file: ``network.py`` (the module itself, MAC counting), ``weights.py`` (where weights
come from), ``taps.py`` (what losses read inside).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from stillhouse.distill.network import (
    Network,
    channel_costs,
    config,
    count_macs,
    family,
    input_convolution,
    keep_grid,
    merged,
)
from stillhouse.distill.taps import Taps, input_shape, tap
from stillhouse.distill.weights import (
    hub_weights,
    load_checkpoint,
    network_weights,
    package_weights,
    transfer,
    weights_offered,
    weights_source,
)
from stillhouse.search.domain import CHANNELS, Size
from stillhouse.search.errors import StageError, UnknownNameError

__all__ = [
    "Network",
    "Taps",
    "adapt",
    "build",
    "channel_costs",
    "count_macs",
    "deployed",
    "family",
    "input_convolution",
    "input_shape",
    "is_known",
    "load",
    "load_checkpoint",
    "macs_params",
    "save",
    "tap",
    "weights_offered",
    "weights_source",
]

STEMS = {"cnn": ("stock", "stride1"), "vit": ("stock", "half_patch")}
SPEC_KEY = "stillhouse"


def is_known(arch: str) -> bool:
    """True when timm can build it; names are timm's, without a weights' tag."""
    return "." not in arch and bool(timm.is_model(arch))


def build(
    arch: str,
    *,
    classes: int,
    image_size: Size | str,
    network_size: Size | str | None = None,
    stem: str = "stock",
    weights: str = "none",
    colour: str = "rgb",
) -> Network:
    """Builds a network, from random weights or from ImageNet's.

    Args:
        arch: A timm name.
        classes: Outputs of the classifier.
        image_size: Size of the pictures it is given.
        network_size: Size its backbone computes at; None takes ``image_size``.
        stem: See the module's head.
        weights: ``none``, ``package`` or ``hub`` (see ``weights.py``); the classifier is always new.
        colour: ``rgb`` or ``grey``: what pictures it is given.

    Raises:
        UnknownNameError: timm has no such architecture, the architecture no such stem, or no such source or colour.
        StageError: The architecture cannot compute at this size or with this stem, or the weights cannot be had.
    """
    if not is_known(arch):
        raise UnknownNameError.among("network", arch, timm.list_models())
    if classes < 1:
        raise StageError(f"a network needs classes >= 1, but got {classes}")
    if colour not in CHANNELS:
        raise UnknownNameError.among("colour", colour, CHANNELS)
    image = Size.parse(image_size)
    computed = image if network_size is None else Size.parse(network_size)
    backbone = _backbone(arch, classes, computed, stem, CHANNELS[colour])
    if weights == "package":
        transfer(package_weights(arch), backbone)
    elif weights == "hub":
        transfer(hub_weights(arch), backbone)
    elif weights != "none":
        raise UnknownNameError.among("source of weights", weights, ("none", "package", "hub"))
    return Network(
        backbone, arch=arch, classes=classes, image_size=image, network_size=computed, stem=stem, colour=colour
    )


def adapt(network: Network, source: Network) -> None:
    """Starts a network from another of the same architecture with another size, stem, colour or class count.

    Raises:
        StageError: The architectures differ.
    """
    if network.arch != source.arch:
        raise StageError(f"a network starts from one of its own architecture, but got {source.arch} for {network.arch}")
    transfer(network_weights(source), network.backbone)


def macs_params(
    arch: str, *, classes: int, network_size: Size, stem: str = "stock", colour: str = "rgb"
) -> tuple[int, int]:
    """MACs of one picture and parameters as deployed, counted on the meta device (METHODS section 5).

    Raises:
        UnknownNameError, StageError: As ``build``.
    """
    network = deployed(arch, classes=classes, network_size=network_size, stem=stem, colour=colour)
    return count_macs(network, network_size, network.channels), sum(p.numel() for p in network.parameters())


def deployed(arch: str, *, classes: int, network_size: Size, stem: str = "stock", colour: str = "rgb") -> Network:
    """A network on the meta device as it is deployed: branches that only training needs are merged (see ``merged``).

    Raises:
        UnknownNameError, StageError: As ``build``.
    """
    with torch.device("meta"):
        return merged(build(arch, classes=classes, image_size=network_size, stem=stem, colour=colour))


def save(network: Network, path: Path, class_names: Sequence[str]) -> None:
    """Writes weights and what is needed to build the network again, as safetensors."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    about = json.dumps({"spec": network.spec(), "classes": list(class_names)})
    fresh = path.with_suffix(".tmp")
    save_file(state, fresh, metadata={SPEC_KEY: about})
    fresh.replace(path)


def load(path: Path) -> Network:
    """Reads what ``save`` wrote.

    Raises:
        StageError: Not a file that ``save`` wrote.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            about = (handle.metadata() or {}).get(SPEC_KEY)
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise StageError(f"{path.name} must be a safetensors file, but cannot be read: {error}") from error
    if about is None:
        raise StageError(f"{path.name} must hold a Stillhouse network, but its header tells of none")
    network = build(**json.loads(about)["spec"])
    network.load_state_dict(state)
    return network


# ---------------------------------------------------------------------------------------- helpers


def _backbone(arch: str, classes: int, size: Size, stem: str, channels: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": classes}
    if channels != 3:
        options["in_chans"] = channels
    stock: nn.Module = timm.create_model(arch, **options)
    kind = family(stock)
    if stem not in STEMS[kind]:
        raise UnknownNameError.among(f"stem of {arch}", stem, STEMS[kind])
    if kind == "vit":
        return _vit(arch, stock, options, size, stem)
    if config(stock).get("fixed_input_size"):
        stock = _resized(arch, stock, options, size)
    if stem == "stride1":
        keep_grid(stock, channels)
    return stock


def _vit(arch: str, stock: Any, options: dict[str, Any], size: Size, stem: str) -> nn.Module:
    patch: int = stock.patch_embed.patch_size[0]
    options = options | {"img_size": (size.height, size.width)}
    if stem == "half_patch":
        if patch % 2:
            raise StageError(f"stem half_patch needs an even patch, but {arch} has {patch}")
        patch //= 2
        options["patch_size"] = patch
    if size.height % patch or size.width % patch:
        raise StageError(
            f"the network size of {arch} with stem {stem} must be a multiple of its patch, {patch}, but got {size}"
        )
    if stem == "stock" and tuple(stock.patch_embed.img_size) == options["img_size"]:
        found: nn.Module = stock
    else:
        found = timm.create_model(arch, **options)
    return found


def _resized(arch: str, stock: nn.Module, options: dict[str, Any], size: Size) -> nn.Module:
    """A network whose parts depend on the input size, built for this one."""
    own, wanted = tuple(config(stock)["input_size"][1:]), (size.height, size.width)
    if own == wanted:
        return stock
    try:
        # Some take any size when built and fail when they compute; on the meta device that costs next to nothing.
        with torch.device("meta"):
            trial = timm.create_model(arch, **options, img_size=wanted).eval()
            trial(torch.zeros(1, options.get("in_chans", 3), *wanted))
        found: nn.Module = timm.create_model(arch, **options, img_size=wanted)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise StageError(
            f"{arch} cannot compute at network size {size} ({error}); its own is {Size(*own)}: choose that, or "
            "another network"
        ) from error
    return found
