"""Pictures at a size, as memory-mapped arrays that every process of a machine shares.

An array is made once, from the originals, by exactly the deployed chain (decode, EXIF-orient, RGB, fit), under
a lock, and appears by rename: whoever finds it finds it whole. It holds all classes, ordered by (label,
name), so that the first K classes are a slice.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from stillhouse.distill.data.codecs import encode, fit_picture, open_picture
from stillhouse.distill.data.ingest import MANIFEST_VERSION
from stillhouse.distill.data.splits import SPLITS
from stillhouse.search.domain import Fit, Json, Size
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

    def array(self, split: str, size: Size, fit: Fit, classes: int | None = None) -> NDArray[np.uint8]:
        """Pictures (N, H, W, 3), uint8, read-only, as the deployed chain gives them.

        Raises:
            DatasetError: No such split or number of classes.
        """
        count = len(self._take(split, classes))
        return self._built(f"{split}-{size}-{fit}", split, size, lambda image: fit_picture(image, size, fit))[:count]

    def coded(
        self, split: str, size: Size, fit: Fit, codec: str, quality: int, classes: int | None = None
    ) -> NDArray[np.uint8]:
        """As ``array``, but sent through the codec: what the receiver of the device's pictures sees."""
        count = len(self._take(split, classes))

        def through_codec(image: Image.Image) -> Image.Image:
            return open_picture(encode(fit_picture(image, size, fit), codec, quality), f"{codec} {quality}")

        return self._built(f"{split}-{size}-{fit}-{codec}{quality}", split, size, through_codec)[:count]

    def _take(self, split: str, classes: int | None) -> list[dict[str, Json]]:
        if split not in self._rows:
            raise DatasetError(f"split must be one of {', '.join(SPLITS)}, but got {split!r}")
        if classes is None:
            return self._rows[split]
        if not 1 <= classes <= len(self.classes):
            raise DatasetError(f"classes must lie between 1 and {len(self.classes)}, but got {classes}")
        return [row for row in self._rows[split] if row["label"] < classes]

    def _built(
        self, name: str, split: str, size: Size, chain: Callable[[Image.Image], Image.Image]
    ) -> NDArray[np.uint8]:
        path = self._cache / f"{name}.npy"
        if not path.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            with _locked(self._cache / f"{name}.lock"):
                if not path.exists():
                    self._build(path, split, size, chain)
        found: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        return found

    def _build(self, path: Path, split: str, size: Size, chain: Callable[[Image.Image], Image.Image]) -> None:
        rows = self._rows[split]
        draft = path.with_suffix(".tmp")
        array: NDArray[np.uint8] = np.lib.format.open_memmap(
            draft, mode="w+", dtype=np.uint8, shape=(len(rows), size.height, size.width, 3)
        )
        with self._pictures.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:

            def fill(index: int) -> None:
                row = rows[index]
                data = blob[row["offset"] : row["offset"] + row["length"]]
                array[index] = np.asarray(chain(open_picture(data, row["name"])))

            with ThreadPoolExecutor(THREADS) as pool:
                for _ in pool.map(fill, range(len(rows))):  # the loop lets an error through
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
