"""How a command ends: our errors become one message on stderr and an exit code."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from stillhouse.search.domain import content_key
from stillhouse.search.errors import DatasetError, StillhouseError, UserError
from stillhouse.service import logs
from stillhouse.service.settings import Settings

SHOWN_FAULTS = 20


@contextmanager
def messages(level: int = logging.WARNING) -> Iterator[None]:
    """Turns our errors into one message on stderr and an exit code."""
    console = Console(stderr=True)
    logs.configure(level=level)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(0)
    )  # so that what is open is closed, the engine's processes first
    try:
        yield
    except UserError as error:
        console.print(f"[bold red]error:[/] {escape(logs.redact(str(error)))}", highlight=False, soft_wrap=True)
        if isinstance(error, DatasetError):
            _print_faults(console, error.faults)
        raise typer.Exit(2) from None
    except StillhouseError as error:
        console.print(f"[bold red]failed:[/] {escape(logs.redact(str(error)))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where this one was")
        raise typer.Exit(130) from None


def _print_faults(console: Console, faults: Sequence[str]) -> None:
    """Every fault, one a line; past ``SHOWN_FAULTS`` the whole list goes to a file that the last line names."""
    for fault in faults[:SHOWN_FAULTS]:
        console.print(f"  {escape(fault)}", highlight=False, soft_wrap=True)
    if len(faults) > SHOWN_FAULTS:
        path = Settings.load().logs / f"faults-{content_key(list(faults))[:12]}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(faults) + "\n", encoding="utf-8")
        console.print(
            f"  ... and {len(faults) - SHOWN_FAULTS} more; all are in {path}", highlight=False, soft_wrap=True
        )
