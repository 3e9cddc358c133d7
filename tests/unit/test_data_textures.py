"""The built-in tiles: no shared pixel between splits, none blank, a function of the seed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.distill.data import textures
from stillhouse.distill.data.splits import SPLITS
from stillhouse.search.errors import DatasetError


@pytest.mark.parametrize("name", textures.PHOTOGRAPHS)
def test_no_pixel_is_read_by_two_splits(name: str) -> None:
    photograph = textures.PHOTOGRAPHS[name]
    grey = textures.load(photograph)
    boxes = textures.stripes(grey.shape[1], grey.shape[0], photograph.order)
    read = {split: np.zeros(grey.shape, dtype=bool) for split in SPLITS}
    for number, split in enumerate(SPLITS):
        for tile_number in range(6):
            rng = np.random.default_rng([number, tile_number])
            _, sources = textures.cut_tile(grey, boxes[split], rng, photograph.least_spread)
            for left, top, right, bottom in sources:
                assert any(x <= left and y <= top and right <= r and bottom <= b for x, y, r, b in boxes[split])
                read[split][top:bottom, left:right] = True
    for one, other in itertools.combinations(SPLITS, 2):
        assert not (read[one] & read[other]).any()


@pytest.mark.parametrize("name", textures.PHOTOGRAPHS)
def test_a_tile_reads_nothing_but_its_recorded_rectangles(name: str) -> None:
    photograph = textures.PHOTOGRAPHS[name]
    grey = textures.load(photograph)
    boxes = textures.stripes(grey.shape[1], grey.shape[0], photograph.order)
    only = {left for left, *_ in boxes["test"]}
    assert len(only) == 1
    hidden = grey.copy()
    (left, top, right, bottom) = boxes["test"][0]
    mask = np.ones(grey.shape, dtype=bool)
    mask[top:bottom, left:right] = False
    hidden[mask] = 255 - hidden[mask]
    tiles = [
        textures.cut_tile(source, boxes["test"], np.random.default_rng(1), photograph.least_spread)[0]
        for source in (grey, hidden)
    ]
    assert tiles[0].tobytes() == tiles[1].tobytes()


def test_stripes_stand_apart() -> None:
    for photograph in textures.PHOTOGRAPHS.values():
        height, width = textures.load(photograph).shape
        found = sorted(itertools.chain(*textures.stripes(width, height, photograph.order).values()))
        assert len(found) == 4
        assert found[-1][2] <= width
        for before, after in itertools.pairwise(found):
            assert after[0] - before[2] >= textures.GAP > photograph.shrink


def test_write_makes_an_image_folder_that_only_the_seed_decides(tmp_path: Path) -> None:
    few = {"train": 2, "val": 1, "test": 1}
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        textures.write(tmp_path / folder, seed=seed, per_class=few)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jpg"))
    assert len(files) == 4 * len(textures.PHOTOGRAPHS) == 64
    contents = {folder: [(tmp_path / folder / file).read_bytes() for file in files] for folder in "abc"}
    assert contents["a"] == contents["b"]
    assert not set(contents["a"]) & set(contents["c"])
    for file in files:
        with Image.open(tmp_path / "a" / file) as image:
            assert (image.mode, image.size) == ("L", (160, 160))
            assert np.asarray(image).std() > 10


def test_a_wheel_without_the_photograph_is_told() -> None:
    with pytest.raises(DatasetError, match=r"must carry data/none.png"):
        textures.load(textures.Photograph("none.png"))


def test_scikit_image_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textures.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DatasetError, match=r"pip install 'stillhouse\[demo\]'"):
        textures.load(textures.PHOTOGRAPHS["brick"])
