"""No line of a log holds a secret."""

from __future__ import annotations

import errno
import io
import logging
import sys

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.service.logs import RedactingFormatter, configure, redact, redact_event

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


def test_tracebacks_of_libraries_are_cleaned() -> None:
    try:
        raise OSError("connection to postgresql://user:S3cret!@host/db failed")
    except OSError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("uvicorn.error", logging.ERROR, __file__, 1, "failed: %s", ("token=S3cret!",), info)
    line = RedactingFormatter("%(message)s").format(record)
    assert "OSError" in line
    assert "S3cret" not in line


def test_a_line_without_room_on_the_disk_is_lost_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None:
            self.write("")

    root = logging.getLogger()
    before = list(root.handlers)
    configure()
    monkeypatch.setattr(sys, "stderr", Full())
    try:
        logging.getLogger("stillhouse.test").error("the disk is full")
        structlog.get_logger("stillhouse.test").error("the disk is full")
    finally:
        structlog.reset_defaults()
        root.handlers[:] = before


def test_a_line_that_cannot_be_written_as_meant_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    configure()
    try:
        (ours,) = [handler for handler in root.handlers if isinstance(handler.formatter, RedactingFormatter)]
        ours.handle(logging.LogRecord("stillhouse", logging.WARNING, "a.py", 1, "%d pictures", ("many",), None))
    finally:
        structlog.reset_defaults()
        root.handlers[:] = before
    assert "Logging error" in capsys.readouterr().err
