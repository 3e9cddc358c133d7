"""The digest that names a data set."""

import hashlib
import os
from pathlib import Path

from stillhouse.service.digest import source_digest


def test_a_file_is_named_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"bytes" * 1000)
    assert source_digest(path) == hashlib.sha256(b"bytes" * 1000).hexdigest()


def test_a_folder_is_named_by_names_and_contents_only(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.jpg").write_bytes(b"x")
    first = source_digest(folder)
    os.utime(folder / "a" / "1.jpg", (1, 1))
    (folder / ".DS_Store").write_bytes(b"clutter")
    assert source_digest(folder) == first
    assert source_digest(folder.rename(tmp_path / "elsewhere")) == first
    folder = tmp_path / "elsewhere"
    (folder / "a" / "1.jpg").write_bytes(b"y")
    second = source_digest(folder)
    (folder / "a" / "1.jpg").rename(folder / "a" / "2.jpg")
    assert len({first, second, source_digest(folder)}) == 3
