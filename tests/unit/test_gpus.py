"""Which GPUs a process may use, as its environment or the driver tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.service.engine.local import visible_gpus


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [
        ("", ()),
        ("-1", ()),
        ("0", ("0",)),
        ("2, 3", ("2", "3")),
        ("1,-1,2", ("1",)),
        ("GPU-8a,MIG-1", ("GPU-8a", "MIG-1")),
    ],
)
def test_visible_gpus_by_variable(monkeypatch: pytest.MonkeyPatch, variable: str, gpus: tuple[str, ...]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == gpus


@pytest.mark.parametrize(
    ("body", "gpus"), [("printf '0\\n1\\n'", ("0", "1")), ("echo 'No devices were found'", ()), ("exit 9", ())]
)
def test_visible_gpus_by_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, gpus: tuple[str, ...]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert visible_gpus() == gpus


def test_no_driver_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ()
