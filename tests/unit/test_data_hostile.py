"""Every odd or hostile upload of the corpus gets the answer that the corpus says, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

import pytest

import odd_pictures
import odd_zips
from odd_zips import GOOD, packed
from stillhouse.distill.data import ingest as ingest_module
from stillhouse.distill.data.archive import ArchiveError, Limits, open_source
from stillhouse.distill.data.ingest import ingest
from stillhouse.search.domain import Json
from stillhouse.search.errors import DatasetError


@pytest.fixture(autouse=True)
def _without_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "measure_curve", lambda *_, **__: [])


def taken(source: Path, out: Path, limits: Limits | None = None, skip_faults: bool = True) -> dict[str, Json]:
    return ingest(source, out, skip_faults=skip_faults, report=lambda _: None, limits=limits)


# ---------------------------------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Json]:
    """Summary and manifest of one data set with all odd pictures."""
    root = tmp_path_factory.mktemp("odd")
    members = {f"odd/{odd.name}": odd.make() for odd in odd_pictures.ODD}
    (root / "odd.zip").write_bytes(packed({**GOOD, **members}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "measure_curve", lambda *_, **__: [])
        summary = taken(root / "odd.zip", root / "out")
    return {**summary, "manifest": json.loads((root / "out" / "manifest.json").read_text())}


@pytest.mark.parametrize("odd", odd_pictures.ODD, ids=lambda odd: odd.name)
def test_an_odd_picture(odd: odd_pictures.Odd, shown: dict[str, Json]) -> None:
    name = f"odd/{odd.name}"
    rows = [row for row in shown["manifest"]["pictures"] if row["name"] == name]
    faults = [fault for fault in shown["faults"] if fault.startswith(f"{name}: ")]
    if odd.fault is not None:
        assert rows == []
        assert len(faults) == 1
        assert re.match(odd.fault, faults[0].removeprefix(f"{name}: "))
        return
    assert faults == []
    assert [(row["height"], row["width"]) for row in rows] == [odd.size]
    if odd.same is not None:
        assert any({name, f"odd/{odd.same}"} <= set(group) for group in shown["duplicates"])


# -------------------------------------------------------------------------------------------- zips


@pytest.mark.parametrize("odd", odd_zips.ODD, ids=lambda odd: odd.name)
def test_an_odd_zip(odd: odd_zips.Odd, tmp_path: Path) -> None:
    (tmp_path / "odd.zip").write_bytes(odd.make())
    out = tmp_path / "out"
    if odd.refused is not None:
        with pytest.raises(DatasetError, match=odd.refused):
            taken(tmp_path / "odd.zip", out)
        assert list(out.iterdir()) == []
    else:
        summary = taken(tmp_path / "odd.zip", out)
        assert (summary["pictures"], tuple(summary["classes"])) == (odd.pictures, odd.classes)
        assert [bool(re.match(odd.fault or "none", fault)) for fault in summary["faults"]] == [True] * bool(odd.fault)
        assert odd.note is None or any(re.search(odd.note, note) for note in summary["notes"])
        assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "pictures.bin"]
        json.dumps(summary).encode("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.zip", "out"]


def test_a_fault_without_skipping_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    for odd in (odd for odd in odd_zips.ODD if odd.fault is not None):
        (tmp_path / "odd.zip").write_bytes(odd.make())
        with pytest.raises(DatasetError, match="every picture must be readable, but 1 of") as caught:
            taken(tmp_path / "odd.zip", tmp_path / "out", skip_faults=False)
        assert re.match(str(odd.fault), caught.value.faults[0])
        assert list((tmp_path / "out").iterdir()) == []


def test_limits_on_what_a_zip_may_ask(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed(GOOD))
    for limits, said in (
        (Limits(members=7), "at most 7 files and folders"),
        (Limits(directory_bytes=0, members=7), "at most 7 files and folders"),
        (Limits(total_bytes=500), "unpack to at most 500 bytes"),
        (Limits(ratio=0.5, ratio_from=500), r"at most 0\.5 times its own size"),
    ):
        with pytest.raises(ArchiveError, match=said):
            taken(path, tmp_path / "out", limits)
        assert list((tmp_path / "out").iterdir()) == []
    summary = taken(path, tmp_path / "out", Limits(file_bytes=max(map(len, GOOD.values())) - 1))
    assert any("too large, more than" in fault for fault in summary["faults"])


def test_a_list_of_members_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed({f"a/{n:>0200}.png": b"" for n in range(5000)}))
    with pytest.raises(ArchiveError, match=r"may have at most 100,000 bytes, but this one has 1,2\d\d,000"):
        taken(path, tmp_path / "out", Limits(directory_bytes=100_000))


def test_flipped_bytes_give_an_answer_and_never_a_surprise(tmp_path: Path) -> None:
    """Whatever a zip's records say, it is read or refused in words."""
    rng, whole, path = random.Random(0), odd_zips.zip64(), tmp_path / "a.zip"
    records = [at for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") for at in starts(whole, mark)]
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[min(rng.choice(records) + rng.randint(4, 60), len(data) - 1)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        path.write_bytes(data)
        try:
            with open_source(path) as opened:
                for name in opened.listing.files:
                    try:
                        opened.read(name)
                    except DatasetError as error:
                        assert not isinstance(error, ArchiveError)
                        assert str(error).startswith(name)
        except ArchiveError as error:
            assert len(str(error)) < 1000


def starts(data: bytes, mark: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(mark), data)]


# ----------------------------------------------------------------------------------------- folders


def test_a_folder_with_names_that_no_text_can_carry(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name, data in GOOD.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    for name in (b"a/x\xff.png", b"a/tab\t.png"):
        Path(os.fsdecode(bytes(source) + b"/" + name)).write_bytes(odd_pictures.png(1))
    bad = Path(os.fsdecode(bytes(source) + b"/c\xff"))
    bad.mkdir()
    (bad / "1.png").write_bytes(odd_pictures.png(2))
    (source / "b" / "link.png").symlink_to("/etc/passwd")
    os.link(source / "b" / "0.png", source / "b" / "hard.png")
    os.mkfifo(source / "b" / "pipe.png")
    summary = taken(source, tmp_path / "out")
    assert (summary["pictures"], summary["classes"]) == (9, ["a", "b"])
    assert [fault.split(": ")[0] for fault in summary["faults"]] == [
        "a/tab\\t.png", "a/x\\udcff.png", "b/link.png", "b/pipe.png", "c\\udcff",
    ]  # fmt: skip
    assert summary["duplicates"] == [["b/0.png", "b/hard.png"]]
    json.dumps(summary).encode("utf-8")
