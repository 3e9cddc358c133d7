"""What the commands of ``stillhouse client`` have in common: the server they ask, and how answers are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from stillhouse.search.domain import Json
from stillhouse.search.errors import UserError
from stillhouse.service.client import Answer, Client

Messages = Callable[[], AbstractContextManager[None]]
Columns = Mapping[str, str | Callable[[Answer], Json]]
"""By title: the field of a line that stands there, or what makes its text."""
JobId = Annotated[str, typer.Argument(help="Id of a job.")]
DatasetId = Annotated[str, typer.Argument(help="Id of a data set.")]
ModelId = Annotated[str, typer.Argument(help="Id of a model.")]
States = Annotated[list[str] | None, typer.Option("--state", help="Only in this state; repeatable.")]
Most = Annotated[int, typer.Option("--limit", min=1, help="At most so many lines.")]


@dataclass(frozen=True)
class Server:
    """Which server, how errors are told, and whether answers are printed as JSON."""

    url: str
    key: str | None
    as_json: bool
    messages: Messages

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client whose errors end the command with a message."""
        with self.messages():
            try:
                with Client(self.url, api_key=self.key) as client:
                    yield client
            except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise UserError(
                    f"no Stillhouse answers at {self.url} ({error}); start one, or name it by --url or STILLHOUSE_URL"
                ) from error

    def told(self, value: Json, tell: Callable[[Any], None]) -> None:
        """Prints an answer: as ``tell`` does for a person, or all of it as JSON."""
        if self.as_json:
            typer.echo(json.dumps(value, indent=2))
        else:
            tell(value)

    def show(self, value: Json) -> None:
        """Prints what is short enough to be read as JSON."""
        self.told(value, lambda found: Console().print_json(data=found))

    def listed(self, lines: Iterable[Answer], columns: Columns) -> None:
        """Prints a list: as a table of some columns, or all of it as JSON."""
        self.told(list(lines), lambda found: print_table(found, columns))


def print_table(lines: Iterable[Answer], columns: Columns) -> None:
    """Prints a line for each, and these columns of it."""
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for at, title in enumerate(columns):  # the first is what the thing is asked for by: it is shown whole
        table.add_column(title, no_wrap=at == 0, overflow="fold")
    for line in lines:
        cells = (_text(read(line) if callable(read) else line.get(read)) for read in columns.values())
        table.add_row(*map(escape, cells))
    Console().print(table)


def print_lines(lines: Iterable[str]) -> None:
    """Prints them as they are."""
    for line in lines:
        typer.echo(line)


@contextmanager
def transfer_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with speed and seconds left on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(title), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _text(value: Json) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "x".join(str(part) for part in value) if isinstance(value, list) else str(value)
