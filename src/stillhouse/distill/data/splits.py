"""Which picture belongs to which class and to which split.

``read_layout`` reads it off the folders. ``assign`` decides what the folders leave open: a split that is
missing is cut by content hash, so that the same picture under two names cannot fall into two splits, and so
that the cut does not depend on file names, on their order or on a random generator.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from stillhouse.distill.data.archive import Listing
from stillhouse.search.errors import DatasetError

SPLITS = ("train", "val", "test")
FRACTIONS = {"test": 0.2, "val": 0.15}
"""Share of each class that is cut for a split that the source does not have, in this order."""

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
UNREAD_EXTENSIONS = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".tga", ".ico"}
    | {".raw", ".dng", ".cr2", ".nef", ".arw"}
)
"""Pictures of formats that are not read: faults, where any other file is a side file."""

MOST_CLASSES = 50_000
"""More than twice as many as ImageNet-21k has: a network's last layer must hold them."""

_FOLDER_OF = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_HOW = "put pictures into <class>/ or into train/<class>/, val/<class>/ and test/<class>/"
_STRENGTH = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Placed:
    """A picture file with the class and the split that its folders name; ``split`` None: to be cut."""

    name: str
    label: str
    split: str | None


@dataclass(frozen=True)
class Layout:
    """What the folders of a source say.

    Attributes:
        pictures: In the order of their names.
        classes: Sorted class names.
        faults: One line a picture that lies in no class folder or is of a format that is not read.
        side_files: Files that are no pictures.
    """

    pictures: tuple[Placed, ...]
    classes: tuple[str, ...]
    faults: tuple[str, ...]
    side_files: tuple[str, ...]


def read_layout(listing: Listing) -> Layout:
    """Reads classes and splits off the folders; one folder wrapped around all is looked through.

    Raises:
        DatasetError: No pictures, no class folders, one class only, a class without pictures, a split given
            twice, or split folders without a train folder.
    """
    kinds = {name: _kind(name) for name in listing.files}
    pictures = [name for name in listing.files if kinds[name] == "picture"]
    if not pictures:
        what = f"{len(listing.files)} files and no picture among them" if listing.files else "nothing"
        raise DatasetError(f"a data set must hold pictures in class folders, but it holds {what}; {_HOW}")
    root = _wrapping(pictures)
    inner = {name: _below(root, name) for name in pictures}
    split_folders = _split_folders(inner.values())
    placed: list[Placed] = []
    faults = [
        f"{name}: of a format that is not read; save it as JPEG or PNG"
        for name in listing.files
        if kinds[name] == "unread"
    ]
    for name, parts in inner.items():
        item = _place(name, parts, split_folders)
        if isinstance(item, Placed):
            placed.append(item)
        else:
            faults.append(item)
    classes = _classes(listing.folders, root, split_folders)
    if classes and not placed and faults:
        raise DatasetError(
            f"pictures must lie directly in class folders, but none of {len(pictures)} does; the first: {faults[0]}",
            faults,
        )
    _check_classes(classes, placed)
    side = tuple(name for name in listing.files if kinds[name] == "side")
    return Layout(tuple(placed), classes, tuple(sorted(faults)), side)


def assign(
    labels: Sequence[str], given: Sequence[str | None], contents: Sequence[str]
) -> tuple[list[str | None], list[list[int]]]:
    """Decides each picture's split.

    The same content in two given splits is a leak: it is left out of train, and of val when test has it
    too; never out of test. Splits that are not given are then cut by ``cut``.

    Args:
        labels: Class of each picture (N).
        given: The split its folder names (N); None for all when there are no split folders.
        contents: Key of each picture's content (N), equal for equal pictures.

    Returns:
        Each picture's split, None where it is left out (N); and the leaks as lists of indices.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, content in enumerate(contents):
        groups[content].append(index)
    splits: list[str | None] = [split or "train" for split in given]
    leaks: list[list[int]] = []
    for group in groups.values():
        names = {splits[index] or "train" for index in group}
        if len(names) > 1:
            leaks.append(group)
            strongest = max(names, key=lambda name: _STRENGTH[name])
            for index in group:
                if splits[index] != strongest:
                    splits[index] = None
    there = set(given)
    missing = {name: share for name, share in FRACTIONS.items() if name not in there}
    open_to_cut = [index for index, split in enumerate(splits) if split == "train"]
    found = cut([labels[index] for index in open_to_cut], [contents[index] for index in open_to_cut], missing)
    for index, split in zip(open_to_cut, found, strict=True):
        splits[index] = split
    return splits, leaks


def cut(labels: Sequence[str], contents: Sequence[str], fractions: dict[str, float]) -> list[str]:
    """Cuts splits off train, class by class, by the order of the contents' keys.

    Of a class's distinct contents the lowest keys go to the first split of ``fractions`` until its share
    (rounded, at least one) is full, the next to the second, the rest stay in train. A content that an
    earlier class has placed stays there.
    """
    by_label: dict[str, set[str]] = defaultdict(set)
    for label, content in zip(labels, contents, strict=True):
        by_label[label].add(content)
    where: dict[str, str] = {}
    for label in sorted(by_label):
        keys = sorted(by_label[label])
        free = {split: max(1, round(share * len(keys))) for split, share in fractions.items()}
        for key in keys:
            if key in where and where[key] in free:
                free[where[key]] -= 1
        for key in keys:
            if key not in where:
                split = next((name for name, left in free.items() if left > 0), "train")
                where[key] = split
                if split in free:
                    free[split] -= 1
    return [where[content] for content in contents]


def check_assigned(classes: Sequence[str], labels: Sequence[str], splits: Sequence[str | None]) -> None:
    """Checks that training can use the splits.

    Raises:
        DatasetError: A class without a training picture, or a split without any picture.
    """
    train = Counter(label for label, split in zip(labels, splits, strict=True) if split == "train")
    missing = [name for name in classes if not train[name]]
    if missing:
        raise DatasetError(
            f"every class must have a training picture that val and test do not have too, but {_some(missing)} "
            "has none; give each class at least 3 different pictures (more are needed to learn from), or remove it"
        )
    for split in SPLITS:
        if split not in splits:
            raise DatasetError(f"the {split} split must hold pictures, but it is empty; fill it or remove its folder")


def _kind(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    return "picture" if suffix in EXTENSIONS else "unread" if suffix in UNREAD_EXTENSIONS else "side"


def _wrapping(pictures: Iterable[str]) -> tuple[str, ...]:
    """The folders wrapped around all class folders."""
    rest = [parts for name in pictures if len(parts := PurePosixPath(name).parts) > 1]
    root: tuple[str, ...] = ()
    while rest:
        first = rest[0][0]
        if first.lower() in _FOLDER_OF or any(parts[0] != first for parts in rest) or max(map(len, rest)) < 3:
            break
        root += (first,)
        rest = [parts[1:] for parts in rest if len(parts) > 2]
    return root


def _below(root: tuple[str, ...], name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    return parts[len(root) :] if parts[: len(root)] == root else (parts[-1],)


def _split_folders(pictures: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Top folder -> split; empty when the top folders are classes.

    A folder "train" with pictures directly in it is a class of trains.
    """
    nested: Counter[str] = Counter()
    for parts in pictures:
        if len(parts) > 1 and parts[0].lower() in _FOLDER_OF:
            nested[parts[0]] += 1 if len(parts) > 2 else -1
    found = {top: _FOLDER_OF[top.lower()] for top, count in nested.items() if count > 0}
    for split, count in Counter(found.values()).items():
        if count > 1:
            tops = sorted(top for top, name in found.items() if name == split)
            raise DatasetError(
                f"each split must have one folder, but {' and '.join(tops)} both mean {split}; join them"
            )
    if found and "train" not in found.values():
        raise DatasetError(f"split folders must include train, but only {', '.join(sorted(found))} came; {_HOW}")
    return found


def _place(name: str, parts: tuple[str, ...], split_folders: dict[str, str]) -> Placed | str:
    """The picture in its place, or its fault."""
    split = split_folders.get(parts[0])
    if split_folders and (split is None or len(parts) == 1):
        return f"{name}: a picture outside of {', '.join(sorted(split_folders))}; {_HOW}"
    inner = parts[1:] if split_folders else parts
    if len(inner) < 2:
        return f"{name}: a picture in no class folder; {_HOW}"
    if len(inner) > 2:
        return f"{name}: a picture in a folder inside class folder {inner[0]}; {_HOW}"
    return Placed(name, _label(inner[0]), split)


def _label(folder: str) -> str:
    """The class of a folder's name: macOS writes an accent as a character of its own, which looks the same."""
    return unicodedata.normalize("NFC", folder)


def _classes(folders: Iterable[str], root: tuple[str, ...], split_folders: dict[str, str]) -> tuple[str, ...]:
    """Every folder that stands where classes stand, pictures in it or not."""
    found: set[str] = set()
    for folder in folders:
        parts = PurePosixPath(folder).parts
        if parts[: len(root)] != root:
            continue
        parts = parts[len(root) :]
        if split_folders and len(parts) == 2 and parts[0] in split_folders:
            found.add(_label(parts[1]))
        elif not split_folders and len(parts) == 1:
            found.add(_label(parts[0]))
    return tuple(sorted(found))


def _check_classes(classes: Sequence[str], placed: Sequence[Placed]) -> None:
    if not classes:
        raise DatasetError(f"pictures must lie in class folders, but there are none; {_HOW}")
    if len(classes) > MOST_CLASSES:
        raise DatasetError(
            f"a data set may have at most {MOST_CLASSES:,} classes, but {len(classes):,} class folders came; are the "
            "pictures of one class in one folder?"
        )
    if len(classes) == 1:
        raise DatasetError(f"at least 2 classes are needed to tell apart, but only {classes[0]!r} came; add another")
    there = Counter(item.label for item in placed)
    empty = [name for name in classes if not there[name]]
    if empty:
        raise DatasetError(f"every class must hold pictures, but {_some(empty)} holds none; fill or remove its folder")
    train = Counter(item.label for item in placed if item.split in {None, "train"})
    missing = [name for name in classes if not train[name]]
    if missing:
        raise DatasetError(
            f"every class must be in train, but {_some(missing)} is only in val or test; add training pictures or "
            "remove the class"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"class {shown}" if len(names) == 1 else f"each of classes {shown}" + (" ..." if len(names) > 5 else "")
