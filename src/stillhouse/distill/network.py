"""One network: a timm backbone with its preprocessing inside.

| symbol | meaning |
|---|---|
| N, K | batch, classes |
| C | channels of a picture: 3 (RGB), 1 (grey) |
| h, w | picture size (``image_size``): what the device sends |
| H, W | ``network_size``: what the backbone computes at; a larger one upsamples inside the graph |

A network takes float pictures (N, C, h, w) in [0, 1], normalises them with its architecture's own mean and std
(of grey pictures: the means over the three channels), upsamples bilinearly when H x W differs from h x w, and gives
logits (N, K).
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stillhouse.search.domain import CHANNELS, Json, Size
from stillhouse.search.errors import StageError

M = TypeVar("M", bound=nn.Module)


class Network(nn.Module):
    """A backbone with its preprocessing; see the module's head for shapes.

    Args:
        backbone: A timm network that computes at ``network_size``.
        arch: Its timm name.
        classes: Outputs of its classifier.
        image_size: Size of the pictures it is given.
        network_size: Size the backbone computes at.
        stem: ``stock``, ``stride1`` (CNN) or ``half_patch`` (ViT).
        colour: ``rgb`` or ``grey``: what pictures it is given.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        arch: str,
        classes: int,
        image_size: Size,
        network_size: Size,
        stem: str,
        colour: str = "rgb",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.arch, self.classes, self.stem, self.colour = arch, classes, stem, colour
        self.image_size, self.network_size = image_size, network_size
        self.family = family(backbone)
        for name in ("mean", "std"):
            values = torch.tensor(config(backbone)[name], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, values if colour == "rgb" else values.mean(1, keepdim=True), persistent=False)

    @property
    def channels(self) -> int:
        """C: channels of the pictures it is given."""
        return CHANNELS[self.colour]

    def normalise(self, x: Tensor) -> Tensor:
        """Mean/std-normalised pictures; (N, C, any, any) in [0, 1] -> the same shape."""
        return torch.addcmul(-self.mean / self.std, x, 1 / self.std)  # one pass over the pictures

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of pictures (N, C, h, w) in [0, 1]."""
        x = self.normalise(x)
        if self.network_size != self.image_size:
            size = (self.network_size.height, self.network_size.width)
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        logits: Tensor = self.backbone(x)
        return logits

    def spec(self) -> dict[str, Json]:
        """What ``build`` needs to make the same network, as JSON."""
        spec = {
            "arch": self.arch,
            "classes": self.classes,
            "image_size": str(self.image_size),
            "network_size": str(self.network_size),
            "stem": self.stem,
        }
        return spec if self.colour == "rgb" else spec | {"colour": self.colour}


def family(backbone: nn.Module) -> str:
    """``vit`` for plain vision transformers, ``cnn`` for all others."""
    return "vit" if isinstance(backbone, VisionTransformer) else "cnn"


def config(backbone: nn.Module) -> dict[str, Any]:
    """What timm says of a backbone: mean, std, name of the classifier, whether its input size is fixed."""
    found: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    return found


def input_convolution(network: Network) -> nn.Conv2d:
    """The first convolution: it reads the picture (a ViT's patch embedding included).

    Raises:
        StageError: No convolution reads the picture.
    """
    return first_convolution(network.backbone, network.channels)


def first_convolution(backbone: nn.Module, channels: int) -> nn.Conv2d:
    """``input_convolution`` of a bare backbone that reads pictures of so many channels."""
    named = config(backbone).get("first_conv")
    if isinstance(named, str):
        found = dict(backbone.named_modules()).get(named)
        if isinstance(found, nn.Conv2d):
            return found
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels:
            return module
    raise StageError(f"{type(backbone).__name__} has no convolution that reads a picture of {channels} channels")


def keep_grid(backbone: nn.Module, channels: int) -> None:
    """Sets the stride of what reads the picture from 2 to 1 (stem ``stride1``).

    Several convolutions read it where branches run side by side until they are merged for deployment (RepVGG).

    Raises:
        StageError: The first convolution has another stride.
    """
    stride = first_convolution(backbone, channels).stride
    if stride != (2, 2):
        name = config(backbone)["architecture"]
        raise StageError(f"stem stride1 needs a first convolution of stride 2, but {name} has {stride}")
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels and module.stride == stride:
            module.stride = (1, 1)
        elif getattr(module, "in_chs", None) == channels and getattr(module, "stride", None) == 2:
            module.stride = 1  # type: ignore[assignment]  # a block that merges its branches by its own figures


def merged(network: M) -> M:
    """A copy as it is deployed: branches that only training needs are merged into one convolution each.

    It computes the same in evaluation mode. A network without such branches is merely copied.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with torch.device(device):
        return cast(M, reparameterize_model(network))


def classifier_names(backbone: nn.Module) -> frozenset[str]:
    """Names, in the state dict, of the tensors whose shape depends on the number of classes."""
    named = config(backbone).get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))
    return frozenset(name for name in backbone.state_dict() if name.startswith(prefixes))


def count_macs(network: nn.Module, size: Size, channels: int = 3) -> int:
    """MACs of one picture through a network on the meta device (METHODS section 5).

    Convolutions, linear layers and the two matrix products of attention are counted; elementwise work,
    normalisation, pooling and interpolation are not, as usual in the field. The network is left in
    evaluation mode with fused attention off: a fused kernel would hide its products from some counters.

    Args:
        network: A module that takes (1, channels, height, width), on the meta device.
        size: The picture's.
        channels: The picture's.
    """
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.zeros(1, channels, size.height, size.width, device="meta"))
    return int(counter.get_total_flops()) // 2


def channel_costs(network: Network) -> tuple[int, int]:
    """MACs and parameters that each channel of the picture costs: those of the convolutions that read the picture.

    A convolution multiplies each place of its output by the kernel of every channel, so that a network of one channel
    less costs just this much less.

    Args:
        network: As it is deployed (``merged``), on the meta device.
    """
    size, channels = network.network_size, network.channels
    readers = [m for m in network.backbone.modules() if isinstance(m, nn.Conv2d) and m.in_channels == channels]
    macs = params = 0
    with torch.no_grad():
        for reader in readers:
            kernel = reader.weight[0, 0].numel()
            macs += reader(torch.zeros(1, channels, size.height, size.width, device="meta")).numel() * kernel
            params += reader.out_channels * kernel
    return macs, params
