"""The knowledge cache: what a trained network says about every view of every training picture.

Views are pure functions of the picture's number, so these outputs, taken once, serve every epoch, student, trial
and job on the data set (Shen & Xing 2021 store crops and soft labels in the same spirit). float16 halves the files; its
step is below 1/256 for logits under 8 in size.

Several stages may share the views of one mentor, each writing a part of them.

| file | shape | what |
|---|---|---|
| logits | (V, N, K) | logits of the part's views |
| feature0, feature1, ... | (V, N, ...) | levels, attention maps or pooled feature, if asked for and within the limit |
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.distill.data.reader import Reader, ahead
from stillhouse.distill.knowledge import Knowledge, Outline, observe, outline
from stillhouse.distill.progress import Pace, Report
from stillhouse.distill.reserve import reserve
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Json

BATCH = 64
Array = NDArray[np.float16]


@dataclass(frozen=True)
class Cache:
    """The files of one mentor, opened.

    Attributes:
        logits: V arrays of (N, K), one a view.
        features: Of each feature V arrays of (N, ...); empty when they were not asked for or did not fit.
        outline: Shapes of what the mentor tells, features included even where they are not kept.
    """

    logits: Sequence[Array]
    features: tuple[Sequence[Array], ...]
    outline: Outline

    @classmethod
    def open(cls, files: Mapping[str, Path], metrics: Mapping[str, Json]) -> Cache:
        """Maps the files of one stage into memory."""
        arrays: dict[str, Array] = {name: np.load(path, mmap_mode="r") for name, path in files.items()}
        features = tuple([*arrays[name]] for name in sorted(arrays) if name.startswith("feature"))
        return cls([*arrays["logits"]], features, Outline.from_json(metrics["outline"]))

    @classmethod
    def joined(cls, parts: Sequence[Cache]) -> Cache:
        """One cache of what several stages wrote of the same mentor, in the order of their views."""
        if len(parts) == 1:
            return parts[0]
        logits = [view for part in parts for view in part.logits]
        features = zip(*(part.features for part in parts), strict=True)
        joined = tuple([view for array in arrays for view in array] for arrays in features)
        return cls(logits, joined, parts[0].outline)

    def read(self, view: int, indices: NDArray[np.int64], device: torch.device, *, features: bool) -> Knowledge:
        """What was said of one view of some pictures, as float32."""

        def load(views: Sequence[Array]) -> Tensor:
            return torch.from_numpy(views[view][indices]).to(device).float()

        kept = tuple(load(array) for array in self.features) if features else ()
        return Knowledge(load(self.logits), kept)


def write_targets(
    network: Network,
    reader: Reader,
    count: int,
    folder: Path,
    *,
    features: str,
    most_bytes: int,
    report: Report,
    views: range | None = None,
) -> tuple[dict[str, Path], dict[str, Json]]:
    """Writes the cache of a mentor; a view that was finished before is not computed again.

    Args:
        network: The mentor.
        reader: Reads views at the mentor's picture size.
        count: V, views a picture.
        folder: Where the files go; a marker in it says how many views are finished.
        features: What to keep of its inside (``knowledge.FEATURES``).
        most_bytes: Features of all views that take more than this are not kept; who needs them runs the mentor again.
        report: Called about twice a second.
        views: Those to write; all by default.

    Returns:
        The files by name, and figures: the outline, bytes, whether features are kept, seconds.
    """
    began, total, views = time.monotonic(), len(reader.pictures), range(count) if views is None else views
    network.to(reader.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    shapes = outline(network, features)
    kept = bool(features) and shapes.feature_bytes * count * total <= most_bytes
    wanted: dict[str, tuple[int, ...]] = {"logits": (shapes.classes,)}
    wanted |= {f"feature{index}": shape for index, shape in enumerate(shapes.features)} if kept else {}
    paths = {name: folder / f"{name}.npy" for name in wanted}
    marker = folder / "finished-views"
    finished = json.loads(marker.read_text()) if marker.exists() and all(p.exists() for p in paths.values()) else 0
    files = [_mapped(path, (len(views), total, *wanted[name]), fresh=not finished) for name, path in paths.items()]
    pace = Pace(report, len(views) * total, finished * total)
    parts = [np.arange(start, min(start + BATCH, total)) for start in range(0, total, BATCH)]
    for place in range(finished, len(views)):
        for indices, pictures in zip(parts, ahead(partial(reader.read, view=views[place]), parts), strict=True):
            told = observe(network, pictures, features if kept else "")
            values = (told.logits, *told.features)
            for file, value in zip(files, values, strict=True):
                file[place, indices] = value.cpu().numpy().astype(np.float16)
            pace.step(len(indices))
        for file in files:
            file.flush()
        fresh = marker.with_suffix(".tmp")
        fresh.write_text(json.dumps(place + 1))
        fresh.replace(marker)
    figures: dict[str, Json] = {
        "outline": shapes.to_json(),
        "features": features if kept else "",
        "bytes": sum(path.stat().st_size for path in paths.values()),
        "first_view": views.start,
        "views": len(views),
        "seconds": time.monotonic() - began,
    }
    return paths, figures


def _mapped(path: Path, shape: tuple[int, ...], *, fresh: bool) -> np.memmap[Any, np.dtype[np.float16]]:
    """A file of float16 in memory, with room on the disk for all of it."""
    mode = "w+" if fresh else "r+"
    file = np.lib.format.open_memmap(path, mode=mode, dtype=np.float16, shape=shape if fresh else None)
    reserve(path)
    return file
