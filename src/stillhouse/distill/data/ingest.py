"""From a user's zip or folder to ``pictures.bin`` and ``manifest.json``, with all that must be known of them.

``pictures.bin`` holds the original encoded bytes, one picture after the other, so that every size and fit is
made from the original. ``manifest.json`` says where each lies, and is written last: it marks completion.
Its ``digest`` is a hash over classes, contents, labels and splits: equal digests mean equal training data.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, ImageChops

from stillhouse.distill.data.archive import ArchiveError, Limits, Source, open_source
from stillhouse.distill.data.codecs import CURVE_SAMPLE, curve_sizes, measure_curve, open_picture
from stillhouse.distill.data.sandbox import MOST_AT_ONCE, Decoded, Sandbox
from stillhouse.distill.data.splits import SPLITS, Layout, Placed, assign, check_assigned, read_layout
from stillhouse.search.domain import Json, canonical_json
from stillhouse.search.errors import DatasetError

MANIFEST_VERSION = 1
Report = Callable[[Mapping[str, Json]], None]
_MOST_LISTED = 1000
"""Longest list of faults or groups that a summary carries; a note counts the rest."""

_Batch = list[tuple[Placed, bytes]]
_BATCH_BYTES = 4 << 20

_SAMPLE_PIXELS = 16_000_000
"""Bounds the time that the byte curve takes: each sampled picture is resized some forty times."""


@dataclass(frozen=True)
class _Picture:
    """A readable picture: where it came from, where its bytes lie, what it holds."""

    name: str
    label: str
    given: str | None
    offset: int
    length: int
    sha256: str
    pixels: str
    height: int
    width: int


def ingest(
    source: Path, out: Path, *, skip_faults: bool, report: Report, limits: Limits | None = None
) -> dict[str, Json]:
    """Reads, checks and stores a data set.

    Args:
        source: An ImageFolder zip or folder: ``<class>/*`` or ``train|val|test/<class>/*``.
        out: Folder that gets ``pictures.bin`` and ``manifest.json``; nothing is left there on an error.
        skip_faults: Goes on without the files that cannot be used.
        report: Called about once a second with ``{done, total, unit}``; what it raises stops the work.
        limits: Caps on what an archive may ask of us.

    Returns:
        digest, classes, pictures, splits, histogram, sizes, grey, faults, duplicates, leaks, notes, curve.

    Raises:
        DatasetError: The source cannot be used; ``faults`` holds one line a faulty file.
    """
    out.mkdir(parents=True, exist_ok=True)
    blob = out / "pictures.bin.tmp"
    try:
        with open_source(source, limits) as opened, blob.open("wb") as stream:
            layout = read_layout(opened.listing)
            pictures, unreadable = _read_all(opened, layout.pictures, stream, report)
            faults = sorted([*opened.listing.faults, *layout.faults, *unreadable])
            stream.flush()
            os.fsync(stream.fileno())
        if faults and not skip_faults:
            raise DatasetError(_fault_message(faults, len(pictures) + len(faults)), faults)
        summary, manifest = _conclude(layout, pictures, faults, blob)
        blob.replace(out / "pictures.bin")
    finally:
        blob.unlink(missing_ok=True)
    _write_whole(out / "manifest.json", canonical_json(manifest))
    return summary


def _read_all(
    source: Source, placed: Sequence[Placed], stream: IO[bytes], report: Report
) -> tuple[list[_Picture], list[str]]:
    """Decodes every picture once, in child processes; appends the bytes of the good ones to the stream."""
    pictures: list[_Picture] = []
    faults: list[str] = []
    pending: deque[tuple[_Batch, Future[list[Decoded | str]]]] = deque()
    workers = min(4, os.cpu_count() or 1)

    def settle() -> None:
        batch, future = pending.popleft()
        for (item, data), found in zip(batch, future.result(), strict=True):
            if isinstance(found, str):
                faults.append(found)
                continue
            sha256, offset = hashlib.sha256(data).hexdigest(), stream.tell()
            stream.write(data)
            holds = (found.pixels, found.height, found.width)
            pictures.append(_Picture(item.name, item.label, item.split, offset, len(data), sha256, *holds))

    with Sandbox(workers) as sandbox, ThreadPoolExecutor(workers) as pool:
        for batch in _batches(source, placed, faults, report):
            pending.append((batch, pool.submit(sandbox.decode, [(item.name, data) for item, data in batch])))
            if len(pending) > 2 * workers:
                settle()
        while pending:
            settle()
    report({"done": len(placed), "total": len(placed), "unit": "pictures"})
    return pictures, faults


def _batches(source: Source, placed: Sequence[Placed], faults: list[str], report: Report) -> Iterator[_Batch]:
    """The files that can be read, with their bytes; a few at a time, as few as one where they are large."""
    batch: _Batch = []
    last = -1.0
    for done, item in enumerate(placed):
        if time.monotonic() - last > 1.0:
            report({"done": done, "total": len(placed), "unit": "pictures"})
            last = time.monotonic()
        try:
            batch.append((item, source.read(item.name)))
        except ArchiveError:
            raise
        except DatasetError as error:
            faults.append(str(error))
        if len(batch) == MOST_AT_ONCE or sum(len(data) for _, data in batch) > _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _conclude(
    layout: Layout, pictures: Sequence[_Picture], faults: Sequence[str], blob: Path
) -> tuple[dict[str, Json], dict[str, Json]]:
    """The summary and the manifest."""
    contents = _content_keys(pictures)
    labels = [item.label for item in pictures]
    splits, leaks = assign(labels, [item.given for item in pictures], contents)
    try:
        check_assigned(layout.classes, labels, splits)
    except DatasetError as error:
        raise DatasetError(f"{error}{f' ({len(faults)} faulty files were skipped)' * bool(faults)}", faults) from None
    kept = sorted(
        ((split, item) for split, item in zip(splits, pictures, strict=True) if split is not None),
        key=lambda pair: (SPLITS.index(pair[0]), pair[1].label, pair[1].name),
    )
    manifest = _manifest(layout.classes, kept)
    groups = _duplicates(pictures)
    notes = _notes(layout, pictures, faults, splits, leaks, groups)
    counts = Counter((item.label, split) for split, item in kept)
    sample = _sample([item for split, item in kept if split == "train"])
    duplicates = _listed([[item.name for item in group] for group in groups], "groups of duplicates", notes)
    leaked = _listed([[pictures[index].name for index in group] for group in leaks], "leaks", notes)
    larger = statistics.median(max(item.height, item.width) for _, item in kept)
    summary: dict[str, Json] = {
        "digest": manifest["digest"],
        "classes": list(layout.classes),
        "pictures": len(kept),
        "splits": dict(Counter(split for split, _ in kept)),
        "histogram": {name: {split: counts[name, split] for split in SPLITS} for name in layout.classes},
        "sizes": {
            "height": _spread([item.height for _, item in kept]),
            "width": _spread([item.width for _, item in kept]),
        },
        "grey": all(_is_grey(image) for image in _opened(blob, sample)),
        "faults": _listed(list(faults), "faults", notes),
        "duplicates": duplicates,
        "leaks": leaked,
        "notes": notes,
        "curve": measure_curve(_opened(blob, sample), sizes=curve_sizes(larger)),
    }
    return summary, manifest


def _content_keys(pictures: Sequence[_Picture]) -> list[str]:
    """One key for all that decode to the same pixels: the lowest sha256 of their bytes.

    Pixels tell that a picture was saved again in another format; bytes make the key, since a decoder's
    rounding may change between its versions and must not move the cut.
    """
    lowest: dict[str, str] = {}
    for item in pictures:
        lowest[item.pixels] = min(lowest.get(item.pixels, item.sha256), item.sha256)
    return [lowest[item.pixels] for item in pictures]


def _duplicates(pictures: Sequence[_Picture]) -> list[list[_Picture]]:
    groups: dict[str, list[_Picture]] = defaultdict(list)
    for item in pictures:
        groups[item.pixels].append(item)
    return [group for group in groups.values() if len(group) > 1]


def _manifest(classes: Sequence[str], kept: Sequence[tuple[str, _Picture]]) -> dict[str, Json]:
    number = {name: index for index, name in enumerate(classes)}
    digest = hashlib.sha256(canonical_json(list(classes)).encode())
    rows: list[Json] = []
    for split, item in kept:
        digest.update(f"{item.sha256} {number[item.label]} {split}\n".encode())
        rows.append(
            {
                "name": item.name,
                "offset": item.offset,
                "length": item.length,
                "label": number[item.label],
                "split": split,
                "sha256": item.sha256,
                "height": item.height,
                "width": item.width,
            }
        )
    return {"version": MANIFEST_VERSION, "digest": digest.hexdigest(), "classes": list(classes), "pictures": rows}


def _notes(
    layout: Layout,
    pictures: Sequence[_Picture],
    faults: Sequence[str],
    splits: Sequence[str | None],
    leaks: Sequence[Sequence[int]],
    groups: Sequence[Sequence[_Picture]],
) -> list[str]:
    notes: list[str] = []
    if faults:
        notes.append(f"{_files(len(faults))} could not be used and were skipped; see the faults")
    if layout.side_files:
        shown = ", ".join(layout.side_files[:5]) + (" ..." if len(layout.side_files) > 5 else "")
        notes.append(f"{_files(len(layout.side_files))} left aside, not pictures: {shown}")
    given = {item.given for item in pictures}
    cut = [split for split in ("val", "test") if split not in given]
    if cut:
        count = {split: splits.count(split) for split in cut}
        named = " and ".join(f"{split} ({count[split]} pictures)" for split in cut)
        notes.append(f"{named} cut from train by content hash, class by class, since no folder gives it")
    if leaks:
        out = Counter(item.given for item, split in zip(pictures, splits, strict=True) if split is None)
        named = " and ".join(f"{out[split]} from {split}" for split in SPLITS if out[split])
        notes.append(
            f"{len(leaks)} pictures stand in more than one split; left out so that none is trained on and tested "
            f"with: {named}"
        )
    twice = [group for group in groups if len({item.label for item in group}) > 1]
    if twice:
        shown = "; ".join(" = ".join(item.name for item in group) for group in twice[:5])
        notes.append(f"{len(twice)} pictures stand under more than one label, at most one is right: {shown}")
    alike = Counter(name.casefold() for name in layout.classes)
    confusing = [name for name in layout.classes if alike[name.casefold()] > 1]
    if confusing:
        notes.append(f"classes differ by case only, join them if they are one: {', '.join(confusing[:6])}")
    for split in ("val", "test"):
        there = {item.label for item, name in zip(pictures, splits, strict=True) if name == split}
        absent = [name for name in layout.classes if name not in there]
        if absent:
            notes.append(f"{len(absent)} classes have no picture in {split}: {', '.join(absent[:5])}")
    return notes


def _sample(train: Sequence[_Picture]) -> list[_Picture]:
    """At most ``CURVE_SAMPLE`` pictures, those of the lowest hashes; fewer where each is large, but 8."""
    median = statistics.median(item.height * item.width for item in train)
    count = max(8, min(CURVE_SAMPLE, int(_SAMPLE_PIXELS / median)))
    return sorted(train, key=lambda item: (item.sha256, item.name))[:count]


def _opened(blob: Path, chosen: Sequence[_Picture]) -> Iterator[Image.Image]:
    """One decoded picture at a time: all of them may be more than the memory holds."""
    with blob.open("rb") as stream:
        for item in chosen:
            stream.seek(item.offset)
            yield open_picture(stream.read(item.length), item.name)


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))


def _spread(values: Sequence[int]) -> dict[str, Json]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _listed(items: list[Json], what: str, notes: list[str]) -> list[Json]:
    if len(items) > _MOST_LISTED:
        notes.append(f"the first {_MOST_LISTED} of {len(items)} {what} are listed")
    return items[:_MOST_LISTED]


def _fault_message(faults: Sequence[str], total: int) -> str:
    shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    return (
        f"every picture must be readable, but {len(faults)} of {_files(total)} cannot be used: {shown}. "
        "Mend or remove them, or use --skip-faults to go on without them"
    )


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _write_whole(path: Path, text: str) -> None:
    """Writes so that the file is there whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)
