"""``stillhouse tidy``: removes what nobody needs any more, and says what that was."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stillhouse.search.errors import StillhouseError
from stillhouse.service.cli_messages import messages
from stillhouse.service.settings import Settings
from stillhouse.service.unneeded import Sum
from stillhouse.service.wiring import Platform


def command(messages: Callable[[], AbstractContextManager[None]]) -> Callable[..., None]:
    """The command; ``messages`` turns errors into a message and an exit code."""

    def tidy(
        older_than_days: Annotated[
            float | None, typer.Option(help="Days since the last use; else STILLHOUSE_KEEP_UNUSED_DAYS.", min=0)
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
        claim: Annotated[
            bool, typer.Option("--claim", help="This database alone keeps files in a store that belongs to none yet.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    ) -> None:
        """Remove stages, files, logs and caches that no job, data set or model needs. It may run beside a server.

        Files that are younger than an hour stay, and what a job that is queued or running could take up.
        """
        with messages():
            settings = Settings.load()
            days = settings.keep_unused_days if older_than_days is None else older_than_days
            found = Sum()
            collector = Platform(settings).collector
            try:
                for removed in collector.run(older_than_s=days * 86_400.0, dry_run=dry_run, claim=claim):
                    found.add(removed)
            except OSError as error:
                raise StillhouseError(f"what is not needed could not all be removed: {error}") from error
            if as_json:
                typer.echo(json.dumps(_told(found, days, dry_run)))
            else:
                _show(found, dry_run)

    return tidy


def _told(found: Sum, days: float, dry_run: bool) -> dict[str, object]:
    parts = {what: {"count": count, "bytes": found.sizes[what]} for what, count in found.counts.items()}
    stages = found.counts["stages"]
    return {
        "older_than_days": days,
        "dry_run": dry_run,
        "stages": stages,
        "files": found.counts.total() - stages,
        "bytes": found.size,
        "parts": parts,
    }


def _show(found: Sum, dry_run: bool) -> None:
    console = Console()
    said = "would be removed" if dry_run else "removed"
    if not found:
        console.print(f"nothing {said}")
        return
    table = Table(box=None)
    table.add_column(said)
    for heading in ("number", "bytes"):
        table.add_column(heading, justify="right")
    for what, count in found.counts.items():
        table.add_row(what, f"{count:,}", f"{found.sizes[what]:,}" if found.sizes[what] else "-")
    table.add_row("all", "", f"{found.size:,}")
    console.print(table)


app = typer.Typer()
app.command("tidy")(command(messages))
