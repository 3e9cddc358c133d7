"""The decoder of ISRD: from the input convolution's grid back to the large picture (Guo et al., TPAMI 2024)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from stillhouse.search.domain import Size


class Decoder(nn.Module):
    """1x1 convolution without bias C_g -> C s^2, PixelShuffle(s), PReLU(C), crop to H x W; C = 3 for RGB, 1 for grey.

    ``s`` = ceil(H / H_g) (the greater of both axes), so any ratio works, also where H is no multiple of H_g. It is
    trained with the student and dropped afterwards: the deployed network costs nothing more.

    Args:
        channels: C_g.
        grid: (H_g, W_g) of the input convolution's output.
        large: (H, W) of the large picture.
        picture_channels: C, of the large picture.
    """

    def __init__(self, channels: int, grid: tuple[int, int], large: Size, picture_channels: int = 3) -> None:
        super().__init__()
        self.large = large
        scale = max(math.ceil(large.height / grid[0]), math.ceil(large.width / grid[1]))
        self.convolution = nn.Conv2d(channels, picture_channels * scale**2, kernel_size=1, bias=False)
        self.shuffle = nn.PixelShuffle(scale)
        self.activation = nn.PReLU(picture_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_g, H_g, W_g) -> (N, C, H, W)."""
        picture: Tensor = self.activation(self.shuffle(self.convolution(x)))
        return picture[:, :, : self.large.height, : self.large.width]
