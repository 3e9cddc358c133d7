"""What processes write about themselves: one line an event, without secrets.

Every line, ours by structlog and the libraries' by logging, passes ``redact`` before it is written: API keys, tokens,
passwords in addresses, and what is kept under a name that says it is secret.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

HIDDEN = "[hidden]"
_SECRET_NAME = re.compile(r"(?i)(?:^|[_-])(?:token|secret|password|passwd|authorization|cookie|api[_-]?key)s?$")
_RULES = (
    (re.compile(r"sth_([0-9a-f]{12})_[A-Za-z0-9_-]{20,}"), rf"sth_\1_{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)([a-z][a-z0-9+.-]*://[^\s:/@'\"]*):[^\s/@'\"]*@"), rf"\1:{HIDDEN}@"),
    (
        re.compile(
            r"(?i)(\b[a-z_-]*(?:token|secret|password|passwd|api[_-]?key|authorization|cookie)['\"]?\s*[=:]\s*['\"]?)"
            r"(?!\[hidden\]|bearer\b|basic\b)[^\s'\",;&)}\]]+"
        ),
        rf"\1{HIDDEN}",
    ),
)


def redact(text: str) -> str:
    """The text without what looks like a secret."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: hides secrets in every value, however deep."""
    return {name: _cleaned(name, value) for name, value in event.items()}


def configure() -> None:
    """Sets structlog and logging up to write to standard error, redacted. For the entry points of processes."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            redact_event,
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: structlog.WriteLogger(_STDERR),
    )
    root = logging.getLogger()
    if not any(getattr(handler, "stream", None) is _STDERR for handler in root.handlers):
        handler = logging.StreamHandler(_STDERR)
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)


class _Stderr(io.TextIOBase):
    """Standard error as it is at the time of writing; a line that has no room on the disk is lost, and nothing else."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


_STDERR = cast("TextIO", _Stderr())


class RedactingFormatter(logging.Formatter):
    """Hides secrets in the whole line, tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several with a traceback."""
        return redact(super().format(record))


def _cleaned(name: str, value: Any) -> Any:
    if isinstance(name, str) and _SECRET_NAME.search(name) and value is not None:
        return HIDDEN
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _cleaned(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned("", item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(repr(value))
