"""What processes write about themselves: one line an event, without secrets.

Every line, ours by structlog and the libraries' by logging, takes the same way: what is bound to the context is added
(``request_id``; ``job``, ``trial``, ``stage``, ``kind`` and ``attempt``), secrets are hidden (API keys, tokens,
passwords in addresses, what is kept under a name that says it is secret), and it is written to standard error, as JSON
or, on a terminal, as text.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from stillhouse.search.domain import StagePlan
from stillhouse.search.wanted import Asker

OURS = "stillhouse"
FORMAT_VARIABLE = "STILLHOUSE_LOG_FORMAT"
HIDDEN = "[hidden]"
_SECRET_NAME = re.compile(r"(?i)(?:^|[_-])(?:token|secret|password|passwd|authorization|cookie|api[_-]?key)s?$")
# No rule begins with a part of any length: that would take the square of a long text's time.
_RULES = (
    (re.compile(r"sth_([0-9a-f]{12})_[A-Za-z0-9_-]{20,}"), rf"sth_\1_{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)(?<=[a-z0-9+.-])(://[^\s:/@'\"]*):[^\s/@'\"]*@"), rf"\1:{HIDDEN}@"),
    (
        re.compile(
            r"(?i)((?:token|secret|password|passwd|api[_-]?key|authorization|cookie)['\"]?\s*[=:]\s*['\"]?)"
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


def configure(style: str | None = None, level: int = logging.INFO) -> None:
    """Sets structlog and logging up to write to standard error. For the entry points of processes.

    Args:
        style: json, text, or auto: text on a terminal, else JSON. None reads ``STILLHOUSE_LOG_FORMAT``, so that a
            process that cannot read its settings can still say so.
        level: Least level of our own lines that is written; of the libraries', warnings are.
    """
    stdlib, shared = structlog.stdlib, _shared()
    structlog.configure(
        processors=[stdlib.filter_by_level, *shared, stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=stdlib.BoundLogger,
        logger_factory=stdlib.LoggerFactory(),
    )
    handler = _Handler(_STDERR)
    handler.setFormatter(_formatter(style))
    root = logging.getLogger()
    root.handlers[:] = [other for other in root.handlers if getattr(other, "stream", None) is not _STDERR]
    root.addHandler(handler)
    logging.getLogger(OURS).setLevel(level)


class Tail(io.TextIOBase):
    """The last of what is written to it, in memory: a full disk does not matter, and nothing is left behind.

    Args:
        most_bytes: That it keeps.
    """

    def __init__(self, most_bytes: int) -> None:
        self._lines: deque[bytes] = deque()
        self._most_bytes, self._bytes = most_bytes, 0

    def write(self, text: str) -> int:
        """Keeps a piece, and drops the oldest that there is no room for any more."""
        piece = text.encode("utf-8", "replace")[-self._most_bytes :]
        self._lines.append(piece)
        self._bytes += len(piece)
        while self._bytes > self._most_bytes:
            self._bytes -= len(self._lines.popleft())
        return len(text)

    def kept(self) -> bytes:
        """What is kept, as UTF-8."""
        return b"".join(tuple(self._lines))


@contextlib.contextmanager
def tail(most_bytes: int) -> Iterator[Tail]:
    """Keeps the last of what is logged meanwhile, as it goes to standard error too."""
    found = Tail(most_bytes)
    handler, root = _Handler(cast("TextIO", found)), logging.getLogger()
    handler.setFormatter(_formatter(None))
    root.addHandler(handler)
    try:
        yield found
    finally:
        root.removeHandler(handler)


def _formatter(style: str | None) -> logging.Formatter:
    style = style or os.environ.get(FORMAT_VARIABLE, "auto")
    as_text = style == "text" or (style != "json" and sys.stderr.isatty())
    last = structlog.dev.ConsoleRenderer(colors=False) if as_text else structlog.processors.JSONRenderer()
    stdlib = structlog.stdlib
    return stdlib.ProcessorFormatter(
        foreign_pre_chain=[stdlib.ExtraAdder(), *_shared()],
        processors=[stdlib.ProcessorFormatter.remove_processors_meta, redact_event, last],
    )


def _shared() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]


def named(attempt_id: str, plan: StagePlan, asker: Asker) -> dict[str, str | int]:
    """What names an attempt in a line; who did not ask is left out."""
    asked = {"job": asker.job, "trial": asker.trial}
    known = {name: value for name, value in asked.items() if value is not None}
    return {**known, "stage": plan.key[:12], "kind": str(plan.kind), "attempt": attempt_id}


class _Handler(logging.StreamHandler[TextIO]):
    """Says where a line came from that could not be written, and not what stood in it, for that was not cleaned."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - its name in logging
        """Called within ``except``."""
        kind = getattr(sys.exc_info()[0], "__name__", "an error")
        self.stream.write(f"a line of {record.pathname}:{record.lineno} could not be written: {kind}\n")


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
