"""Pictures at a size, as memory-mapped arrays that every process of a machine shares.

An array is made once, from the originals, by exactly the deployed chain (decode, EXIF-orient, RGB, fit, colour), under
a lock, and appears by rename: whoever finds it finds it whole. It holds all classes, ordered by (label,
name), so that the first K classes are a slice.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from stillhouse.distill.data.codecs import as_image, encode, fit_picture, in_colour, open_picture
from stillhouse.distill.data.ingest import MANIFEST_VERSION
from stillhouse.distill.data.splits import SPLITS
from stillhouse.distill.reserve import reserve
from stillhouse.search.domain import CHANNELS, Fit, Json, Size
from stillhouse.search.errors import CorruptArtifactError, DatasetError

CHAIN = 1
"""Goes up when the deployed chain changes; cached arrays of another chain are not read."""

THREADS = 2


class PictureStore:
    """The pictures of one ingested data set.

    Args:
        pictures: ``pictures.bin`` as ingest wrote it.
        manifest: ``manifest.json`` as ingest wrote it.
        cache: Folder for arrays; shared by data sets and processes, may be emptied at any time.

    Raises:
        CorruptArtifactError: The two files do not belong together.
    """

    def __init__(self, pictures: Path, manifest: Path, cache: Path) -> None:
        data = json.loads(manifest.read_text(encoding="utf-8"))
        if data.get("version") != MANIFEST_VERSION:
            raise CorruptArtifactError(
                f"a manifest of version {MANIFEST_VERSION} is needed, but {manifest} has {data.get('version')!r}; "
                "ingest the data set again"
            )
        self.classes: tuple[str, ...] = tuple(data["classes"])
        self.digest: str = data["digest"]
        self._pictures = pictures
        self._cache = cache / self.digest / f"chain{CHAIN}-pillow{PIL.__version__}"
        self._rows: dict[str, list[dict[str, Json]]] = {split: [] for split in SPLITS}
        for row in data["pictures"]:
            self._rows[row["split"]].append(row)
        needed = max((row["offset"] + row["length"] for row in data["pictures"]), default=0)
        if pictures.stat().st_size < needed:
            raise CorruptArtifactError(f"{pictures} must hold {needed} bytes, but holds {pictures.stat().st_size}")

    def labels(self, split: str, classes: int | None = None) -> NDArray[np.int64]:
        """Class numbers (N,) of a split's pictures, ascending; ``classes`` keeps the first K classes."""
        return np.array([row["label"] for row in self._take(split, classes)], dtype=np.int64)

    def names(self, split: str, classes: int | None = None) -> list[str]:
        """File names (N) of a split's pictures, in the order of ``labels``."""
        return [row["name"] for row in self._take(split, classes)]

    def array(
        self, split: str, size: Size, fit: Fit, classes: int | None = None, colour: str = "rgb"
    ) -> NDArray[np.uint8]:
        """Pictures (N, H, W, C), uint8, read-only, as the deployed chain gives them; C is 1 for ``grey``.

        Raises:
            DatasetError: No such split or number of classes.
        """
        count = len(self._take(split, classes))

        def fitted(index: int) -> Image.Image:
            return in_colour(fit_picture(self._original(self._rows[split][index]), size, fit), colour)

        return self._built(f"{split}-{size}-{fit}", split, size, colour, fitted)[:count]

    def sample(
        self, split: str, size: Size, fit: Fit, count: int, *, classes: int | None = None, colour: str = "rgb"
    ) -> NDArray[np.uint8]:
        """Up to ``count`` of the pictures (N, H, W, C) of ``array``, spread over the classes, made by themselves."""
        rows = self._take(split, classes)
        chosen = [rows[int(index)] for index in np.linspace(0, len(rows) - 1, min(count, len(rows)))]
        pictures = [np.asarray(in_colour(fit_picture(self._original(row), size, fit), colour)) for row in chosen]
        found: NDArray[np.uint8] = np.array(pictures, dtype=np.uint8)
        return found.reshape(len(chosen), size.height, size.width, CHANNELS[colour])

    def coded(
        self,
        split: str,
        size: Size,
        fit: Fit,
        codec: str,
        quality: int,
        classes: int | None = None,
        colour: str = "rgb",
    ) -> NDArray[np.uint8]:
        """As ``array``, but sent through the codec: what the receiver of the device's pictures sees."""
        count = len(self._take(split, classes))
        fitted = self.array(split, size, fit, colour=colour)

        def through_codec(index: int) -> Image.Image:
            sent = encode(as_image(fitted[index]), codec, quality)
            return in_colour(open_picture(sent, f"{codec} {quality}"), colour)

        return self._built(f"{split}-{size}-{fit}-{codec}{quality}", split, size, colour, through_codec)[:count]

    def _original(self, row: dict[str, Json]) -> Image.Image:
        with self._pictures.open("rb") as file:
            file.seek(row["offset"])
            return open_picture(file.read(row["length"]), row["name"])

    def _take(self, split: str, classes: int | None) -> list[dict[str, Json]]:
        if split not in self._rows:
            raise DatasetError(f"split must be one of {', '.join(SPLITS)}, but got {split!r}")
        if classes is None:
            return self._rows[split]
        if not 1 <= classes <= len(self.classes):
            raise DatasetError(f"classes must lie between 1 and {len(self.classes)}, but got {classes}")
        return [row for row in self._rows[split] if row["label"] < classes]

    def _built(
        self, name: str, split: str, size: Size, colour: str, picture: Callable[[int], Image.Image]
    ) -> NDArray[np.uint8]:
        name = name if colour == "rgb" else f"{name}-{colour}"
        path = self._cache / f"{name}.npy"
        if not path.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            with _locked(self._cache / f"{name}.lock"):
                if not path.exists():
                    shape = (len(self._rows[split]), size.height, size.width, CHANNELS[colour])
                    self._build(path, shape, picture)
        found: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        return found

    def _build(self, path: Path, shape: tuple[int, int, int, int], picture: Callable[[int], Image.Image]) -> None:
        draft = path.with_suffix(".tmp")
        array: NDArray[np.uint8] = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
        reserve(draft)

        def fill(index: int) -> None:
            array[index] = np.asarray(picture(index)).reshape(shape[1:])

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(fill, range(shape[0])):  # the loop lets an error through
                pass
        _sync(draft)
        draft.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock; the kernel frees it when the process dies, however it dies."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
