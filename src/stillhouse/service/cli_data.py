"""``stillhouse client datasets`` and ``uploads``: pictures on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stillhouse.search.errors import UserError
from stillhouse.service.cli_server import DatasetId, Server, transfer_bar
from stillhouse.service.cli_watch import await_dataset

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
            server.show(await_dataset(client, made["id"], Console(stderr=True)) if wait else made)

    @app.command("list")
    def list_all(ctx: typer.Context) -> None:
        """All data sets, oldest first."""
        server: Server = ctx.obj
        with server.client() as client:
            server.listed(client.datasets(), ("id", "name", "state", "reason"))

    @app.command()
    def show(ctx: typer.Context, dataset: DatasetId) -> None:
        """One data set: classes, pictures, bytes-per-picture curve."""
        server: Server = ctx.obj
        with server.client() as client:
            server.show(client.dataset(dataset))

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
