"""Makes a bundle, in a process of its own: ``python -m stillhouse.service.bundling``, its order as JSON on stdin.

It needs onnxruntime and the data set's pictures, which the API must not import. It imports no torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.distill.data.store import PictureStore
from stillhouse.export.bundle import Parts, write_bundle
from stillhouse.search.domain import Fit, Json, Size
from stillhouse.search.errors import StillhouseError

GOLDEN = 4
"""Pictures whose outputs are put beside them."""


def main() -> None:
    """Does what the order says."""
    order = json.load(sys.stdin)
    parts = Parts(Path(order["onnx"]), order["labels"], order["preprocess"], order["card"], _pictures(order))
    write_bundle(parts, Path(order["out"]))


def _pictures(order: Mapping[str, Json]) -> NDArray[np.uint8] | None:
    """Some validation pictures as the deployed chain gives them; None where the data set's files are not here."""
    source = order["pictures"]
    if source is None:
        return None
    try:
        store = PictureStore(Path(source["pictures"]), Path(source["manifest"]), Path(source["cache"]))
        size, fit = Size.parse(source["size"]), Fit(source["fit"])
        return store.sample("val", size, fit, GOLDEN, classes=source["classes"], colour=source["colour"])
    except (StillhouseError, OSError) as error:
        print(f"no golden pictures: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    main()
