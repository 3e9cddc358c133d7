"""A child that decodes: what it answers, what it may not do, and that its end is one picture's fault."""

from __future__ import annotations

import io
import os
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from stillhouse.distill.data import sandbox
from stillhouse.distill.data.archive import ArchiveError
from stillhouse.distill.data.sandbox import MOST_DEATHS, Decoded, Sandbox
from stillhouse.search.errors import StillhouseError


def png(shade: int = 0, size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def child(body: str) -> list[str]:
    """A child whose decoder is replaced: ``answer(data)`` with all of the sandbox's module in sight."""
    patched = "from stillhouse.distill.data.sandbox import *\nfrom stillhouse.distill.data import sandbox\n"
    patched += f"import os, signal, socket, sys, time\nwhole = sandbox._answer\ndef answer(data):\n{body}\n"
    return [sys.executable, "-c", f"{patched}sandbox._answer = answer\nsandbox.main()"]


def body(text: str) -> str:
    return textwrap.indent(textwrap.dedent(text), "    ")


def test_pictures_and_faults_come_back_in_order() -> None:
    with Sandbox(1) as box:
        first, fault, last = box.decode([("a.png", png(1)), ("b.png", b"words"), ("c.png", png(2, (6, 5)))])
        assert isinstance(first, Decoded)
        assert isinstance(last, Decoded)
        assert (first.height, first.width, last.height, last.width) == (3, 4, 5, 6)
        assert first.pixels != last.pixels
        assert isinstance(fault, str)
        assert fault.startswith("b.png: not a picture in a format that is read")
        assert box.decode([("again.png", png(1))]) == [first]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os._exit(3)", "exit code 3"),
        ("return ['no', 'answer']", "ends the process"),
        ("return {'height': float('inf'), 'width': 1, 'pixels': ''}", "ends the process"),
        ("os.write(1, b'x' * 100_000)", "ends the process"),
    ],
)
def test_a_picture_that_ends_its_child_is_a_fault_and_the_rest_goes_on(how: str, said: str) -> None:
    bad = b"bad" + bytes(300_000)  # more than a socket holds: the child dies while it is still written to
    pictures = [("1.png", png(1)), ("2.png", b"bad"), ("3.png", png(3)), ("4.png", bad), ("5.png", png(5))]
    with Sandbox(1, command=child(body(f"if data[:3] == b'bad':\n    {how}\nreturn whole(data)"))) as box:
        found = box.decode(pictures)
    assert [isinstance(item, Decoded) for item in found] == [True, False, True, False, True]
    assert str(found[1]).startswith("2.png: ")
    assert said in str(found[1])
    assert "save it again" in str(found[3])


def test_a_child_that_sleeps_or_spins_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(1, command=child(body("time.sleep(60)")), wall_s=1.5) as box:
        (fault,) = box.decode([("1.png", b"")])
    assert fault == "1.png: does not decode in 1.5 s; save it again with another program, or remove it"
    monkeypatch.setattr(sandbox, "PICTURE_CPU_S", 0)
    spins = child(body("sandbox.PICTURE_CPU_S = 0\nsandbox._allow_cpu()\nwhile True: pass"))
    with Sandbox(1, command=spins) as box:
        (fault,) = box.decode([("1.png", b"")])
    assert str(fault).startswith("1.png: takes more than 0 s to decode")


@pytest.mark.parametrize(
    ("tries", "refused"),
    [
        ("bytearray(sandbox.MEMORY_BYTES)", "MemoryError"),
        ("open({path!r}, 'wb', buffering=0).write(b'x')", "OSError"),
        ("[os.open('/', os.O_RDONLY) for _ in range(20)]", "OSError"),
        ("os.environ['STILLHOUSE_SECRET']", "KeyError"),
        ("os.fstat({held})", "OSError"),
    ],
)
def test_what_a_child_may_not_do(tries: str, refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_SECRET", "x")
    held = os.open("/", os.O_RDONLY)
    os.set_inheritable(held, True)
    line = tries.format(path=str(tmp_path / "out"), held=held)
    told = body(f"try:\n    {line}\nexcept Exception as error:\n    return {{'fault': type(error).__name__}}")
    try:
        with Sandbox(1, command=child(told)) as box:
            assert box.decode([("", b"")]) == [refused]
    finally:
        os.close(held)
    assert not (tmp_path / "out").exists() or (tmp_path / "out").stat().st_size == 0


def test_a_picture_that_takes_too_much_memory_is_told() -> None:
    with Sandbox(
        1, command=child(body("sandbox.open_picture = lambda *_: bytearray(1 << 40)\nreturn whole(data)"))
    ) as b:
        assert b.decode([("1.png", b"")]) == ["1.png: takes more than 2,048 MB to decode; make it smaller"]


def test_a_data_set_of_such_pictures_is_refused() -> None:
    with Sandbox(1, command=child(body("os._exit(1)"))) as box:
        assert all(isinstance(found, str) for found in box.decode([("1.png", b"")] * MOST_DEATHS))
        with pytest.raises(ArchiveError, match="at most 20 pictures may end"):
            box.decode([("1.png", b"")])


def test_a_child_that_does_not_start_is_no_fault_of_a_picture() -> None:
    with Sandbox(1, command=[sys.executable, "-c", "raise SystemExit(7)"]) as box, pytest.raises(StillhouseError) as it:
        box.decode([("1.png", png())])
    assert type(it.value) is StillhouseError
    assert "must start, but ended (exit code 7)" in str(it.value)
