"""The reader: crops kept and made anew are the same bytes, coded ones are what the device would send."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.distill.data import reader as reading
from stillhouse.distill.data.reader import Codec, Reader, through_codec
from stillhouse.distill.data.views import ViewBatch, ViewPolicy, Views, crop, jitter, render
from stillhouse.search.domain import Size

COUNT, SIZE = 8, Size(16, 20)
EVERYTHING = COUNT * 2 * 16 * 20 * 3
"""Bytes of two views of all crops."""


def stored() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (COUNT, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(coarse + rng.integers(-20, 20, coarse.shape), 0, 255).astype(np.uint8)


def reader(codec: Codec | None = None, mixup: float = 0.0, **options: Any) -> Reader:
    views = Views("digest", 3, ViewPolicy(mixup=mixup), COUNT)
    return Reader(stored(), views, SIZE, view_count=2, codec=codec, **options)


def coded_by_hand(picture: np.ndarray, codec: str, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    options = {"optimize": True} if codec == "jpeg" else {"method": 4}
    Image.fromarray(picture).save(buffer, codec.upper(), quality=quality, **options)
    return np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))


JPEG, WEBP = Codec("jpeg", 50, 0.5), Codec("webp", 30, 1.0)
every_kind = pytest.mark.parametrize(
    ("codec", "mixup"), [(None, 0.0), (JPEG, 0.0), (WEBP, 0.0), (None, 0.7), (JPEG, 0.7)]
)


@every_kind
def test_kept_crops_are_the_fresh_ones_to_the_bit(codec: Codec | None, mixup: float) -> None:
    keeps, makes = reader(codec, mixup), reader(codec, mixup, keep_bytes=0)
    for indices in ([0, 3, 5], [5, 1, 0], list(range(COUNT)), [7, 2, 5]):
        for view in (0, 1):
            fresh = makes.read(np.array(indices), view)
            assert fresh.shape == (len(indices), 3, 16, 20)
            assert fresh.dtype == torch.float32
            for _ in range(2):
                assert torch.equal(keeps.read(np.array(indices), view), fresh)
    assert not torch.equal(keeps.read(np.arange(COUNT), 0), keeps.read(np.arange(COUNT), 1))


@every_kind
def test_a_view_does_not_depend_on_the_batch_it_is_read_in(codec: Codec | None, mixup: float) -> None:
    whole = reader(codec, mixup).read(np.arange(COUNT), 1)
    under = reader(codec, mixup)
    for index in reversed(range(COUNT)):
        assert torch.equal(under.read(np.array([index]), 1)[0], whole[index])


def test_without_codec_and_mixup_a_view_is_the_rendered_one() -> None:
    indices = np.array([6, 1, 4])
    under = reader()
    assert torch.equal(
        under.read(indices, 1), render(torch.from_numpy(stored()[indices]), under.views.draw(indices, 1), SIZE)
    )


@pytest.mark.parametrize(
    ("room", "kept", "again"), [(EVERYTHING, True, 0), (EVERYTHING - 1, False, COUNT), (0, False, COUNT)]
)
def test_crops_are_kept_when_all_of_them_fit(
    room: int, kept: bool, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(pictures: torch.Tensor, batch: ViewBatch, size: Size) -> torch.Tensor:
        made.append(len(batch))
        return crop(pictures, batch, size)

    monkeypatch.setattr(reading, "crop", counted)
    under = reader(keep_bytes=room)
    assert (under._kept is not None) is kept
    under.read(np.arange(5), 0)
    under.read(np.arange(COUNT), 0)
    assert sum(made) == (COUNT if kept else COUNT + 5), "a crop that is there is not made again"
    made.clear()
    under.read(np.arange(COUNT), 0)
    assert sum(made) == again


# -------------------------------------------------------------------------------------------- grey


@every_kind
def test_a_grey_view_is_the_luma_of_the_colour_view_before_the_codec(codec: Codec | None, mixup: float) -> None:
    indices = np.array([4, 0, 7])
    under, fresh = reader(codec, mixup, colour="grey"), reader(codec, mixup, colour="grey", keep_bytes=0)
    found = under.read(indices, 1)
    assert found.shape == (3, 1, 16, 20)
    assert torch.equal(under.read(indices, 1), found)
    assert torch.equal(fresh.read(indices, 1), found)
    if mixup:
        return
    drawn = under.views.draw(indices, 1)
    expected = []
    crops = crop(torch.from_numpy(stored()[indices]), drawn, SIZE).permute(0, 2, 3, 1).numpy()
    qualities = np.zeros(3, np.int64) if codec is None else codec.qualities(drawn)
    for picture, quality in zip(crops, qualities.tolist(), strict=True):
        grey = Image.fromarray(picture).convert("L")
        if codec is not None and quality:
            buffer = io.BytesIO()
            options = {"optimize": True} if codec.name == "jpeg" else {"method": 4}
            grey.save(buffer, codec.name.upper(), quality=quality, **options)
            grey = Image.open(buffer).convert("L")
        expected.append(np.asarray(grey))
    assert torch.equal(found, jitter(torch.from_numpy(np.stack(expected))[:, None], drawn))


# ------------------------------------------------------------------------------------------- codec


@pytest.mark.parametrize(("name", "quality"), [("jpeg", 90), ("jpeg", 30), ("webp", 60)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_coded_view_is_pillows_round_trip_at_the_drawn_quality(name: str, quality: int, share: float) -> None:
    codec, indices = Codec(name, quality, share), np.arange(COUNT)
    under = reader(codec)
    drawn = under.views.draw(indices, 0)
    crops = crop(torch.from_numpy(stored()), drawn, SIZE)
    qualities = codec.qualities(drawn)
    expected = []
    for picture, used in zip(crops.permute(0, 2, 3, 1).numpy(), qualities, strict=True):
        expected.append(coded_by_hand(picture, name, int(used)) if used else picture)
    bytes_ = torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2)
    assert torch.equal(under.read(indices, 0), jitter(bytes_, drawn)), "jitter comes after the codec"
    changed = [not np.array_equal(sent, plain) for sent, plain in zip(bytes_, crops, strict=True)]
    assert changed == (qualities > 0).tolist()
    assert {0.0: 0, 1.0: COUNT}.get(share, sum(changed)) == sum(changed)
    assert share != 0.5 or 0 < sum(changed) < COUNT


@pytest.mark.parametrize(
    ("quality", "low", "high"), [(75, 55, 80), (50, 30, 55), (98, 78, 100), (100, 80, 100), (10, 1, 15), (1, 1, 6)]
)
def test_qualities_lie_about_the_deployed_one(quality: int, low: int, high: int) -> None:
    found = Codec("jpeg", quality, 1.0).qualities(Views("d", 0).draw(np.arange(20_000), 0))
    assert (found.min(), found.max()) == (low, high)
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == list(range(low, high + 1))
    assert counts.min() > 0.7 * counts.mean(), "all are about as likely"


@pytest.mark.parametrize("share", [0.0, 0.25, 0.8, 1.0])
def test_the_share_of_coded_views(share: float) -> None:
    batch = Views("d", 0).draw(np.arange(20_000), 0)
    coded = Codec("jpeg", 75, share).qualities(batch) > 0
    assert coded.mean() == pytest.approx(share, abs=0.01 if 0 < share < 1 else 0)
    more = Codec("jpeg", 75, min(1.0, share + 0.1)).qualities(batch)
    assert (more[coded] > 0).all(), "a larger share adds views and takes none away"


def test_the_pictures_given_to_the_codec_stay_as_they_are() -> None:
    pictures = stored()
    sent = through_codec(pictures, "jpeg", np.array([20] * 4 + [0] * 4))
    assert np.array_equal(pictures, stored())
    assert np.array_equal(sent[4:], pictures[4:])
    assert not np.array_equal(sent[:4], pictures[:4])


# ------------------------------------------------------------------------------------------- mixup


@pytest.mark.parametrize("codec", [None, JPEG])
@pytest.mark.parametrize("keep_bytes", [0, EVERYTHING])
def test_a_mixed_view_is_the_weighted_sum_of_two_plain_ones(codec: Codec | None, keep_bytes: int) -> None:
    indices = np.array([4, 0, 7, 2])
    under, plain = reader(codec, 1.0, keep_bytes=keep_bytes), reader(codec)
    drawn = under.views.draw(indices, 1)
    assert drawn.partner is not None
    assert drawn.own is not None
    own, other = plain.read(indices, 1), plain.read(drawn.partner, 1)
    found = under.read(indices, 1)
    for place, share in enumerate(drawn.own.tolist()):
        assert 0.5 <= share <= 1
        expected = own[place] * share + (1 - share) * other[place]
        torch.testing.assert_close(found[place], expected, rtol=0, atol=1e-6)
    assert (found - own).abs().max() > 0.05


def test_views_that_are_not_mixed_stay_the_plain_ones() -> None:
    indices = np.arange(COUNT)
    under, plain = reader(mixup=0.5), reader()
    drawn = under.views.draw(indices, 0)
    assert drawn.own is not None
    left = drawn.own == 1
    assert 0 < left.sum() < COUNT
    assert torch.equal(under.read(indices, 0)[left], plain.read(indices, 0)[left])
