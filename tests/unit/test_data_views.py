"""Views: the laws of the policy, and rendering against the same done longhand."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.distill.data.views import ViewBatch, ViewPolicy, Views, render, to_grey
from stillhouse.search.domain import Size
from stillhouse.search.errors import UserError


def pictures(count: int, side: int = 24) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def still(count: int, **changes: np.ndarray) -> ViewBatch:
    """The whole picture, unchanged."""
    one, none = np.ones(count), np.zeros(count)
    whole = {"top": none, "left": none, "height": one, "width": one, "flip": np.zeros(count, dtype=bool)}
    factors = {"brightness": one.astype(np.float32), "contrast": one.astype(np.float32)}
    return ViewBatch(**{**whole, **factors, "quality": (none, none), **changes})


def test_draws_keep_the_policy() -> None:
    policy = ViewPolicy()
    batch = Views("digest", 0, policy).draw(np.arange(20_000), 0)
    area = batch.height * batch.width
    assert area.max() <= 1
    assert area.min() > 0.5 * 0.74  # a crop that the picture's border cuts loses at most its aspect
    assert 0.70 < area.mean() < 0.76
    ratio = batch.width / batch.height
    assert ratio.min() >= 3 / 4 - 1e-9
    assert ratio.max() <= 4 / 3 + 1e-9
    for start, length in ((batch.top, batch.height), (batch.left, batch.width)):
        assert start.min() >= 0
        assert (start + length).max() <= 1 + 1e-12
    assert 0.48 < batch.flip.mean() < 0.52
    for factor in (batch.brightness, batch.contrast):
        assert factor.min() >= 0.8
        assert factor.max() <= 1.2
        assert abs(factor.mean() - 1) < 0.01


def test_draws_of_different_kinds_are_not_correlated() -> None:
    batch = Views("digest", 0).draw(np.arange(20_000), 3)
    later = Views("digest", 0).draw(np.arange(20_000), 4)
    series = np.stack([batch.brightness, batch.contrast, batch.flip, later.brightness, np.roll(batch.brightness, 1)])
    correlation = np.corrcoef(series) - np.eye(len(series))
    assert np.abs(correlation).max() < 0.03


def test_seed_digest_and_view_each_give_other_views() -> None:
    draws = [
        Views(digest, seed).draw(np.arange(4), view).brightness.tolist()
        for digest, seed, view in (("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1))
    ]
    assert len({tuple(draw) for draw in draws}) == 4


def test_a_view_stays_what_it_is() -> None:
    # Cached teacher outputs belong to these crops: other numbers here make every cache wrong without a word.
    batch = Views("digest", 7).draw(np.array([0, 1, 99]), 2)
    np.testing.assert_allclose(batch.top, GOLDEN_TOP, rtol=1e-12)
    mixed = Views("digest", 7, ViewPolicy(mixup=0.8), 100).draw(np.array([0, 1, 99]), 2)
    assert mixed.partner is not None
    assert mixed.quality is not None
    assert mixed.partner.tolist() == [4, 77, 40]
    np.testing.assert_allclose(mixed.own, [1.0, 1.0, 0.5011256], rtol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(mixed.quality[0], [0.935998, 0.268592, 0.932358], atol=1e-6)


GOLDEN_TOP = [0.14167897117581402, 0.026003287223480113, 0.08577976973352018]


def test_the_whole_picture_at_its_own_size_is_itself() -> None:
    given = pictures(3)
    found = render(given, still(3), Size(24, 24))
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, given.permute(0, 3, 1, 2) / 255)


def test_crop_flip_and_jitter_longhand() -> None:
    given = pictures(2)
    batch = still(
        2,
        top=np.array([0.25, 0.0]),
        height=np.array([0.5, 1.0]),
        left=np.array([0.5, 0.0]),
        width=np.array([0.5, 1.0]),
        flip=np.array([True, False]),
        brightness=np.array([1.1, 0.8], dtype=np.float32),
        contrast=np.array([1.2, 0.9], dtype=np.float32),
    )
    found = render(given, batch, Size(12, 12))
    crop = given[0, 6:18, 12:24].permute(2, 0, 1).flip(-1) / 255
    torch.testing.assert_close(found[0], ((crop * 1.1 - 0.5) * 1.2 + 0.5).clamp(0, 1))
    small = torch.nn.functional.interpolate(
        given[1:].permute(0, 3, 1, 2).float(), (12, 12), mode="bilinear", antialias=True
    )
    wanted = ((small[0] / 255 * 0.8 - 0.5) * 0.9 + 0.5).clamp(0, 1)
    assert (found[1] - wanted).abs().max() < 1.5 / 255  # bytes are rounded once


def test_grey_bytes_are_pillows_and_grey_floats_the_same_luma() -> None:
    values = torch.cartesian_prod(*[torch.tensor([*range(0, 256, 7), 1, 127, 128, 254])] * 3).to(torch.uint8)
    colours = values.reshape(1, 1, -1, 3)
    wanted = np.asarray(Image.fromarray(colours[0].numpy()).convert("L"))
    found = to_grey(colours.permute(0, 3, 1, 2))
    assert (found.dtype, found.shape) == (torch.uint8, (1, 1, 1, len(values)))
    np.testing.assert_array_equal(found[0, 0].numpy(), wanted)
    floats = to_grey(colours.permute(0, 3, 1, 2).float() / 255)
    assert (floats - found.float() / 255).abs().max() <= 0.5 / 255 + 1e-6
    white = to_grey(torch.ones(1, 3, 2, 2))
    torch.testing.assert_close(white, torch.ones(1, 1, 2, 2))


def test_teacher_and_student_see_the_same_crop() -> None:
    ramp = torch.arange(96, dtype=torch.uint8)[None, :, None, None].expand(8, 96, 96, 3)
    given = torch.cat([ramp, ramp.transpose(1, 2)]).contiguous()
    batch = Views("digest", 0).draw(np.arange(16), 0)
    large, small = render(given, batch, Size(96, 96)), render(given, batch, Size(24, 24))
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (shrunk - small)[..., 1:-1, 1:-1].abs().max() < 3 / 255


def test_a_view_does_not_depend_on_its_batch() -> None:
    views, given = Views("digest", 0), pictures(6)
    whole = render(given, views.draw(np.arange(6), 1), Size(16, 16))
    for index in range(6):
        alone = render(given[index : index + 1], views.draw(np.array([index]), 1), Size(16, 16))
        assert torch.equal(alone[0], whole[index])


def test_wide_pictures_and_tiny_crops() -> None:
    given = torch.zeros((1, 4, 40, 3), dtype=torch.uint8)
    assert render(given, still(1, top=np.array([1.0]), height=np.array([0.01])), Size(8, 16)).shape == (1, 3, 8, 16)


def test_wrong_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(2, S, S, 3\)"):
        render(pictures(3), still(2), Size(8, 8))
    with pytest.raises(ValueError, match="uint8"):
        render(pictures(2).float(), still(2), Size(8, 8))


MIXUPS = pytest.mark.parametrize("mixup", [0.1, 0.5, 1.0])


def mixing(mixup: float, count: int = 50) -> Views:
    return Views("digest", 0, ViewPolicy(mixup=mixup), count)


@MIXUPS
def test_mixtures_keep_the_policy(mixup: float) -> None:
    indices = np.arange(20_000)
    batch = mixing(mixup, len(indices)).draw(indices, 1)
    assert batch.partner is not None
    assert batch.own is not None
    assert (batch.partner != indices).all(), "a picture is not mixed with itself"
    assert 0 <= batch.partner.min() <= batch.partner.max() < len(indices)
    assert batch.own.dtype == np.float32
    assert batch.own.min() >= 0.5
    assert batch.own.max() <= 1
    mixed = batch.own < 1
    assert mixed.mean() == pytest.approx(mixup, abs=0.01)
    parts = batch.own[mixed]
    assert parts.mean() == pytest.approx(0.75, abs=0.01)
    assert np.histogram(parts, bins=5, range=(0.5, 1.0))[0].min() > 0.9 * len(parts) / 5, "uniform"


@pytest.mark.parametrize("count", [2, 3, 7])
def test_every_other_picture_can_be_the_partner(count: int) -> None:
    views = mixing(1.0, count)
    found = {(i, int(j)) for view in range(300) for i, j in enumerate(_partners(views, np.arange(count), view))}
    assert found == {(i, j) for i in range(count) for j in range(count) if i != j}


def _partners(views: Views, indices: np.ndarray, view: int) -> np.ndarray:
    drawn = views.draw(indices, view)
    assert drawn.partner is not None
    return drawn.partner


@MIXUPS
def test_mixup_changes_no_other_draw(mixup: float) -> None:
    plain, mixed = (views.draw(np.arange(50), 2) for views in (Views("digest", 0), mixing(mixup)))
    assert (plain.partner, plain.own) == (None, None)
    for name in ("top", "left", "height", "width", "flip", "brightness", "contrast"):
        assert np.array_equal(getattr(plain, name), getattr(mixed, name))
    assert plain.quality is not None
    assert mixed.quality is not None
    assert all(np.array_equal(a, b) for a, b in zip(plain.quality, mixed.quality, strict=True))


def test_a_larger_mixup_mixes_the_same_pictures_and_more() -> None:
    few, many = (mixing(share).draw(np.arange(50), 0) for share in (0.2, 0.6))
    assert few.own is not None
    assert many.own is not None
    assert np.array_equal(few.partner, many.partner)  # type: ignore[arg-type]
    assert (many.own[few.own < 1] < 1).all()
    assert (many.own < 1).sum() > (few.own < 1).sum()


def test_a_mixture_does_not_depend_on_its_batch() -> None:
    views, order = mixing(0.5), np.array([31, 4, 4, 0, 49])
    whole, some = views.draw(np.arange(50), 3), views.draw(order, 3)
    assert whole.partner is not None
    assert whole.own is not None
    assert np.array_equal(some.partner, whole.partner[order])  # type: ignore[arg-type]
    assert np.array_equal(some.own, whole.own[order])  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1])
def test_mixup_needs_two_pictures(count: int) -> None:
    with pytest.raises(UserError, match="mixup needs at least 2 pictures"):
        mixing(0.5, count)


def test_what_mixing_and_coding_draw_is_not_correlated_with_the_rest() -> None:
    batch = mixing(1.0, 20_000).draw(np.arange(20_000), 0)
    assert batch.quality is not None
    assert batch.own is not None
    assert batch.partner is not None
    step = (batch.partner - np.arange(20_000)) % 20_000
    series = np.stack([batch.brightness, batch.contrast, batch.flip, *batch.quality, batch.own, step])
    assert np.abs(np.corrcoef(series) - np.eye(len(series))).max() < 0.03


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup": 1.5},
        {"mixup": -0.1},
        {"scale_min": 0.0},
        {"scale_min": 0.9, "scale_max": 0.5},
        {"ratio": (2.0, 1.0)},
        {"brightness": 1.0},
    ],
)
def test_policies_that_cannot_be(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must hold"):
        ViewPolicy(**changes)  # type: ignore[arg-type]


def test_drawing_is_fast() -> None:
    views, indices = Views("digest", 0), np.arange(64)
    views.draw(indices, 0)
    fastest = min(_seconds(lambda view=view: views.draw(indices, view)) for view in range(20))
    assert fastest < 0.002


def _seconds(work: object) -> float:
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started
