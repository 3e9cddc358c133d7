"""Odd and hostile zips, made by code, each with what ingest must say of it."""

from __future__ import annotations

import bz2
import io
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from odd_pictures import png


@dataclass(frozen=True)
class Odd:
    """One zip.

    Attributes:
        name: What it is.
        make: Its bytes.
        refused: What the refusal says, as a regular expression; None when it is taken.
        pictures: How many are kept.
        classes: Their names.
        fault: The start of its one fault, as a regular expression; None when it has none.
        note: Part of a note, as a regular expression.
    """

    name: str
    make: Callable[[], bytes]
    refused: str | None = None
    pictures: int = 8
    classes: tuple[str, ...] = ("a", "b")
    fault: str | None = None
    note: str | None = None


GOOD: Mapping[str, bytes] = {
    f"{label}/{n}.png": png(100 + 10 * k + n) for k, label in enumerate("ab") for n in range(4)
}


def packed(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    """A zip with these members, in this order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.comment = comment
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def plus(name: str, data: bytes | None = None) -> Callable[[], bytes]:
    """The good zip with one more member."""
    return lambda: packed({**GOOD, name: png(1) if data is None else data})


def only(*names: str) -> Callable[[], bytes]:
    """A zip of these pictures, each another one."""
    return lambda: packed({name: png(200 + n) for n, name in enumerate(names)})


def renamed(placeholder: str, name: bytes, *, utf8: bool = True) -> Callable[[], bytes]:
    """The good zip with a member whose name's bytes Python would not write."""

    def make() -> bytes:
        assert len(placeholder) == len(name)
        data = bytearray(packed({**GOOD, placeholder: png(1)}).replace(placeholder.encode(), name))
        if utf8:
            entry = data.rindex(b"PK\x01\x02")
            local = struct.unpack_from("<I", data, entry + 42)[0]
            data[entry + 9] |= 8
            data[local + 7] |= 8
        return bytes(data)

    return make


def special(kind: int) -> Callable[[], bytes]:
    """The good zip with a member of another kind than a file."""

    def make() -> bytes:
        buffer = io.BytesIO(packed(GOOD))
        info = zipfile.ZipInfo("a/odd.png")
        info.external_attr = (kind | 0o777) << 16
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(info, "/etc/passwd")
        return buffer.getvalue()

    return make


def patched(offset: int, value: bytes, *, mark: bytes = b"PK\x01\x02", last: bool = False) -> Callable[[], bytes]:
    """The good zip with other bytes at an offset from its first (or last) record of a kind."""

    def make() -> bytes:
        data = bytearray(packed(GOOD))
        start = (data.rindex(mark) if last else data.index(mark)) + offset
        data[start : start + len(value)] = value
        return bytes(data)

    return make


def twice() -> bytes:
    buffer = io.BytesIO(packed(GOOD))
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a/0.png", png(1))
    return buffer.getvalue()


def overlapping() -> bytes:
    """Two members of the list name the same bytes."""
    data = bytearray(packed(GOOD))
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    return bytes(data)


def bzip2_bomb() -> bytes:
    """Ten kilobytes that one read would make a gigabyte of."""
    return packed({**GOOD, "a/bomb.png": bytes(64 << 20)}, zipfile.ZIP_BZIP2)


def flat() -> bytes:
    return packed({**GOOD, "a/x.png": bytes(40 << 20)}, zipfile.ZIP_DEFLATED)


def zip64() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in GOOD.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    return buffer.getvalue()


def zip64_far() -> bytes:
    """A member that lies, by its own account, at the end of all numbers."""
    info, extra = png(1), struct.pack("<HHQ", 1, 8, 2**64 - 1)
    data = bytearray(packed({**GOOD, "a/9.png": info}))
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 42 : entry + 46] = b"\xff" * 4
    data[entry + 30 : entry + 32] = struct.pack("<H", len(extra))
    data[entry + 46 + 7 : entry + 46 + 7] = extra
    end = data.rindex(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<I", struct.unpack_from("<I", data, end + 12)[0] + len(extra))
    return bytes(data)


def spanned() -> bytes:
    """An end record of zip64 that speaks of more disks."""
    data = packed(GOOD)
    end = data.rindex(b"PK\x05\x06")
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 0, 3)
    return data[:end] + locator + data[end:]


def tarred(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in GOOD.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def many_classes(count: int) -> bytes:
    return packed({f"{n:06}/{n}.png": b"" for n in range(count)})


NO_ZIP, INSIDE = "is not a readable zip", "paths in a zip must stay inside it"
CONTROL = "a name must not hold control characters"
LONG = "k" * 255

ODD: tuple[Odd, ...] = (
    Odd("plain", lambda: packed(GOOD), note="cut from train"),
    # paths that lead out
    Odd("up", plus("../a.png"), INSIDE),
    Odd("up inside", plus("a/../../b.png"), INSIDE),
    Odd("up that stays inside", plus("a/../b/c.png"), INSIDE),
    Odd("absolute", plus("/etc/a.png"), INSIDE),
    Odd("drive", plus("C:/a.png"), INSIDE),
    Odd("drive without slash", plus("c:a.png"), INSIDE),
    Odd("backslashes up", plus("..\\..\\a.png"), INSIDE),
    Odd("share", plus("\\\\server\\share\\a.png"), INSIDE),
    Odd("backslashes", plus("a\\9.png"), pictures=9),
    Odd("percent signs are a name", plus("a/%2e%2e%2f9.png"), pictures=9),
    Odd("no name", plus("/"), INSIDE),
    Odd("dots and doubled slashes", plus("./a//9.png"), pictures=9),
    # not files
    Odd("symbolic link", special(stat.S_IFLNK), "is a link; pack the file itself"),
    Odd("device", special(stat.S_IFBLK), "is a special file"),
    Odd("terminal", special(stat.S_IFCHR), "is a special file"),
    Odd("pipe", special(stat.S_IFIFO), "is a special file"),
    Odd("socket", special(stat.S_IFSOCK), "is a special file"),
    # bombs
    Odd("overlapping members", overlapping, "must not share bytes"),
    Odd("bzip2", bzip2_bomb, "packed by deflate or not at all, but 'a/0.png' is by bzip2"),
    Odd("lzma", lambda: packed(GOOD, zipfile.ZIP_LZMA), "is by lzma"),
    Odd("deflate64", patched(10, b"\x09"), "is by deflate64"),
    Odd("unheard method", patched(10, b"\xc8"), "is by method 200"),
    Odd("deflated", lambda: packed(GOOD, zipfile.ZIP_DEFLATED)),
    Odd("flat file of 40 MB", flat, fault=r"a/x\.png: not a picture"),
    Odd("zip in a zip", plus("a/more.zip", packed(GOOD)), note=r"1 file left aside, not pictures: a/more\.zip"),
    Odd("zips only", lambda: packed({"a/1.zip": packed(GOOD), "b/1.zip": packed(GOOD)}), "2 files and no picture"),
    Odd("fifty thousand and one classes", lambda: many_classes(50_001), "at most 50,000 classes, but 50,001"),
    Odd("deep", plus("a/" * 17 + "1.png"), fault="a/a/.*: a path may have at most 16 parts, but has 18"),
    # damaged
    Odd("empty file", lambda: b"", NO_ZIP),
    Odd("zip without members", lambda: packed({}), "it holds nothing; put pictures into"),
    Odd("cut in the middle", lambda: packed(GOOD)[:900], NO_ZIP),
    Odd("cut in the list", lambda: packed(GOOD)[:-60], NO_ZIP),
    Odd("cut in the last record", lambda: packed(GOOD)[:-4], NO_ZIP),
    Odd("wrong checksum", patched(16, b"\0\0\0\0"), pictures=7, fault=r"a/0\.png: damaged in the zip"),
    Odd("damaged pixels", patched(40, b"\0" * 8, mark=b"PK\x03\x04"), pictures=7, fault=r"a/0\.png: damaged"),
    Odd("encrypted", patched(8, b"\x01"), "must not be encrypted"),
    Odd("another name in the header", patched(30, b"b", mark=b"PK\x03\x04"), pictures=7, fault=r"a/0\.png: damaged"),
    Odd("a size too large", patched(20, b"\xff\xff\xff\x7f"), "must not share bytes"),
    Odd("a size too small", patched(24, b"\x05\0\0\0"), pictures=7, fault=r"a/0\.png: damaged in the zip"),
    Odd("list elsewhere", patched(16, b"\xff\xff\xff\x7f", mark=b"PK\x05\x06"), f"{NO_ZIP}|8 faulty files"),
    Odd("list too long", patched(12, b"\xff\xff\xff\x7f", mark=b"PK\x05\x06"), NO_ZIP),
    Odd("version of the future", patched(6, b"\xff\xff"), NO_ZIP),
    Odd("zip64", zip64),
    Odd("zip64, far away", zip64_far, pictures=8, fault=r"a/9\.png: damaged in the zip"),
    Odd("zip64, many disks", spanned, NO_ZIP),
    Odd("huge comment", lambda: packed(GOOD, comment=b"x" * 65_535)),
    # other things, and two at once
    Odd("tar", lambda: tarred("w"), NO_ZIP),
    Odd("tar.gz", lambda: tarred("w:gz"), NO_ZIP),
    Odd("7z", lambda: b"7z\xbc\xaf\x27\x1c\0\4" + bytes(200), NO_ZIP),
    Odd("rar", lambda: b"Rar!\x1a\x07\x01\0" + bytes(200), NO_ZIP),
    Odd("bz2", lambda: bz2.compress(packed(GOOD)), NO_ZIP),
    Odd("picture in place of a zip", lambda: png(1), NO_ZIP),
    Odd("page before a zip", lambda: b"<html><script>alert(1)</script></html>" + packed(GOOD)),
    Odd("program before a zip", lambda: b"MZ" + bytes(5000) + packed(GOOD)),
    Odd("page behind a zip", lambda: packed(GOOD) + b"<html></html>"),
    Odd("two zips in a row", lambda: packed({"x/1.png": png(1)}) + packed(GOOD)),
    # names
    Odd("the same name twice", twice, "each name must stand once in a zip, but 'a/0.png' is there twice"),
    Odd("the same name by a detour", plus("./a/0.png"), "there twice"),
    Odd("names that differ by case", plus("a/0.PNG"), pictures=9),
    Odd("classes that differ by case", only(*(f"{x}/{n}.png" for x in "Aab" for n in range(3))), pictures=9,
        classes=("A", "a", "b"), note="classes differ by case only, join them if they are one: A, a"),
    Odd("NUL in a name", renamed("a/9.png~.txt", b"a/9.png\0.txt"), pictures=9),
    Odd("line break in a name", plus("a/x\ny.png"), fault=rf"a/x\\ny\.png: {CONTROL}"),
    Odd("escape in a name", plus("a/\x1b[31m.png"), fault=rf"a/\\x1b\[31m\.png: {CONTROL}"),
    Odd("right to left", plus("a/x\u202egnp.exe.png"), fault=rf"a/x\\u202egnp\.exe\.png: {CONTROL}"),
    Odd("line break in a class", plus("x\ny/1.png"), fault=rf"x\\ny/1\.png: {CONTROL}"),
    Odd("a surrogate", renamed("a/9___.png", b"a/9\xed\xa0\x80.png"), NO_ZIP),
    Odd("bytes that are no UTF-8", renamed("a/9_.png", b"a/9\xff.png"), NO_ZIP),
    Odd("bytes of old DOS", renamed("a/9_.png", b"a/9\xff.png", utf8=False), pictures=9),
    Odd("one class in two spellings", only(*(f"{x}/{n}.png" for x in ("e\u0301", "\xe9", "b") for n in range(3))),
        pictures=9, classes=("b", "\xe9")),
    Odd("two spellings of a file", plus("a/e\u0301.png"), pictures=9),
    Odd("emoji", only(*(f"{x}/{n}.png" for x in ("\U0001f426\u200d\u2b1b", "b") for n in range(4))),
        classes=("b", "\U0001f426\u200d\u2b1b")),
    Odd("reserved on Windows", only(*(f"{x}/aux{n}.png" for x in ("CON", "NUL.") for n in range(4))),
        classes=("CON", "NUL.")),
    Odd("a class of 255 bytes", only(*(f"{x}/{n}.png" for x in (LONG, "b") for n in range(4))), classes=("b", LONG)),
    Odd("a class of 256 bytes", plus(f"{LONG}k/1.png"), fault="kkk.*: a name may have at most 255 bytes"),
    Odd("a name of 60,000 bytes", plus(f"a/{'n' * 60_000}.png"), fault=r"a/nnn.{190,210}: a name may have at most"),
    Odd("a name that looks like markup", plus("a/<img src=x onerror=alert(1)>.png"), pictures=9),
    Odd("hidden files", lambda: packed({**GOOD, "__MACOSX/a/._0.png": b"x", "a/.DS_Store": b"x", "b/Thumbs.db": b"x",
                                        "a/Icon\r": b"", ".git/config": b"x"})),
    # where pictures lie
    Odd("one class only", only("a/1.png", "a/2.png"), "at least 2 classes are needed to tell apart, but only 'a' came"),
    Odd("a class without pictures", plus("c/", b""), "every class must hold pictures, but class 'c' holds none"),
    Odd("a class of side files", plus("c/notes.txt", b"x"), "class 'c' holds none"),
    Odd("pictures in the root", only("1.png", "2.png"), "pictures must lie in class folders, but there are none"),
    Odd("a picture in the root", plus("9.png"), fault=r"9\.png: a picture in no class folder"),
    Odd("mixed depth", plus("a/more/9.png"), fault=r"a/more/9\.png: a picture in a folder inside class folder a"),
    Odd("wrapped twice", lambda: packed({f"one/two/{name}": data for name, data in GOOD.items()})),
    Odd("train without a class", only("train/a/1.png", "train/b/1.png", "val/c/1.png"), "every class must be in train"),
    Odd("two trains", only("train/a/1.png", "Train/b/1.png"), "Train and train both mean train; join them"),
    Odd("no pictures at all", lambda: packed({"readme.txt": b"x"}), "1 files and no picture among them"),
)  # fmt: skip
