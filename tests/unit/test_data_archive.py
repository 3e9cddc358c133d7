"""What a zip or a folder may do to us: nothing."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from stillhouse.distill.data.archive import ArchiveError, Limits, is_clutter, open_source
from stillhouse.search.errors import DatasetError


def pack(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_zip_and_a_folder_list_and_read_the_same(tmp_path: Path) -> None:
    members = {"a/1.jpg": b"one", "b/2.jpg": b"two", "a/.hidden": b"", "__MACOSX/a/1.jpg": b"", "b/Thumbs.db": b""}
    for name, data in members.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    (tmp_path / "folder" / "empty").mkdir()
    path = pack(tmp_path / "a.zip", {**members, "empty/": b""})
    seen = []
    for source in (path, tmp_path / "folder"):
        with open_source(source) as opened:
            seen.append((opened.listing, opened.read("b/2.jpg")))
    assert seen[0] == seen[1]
    assert seen[0][0].files == ("a/1.jpg", "b/2.jpg")
    assert seen[0][0].folders == ("a", "b", "empty")
    assert seen[0][1] == b"two"


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "a/../../b.jpg", "..\\a.jpg", "C:\\a.jpg", "c:/a.jpg"])
def test_paths_that_leave_the_zip_are_refused(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "a.zip", {name: b"x"})
    with pytest.raises(ArchiveError, match="must stay inside"), open_source(path):
        pass


@pytest.mark.parametrize(("kind", "said"), [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "a special file")])
def test_links_and_special_files_in_a_zip_are_refused(tmp_path: Path, kind: int, said: str) -> None:
    info = zipfile.ZipInfo("a/1.jpg")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match=said), open_source(tmp_path / "a.zip"):
        pass


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a/1.jpg": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="must not be encrypted"), open_source(path):
        pass


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.jpg", b"x")
        archive.writestr("a/1.jpg", b"y")
    with pytest.raises(ArchiveError, match="there twice"), open_source(path):
        pass


def test_links_in_a_folder_are_faults_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "d" / "a" / "1.jpg").symlink_to(tmp_path / "secret")
    (tmp_path / "d" / "b").symlink_to(tmp_path)
    with open_source(tmp_path / "d") as opened:
        assert opened.listing.files == ()
        assert [fault.split(":")[0] for fault in opened.listing.faults] == ["a/1.jpg", "b"]


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    members = {f"a/{n}.jpg": b"x" for n in range(5)}
    path = pack(tmp_path / "a.zip", members)
    with pytest.raises(ArchiveError, match="at most 4 files"), open_source(path, Limits(members=4)):
        pass


def test_a_large_file_is_its_own_fault_and_the_rest_can_be_read(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a/1.jpg": b"x" * 100, "a/2.jpg": b"y" * 10})
    with open_source(path, Limits(file_bytes=50)) as opened:
        with pytest.raises(DatasetError, match=r"a/1.jpg: too large") as caught:
            opened.read("a/1.jpg")
        assert not isinstance(caught.value, ArchiveError)
        assert opened.read("a/2.jpg") == b"y" * 10


def test_actual_bytes_count_not_those_a_header_claims(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a/1.jpg": bytes(4_000_000)}, zipfile.ZIP_DEFLATED)
    with (
        open_source(path, Limits(ratio=100, ratio_from=1_000_000)) as opened,
        pytest.raises(ArchiveError, match="100 times its own size"),
    ):
        opened.read("a/1.jpg")
    with open_source(path, Limits(total_bytes=1_000_000)) as opened, pytest.raises(ArchiveError, match="unpack to"):
        opened.read("a/1.jpg")
    with open_source(path) as opened:
        assert len(opened.read("a/1.jpg")) == 4_000_000


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a/1.jpg": b"some bytes of a picture"})
    path.write_bytes(path.read_bytes().replace(b"some bytes", b"sore bytes"))
    with open_source(path) as opened, pytest.raises(DatasetError, match=r"a/1.jpg: damaged in the zip"):
        opened.read("a/1.jpg")


def test_not_a_zip_and_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"hello")
    with pytest.raises(ArchiveError, match="not a readable zip"), open_source(tmp_path / "a.zip"):
        pass
    with pytest.raises(ArchiveError, match="does not exist"), open_source(tmp_path / "none"):
        pass


def test_clutter() -> None:
    assert is_clutter("a/.DS_Store")
    assert is_clutter("__MACOSX/a/1.jpg")
    assert not is_clutter("a/1.jpg")
