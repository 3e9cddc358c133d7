"""No line of a log holds a secret."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.stdlib import ProcessorFormatter

from stillhouse.service.logs import Tail, configure, redact, redact_event, tail

KEY = "sth_0123456789ab_" + "Ab3_-xyz" * 5 + "abc"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"a {KEY} b", "a sth_0123456789ab_[hidden] b"),
        (f"Authorization: Bearer {KEY}", "[hidden]"),
        ("Authorization: Bearer 0123456789abcdef0123456789abcdef", "Bearer [hidden]"),
        ("postgresql://user:S3cret!@host/db", "postgresql://user:[hidden]@host/db"),
        ("postgresql+psycopg://user:S3cret!@host:5432/db?x=1", "[hidden]@host:5432/db?x=1"),
        ("redis://:S3cret!@host", "redis://:[hidden]@host"),
        ("conninfo: password=S3cret! host=x", "password=[hidden] host=x"),
        ("{'token': 'S3cret!', 'id': 'att_1'}", "'id': 'att_1'"),
        ("STILLHOUSE_TOKEN=S3cret! STILLHOUSE_HOME=/x", "STILLHOUSE_HOME=/x"),
        ("cookie: stillhouse_key=S3cret!", "cookie: [hidden]"),
        ("api_key=S3cret!", "api_key=[hidden]"),
    ],
)
def test_secrets_are_hidden_and_the_rest_is_kept(text: str, kept: str) -> None:
    shown = redact(text)
    assert kept in shown
    for secret in ("S3cret", KEY[17:], "0123456789abcdef0123456789abcdef"):
        assert secret not in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/jobs",
        "job_0123456789ab is running",
        "12:30:05 tokens of a text",
        "key_0123456789ab revoked",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_key_is_hidden_wherever_it_stands(before: str, after: str) -> None:
    assert KEY[17:] not in redact(before + KEY + after)


def test_events_are_cleaned_to_the_bottom() -> None:
    event = {
        "event": f"got {KEY}",
        "token": "S3cret!",
        "attempt": {"id": "att_1", "authorization": ["S3cret!"], "deep": [{"password": "S3cret!"}, KEY]},
        "error": ValueError("postgresql://u:S3cret!@h/d"),
        "count": 3,
        "nothing": None,
    }
    shown = redact_event(None, "info", event)
    assert "S3cret" not in repr(shown)
    assert KEY not in repr(shown)
    assert (shown["count"], shown["nothing"], shown["attempt"]["id"]) == (3, None, "att_1")


Written = Callable[[], list[str]]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """Reads the lines on standard error; logging is set up as in our processes."""
    root, ours = logging.getLogger(), logging.getLogger("stillhouse")
    before, level = list(root.handlers), ours.level
    configure("json")

    def lines() -> list[str]:
        return capsys.readouterr().err.splitlines()

    yield lines
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = before
    ours.setLevel(level)


def test_a_line_is_json_and_says_what_it_is_about(written: Written) -> None:
    bound = {"job": "job_1", "trial": 3, "stage": "0123456789ab", "attempt": "att_1"}
    with structlog.contextvars.bound_contextvars(**bound):
        structlog.get_logger("stillhouse.service.worker").info("an attempt is done", seconds=1.5)
        logging.getLogger("stillhouse.search").warning("as %s", "said", extra={"tries": 2})
    structlog.get_logger("stillhouse.service").info("afterwards")
    logging.getLogger("stillhouse.search").debug("nobody asked")
    logging.getLogger("a.library").info("nobody asked")
    own, planner, after = map(json.loads, written())
    assert bound.items() <= own.items()
    assert (own["event"], own["level"], own["seconds"]) == ("an attempt is done", "info", 1.5)
    assert datetime.fromisoformat(own["timestamp"]).utcoffset() == timedelta(0)
    assert bound.items() <= planner.items()
    assert (planner["event"], planner["level"], planner["tries"]) == ("as said", "warning", 2)
    assert planner["logger"] == "stillhouse.search"
    assert not bound.keys() & after.keys()


def test_it_is_text_on_a_terminal_or_where_it_is_asked_for(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_LOG_FORMAT", "text")
    configure()
    logging.getLogger("stillhouse").warning("in words")
    monkeypatch.setenv("STILLHOUSE_LOG_FORMAT", "auto")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    configure()
    structlog.get_logger("stillhouse").warning("in words")
    first, second = written()  # each line once, however often logging is set up
    for line in (first, second):
        assert "in words" in line
        assert not line.startswith("{")


def test_tracebacks_of_libraries_are_cleaned(written: Written) -> None:
    try:
        raise OSError("connection to postgresql://user:S3cret!@host/db failed")
    except OSError:
        logging.getLogger("a.library").exception("failed: %s", "token=S3cret!")
        structlog.get_logger("stillhouse").exception("failed", password="S3cret!")  # noqa: S106 - a test's
    library, own = written()
    for line in (library, own):
        assert "OSError" in json.loads(line)["exception"]
        assert "S3cret" not in line


def test_a_line_without_room_on_the_disk_is_lost_and_nothing_else(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None:
            self.write("")

    monkeypatch.setattr(sys, "stderr", Full())
    logging.getLogger("stillhouse.test").error("the disk is full")
    structlog.get_logger("stillhouse.test").error("the disk is full")
    monkeypatch.undo()
    assert not written()


def test_a_line_that_cannot_be_written_as_meant_stops_nobody(written: Written) -> None:
    record = logging.LogRecord("stillhouse", logging.WARNING, "a.py", 1, "%d pictures", ("token=S3cret!",), None)
    ours = [each for each in logging.getLogger().handlers if isinstance(each.formatter, ProcessorFormatter)]
    ours[0].handle(record)  # not by a logger: pytest's own handler raises
    (line,) = written()
    assert "could not be written: TypeError" in line
    assert "S3cret" not in line


@given(pieces=st.lists(st.text(max_size=30), max_size=30), most=st.integers(1, 50))
def test_a_tail_keeps_the_end(pieces: list[str], most: int) -> None:
    found = Tail(most)
    for piece in pieces:
        found.write(piece)
    whole, kept = "".join(pieces).encode("utf-8", "replace"), found.kept()
    assert len(kept) <= most
    assert whole.endswith(kept)
    assert kept or not any(pieces)


def test_what_is_logged_meanwhile_is_kept_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    configure("json")
    with tail(10_000) as found:
        structlog.get_logger("stillhouse.worker").info("inside", token="S3cret!")  # noqa: S106
        logging.getLogger("some.library").warning("password=S3cret!")
    structlog.get_logger("stillhouse.worker").info("outside")
    lines = [json.loads(line) for line in found.kept().splitlines()]
    assert [line["event"] for line in lines] == ["inside", "password=[hidden]"]
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()][:1] == ["inside"]
    logging.getLogger().handlers[:] = before


@pytest.mark.parametrize("piece", ["x", "a-", "token", "token ", "://", "a://b", "Bearer ", "sth_", "a:"])
def test_a_long_text_takes_no_longer_than_its_length(piece: str) -> None:
    began = time.process_time()
    redact(piece * (300_000 // len(piece)))
    assert time.process_time() - began < 3
