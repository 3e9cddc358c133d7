"""Ingest on small real sets: what is reported, what is kept, what is refused."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.distill.data.archive import Limits
from stillhouse.distill.data.ingest import ingest
from stillhouse.search.domain import Json
from stillhouse.search.errors import DatasetError


def encoded(seed: int, kind: str = "JPEG", size: tuple[int, int] = (20, 16), grey: bool = False) -> bytes:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (4, 5) if grey else (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).save(buffer, kind)
    return buffer.getvalue()


def resaved(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(count: int = 6, start: int = 0) -> dict[str, bytes]:
    return {f"{label}/{n}.jpg": encoded(start + 100 * k + n) for k, label in enumerate("ab") for n in range(count)}


def pack(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def run(tmp_path: Path, members: Mapping[str, bytes], skip_faults: bool = False) -> dict[str, Json]:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    return ingest(pack(tmp_path / "a.zip", members), out, skip_faults=skip_faults, report=lambda _: None)


def manifest(tmp_path: Path) -> dict[str, Json]:
    data: dict[str, Json] = json.loads((tmp_path / "out" / "manifest.json").read_text())
    return data


def test_the_summary_of_plain_class_folders(tmp_path: Path) -> None:
    summary = run(tmp_path, {**pictures(10), "README.txt": b"words"})
    assert summary["classes"] == ["a", "b"]
    assert summary["pictures"] == 20
    assert summary["splits"] == {"train": 12, "val": 4, "test": 4}
    assert summary["histogram"]["a"] == {"train": 6, "val": 2, "test": 2}
    assert summary["sizes"]["height"] == {"min": 16, "median": 16, "max": 16}
    assert summary["sizes"]["width"] == {"min": 20, "median": 20, "max": 20}
    assert summary["grey"] is False
    assert summary["faults"] == summary["duplicates"] == summary["leaks"] == []
    assert any("README.txt" in note for note in summary["notes"])
    assert any("cut from train" in note for note in summary["notes"])
    assert {row["size"] for row in summary["curve"]} >= {"24x24", "64x64"}
    assert {row["colour"] for row in summary["curve"]} == {"rgb", "grey"}
    assert json.loads(json.dumps(summary)) == summary


def test_the_manifest_finds_each_pictures_bytes(tmp_path: Path) -> None:
    members = pictures()
    summary = run(tmp_path, members)
    found = manifest(tmp_path)
    blob = (tmp_path / "out" / "pictures.bin").read_bytes()
    assert found["digest"] == summary["digest"]
    assert {row["name"] for row in found["pictures"]} == set(members)
    for row in found["pictures"]:
        assert blob[row["offset"] : row["offset"] + row["length"]] == members[row["name"]]
        assert (row["height"], row["width"]) == (16, 20)
    order = [(["train", "val", "test"].index(row["split"]), row["label"], row["name"]) for row in found["pictures"]]
    assert order == sorted(order)


def test_folder_and_zip_give_the_same_digest(tmp_path: Path) -> None:
    summary = run(tmp_path, pictures())
    for name, data in pictures().items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    other = ingest(tmp_path / "folder", tmp_path / "out2", skip_faults=False, report=lambda _: None)
    assert other == summary


def test_the_digest_follows_contents_labels_and_classes(tmp_path: Path) -> None:
    first = run(tmp_path, pictures())["digest"]
    assert run(tmp_path, {f"wrap/{name}": data for name, data in pictures().items()})["digest"] == first
    changed = run(tmp_path, {**pictures(), "a/0.jpg": encoded(77)})["digest"]
    renamed = run(tmp_path, {name.replace("a/", "c/"): data for name, data in pictures().items()})["digest"]
    assert len({first, changed, renamed}) == 3


def test_every_fault_is_named_in_one_error_and_nothing_is_left(tmp_path: Path) -> None:
    bad = {"a/text.jpg": b"words", "a/empty.png": b"", "b/cut.jpg": encoded(5)[:200], "cover.jpg": encoded(6)}
    with pytest.raises(DatasetError, match=r"4 of 16 files cannot be used.*--skip-faults") as caught:
        run(tmp_path, {**pictures(), **bad})
    assert [fault.split(":")[0] for fault in caught.value.faults] == sorted(bad)
    assert list((tmp_path / "out").iterdir()) == []


def test_faults_can_be_skipped(tmp_path: Path) -> None:
    summary = run(tmp_path, {**pictures(), "a/text.jpg": b"words"}, skip_faults=True)
    assert summary["pictures"] == 12
    assert len(summary["faults"]) == 1
    assert "1 file could not be used" in summary["notes"][0]
    assert summary["digest"] == run(tmp_path, pictures())["digest"]


def test_a_class_emptied_by_skipping_is_refused(tmp_path: Path) -> None:
    members = {name: data if name.startswith("a") else b"words" for name, data in pictures().items()}
    with pytest.raises(DatasetError, match=r"class 'b' has none.*6 faulty files were skipped") as caught:
        run(tmp_path, members, skip_faults=True)
    assert len(caught.value.faults) == 6


def test_a_damaged_member_is_a_fault_and_a_bomb_stops_all(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", pictures())
    data = pictures()["a/0.jpg"]
    path.write_bytes(path.read_bytes().replace(data, data[:-9] + bytes(9)))
    with pytest.raises(DatasetError, match=r"1 of 12 files cannot be used: a/0.jpg: damaged in the zip"):
        ingest(path, tmp_path / "out", skip_faults=False, report=lambda _: None)
    with pytest.raises(DatasetError, match="unpack to at most 2,000 bytes"):
        ingest(path, tmp_path / "out", skip_faults=True, report=lambda _: None, limits=Limits(total_bytes=2000))


def test_empty_zip(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="it holds nothing; put pictures into"):
        run(tmp_path, {})


def test_duplicates_are_found_in_bytes_and_in_pixels(tmp_path: Path) -> None:
    members = pictures(10)
    members |= {"a/copy.jpg": members["a/1.jpg"], "a/resaved.png": resaved(members["a/1.jpg"])}
    summary = run(tmp_path, members)
    assert summary["duplicates"] == [["a/1.jpg", "a/copy.jpg", "a/resaved.png"]]
    splits = {row["name"]: row["split"] for row in manifest(tmp_path)["pictures"]}
    assert len({splits[name] for name in summary["duplicates"][0]}) == 1
    assert summary["leaks"] == []


def test_leaks_leave_train_and_are_told(tmp_path: Path) -> None:
    members = {f"train/{name}": data for name, data in pictures(8).items()}
    members |= {f"test/{name}": data for name, data in pictures(3, start=500).items()}
    members["test/a/leak.png"] = resaved(members["train/a/2.jpg"])
    summary = run(tmp_path, members)
    assert summary["leaks"] == [["test/a/leak.png", "train/a/2.jpg"]]
    names = {row["name"]: row["split"] for row in manifest(tmp_path)["pictures"]}
    assert "train/a/2.jpg" not in names
    assert names["test/a/leak.png"] == "test"
    assert any("1 from train" in note for note in summary["notes"])
    assert summary["splits"] == {"train": 13, "val": 2, "test": 7}


def test_one_picture_under_two_labels_is_noted(tmp_path: Path) -> None:
    members = pictures(10)
    members["b/same.jpg"] = members["a/3.jpg"]
    summary = run(tmp_path, members)
    assert any("more than one label" in note and "a/3.jpg = b/same.jpg" in note for note in summary["notes"])


def test_train_and_val_only_cuts_the_test_split(tmp_path: Path) -> None:
    members = {f"train/{name}": data for name, data in pictures(10).items()}
    members |= {f"val/{name}": data for name, data in pictures(2, start=500).items()}
    assert run(tmp_path, members)["splits"] == {"train": 16, "val": 4, "test": 4}


def test_grey_pictures_are_told(tmp_path: Path) -> None:
    members = {
        f"{label}/{n}.pgm": encoded(10 * k + n, "PPM", grey=True) for k, label in enumerate("ab") for n in range(5)
    }
    assert run(tmp_path, members)["grey"] is True


def test_progress_is_reported_and_can_stop_the_work(tmp_path: Path) -> None:
    seen: list[Mapping[str, Json]] = []
    path = pack(tmp_path / "a.zip", pictures())
    ingest(path, tmp_path / "out", skip_faults=False, report=seen.append)
    assert seen[0] == {"done": 0, "total": 12, "unit": "pictures"}
    assert seen[-1]["done"] == 12

    def stop(_: Mapping[str, Json]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(path, tmp_path / "out2", skip_faults=False, report=stop)
    assert list((tmp_path / "out2").iterdir()) == []
