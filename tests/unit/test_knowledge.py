"""What a mentor tells: live, as shapes, and from the cache that the targets stage writes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.distill import progress, targets, zoo
from stillhouse.distill.data.reader import Reader
from stillhouse.distill.data.views import ViewPolicy, Views
from stillhouse.distill.knowledge import FEATURES, Outline, observe, outline
from stillhouse.distill.taps import tap
from stillhouse.distill.targets import Cache, write_targets
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Size
from stillhouse.search.errors import LeaseLostError, StageError

COUNT, VIEWS, CLASSES = 10, 3, 4
ARCHS = {"cnn": "lcnet_035", "vit": "vit_tiny_patch16_224"}
families = pytest.mark.parametrize("family", ARCHS)
every_feature = pytest.mark.parametrize("features", FEATURES)
SHAPES = {
    ("cnn", "levels"): ((48, 4, 4), (88, 2, 2), (176, 1, 1)),
    ("vit", "levels"): ((192, 2, 2),) * 3,
    ("vit", "native"): ((3, 4, 4),) * 4,
    ("cnn", "pooled"): ((1280,),),
    ("vit", "pooled"): ((192,),),
}


@cache
def mentor(family: str) -> Network:
    torch.manual_seed(0)
    return zoo.build(ARCHS[family], classes=CLASSES, image_size=Size(32, 32)).eval()


def pictures() -> Tensor:
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------------------------------------- live


@families
@every_feature
def test_a_mentor_tells_what_is_asked_and_no_more(family: str, features: str) -> None:
    network = mentor(family)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    told = observe(network, pictures(), features)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad(), tap(network, levels=True, attention=True, pooled=True) as taps:
        torch.testing.assert_close(told.logits, network(pictures()))
    native = taps.attention[-4:] or taps.levels[-3:]
    expected = {"": [], "levels": taps.levels[-3:], "native": native, "pooled": [taps.pooled]}[features]
    counts = {"": 0, "levels": 3, "native": 3 if family == "cnn" else 4, "pooled": 1}
    assert len(told.features) == len(expected) == counts[features]
    for found, wanted in zip(told.features, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    values = (told.logits, *told.features)
    assert not any(value.requires_grad for value in values)
    assert {value.dtype for value in values} == {torch.float32}


@families
@every_feature
def test_an_outline_gives_the_shapes_of_what_is_told(family: str, features: str) -> None:
    told, shapes = observe(mentor(family), pictures(), features), outline(mentor(family), features)
    assert told.logits.shape == (5, shapes.classes) == (5, CLASSES)
    assert tuple(tuple(value.shape[1:]) for value in told.features) == shapes.features
    assert shapes.grid == (None if family == "cnn" else (2, 2))
    assert Outline.from_json(json.loads(json.dumps(shapes.to_json()))) == shapes
    assert shapes.feature_bytes == 2 * sum(value[0].numel() for value in told.features)


@pytest.mark.parametrize(("family", "features"), SHAPES)
def test_shapes_that_are_known(family: str, features: str) -> None:
    assert outline(mentor(family), features).features == SHAPES[family, features]


ODD = {
    "mambaout_femto": "a level of 48 channels came as (1, 16, 16, 48)",  # channels last
    "pit_ti_224": "a level of 64 channels came as tuple",
    "hrnet_w18_small": "it does not say which modules give them",
    "coat_tiny": "3 feature levels must be there, but coat_tiny gives 0",
}


@pytest.mark.parametrize("arch", ODD)
def test_a_network_without_levels_of_the_known_form_still_tells_logits(arch: str) -> None:
    side = Size(224, 224) if arch in ("pit_ti_224", "coat_tiny") else Size(64, 64)
    network = zoo.build(arch, classes=CLASSES, image_size=side)
    assert outline(network, "") == Outline(CLASSES)
    with pytest.raises(StageError, match="take a method that reads logits only") as caught:
        outline(network, "levels")
    assert arch in str(caught.value)
    assert ODD[arch] in str(caught.value)


@pytest.mark.parametrize("arch", ["repvit_m0_9", "deit_tiny_distilled_patch16_224"])
def test_a_network_without_a_single_classifier_tells_logits_and_levels(arch: str) -> None:
    network = zoo.build(arch, classes=CLASSES, image_size=Size(64, 64))
    assert outline(network, "").classes == CLASSES
    assert len(outline(network, "levels").features) == 3
    with pytest.raises(StageError, match="no single linear classifier"):
        outline(network, "pooled")


# ------------------------------------------------------------------------------------------- cache


class Watched(Reader):
    """Remembers which views were read."""

    def __init__(self, mixup: float = 0.0) -> None:
        stored = np.random.default_rng(0).integers(0, 256, (COUNT, 36, 36, 3), dtype=np.uint8)
        views = Views("digest", 0, ViewPolicy(mixup=mixup), COUNT)
        super().__init__(stored, views, Size(32, 32), view_count=VIEWS, keep_bytes=0)
        self.asked: list[int] = []

    def read(self, indices: NDArray[np.int64], view: int) -> Tensor:
        self.asked.append(view)
        return super().read(indices, view)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "BATCH", 4)


def write(family: str, folder: Path, **options: Any) -> tuple[dict[str, Path], dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    given: dict[str, Any] = {"features": "native", "most_bytes": 1 << 30, "report": lambda _: None, **options}
    return write_targets(mentor(family), given.pop("reader", None) or Watched(), VIEWS, folder, **given)


@families
@pytest.mark.parametrize("mixup", [0.0, 1.0])
@every_feature
def test_the_cache_tells_what_the_mentor_told(family: str, mixup: float, features: str, tmp_path: Path) -> None:
    reader = Watched(mixup)
    files, figures = write(family, tmp_path, reader=reader, features=features)
    assert figures["features"] == features
    opened = Cache.open(files, json.loads(json.dumps(figures)))
    assert opened.outline == outline(mentor(family), features)
    assert {array.dtype for array in (opened.logits[0], *(array[0] for array in opened.features))} == {
        np.dtype(np.float16)
    }
    assert figures["bytes"] == sum(path.stat().st_size for path in files.values())
    indices = np.array([7, 0, 9])
    for view in range(VIEWS):
        live = observe(mentor(family), reader.read(indices, view), features)
        kept = opened.read(view, indices, torch.device("cpu"), features=True)
        for found, wanted in zip((kept.logits, *kept.features), (live.logits, *live.features), strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-4)
    assert opened.read(0, indices, torch.device("cpu"), features=False).features == ()
    first, second = (opened.read(view, indices, torch.device("cpu"), features=False).logits for view in (0, 1))
    assert not torch.equal(first, second)


@families
@pytest.mark.parametrize(("spare", "kept"), [(0, True), (-1, False)])
def test_features_are_kept_when_all_of_them_fit(family: str, spare: int, kept: bool, tmp_path: Path) -> None:
    shapes = outline(mentor(family), "native")
    needed = VIEWS * COUNT * sum(2 * int(np.prod(shape)) for shape in shapes.features)
    files, figures = write(family, tmp_path, most_bytes=needed + spare)
    features = {f"feature{index}" for index in range(len(shapes.features))} if kept else set()
    assert set(files) == {"logits"} | features
    assert all(path.exists() for path in files.values())
    assert figures["features"] == ("native" if kept else "")
    opened = Cache.open(files, figures)
    assert len(opened.features) == len(features)
    assert opened.outline == shapes, "the shapes are told either way"


@families
@pytest.mark.parametrize("cuts", [[0, 1, 2, 3], [0, 2, 3]])
def test_parts_of_a_cache_are_joined_to_the_whole(family: str, cuts: list[int], tmp_path: Path) -> None:
    whole = Cache.open(*write(family, tmp_path / "whole"))
    parts = []
    for first, end in itertools.pairwise(cuts):
        reader = Watched()
        files, figures = write(family, tmp_path / str(first), reader=reader, views=range(first, end))
        assert (figures["first_view"], figures["views"]) == (first, end - first)
        assert set(reader.asked) == set(range(first, end)), "it tells of its own views alone"
        parts.append(Cache.open(files, figures))
    joined = Cache.joined(parts)
    assert joined.outline == whole.outline
    assert len(joined.logits) == VIEWS
    indices = np.array([7, 0, 9])
    for view in range(VIEWS):
        found, wanted = (c.read(view, indices, torch.device("cpu"), features=True) for c in (joined, whole))
        assert len(found.features) == len(wanted.features) > 0
        for mine, theirs in zip((found.logits, *found.features), (wanted.logits, *wanted.features), strict=True):
            assert torch.equal(mine, theirs)


def test_no_part_keeps_features_when_all_views_would_not_fit(tmp_path: Path) -> None:
    shapes = outline(mentor("cnn"), "native")
    needed = VIEWS * COUNT * sum(2 * int(np.prod(shape)) for shape in shapes.features)
    parts = [
        Cache.open(*write("cnn", tmp_path / str(view), views=range(view, view + 1), most_bytes=needed - 1))
        for view in range(VIEWS)
    ]
    assert Cache.joined(parts).features == ()


class Stop:
    """Raises as a lost lease does, once ``pictures`` are told."""

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures

    def __call__(self, progress: Mapping[str, Any]) -> None:
        if progress["done"] > self.pictures:
            raise LeaseLostError("stopped by the test")


def test_a_finished_view_is_not_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REPORT_EVERY_S", -1.0)
    whole, _ = write("cnn", tmp_path / "whole")
    with pytest.raises(LeaseLostError):
        write("cnn", tmp_path / "stopped", report=Stop(COUNT))
    assert json.loads((tmp_path / "stopped" / "finished-views").read_text()) == 1
    reader, seen = Watched(), []
    resumed, _ = write("cnn", tmp_path / "stopped", reader=reader, report=seen.append)
    assert sorted(set(reader.asked)) == [1, 2]
    assert [row["done"] for row in seen] == [14, 18, 20, 24, 28, 30], "what was done before counts as done"
    assert {row["total"] for row in seen} == {VIEWS * COUNT}
    assert whole.keys() == resumed.keys()
    for name, path in whole.items():
        assert np.array_equal(np.load(path), np.load(resumed[name]))
    again = Watched()
    write("cnn", tmp_path / "stopped", reader=again)
    assert again.asked == []


def test_a_lost_file_has_every_view_told_again(tmp_path: Path) -> None:
    files, _ = write("cnn", tmp_path)
    was = np.load(files["feature1"])
    files["feature1"].unlink()
    reader = Watched()
    write("cnn", tmp_path, reader=reader)
    assert sorted(set(reader.asked)) == [0, 1, 2]
    assert np.array_equal(np.load(files["feature1"]), was)
