"""``stillhouse client datasets`` and ``uploads``: pictures on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stillhouse.search.domain import Json
from stillhouse.search.errors import UserError
from stillhouse.service.cli_server import DatasetId, Server, print_lines, print_table, transfer_bar
from stillhouse.service.cli_watch import await_dataset
from stillhouse.service.client import Answer

UploadId = Annotated[str, typer.Argument(help="Id of an upload that was not completed.")]


def datasets() -> typer.Typer:
    """``client datasets``."""
    app = typer.Typer(help="Add, list, show, delete.", no_args_is_help=True)

    @app.command()
    def add(
        ctx: typer.Context,
        data: Annotated[str | None, typer.Argument(help="ImageFolder zip, or 'textures' (built in).")] = None,
        server_folder: Annotated[
            str | None, typer.Option(help="A folder or zip on the server, below the folder that it allows.")
        ] = None,
        name: Annotated[str | None, typer.Option(help="How to call it.")] = None,
        skip_faults: Annotated[bool, typer.Option(help="Leave unreadable pictures out and go on.")] = False,
        wait: Annotated[bool, typer.Option(help="Wait until it has been read.")] = False,
    ) -> None:
        """Upload pictures, or name some on the server. Started again after a break, it goes on where it was."""
        server: Server = ctx.obj
        with server.client() as client:
            if (data is None) == (server_folder is None):
                raise UserError("give either a zip to upload, or --server-folder PATH with what lies on the server")
            if data is None:
                made = client.folder(str(server_folder), name=name, skip_faults=skip_faults)
            elif data == "textures" and not Path(data).exists():
                made = client.builtin(data)
            elif not Path(data).is_file():
                raise UserError(f"no file {data!r}; pack the picture folder as one zip")
            else:
                with transfer_bar(f"upload {Path(data).name}") as moved:
                    made = client.upload(Path(data), name=name, skip_faults=skip_faults, progress=moved)
            server.told(await_dataset(client, made["id"], Console(stderr=True)) if wait else made, _show)

    @app.command("list")
    def list_all(ctx: typer.Context) -> None:
        """All data sets, oldest first."""
        server: Server = ctx.obj
        with server.client() as client:
            server.listed(client.datasets(), {name: name for name in ("id", "name", "state", "reason")})

    @app.command()
    def show(ctx: typer.Context, dataset: DatasetId) -> None:
        """One data set: classes, pictures, bytes-per-picture curve."""
        server: Server = ctx.obj
        with server.client() as client:
            server.told(client.dataset(dataset), _show)

    @app.command()
    def delete(ctx: typer.Context, dataset: DatasetId) -> None:
        """Forget a data set without jobs."""
        server: Server = ctx.obj
        with server.client() as client:
            client.delete_dataset(dataset)

    return app


def uploads() -> typer.Typer:
    """``client uploads``."""
    app = typer.Typer(help="Uploads that broke off: show, delete.", no_args_is_help=True)

    @app.command()
    def show(ctx: typer.Context, upload: UploadId) -> None:
        """How much of an upload has come."""
        server: Server = ctx.obj
        with server.client() as client:
            server.show(client.upload_state(upload))

    @app.command()
    def delete(ctx: typer.Context, upload: UploadId) -> None:
        """Forget an upload and what has come of it; its bytes count no longer."""
        server: Server = ctx.obj
        with server.client() as client:
            client.drop_upload(upload)

    return app


# ---------------------------------------------------------------------------------------- helpers


def _show(dataset: Answer) -> None:
    """Prints what a person asks of a data set: as JSON, a hundred classes and their curve are long."""
    print_lines(_lines(dataset))
    curve = _curve(dataset["summary"])
    if curve:
        typer.echo("mean bytes per picture (squashed, in colour; client --json datasets show has the rest):")
        print_table(curve, {title: title for title in curve[0]})


def _lines(dataset: Answer) -> list[str]:
    """A data set in a few lines."""
    lines = [f"{dataset['id']}  {dataset['name']}: {dataset['state']}"]
    lines += [f"reason: {dataset['reason']}"] if dataset["reason"] else []
    summary: dict[str, Json] = dataset["summary"]
    if summary:
        splits = ", ".join(f"{count:,} {split}" for split, count in summary["splits"].items())
        grey = "grey " if summary.get("grey") else ""
        names = summary["classes"]
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        lines += [
            f"{summary['pictures']:,} {grey}pictures ({splits}){_sizes(summary)}",
            f"{len(names)} classes: {some}",
        ]
        lines += [f"note: {note}" for note in summary["notes"]]
    faults = dataset["faults"] or summary.get("faults", [])  # those that keep it from use, or those left out
    lines += [f"fault: {fault}" for fault in faults[:10]]
    return lines + ([f"and {len(faults) - 10} more faults"] if len(faults) > 10 else [])


def _sizes(summary: dict[str, Json]) -> str:
    """Height x width of the pictures."""
    sides = summary.get("sizes")
    if not sides:
        return ""
    least, middle, most = (f"{sides['height'][key]:.0f}x{sides['width'][key]:.0f}" for key in ("min", "median", "max"))
    return f", {least} px" if least == most else f", {least} to {most} px, median {middle}"


def _curve(summary: dict[str, Json]) -> list[Answer]:
    """Mean bytes by size, a column for each codec and quality."""
    lines: dict[str, Answer] = {}
    for point in summary.get("curve", ()):
        if (point["fit"], point.get("colour", "rgb")) == ("squash", "rgb"):
            line = lines.setdefault(point["size"], {"size": point["size"]})
            line[f"{point['codec']} {point['quality']}"] = f"{point['mean_bytes']:,.0f}"
    return list(lines.values())
