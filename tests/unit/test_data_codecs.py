"""The deployed chain against Pillow's own words for it, and the byte curve."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from stillhouse.distill.data import codecs
from stillhouse.distill.data.codecs import curve_sizes, encode, fit_picture, in_colour, measure_curve, open_picture
from stillhouse.search.domain import Fit, Size
from stillhouse.search.errors import DatasetError


def picture(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_as_they_were(kind: str) -> None:
    assert open_picture(saved(picture(), kind), "a").tobytes() == picture().tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_other_formats_come_back_as_rgb_of_the_same_size(kind: str) -> None:
    image = open_picture(saved(picture(), kind), "a")
    assert (image.mode, image.size) == ("RGB", (60, 40))


def test_orientation_is_applied_and_metadata_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(picture(), "PNG", exif=exif, icc_profile=b"profile")
    image = open_picture(data, "a")
    assert image.tobytes() == picture().transpose(Image.Transpose.ROTATE_270).tobytes()
    assert image.info == {}
    assert len(encode(image, "webp", 75)) == len(encode(Image.fromarray(np.asarray(image)), "webp", 75))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 255, 256, 30000, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        image = open_picture(saved(Image.fromarray(values), kind), "a")
        assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 117, 255]


def test_transparency_and_palette_give_rgb() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert open_picture(saved(clear, "PNG"), "a").getpixel((0, 0)) == (10, 20, 30)
    palette = picture().quantize(16)
    assert open_picture(saved(palette, "PNG", transparency=bytes(16)), "a").mode == "RGB"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (b"these are words", "not a picture"),
        (saved(picture(), "JPEG")[:400], "damaged"),
        (saved(picture(), "PNG")[:-60], "damaged"),
        (saved(picture(), "ICO"), "not a picture"),
        (saved(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_bad_pictures_are_named(data: bytes, said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        open_picture(data, "cats/1.jpg")
    assert str(caught.value).startswith("cats/1.jpg: ")


def test_too_many_pixels_are_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "MAX_PIXELS", 2000)
    with pytest.raises(DatasetError, match=r"a: too large, 60x40 pixels where at most 2,000"):
        open_picture(saved(picture(), "JPEG"), "a")
    bomb = bytearray(saved(Image.new("1", (8, 8)), "BMP"))
    bomb[18:26] = (30000).to_bytes(4, "little") * 2
    with pytest.raises(DatasetError, match="too large"):
        open_picture(bytes(bomb), "a")


def test_fits_are_pillows_own() -> None:
    image, size, box = picture(), Size(24, 32), (32, 24)
    bilinear = Image.Resampling.BILINEAR
    wanted = {
        Fit.SQUASH: image.resize(box, bilinear),
        Fit.CROP: ImageOps.fit(image, box, bilinear),
        Fit.LETTERBOX: ImageOps.pad(image, box, bilinear, color=(128, 128, 128)),
    }
    for fit in Fit:
        assert fit_picture(image, size, fit).tobytes() == wanted[fit].tobytes()


def test_letterbox_fills_with_grey_and_crop_keeps_the_aspect() -> None:
    white = Image.new("RGB", (60, 30), "white")
    boxed = np.asarray(fit_picture(white, Size(20, 20), Fit.LETTERBOX))
    assert (boxed[:5] == 128).all()
    assert (boxed[5:15] == 255).all()
    middle = Image.new("RGB", (60, 30), "black")
    middle.paste((255, 255, 255), (15, 0, 45, 30))
    cropped = np.asarray(fit_picture(middle, Size(20, 20), Fit.CROP))
    assert cropped[:, 1:-1].min() == 255  # at its edges the filter reaches past the crop
    assert cropped.min() > 200


def test_encode_knows_its_codecs() -> None:
    assert encode(picture(), "jpeg", 75)[:2] == b"\xff\xd8"
    assert encode(picture(), "webp", 75)[8:12] == b"WEBP"
    with pytest.raises(DatasetError, match="codec must be one of jpeg, webp"):
        encode(picture(), "png", 75)


def test_the_curve_is_what_encoding_gives() -> None:
    images = [picture(seed=seed) for seed in range(5)]
    rows = measure_curve(images, sizes=[Size(24, 24), Size(48, 48)])
    assert len(rows) == 2 * 3 * 2 * 2 * 3
    names = ("colour", "fit", "size", "codec", "quality")
    found = {tuple(r[name] for name in names): r for r in rows}
    assert len(found) == len(rows)
    row = found["rgb", "crop", "24x24", "jpeg", 75]
    counts = [len(encode(fit_picture(image, Size(24, 24), Fit.CROP), "jpeg", 75)) for image in images]
    assert row["mean_bytes"] == sum(counts) / 5
    assert row["p95_bytes"] == max(counts)
    by_quality = [found["rgb", "squash", "48x48", "jpeg", quality]["mean_bytes"] for quality in (50, 75, 90)]
    assert by_quality == sorted(set(by_quality))
    assert measure_curve([]) == []


def test_the_grey_curve_is_that_of_grey_files() -> None:
    images = [picture(seed=seed) for seed in range(4)]
    rows = measure_curve(images, [Fit.SQUASH], [Size(40, 48)], qualities=[80])
    for codec, options in (("jpeg", {"optimize": True}), ("webp", {"method": 4})):
        grey = [image.resize((48, 40), Image.Resampling.BILINEAR).convert("L") for image in images]
        counts = [len(saved(image, codec, quality=80, **options)) for image in grey]
        told = {row["colour"]: row["mean_bytes"] for row in rows if row["codec"] == codec}
        assert told["grey"] == sum(counts) / 4 < 0.97 * told["rgb"]


def test_a_grey_jpeg_has_one_channel_and_comes_back_within_a_few_levels() -> None:
    grey = in_colour(picture(), "grey")
    assert np.array_equal(np.asarray(grey), np.asarray(picture().convert("L")))
    assert in_colour(picture(), "rgb").tobytes() == picture().tobytes()
    with Image.open(io.BytesIO(encode(grey, "jpeg", 90))) as sent:
        assert sent.mode == "L"
    for codec in ("jpeg", "webp"):
        seen = in_colour(open_picture(encode(grey, codec, 95), "a"), "grey")
        assert np.abs(np.asarray(seen).astype(int) - np.asarray(grey)).mean() < 4


def test_curve_sizes_cover_the_pictures_and_at_least_64() -> None:
    assert [size.height for size in curve_sizes(20)] == [24, 32, 40, 48, 56, 64]
    assert curve_sizes(100)[-1] == Size(112, 112)
    assert curve_sizes(112)[-1] == Size(112, 112)
    assert curve_sizes(5000)[-1] == Size(224, 224)
