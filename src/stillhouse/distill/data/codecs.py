"""Pictures as a device handles them: decoded, brought to a size, encoded; and what that costs in bytes.

The deployed chain is ``open_picture`` (decode, EXIF-orient, RGB), then ``fit_picture`` (Pillow's antialiased
bilinear), then ``in_colour`` (grey for a monochrome camera). Training, evaluation and the byte curve all go through
these functions, so that a network never meets another resampling in the field than in training.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stillhouse.search.domain import CHANNELS, Fit, Json, Size
from stillhouse.search.errors import DatasetError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
"""What may be opened; any other decoder of Pillow stays shut, since pictures come from strangers."""

MAX_PIXELS = 64_000_000
"""A larger picture is refused from its header alone: 64 Mpixel is 192 MB once decoded."""

CURVE_SIZES = tuple(Size(side, side) for side in (24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224))
CURVE_CODECS = ("jpeg", "webp")
CURVE_QUALITIES = (50, 75, 90)
CURVE_SAMPLE = 32
_ALWAYS = 64
"""The curve holds every size up to this side, even where the pictures themselves are smaller."""

LETTERBOX_GREY = (128, 128, 128)

# Pillow only warns between one and two times its own limit; as an error it is caught below like any other.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def open_picture(data: bytes, name: str) -> Image.Image:
    """Decodes a picture: first frame, EXIF orientation applied then dropped, RGB, no metadata left.

    16-bit grey is scaled to 8 bits, where Pillow's own conversion would clip it to white.

    Args:
        data: The encoded file.
        name: What to call it in an error.

    Raises:
        DatasetError: Not a picture, of a format not read, damaged, or too large; begins with the name.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DatasetError(_too_large(name, f"{width}x{height}"))
            return _rgb(ImageOps.exif_transpose(image), name)
    except (DatasetError, MemoryError):
        raise
    except UnidentifiedImageError:
        what = "an empty file" if not data else f"not a picture in a format that is read ({', '.join(FORMATS)})"
        raise DatasetError(f"{name}: {what}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DatasetError(_too_large(name, "more")) from None
    except Exception as error:  # decoders raise whatever a damaged file leads them into
        raise DatasetError(f"{name}: damaged, it does not decode ({_reason(error)})") from error


def fit_picture(image: Image.Image, size: Size, fit: Fit) -> Image.Image:
    """Brings an RGB picture to ``size`` by Pillow's antialiased bilinear.

    Equal to ``image.resize``, ``ImageOps.fit`` and ``ImageOps.pad(color=(128, 128, 128))`` for the three fits.
    """
    target = (size.width, size.height)
    match fit:
        case Fit.SQUASH:
            return image.resize(target, Image.Resampling.BILINEAR)
        case Fit.CROP:
            return ImageOps.fit(image, target, Image.Resampling.BILINEAR)
        case Fit.LETTERBOX:
            return ImageOps.pad(image, target, Image.Resampling.BILINEAR, color=LETTERBOX_GREY)


def in_colour(image: Image.Image, colour: str) -> Image.Image:
    """An RGB picture in the camera's colour: itself, or its luma (ITU-R 601, Pillow's mode L) for ``grey``."""
    return image.convert("L") if colour == "grey" else image


def as_image(picture: NDArray[np.uint8]) -> Image.Image:
    """Bytes (h, w, C) as a picture of mode RGB (C = 3) or L (C = 1)."""
    return Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])


def encode(image: Image.Image, codec: str, quality: int) -> bytes:
    """Encodes a picture as a device would send it.

    Args:
        image: RGB or L (grey).
        codec: ``jpeg`` (4:2:0, one channel for grey, optimised Huffman tables) or ``webp`` (lossy, method 4; it has no
            grey mode, so that grey goes as RGB).
        quality: 1 to 100.

    Raises:
        DatasetError: Another codec.
    """
    buffer = io.BytesIO()
    if codec == "jpeg":
        image.save(buffer, "JPEG", quality=quality, optimize=True)
    elif codec == "webp":
        image.convert("RGB").save(buffer, "WEBP", quality=quality, method=4)
    else:
        raise DatasetError(f"codec must be one of {', '.join(CURVE_CODECS)}, but got {codec!r}")
    return buffer.getvalue()


def curve_sizes(median_larger_side: float) -> tuple[Size, ...]:
    """The sizes to measure: those up to the median larger side, the next one above it, and all up to 64."""
    above = [size.height for size in CURVE_SIZES if size.height >= median_larger_side]
    last = max(_ALWAYS, above[0] if above else CURVE_SIZES[-1].height)
    return tuple(size for size in CURVE_SIZES if size.height <= last)


def measure_curve(
    images: Iterable[Image.Image],
    fits: Sequence[Fit] = tuple(Fit),
    sizes: Sequence[Size] = CURVE_SIZES,
    codecs: Sequence[str] = CURVE_CODECS,
    qualities: Sequence[int] = CURVE_QUALITIES,
    colours: Sequence[str] = tuple(CHANNELS),
) -> list[dict[str, Json]]:
    """Measures bytes per picture on the user's own pictures (METHODS section 5: never assumed).

    Args:
        images: RGB pictures at their original size.
        fits: Ways to bring them to a size.
        sizes: Sizes to measure at.
        codecs: ``jpeg``, ``webp``.
        qualities: 1 to 100.
        colours: ``rgb``, ``grey``; every combination of the five is one row.

    Returns:
        Rows ``{colour, fit, size, codec, quality, mean_bytes, p95_bytes}``.
    """
    ways = list(itertools.product(colours, codecs, qualities))
    counts: dict[tuple[Fit, Size, _Way], list[int]] = {}
    for image in images:
        for size in sizes:
            _count_bytes(image, size, fits, ways, counts)
    return [_row(fit, size, way, found) for (fit, size, way), found in counts.items()]


_Way = tuple[str, str, int]
"""(colour, codec, quality)."""


def _count_bytes(
    image: Image.Image,
    size: Size,
    fits: Sequence[Fit],
    ways: Sequence[_Way],
    counts: dict[tuple[Fit, Size, _Way], list[int]],
) -> None:
    # A picture of the target's own shape comes out the same from every fit: it is encoded once.
    seen: dict[bytes, dict[_Way, int]] = {}
    for fit in fits:
        fitted = fit_picture(image, size, fit)
        content = fitted.tobytes()
        if content not in seen:
            seen[content] = {way: len(encode(in_colour(fitted, way[0]), *way[1:])) for way in ways}
        for way, count in seen[content].items():
            counts.setdefault((fit, size, way), []).append(count)


def _row(fit: Fit, size: Size, way: _Way, counts: list[int]) -> dict[str, Json]:
    colour, codec, quality = way
    found = sorted(counts)
    return {
        "colour": colour,
        "fit": str(fit),
        "size": str(size),
        "codec": codec,
        "quality": quality,
        "mean_bytes": sum(found) / len(found),
        "p95_bytes": found[math.ceil(0.95 * len(found)) - 1],
    }


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image, name)
    elif image.mode == "F":
        raise DatasetError(f"{name}: holds floating-point values; save it as an 8-bit picture")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB")
    image.info = {}  # Pillow would hand a colour profile on to every file saved from this picture
    return image


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    values: NDArray[np.integer[Any]] = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise DatasetError(f"{name}: holds values outside 0..65535; save it as an 8-bit or 16-bit picture")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _too_large(name: str, size: str) -> str:
    return f"{name}: too large, {size} pixels where at most {MAX_PIXELS:,} are read; make it smaller"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
