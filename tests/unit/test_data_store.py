"""Arrays against the chain done by hand, and what several builders at once leave behind."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.distill.data import store as store_module
from stillhouse.distill.data.codecs import encode, fit_picture
from stillhouse.distill.data.ingest import ingest
from stillhouse.distill.data.store import PictureStore
from stillhouse.search.domain import Fit, Size
from stillhouse.search.errors import CorruptArtifactError, DatasetError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label in "abc":
        (folder / label).mkdir()
        for number in range(8):
            height, width = rng.integers(20, 60, 2)
            noise = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
            exif = Image.Exif()
            exif[0x0112] = 1 + number
            noise.save(folder / label / f"{number}.jpg", exif=exif)
    return folder


@pytest.fixture(scope="module")
def ingested(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ingested")
    ingest(source, out, skip_faults=False, report=lambda _: None)
    return out


@pytest.fixture
def store(ingested: Path, tmp_path: Path) -> PictureStore:
    return PictureStore(ingested / "pictures.bin", ingested / "manifest.json", tmp_path / "cache")


def by_hand(path: Path, size: Size, fit: Fit) -> Image.Image:
    turns = [None, None, 0, 3, 1, 5, 4, 6, 2]  # EXIF orientation -> Image.Transpose
    image = Image.open(path)
    turn = turns[image.getexif()[0x0112]]
    image = image.convert("RGB")
    image = image if turn is None else image.transpose(Image.Transpose(turn))
    return fit_picture(image, size, fit)


@pytest.mark.parametrize("fit", list(Fit))
def test_arrays_are_the_deployed_chain(store: PictureStore, source: Path, fit: Fit) -> None:
    size = Size(16, 24)
    array = store.array("train", size, fit)
    names = store.names("train")
    assert array.shape == (len(names), 16, 24, 3)
    for picture, name in zip(array, names, strict=True):
        np.testing.assert_array_equal(picture, np.asarray(by_hand(source / name, size, fit)))


def test_coded_is_the_chain_then_the_codec(store: PictureStore, source: Path) -> None:
    size = Size(16, 16)
    for codec in ("jpeg", "webp"):
        coded = store.coded("test", size, Fit.SQUASH, codec, 50)
        wanted = Image.open(io.BytesIO(encode(by_hand(source / store.names("test")[0], size, Fit.SQUASH), codec, 50)))
        np.testing.assert_array_equal(coded[0], np.asarray(wanted.convert("RGB")))
        assert (coded != store.array("test", size, Fit.SQUASH)).any()


def test_grey_is_the_luma_of_the_fitted_picture_before_the_codec(store: PictureStore, source: Path) -> None:
    size = Size(16, 24)
    array = store.array("test", size, Fit.CROP, colour="grey")
    assert array.shape == (len(store.names("test")), 16, 24, 1)
    fitted = [by_hand(source / name, size, Fit.CROP).convert("L") for name in store.names("test")]
    np.testing.assert_array_equal(array[..., 0], np.stack([np.asarray(image) for image in fitted]))
    for codec in ("jpeg", "webp"):
        coded = store.coded("test", size, Fit.CROP, codec, 50, colour="grey")
        sent = Image.open(io.BytesIO(encode(fitted[0], codec, 50))).convert("L")
        np.testing.assert_array_equal(coded[0, ..., 0], np.asarray(sent))
    assert store.array("test", size, Fit.CROP).shape[-1] == 3, "each colour has its own file"


def test_the_first_classes_are_a_prefix(store: PictureStore) -> None:
    whole = store.array("train", Size(8, 8), Fit.SQUASH)
    part = store.array("train", Size(8, 8), Fit.SQUASH, 2)
    labels = store.labels("train")
    assert labels.dtype == np.int64
    assert (np.diff(labels) >= 0).all()
    assert len(part) == (labels < 2).sum() == len(store.names("train", 2)) < len(whole)
    np.testing.assert_array_equal(part, whole[: len(part)])
    np.testing.assert_array_equal(store.labels("train", 2), labels[: len(part)])
    assert store.classes == ("a", "b", "c")


def test_arrays_are_read_only_maps(store: PictureStore) -> None:
    array = store.array("val", Size(8, 8), Fit.SQUASH)
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_an_array_is_built_once_by_many_at_once(
    ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    build = PictureStore._build

    def counted(self: PictureStore, path: Path, *rest: object) -> None:
        built.append(path)
        build(self, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(PictureStore, "_build", counted)

    def read(_: int) -> int:
        one = PictureStore(ingested / "pictures.bin", ingested / "manifest.json", tmp_path / "cache")
        return int(one.array("train", Size(8, 8), Fit.SQUASH).sum())

    with ThreadPoolExecutor(8) as pool:
        sums = set(pool.map(read, range(8)))
    assert len(sums) == len(built) == 1
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_builder_that_died_leaves_nothing_that_is_read(store: PictureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "fit_picture", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.array("train", Size(8, 8), Fit.SQUASH)
    array = store.array("train", Size(8, 8), Fit.SQUASH)
    assert array.any(axis=(1, 2, 3)).all()


def test_wrong_questions(store: PictureStore) -> None:
    with pytest.raises(DatasetError, match="split must be one of train, val, test, but got 'dev'"):
        store.labels("dev")
    with pytest.raises(DatasetError, match="classes must lie between 1 and 3, but got 4"):
        store.array("train", Size(8, 8), Fit.SQUASH, 4)


def test_files_that_do_not_belong_together(ingested: Path, tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(b"x")
    with pytest.raises(CorruptArtifactError, match="must hold"):
        PictureStore(tmp_path / "short.bin", ingested / "manifest.json", tmp_path)
    data = json.loads((ingested / "manifest.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**data, "version": 99}))
    with pytest.raises(CorruptArtifactError, match="version 1 is needed"):
        PictureStore(ingested / "pictures.bin", tmp_path / "other.json", tmp_path)
