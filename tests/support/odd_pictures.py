"""Odd and hostile pictures, made by code, each with what ingest must say of it."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms


@dataclass(frozen=True)
class Odd:
    """One picture.

    Attributes:
        name: Its file's name.
        make: Its bytes.
        size: (height, width) that it is kept with; None when it is a fault.
        fault: What the fault says after the name, as a regular expression.
        same: Name of another picture here that has the same pixels.
    """

    name: str
    make: Callable[[], bytes]
    size: tuple[int, int] | None = (16, 20)
    fault: str | None = None
    same: str | None = None


UNREAD = "not a picture in a format that is read"
DAMAGED = "damaged, it does not decode"


def picture(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> Image.Image:
    """A picture in which no two quarters are alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The encoded file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int = 0, **options: Any) -> bytes:
    return saved(picture(seed), "PNG", **options)


def jpeg(seed: int = 0, **options: Any) -> bytes:
    return saved(picture(seed), "JPEG", **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, *, bits: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG whose header says what you like."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def png_with(kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    whole = png(90)
    return whole[:33] + chunk(kind, data) + whole[33:]


def turned(orientation: int) -> bytes:
    """The upright picture as a camera held otherwise stores it: upright again once its EXIF is applied."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture(7)
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation in back else upright
    return saved(stored, "PNG", exif=exif)


def animated(kind: str) -> bytes:
    return saved(picture(11), kind, save_all=True, append_images=[picture(12), picture(13)], duration=50)


def palette() -> bytes:
    return saved(picture(14, "P"), "PNG", transparency=3)


def sixteen_bits() -> bytes:
    return saved(Image.fromarray(np.arange(320, dtype=np.uint16).reshape(16, 20) * 200), "PNG")


def sixteen_bit_colour() -> bytes:
    return png_claiming(20, 16, bits=16, rows=b"".join(b"\0" + bytes(range(120)) for _ in range(16)))


def floats() -> bytes:
    return saved(Image.fromarray(np.linspace(0, 1, 320, dtype=np.float32).reshape(16, 20)), "TIFF")


def wide_integers() -> bytes:
    return saved(Image.fromarray(np.full((16, 20), 1 << 20, np.int32)), "TIFF")


def looping_tiff() -> bytes:
    """Its first directory names itself as the next."""
    data = bytearray(saved(picture(15), "TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)
    return bytes(data)


def zipped_behind(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("evil.html", "<script>alert(1)</script>")
    return data + buffer.getvalue()


def profiled(kind: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return saved(picture(16), kind, icc_profile=profile)


def lying_bmp() -> bytes:
    data = bytearray(saved(picture(17), "BMP"))
    struct.pack_into("<ii", data, 18, 2_000_000_000, 2_000_000_000)
    return bytes(data)


def rle_bmp() -> bytes:
    """Run-length rows that end where the picture has only begun."""
    head = struct.pack("<2sIHHI", b"BM", 54 + 1024 + 4, 0, 0, 54 + 1024)
    info = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 8, 1, 4, 0, 0, 256, 0)
    return head + info + bytes(1024) + b"\x05\x01\x00\x01"


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def big_jpeg() -> bytes:
    return saved(picture(18, size=(200, 160)), "JPEG", quality=95)


def crc_wrong() -> bytes:
    data = bytearray(png(19))
    data[-17] ^= 0xFF  # the last byte of the pixels' checksum
    return bytes(data)


def multi_picture() -> bytes:
    return saved(picture(20), "MPO", save_all=True, append_images=[picture(21)])


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 16\n%%EndComments\n(/etc/passwd) (r) file\n%%EOF\n"

ODD: tuple[Odd, ...] = (
    # by content, whatever the name says
    Odd("png_named.jpg", lambda: png(1)),
    Odd("jpeg_named.png", lambda: jpeg(2)),
    Odd("upper.JPEG", lambda: jpeg(3)),
    Odd("bitmap.bmp", lambda: saved(picture(4), "BMP")),
    Odd("tagged.tiff", lambda: saved(picture(5), "TIFF", compression="tiff_lzw")),
    Odd("plain.ppm", lambda: saved(picture(6), "PPM")),
    Odd("two_in_one.jpg", multi_picture),
    # modes
    Odd("cmyk.jpg", lambda: saved(picture(30, "CMYK"), "JPEG")),
    Odd("ycck.tiff", lambda: saved(picture(31, "CMYK"), "TIFF")),
    Odd("sixteen_bits.png", sixteen_bits),
    Odd("sixteen_bit_colour.png", sixteen_bit_colour),
    Odd("one_bit.png", lambda: saved(picture(32, "1"), "PNG")),
    Odd("one_bit_group4.tiff", lambda: saved(picture(33, "1"), "TIFF", compression="group4")),
    Odd("grey_alpha.png", lambda: saved(picture(34, "LA"), "PNG")),
    Odd("alpha.webp", lambda: saved(picture(35, "RGBA"), "WEBP", lossless=True)),
    Odd("palette_transparent.png", palette),
    Odd("lab.tiff", lambda: saved(picture(36, "LAB"), "TIFF")),
    Odd("floats.tiff", floats, None, "holds floating-point values; save it as an 8-bit picture"),
    Odd("wide_integers.tiff", wide_integers, None, r"holds values outside 0\.\.65535"),
    Odd("profiled.jpg", lambda: profiled("JPEG")),
    Odd("profiled.png", lambda: profiled("PNG")),
    Odd("bad_profile.jpg", lambda: jpeg(37, icc_profile=b"no profile" * 50)),
    # more than one frame: the first
    Odd("animated.gif", lambda: animated("GIF")),
    Odd("animated.webp", lambda: animated("WEBP")),
    Odd("animated.png", lambda: animated("PNG")),
    Odd("looping.tiff", looping_tiff),
    # orientation
    Odd("upright.png", lambda: saved(picture(7), "PNG")),
    *(Odd(f"turned_{number}.png", lambda number=number: turned(number), same="upright.png") for number in range(1, 9)),
    Odd("turned_9.png", lambda: turned(9), same="upright.png"),
    Odd("bad_exif.jpg", lambda: jpeg(38, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")),
    # large
    Odd("wide.png", lambda: saved(Image.new("L", (20_000, 2)), "PNG"), (2, 20_000)),
    Odd("too_wide.png", lambda: png_claiming(20_000, 20_000), None, "too large, .* at most 64,000,000 are read"),
    Odd("over.png", lambda: png_claiming(8001, 8000, bits=1, colour=0), None, "too large, 8001x8000 pixels"),
    Odd("bomb.png", lambda: png_claiming(7000, 9000, rows=bytes(9000)), None, DAMAGED),
    Odd("lying.bmp", lying_bmp, None, "too large"),
    Odd("text_bomb.png", lambda: png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20), 9)), None, "damaged"),
    Odd("profile_bomb.png", lambda: png_with(b"iCCP", b"a\0\0" + zlib.compress(bytes(80 << 20), 9)), None, "damaged"),
    Odd("nothing_high.png", lambda: png_claiming(20, 0), None, "(damaged|not a picture)"),
    # cut short, damaged
    Odd("zero_bytes.jpg", lambda: b"", None, "an empty file"),
    Odd("cut_in_header.jpg", lambda: big_jpeg()[:10], None, f"({UNREAD}|damaged)"),
    Odd("cut_in_middle.jpg", lambda: cut(big_jpeg(), 0.5), None, DAMAGED),
    Odd("cut_near_end.jpg", lambda: cut(big_jpeg(), 0.9), None, DAMAGED),
    Odd("cut_in_header.png", lambda: png()[:20], None, f"({UNREAD}|damaged)"),
    Odd("cut_in_middle.png", lambda: cut(png(39), 0.6), None, DAMAGED),
    Odd("without_end.png", lambda: png(40)[:-12], (16, 20)),
    Odd("cut.webp", lambda: cut(saved(picture(41), "WEBP"), 0.6), None, "(damaged|not a picture)"),
    Odd("cut.gif", lambda: cut(saved(picture(42), "GIF"), 0.6), None, "(damaged|not a picture)"),
    Odd("cut.tiff", lambda: cut(saved(picture(43), "TIFF"), 0.5), None, "(damaged|not a picture)"),
    Odd("crc_wrong.png", crc_wrong, None, DAMAGED),
    Odd("short_rows.bmp", rle_bmp, None, DAMAGED),
    Odd("no_frame.gif", lambda: b"GIF89a" + bytes(7) + b";", None, "(damaged|not a picture)"),
    # two things at once, or another thing
    Odd("jpeg_and_zip.jpg", lambda: zipped_behind(jpeg(44))),
    Odd("gif_and_script.gif", lambda: saved(picture(45), "GIF") + b"/*<script>*/=alert(1);"),
    Odd("html_in_comment.jpg", lambda: jpeg(46, comment=b"<script>alert(1)</script>")),
    Odd("php_in_text.png", lambda: png_with(b"tEXt", b"Comment\0<?php system('id'); ?>")),
    Odd("svg_named.png", lambda: SVG, None, UNREAD),
    Odd("html_named.jpg", lambda: b"<html><body>404</body></html>", None, UNREAD),
    Odd("eps_named.jpg", lambda: EPS, None, UNREAD),
    Odd("pdf_named.jpg", lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF", None, UNREAD),
    Odd("psd_named.png", lambda: b"8BPS\0\1" + bytes(40), None, UNREAD),
    Odd("ico_named.png", lambda: saved(picture(47), "ICO"), None, UNREAD),
    Odd("tga_named.jpg", lambda: saved(picture(48), "TGA"), None, UNREAD),
    Odd("pickle_named.png", lambda: b"cos\nsystem\n(S'id'\ntR.", None, UNREAD),
    Odd("drawing.svg", lambda: SVG, None, "of a format that is not read; save it as JPEG or PNG"),
    Odd("phone.heic", lambda: b"\0\0\0\x18ftypheic", None, "of a format that is not read"),
    Odd("photo.avif", lambda: b"\0\0\0\x18ftypavif", None, "of a format that is not read"),
)
