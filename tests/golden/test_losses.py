"""Each loss on maps recomputed longhand, with loops and plain numpy, across dtypes."""

import numpy as np
import pytest
import torch
from torch import nn

from stillhouse.distill.decoder import Decoder
from stillhouse.distill.losses.attention import upsample_attention, upsampled_attention_mse
from stillhouse.distill.losses.attention_transfer import attention_transfer
from stillhouse.distill.losses.features import upsampled_mse
from stillhouse.distill.losses.isrd import isrd
from stillhouse.search.domain import Size

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def bilinear(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Upsampling with half-pixel centres, pixel by pixel."""
    rows, columns = grid.shape
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            dy, dx = y - top, x - left
            above = grid[top, left] * (1 - dx) + grid[top, right] * dx
            below = grid[bottom, left] * (1 - dx) + grid[bottom, right] * dx
            out[i, j] = above * (1 - dy) + below * dy
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_isrd(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 3, 4, 5, dtype=dtype), torch.randn(2, 3, 4, 5, dtype=dtype)
    expected = sum(abs(x - y) for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / 120
    assert float(isrd(a, b)) == pytest.approx(expected, rel=TOLERANCE[dtype])
    with pytest.raises(ValueError, match="shapes must be equal"):
        isrd(a, b[:, :, :3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_upsampled_mse(dtype: torch.dtype) -> None:
    student, assistant = torch.randn(2, 3, 3, 2, dtype=dtype), torch.randn(2, 3, 6, 5, dtype=dtype)
    total = 0.0
    for n in range(2):
        for c in range(3):
            total += float(((bilinear(student[n, c].numpy(), 6, 5) - assistant[n, c].numpy()) ** 2).sum())
    assert float(upsampled_mse(student, assistant)) == pytest.approx(total / (2 * 3 * 30), rel=TOLERANCE[dtype] * 5)
    with pytest.raises(ValueError, match="batch and channels must agree"):
        upsampled_mse(student[:, :2], assistant)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hint_is_the_upsampled_mse_of_the_regressed_level(dtype: torch.dtype) -> None:
    regressor = nn.Conv2d(4, 3, kernel_size=1).to(dtype)
    student, teacher = torch.randn(2, 4, 3, 2, dtype=dtype), torch.randn(2, 3, 6, 5, dtype=dtype)
    kernel, bias = regressor.weight.detach().numpy()[:, :, 0, 0], regressor.bias.detach().numpy()
    total = 0.0
    for n in range(2):
        for c in range(3):
            own = sum(kernel[c, k] * student[n, k].numpy() for k in range(4)) + bias[c]
            total += float(((bilinear(own, 6, 5) - teacher[n, c].numpy()) ** 2).sum())
    with torch.no_grad():
        found = float(upsampled_mse(regressor(student), teacher))
    assert found == pytest.approx(total / (2 * 3 * 30), rel=TOLERANCE[dtype] * 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", [(6, 5), (3, 2)])
def test_attention_transfer(dtype: torch.dtype, grid: tuple[int, int]) -> None:
    student, teacher = torch.randn(2, 4, 3, 2, dtype=dtype), torch.randn(2, 7, *grid, dtype=dtype)
    expected = 0.0
    for n in range(2):
        maps = []
        for features in (student[n], teacher[n]):
            energy = sum(features[c].numpy().astype(np.float64) ** 2 for c in range(len(features)))
            flat = (bilinear(energy, *grid) if energy.shape != grid else energy).reshape(-1)
            maps.append(flat / sum(value**2 for value in flat) ** 0.5)
        expected += sum((s - t) ** 2 for s, t in zip(*maps, strict=True)) / 2
    assert float(attention_transfer(student, teacher)) == pytest.approx(expected, rel=TOLERANCE[dtype] * 10)
    scaled = float(attention_transfer(3 * student, teacher))
    assert scaled == pytest.approx(expected, rel=TOLERANCE[dtype] * 10), "maps have length 1: scale is nothing"
    assert float(attention_transfer(teacher, teacher[:, :4])) > 0
    assert float(attention_transfer(teacher, -teacher)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_upsampled_attention(dtype: torch.dtype) -> None:
    grid, target = (2, 2), (4, 3)
    student = torch.softmax(torch.randn(2, 3, 4, 4, dtype=dtype), dim=-1)
    assistant = torch.softmax(torch.randn(2, 3, 12, 12, dtype=dtype), dim=-1)
    expected = np.empty((2, 3, 12, 12))
    for n in range(2):
        for a in range(3):
            one = student[n, a].numpy()
            keys = np.stack([bilinear(one[query].reshape(grid), *target).reshape(-1) for query in range(4)])
            both = [bilinear(keys[:, key].reshape(grid), *target).reshape(-1) for key in range(12)]
            expected[n, a] = np.stack(both, axis=1) * 4 / 12
    found = upsample_attention(student, grid, target)
    assert np.allclose(found.numpy(), expected, atol=TOLERANCE[dtype])
    mse = float(((expected - assistant.numpy()) ** 2).mean())
    assert float(upsampled_attention_mse(student, assistant, grid, target)) == pytest.approx(
        mse, rel=TOLERANCE[dtype] * 50
    )


def test_a_row_of_attention_keeps_its_sum_when_the_ratio_is_whole() -> None:
    student = torch.softmax(torch.randn(1, 2, 9, 9, dtype=torch.float64), dim=-1)
    assert torch.allclose(
        upsample_attention(student, (3, 3), (6, 6)).sum(-1), torch.ones(1, 2, 36, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("grid", "large", "scale"),
    [((28, 28), 224, 8), ((14, 14), 224, 16), ((28, 28), 112, 4), ((30, 30), 224, 8), ((64, 64), 48, 1)],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_the_decoder_is_the_papers_for_any_ratio(grid: tuple[int, int], large: int, scale: int, channels: int) -> None:
    decoder = Decoder(5, grid, Size(large, large), channels)
    assert decoder.convolution.weight.shape == (channels * scale**2, 5, 1, 1)
    assert decoder.convolution.bias is None
    assert isinstance(decoder.activation, nn.PReLU)
    assert decoder.activation.weight.shape == (channels,)
    x = torch.randn(2, 5, *grid)
    with torch.no_grad():
        found = decoder(x)
    assert found.shape == (2, channels, large, large)
    kernel, slope = decoder.convolution.weight.detach()[:, :, 0, 0], decoder.activation.weight.detach()
    last = channels - 1
    for n, c, i, j in [(0, 0, 0, 0), (1, last, large - 1, large - 1), (0, last // 2, large // 2, 3)]:
        channel = c * scale**2 + (i % scale) * scale + j % scale
        value = float(kernel[channel] @ x[n, :, i // scale, j // scale])
        expected = value if value > 0 else value * float(slope[c])
        assert float(found[n, c, i, j]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
