"""``stillhouse up``, ``serve``, ``controller`` and ``stage run``: the processes of the service."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from stillhouse import __version__
from stillhouse.search.errors import UserError
from stillhouse.service import metrics, tracing
from stillhouse.service.app import create_app, serve_app
from stillhouse.service.cli_messages import messages
from stillhouse.service.home import kept_tidy
from stillhouse.service.settings import LOOPBACK, Settings
from stillhouse.service.wiring import Platform

app = typer.Typer()
stage_app = typer.Typer(help="What the engine runs.", no_args_is_help=True)
app.add_typer(stage_app, name="stage")


@app.command()
def up() -> None:
    """Serve the API, the pages and the controller together."""
    with _service("up"):
        platform = Platform(Settings.load())
        _ask_for_a_key(platform)
        with platform.controller() as controller:
            stop = threading.Event()
            thread = threading.Thread(target=controller.run, args=(stop,), name="controller")
            thread.start()
            try:
                _serve(platform)
            finally:
                stop.set()
                thread.join()


@app.command()
def serve() -> None:
    """Serve the API and the pages only; a controller must run elsewhere on the same database."""
    with _service("api"):
        platform = Platform(Settings.load())
        _ask_for_a_key(platform)
        with kept_tidy(platform.home):  # the controller may have a home of its own
            _serve(platform)


@app.command()
def controller() -> None:
    """Run the controller and its engine only."""
    with _service("controller"), Platform(Settings.load()).controller() as loop:
        if (address := Settings.load().metrics_listen) is not None:
            metrics.listen(address)
        Console().print("controller runs; stop it with Ctrl-C")
        loop.run(threading.Event())


def _ask_for_a_key(platform: Platform) -> None:
    """Raises UserError where others can reach the API and no key would let anybody in."""
    host, now = platform.settings.host, time.time()
    if host in LOOPBACK:
        return
    keys = platform.accounts.all_keys()
    if not any(key.valid(now) for key in keys):
        what = f"all {len(keys)} there are were revoked or have expired" if keys else "there is none yet"
        raise UserError(
            f"on {host} others can reach the API, so it asks for keys, and {what}; make one first: "
            "stillhouse keys create NAME (or: docker compose run --rm api keys create NAME)"
        )


def _serve(platform: Platform) -> None:
    settings = platform.settings
    application = create_app(platform.ledger, platform.store, settings)
    Console().print(f"Stillhouse {__version__} on http://{settings.host}:{settings.port}/ (home {settings.home})")
    serve_app(application, settings)


@stage_app.command("run")
def stage_run(
    attempt: Annotated[str, typer.Argument(help="Id of an open attempt.")],
    url: Annotated[
        str | None, typer.Option(help="Address of the API; the attempt's token is read from STILLHOUSE_TOKEN.")
    ] = None,
) -> None:
    """Do the work of one attempt in this process: beside the database, or with --url through the API alone."""
    with messages(logging.INFO):
        settings = Settings.load()
        token = os.environ.pop("STILLHOUSE_TOKEN", "")  # what this process starts need not know it
        if url is not None and not token:
            raise UserError("with --url the attempt's token must be in the environment variable STILLHOUSE_TOKEN")
        from stillhouse.service.worker import run_attempt, run_remote  # noqa: PLC0415 - torch is for this command alone

        if url is None:
            run_attempt(attempt, os.cpu_count() or 1, str(settings.home))
        else:
            run_remote(attempt, url, token, settings)


# ---------------------------------------------------------------------------------------- helpers


@contextmanager
def _service(process: str) -> Iterator[None]:
    """As ``messages``, for a process that goes on by itself: it logs what it does, and traces it where asked to."""
    with messages(logging.INFO):
        tracing.configure(process)
        try:
            yield
        finally:
            tracing.close()
