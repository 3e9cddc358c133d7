"""Layouts that users really pack, and those that must be refused."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from stillhouse.distill.data.archive import Listing
from stillhouse.distill.data.splits import Layout, assign, check_assigned, cut, read_layout
from stillhouse.search.errors import DatasetError


def layout(*files: str, folders: tuple[str, ...] = ()) -> Layout:
    above = {str(parent) for name in files for parent in PurePosixPath(name).parents if parent.name}
    return read_layout(Listing(tuple(sorted(files)), tuple(sorted(above | set(folders)))))


def placed(found: Layout) -> set[tuple[str, str | None]]:
    return {(item.label, item.split) for item in found.pictures}


def test_plain_class_folders() -> None:
    found = layout("b/1.jpg", "a/1.PGM")
    assert found.classes == ("a", "b")
    assert placed(found) == {("a", None), ("b", None)}


def test_a_wrapping_folder_is_looked_through() -> None:
    for prefix in ("", "set/", "set/inner/"):
        found = layout(f"{prefix}train/a/1.jpg", f"{prefix}train/b/1.jpg", f"{prefix}Validation/a/2.jpg")
        assert found.classes == ("a", "b")
        assert placed(found) == {("a", "train"), ("b", "train"), ("a", "val")}
        assert layout(f"{prefix}a/1.jpg", f"{prefix}b/1.jpg", "readme.txt").classes == ("a", "b")


def test_a_folder_named_train_with_pictures_is_a_class_of_trains() -> None:
    assert layout("bus/1.jpg", "train/1.jpg").classes == ("bus", "train")


def test_side_files_are_noted_and_unread_formats_are_faults() -> None:
    found = layout("a/1.jpg", "b/1.jpg", "labels.csv", "a/README.txt", "a/2.heic")
    assert found.side_files == ("a/README.txt", "labels.csv")
    assert found.faults == ("a/2.heic: of a format that is not read; save it as JPEG or PNG",)


@pytest.mark.parametrize(
    ("extra", "said"),
    [("cover.jpg", "outside of"), ("other/a/1.jpg", "outside of"), ("train/1.jpg", "in no class folder")],
)
def test_misplaced_pictures_are_faults_with_split_folders(extra: str, said: str) -> None:
    (fault,) = layout("train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", extra).faults
    assert fault.startswith(f"{extra}: ")
    assert said in fault


@pytest.mark.parametrize(("extra", "said"), [("1.jpg", "in no class folder"), ("a/x/1.jpg", "inside class folder a")])
def test_misplaced_pictures_are_faults_without_split_folders(extra: str, said: str) -> None:
    (fault,) = layout("a/1.jpg", "b/1.jpg", extra).faults
    assert said in fault


@pytest.mark.parametrize(
    ("files", "folders", "said"),
    [
        ((), (), "holds nothing"),
        (("a/x.txt",), (), "1 files and no picture"),
        (("1.jpg", "2.jpg"), (), "there are none"),
        (("a/1.jpg",), (), "only 'a' came"),
        (("a/1.jpg", "b/1.jpg"), ("c",), "class 'c' holds none"),
        (("train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg"), (), "'c' is only in val or test"),
        (("val/a/1.jpg", "val/b/1.jpg", "test/a/1.jpg"), (), "must include train"),
        (("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "valid/a/2.jpg"), (), "val and valid both mean val"),
        (
            ("images/a/1.jpg", "images/b/1.jpg", "masks/a/1.png"),
            (),
            r"none of 3 does; the first: images/a/1.jpg: a picture in a folder inside",
        ),
    ],
)
def test_layouts_that_are_refused(files: tuple[str, ...], folders: tuple[str, ...], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        layout(*files, folders=folders)


def test_a_leak_leaves_train_and_val_but_never_test() -> None:
    given = ["train", "val", "test", "train", "val", "train", "train"]
    contents = ["x", "x", "x", "y", "y", "z", "z"]
    splits, leaks = assign(["a"] * 7, given, contents)
    assert splits == [None, None, "test", None, "val", "train", "train"]
    assert leaks == [[0, 1, 2], [3, 4]]


def test_a_missing_validation_split_is_cut_from_train_only() -> None:
    given = ["train"] * 20 + ["test"] * 5
    contents = [f"{n:02d}" for n in range(25)]
    splits, _ = assign(["a"] * 25, given, contents)
    assert splits == ["val"] * 3 + ["train"] * 17 + ["test"] * 5


def test_the_lowest_keys_go_to_test_then_to_val() -> None:
    contents = [f"{n:02d}" for n in reversed(range(20))]
    assert cut(["a"] * 20, contents, {"test": 0.2, "val": 0.15}) == ["train"] * 13 + ["val"] * 3 + ["test"] * 4


def test_every_class_must_keep_a_training_picture() -> None:
    splits, _ = assign(["a", "a", "b", "b", "b"], [None] * 5, ["1", "2", "3", "4", "5"])
    with pytest.raises(DatasetError, match=r"class 'a' has none; give each class at least 3"):
        check_assigned(("a", "b"), ["a", "a", "b", "b", "b"], splits)
    with pytest.raises(DatasetError, match="the test split must hold pictures"):
        check_assigned(("a",), ["a", "a"], ["train", "val"])
