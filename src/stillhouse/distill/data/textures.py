"""The built-in data set: 16 classes of grey tiles cut from real photographs, so that a demo needs no download.

The photographs are those that the scikit-image wheel carries (extra ``demo``); all are free to use (public
domain, CC0 or NASA/ESA). It is there to run the software on real pictures, not to prove a method.

How leakage is ruled out
    Each class has a photograph of its own. It is cut into upright stripes, each belonging to one split, with a
    gap of ``GAP`` pixels between neighbours that no split uses. A tile is a quilt of four patches; each patch
    is *first* cut out of one stripe as an upright rectangle and only then rotated and scaled, and rotation and
    scale are drawn so that the rectangle lies wholly inside the stripe. So no pixel of a photograph is read by
    two splits, and the gap is wider than the reach of the filter that shrinks a large photograph beforehand.

What makes it hard
    Grey, since colour would give most classes away; every patch's mean and spread are taken out and drawn
    anew, so that what is left is structure; scale, rotation, mirroring, a gradient of light over the tile,
    sensor noise. Patches are cut near the photograph's own resolution, so fine detail is lost at small sizes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillhouse.distill.data.splits import SPLITS
from stillhouse.search.errors import DatasetError

SIDE = 160
GAP = 8
PER_CLASS: Mapping[str, int] = {"train": 40, "val": 12, "test": 25}

_SHARES = {"train": 0.28, "val": 0.18, "test": 0.26}
"""Width of a stripe as a share of the photograph; train has two of the four."""
_SPAN = (50, 100)
"""Side of a patch in pixels of the photograph; it is drawn on 48 to 112 pixels of the tile."""
_TILT_DEGREES = 20.0
_TRIES = 50

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom outside."""


@dataclass(frozen=True)
class Photograph:
    """One class.

    Attributes:
        file: A photograph of the wheel.
        part: The part of it that shows the material; None for all.
        shrink: How many times smaller it is made first.
        lying: Stripes go from left to right instead, where the scene changes less that way.
        order: Splits of the stripes; train twice, on both sides where it can, to see more of the scene.
        least_spread: Standard deviation in grey levels below which a patch is blank, and drawn again.
    """

    file: str
    part: Box | None = None
    shrink: int = 1
    lying: bool = False
    order: tuple[str, ...] = ("train", "val", "test", "train")
    least_spread: float = 6.0


PHOTOGRAPHS: Mapping[str, Photograph] = {
    "brick": Photograph("brick.png"),
    "cell": Photograph("cell.png", least_spread=2.0),
    "coins": Photograph("coins.png"),
    "fur": Photograph("chelsea.png", part=(110, 0, 430, 230)),
    "galaxies": Photograph("hubble_deep_field.jpg"),
    "grass": Photograph("grass.png"),
    "gravel": Photograph("gravel.png"),
    "handwriting": Photograph("text.png"),
    "launchpad": Photograph("rocket.jpg", lying=True),
    "moon": Photograph("moon.png", lying=True),
    "motorcycle": Photograph("motorcycle_left.png", lying=True),
    "print": Photograph("page.png"),
    "retina": Photograph("retina.jpg", part=(210, 210, 1200, 1200), shrink=2),
    "spacesuit": Photograph("astronaut.png", part=(60, 230, 440, 512), lying=True),
    "tissue": Photograph("ihc.png"),
    "wood": Photograph("coffee.png", part=(0, 0, 150, 400), lying=True, order=("val", "train", "test", "train")),
}


def write(folder: Path, *, seed: int = 0, per_class: Mapping[str, int] = PER_CLASS) -> None:
    """Writes the tiles as ``folder/<split>/<class>/<number>.jpg``, grey, 160x160.

    Args:
        folder: Made if it is not there.
        seed: Another seed cuts other tiles.
        per_class: Tiles of each class by split.

    Raises:
        DatasetError: scikit-image is not installed or does not carry a photograph.
    """
    for class_number, (name, photograph) in enumerate(PHOTOGRAPHS.items()):
        grey = load(photograph)
        boxes = stripes(grey.shape[1], grey.shape[0], photograph.order)
        for split_number, split in enumerate(SPLITS):
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for number in range(per_class[split]):
                rng = np.random.default_rng([seed, class_number, split_number, number])
                tile, _ = cut_tile(grey, boxes[split], rng, photograph.least_spread)
                tile.save(target / f"{number:03d}.jpg", quality=92)


def load(photograph: Photograph) -> NDArray[np.uint8]:
    """The photograph's part, grey (H, W).

    Raises:
        DatasetError: scikit-image is not installed or does not carry the file.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DatasetError(
            "the built-in data set is cut from photographs of the scikit-image package, which is not installed; "
            "run: pip install 'stillhouse[demo]'"
        )
    path = Path(spec.origin).parent / "data" / photograph.file
    if not path.is_file():
        raise DatasetError(
            f"scikit-image must carry data/{photograph.file}, but this version does not; "
            "run: pip install 'scikit-image==0.26.*'"
        )
    with Image.open(path) as image:
        grey = image.convert("L").crop(photograph.part)
    pixels = np.asarray(grey.reduce(photograph.shrink))
    return pixels.T if photograph.lying else pixels  # tiles are turned and mirrored at random anyway


def stripes(width: int, height: int, order: tuple[str, ...]) -> dict[str, list[Box]]:
    """Upright stripes of each split, ``GAP`` pixels apart."""
    found: dict[str, list[Box]] = {split: [] for split in SPLITS}
    usable = width - GAP * (len(order) - 1)
    left = 0
    for split in order:
        right = left + int(_SHARES[split] * usable)
        found[split].append((left, 0, right, height))
        left = right + GAP
    return found


def cut_tile(
    grey: NDArray[np.uint8], boxes: list[Box], rng: np.random.Generator, least_spread: float
) -> tuple[Image.Image, list[Box]]:
    """One tile, quilted of four patches from these stripes.

    Returns:
        The tile, mode L, and the rectangles of the photograph that it was made from.
    """
    row, column = (int(x) for x in rng.integers(SIDE * 3 // 10, SIDE * 7 // 10, 2))
    quilt = np.empty((SIDE, SIDE), dtype=np.float32)
    contrast, zoom = rng.uniform(24, 56), rng.uniform(0.8, 1.6)
    sources: list[Box] = []
    for rows in (slice(0, row), slice(row, SIDE)):
        for columns in (slice(0, column), slice(column, SIDE)):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            patch, source = _cut_patch(grey, boxes, max(height, width), zoom, rng, least_spread)
            quilt[rows, columns] = patch[:height, :width] * contrast
            sources.append(source)
    return Image.fromarray(_lit(quilt, rng)), sources


def _cut_patch(
    grey: NDArray[np.uint8], boxes: list[Box], side: int, zoom: float, rng: np.random.Generator, least_spread: float
) -> tuple[NDArray[np.float32], Box]:
    """A square patch with mean 0 and standard deviation 1, and where it came from."""
    found: list[tuple[float, NDArray[np.float32], Box]] = []
    while not found or (found[-1][0] < least_spread and len(found) < _TRIES):
        left, top, right, bottom = boxes[rng.integers(len(boxes))]
        tilt = rng.uniform(-_TILT_DEGREES, _TILT_DEGREES)
        # The upright square around a square tilted by t is cos t + sin |t| times as wide.
        around = float(np.cos(np.radians(tilt)) + np.sin(np.radians(abs(tilt))))
        span = min(float(np.clip(side / zoom, *_SPAN)), (min(right - left, bottom - top) - 2) / around)
        reach = int(np.ceil(span * around)) + 1
        x, y = int(rng.integers(left, right - reach + 1)), int(rng.integers(top, bottom - reach + 1))
        patch = _turned(grey[y : y + reach, x : x + reach], tilt, span, side, rng)
        found.append((float(patch.std()), patch - patch.mean(), (x, y, x + reach, y + reach)))
    spread, patch, source = max(found, key=lambda item: item[0])
    return patch / max(spread, 1.0), source


def _turned(
    cut: NDArray[np.uint8], tilt: float, span: float, side: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The tilted square of side ``span`` at the middle of a cut, at (side, side), turned and mirrored at random."""
    middle = len(cut) / 2
    image = Image.fromarray(cut).rotate(tilt, Image.Resampling.BICUBIC)
    box = (middle - span / 2, middle - span / 2, middle + span / 2, middle + span / 2)
    patch: NDArray[np.float32] = np.asarray(
        image.resize((side, side), Image.Resampling.BILINEAR, box=box), dtype=np.float32
    )
    patch = np.rot90(patch, int(rng.integers(4)))
    return patch[:, ::-1] if rng.random() < 0.5 else patch


def _lit(quilt: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Mid grey plus the quilt, under slanting light, with noise."""
    angle, strength, noise = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.45), rng.uniform(4, 16)
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    light = 1 + strength * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]) / np.sqrt(2)
    values = (rng.uniform(100, 155) + quilt) * light + noise * rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    lit: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return lit
