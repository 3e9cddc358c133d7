"""Checkpoints: whole or not there, the newest good one wins, two are kept."""

from pathlib import Path

import torch

from stillhouse.distill.checkpoint import load_checkpoint, save_checkpoint


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path, epoch, {"epoch": epoch, "x": torch.full((3,), float(epoch))})
    assert len(list(tmp_path.iterdir())) == 2
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["epoch"] == 3
    assert torch.equal(state["x"], torch.full((3,), 3.0))


def test_a_torn_newest_file_falls_back_to_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"epoch": 1})
    newest = save_checkpoint(tmp_path, 2, {"epoch": 2})
    newest.write_bytes(newest.read_bytes()[:-7])
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["epoch"] == 1


def test_a_file_half_written_is_not_seen(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"epoch": 1})
    path.rename(path.with_suffix(".tmp"))
    assert load_checkpoint(tmp_path) is None
