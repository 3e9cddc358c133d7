"""Weights from users: safetensors of plain, finite numbers and nothing else; no file runs what it holds."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stillhouse.distill.zoo import build, load_checkpoint
from stillhouse.search.domain import Size
from stillhouse.search.errors import StageError

CALLED: list[str] = []


class Caller:
    """A pickle of it calls back when it is read."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return CALLED.append, ("read",)


def torch_saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"conv_stem.weight": Caller()}, buffer)
    return buffer.getvalue()


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(kind: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


NO_FILE = "must be a safetensors file of timm weights, but cannot be read"
ODD_NUMBERS = r"must hold finite numbers of 16, 32 or 64 bits, but 1 tensors do not \(a\)"
FILES: dict[str, tuple[bytes, str]] = {
    "pickle": (pickle.dumps(Caller()), NO_FILE),
    "torch.save": (torch_saved(), NO_FILE),
    "empty": (b"", NO_FILE),
    "short": (bytes(4), NO_FILE),
    "header past the end": (file({}, length=1 << 60), NO_FILE),
    "header as long as can be": (file({}, length=(1 << 64) - 1), NO_FILE),
    "header of another kind": (file(b"{{{{"), NO_FILE),
    "nested header": (file(b"[" * 100_000), NO_FILE),
    "shared bytes": (file({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 0, 4)}, bytes(4)), NO_FILE),
    "bytes past the end": (file({"a": tensor("F32", [9], 0, 36)}, bytes(4)), NO_FILE),
    "bytes that none names": (file({"a": tensor("F32", [1], 0, 4)}, bytes(99)), NO_FILE),
    "overflowing shape": (file({"a": tensor("F32", [1 << 40, 1 << 40], 0, 4)}, bytes(4)), NO_FILE),
    "unknown type": (file({"a": tensor("Q9", [1], 0, 4)}, bytes(4)), NO_FILE),
    "8-bit floats": (file({"a": tensor("F8_E4M3", [4], 0, 4)}, bytes(4)), ODD_NUMBERS),
    "complex": (file({"a": tensor("C64", [1], 0, 8)}, bytes(8)), ODD_NUMBERS),
    "not a number": (file({"a": tensor("F32", [1], 0, 4)}, struct.pack("<f", float("nan"))), ODD_NUMBERS),
    "infinite": (file({"a": tensor("F64", [1], 0, 8)}, struct.pack("<d", float("inf"))), ODD_NUMBERS),
    "nothing": (file({}), "of them are .* missing"),
}


@pytest.mark.parametrize("name", FILES)
def test_an_odd_checkpoint_is_refused_and_changes_nothing(name: str, tmp_path: Path) -> None:
    data, said = FILES[name]
    network = build("lcnet_035", classes=3, image_size=Size(32, 32))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    (tmp_path / "odd.safetensors").write_bytes(data)
    CALLED.clear()
    with pytest.raises(StageError, match=said) as caught:
        load_checkpoint(network, tmp_path / "odd.safetensors")
    assert "odd.safetensors" in str(caught.value)
    assert not CALLED
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_half_precision_will_do(tmp_path: Path) -> None:
    network = build("lcnet_035", classes=3, image_size=Size(32, 32))
    halves = {
        name: value.half() if value.is_floating_point() else value
        for name, value in build("lcnet_035", classes=3, image_size=Size(32, 32)).backbone.state_dict().items()
    }
    save_file(halves, tmp_path / "half.safetensors")
    load_checkpoint(network, tmp_path / "half.safetensors")
    torch.testing.assert_close(network.backbone.get_parameter("conv_stem.weight"), halves["conv_stem.weight"].float())


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=NO_FILE):
        load_checkpoint(build("lcnet_035", classes=3, image_size=Size(32, 32)), tmp_path)
