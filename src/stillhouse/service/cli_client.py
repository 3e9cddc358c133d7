"""``stillhouse client``: all that the API does, from a terminal, against a server that runs anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stillhouse.search.domain import Json
from stillhouse.search.job import JobSpec
from stillhouse.service import cli_options as options
from stillhouse.service.cli_data import datasets, uploads
from stillhouse.service.cli_messages import messages
from stillhouse.service.cli_server import (
    DatasetId,
    JobId,
    Messages,
    ModelId,
    Most,
    Server,
    States,
    transfer_bar,
)
from stillhouse.service.cli_shown import (
    DEED_COLUMNS,
    DEVICE_COLUMNS,
    JOB_COLUMNS,
    MODEL_COLUMNS,
    TRIAL_COLUMNS,
    show_catalogue,
    show_estimate,
    show_front,
    show_job,
    show_model,
)
from stillhouse.service.cli_watch import watch_job
from stillhouse.service.client import Answer, Client


def commands(messages: Messages) -> typer.Typer:
    """The sub-commands; ``messages`` turns errors into a message and an exit code."""
    app = typer.Typer(help="Work with a server's data sets, jobs and models.", no_args_is_help=True)

    @app.callback()
    def server(
        ctx: typer.Context,
        url: Annotated[str, typer.Option(envvar="STILLHOUSE_URL", help="The server.")] = "http://127.0.0.1:8000",
        key: Annotated[
            str | None, typer.Option(envvar="STILLHOUSE_API_KEY", help="An API key.", show_default=False)
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print answers as JSON.")] = False,
    ) -> None:
        """Work with a server's data sets, jobs and models."""
        ctx.obj = Server(url, key, as_json, messages)

    parts = {"datasets": datasets(), "uploads": uploads(), "jobs": _jobs(), "models": _models()}
    for name, made in parts.items():
        app.add_typer(made, name=name)
    _add_others(app)
    _add_system(app)
    return app


def _jobs() -> typer.Typer:
    app = typer.Typer(help="Create, list, show, watch, cancel, retry, delete.", no_args_is_help=True)

    @app.command()
    def create(
        ctx: typer.Context,
        dataset: DatasetId,
        max_macs: options.MaxMacs = None,
        max_flops: options.MaxFlops = None,
        max_params: options.MaxParams = None,
        max_model_bytes: options.MaxModelBytes = None,
        max_image_bytes: options.MaxImageBytes = None,
        max_kbit_per_s: options.MaxKbitPerS = None,
        frames_per_s: options.FramesPerS = None,
        max_image_size: options.MaxImageSize = None,
        max_latency_ms: options.MaxLatencyMs = None,
        max_memory_bytes: options.MaxMemoryBytes = None,
        min_accuracy: options.MinAccuracy = None,
        device: options.Device = None,
        budget: options.BudgetFile = None,
        fields: Annotated[
            list[str] | None,
            typer.Option(
                "--set", help="A field of the search: trials=4, epochs.student=6, qualities=\\[50,75]; repeatable."
            ),
        ] = None,
        idempotency_key: Annotated[str | None, typer.Option(help="The same key gives the same job.")] = None,
        estimate: Annotated[bool, typer.Option(help="Only say what the budget leaves.")] = False,
        watch: Annotated[bool, typer.Option(help="Show how it goes until it has ended.")] = False,
    ) -> None:
        """Start a search."""
        given, server = dict(locals()), ctx.obj
        with server.client() as client:
            limits, search = options.budget_of(given, budget), fields_of(fields or [])
            if estimate:
                tell = partial(show_estimate, limits, search)
                server.told(client.estimate(dataset, limits.to_json(), search), tell)
                return
            job = client.create_job(dataset, limits.to_json(), search, idempotency_key=idempotency_key)
            _seen(server, client, job, watch=watch)

    @app.command("list")
    def list_some(
        ctx: typer.Context,
        state: States = None,
        dataset: Annotated[str | None, typer.Option(help="Only of this data set.")] = None,
        limit: Most = 50,
    ) -> None:
        """Jobs, newest first."""
        server: Server = ctx.obj
        with server.client() as client:
            found = client.jobs(states=state or (), dataset=dataset, page=min(limit, 1000))
            server.listed(itertools.islice(found, limit), JOB_COLUMNS)

    _add_job_commands(app)
    return app


def _add_job_commands(app: typer.Typer) -> None:
    @app.command()
    def show(ctx: typer.Context, job: JobId) -> None:
        """One job with its trials."""
        server: Server = ctx.obj
        with server.client() as client:
            server.told(client.job(job), show_job)

    @app.command()
    def watch(ctx: typer.Context, job: JobId) -> None:
        """Show how a job goes until it has ended; exit code 1 when it is not done then."""
        server: Server = ctx.obj
        with server.client() as client:
            _seen(server, client, client.job(job), watch=True)

    @app.command()
    def cancel(ctx: typer.Context, job: JobId) -> None:
        """Stop a job; what it finished stays."""
        server: Server = ctx.obj
        with server.client() as client:
            server.listed([client.cancel(job)], JOB_COLUMNS)

    @app.command()
    def retry(
        ctx: typer.Context, job: JobId, watch: Annotated[bool, typer.Option(help="Show how it goes.")] = False
    ) -> None:
        """Set a job going again that failed or was cancelled."""
        server: Server = ctx.obj
        with server.client() as client:
            _seen(server, client, client.retry(job), watch=watch)

    @app.command()
    def delete(ctx: typer.Context, job: JobId) -> None:
        """Forget a job that has ended, with its models."""
        server: Server = ctx.obj
        with server.client() as client:
            client.delete_job(job)

    @app.command()
    def trials(ctx: typer.Context, job: JobId, state: States = None) -> None:
        """A job's trials."""
        server: Server = ctx.obj
        with server.client() as client:
            server.listed(client.trials(job, states=state or ()), TRIAL_COLUMNS)

    @app.command()
    def log(
        ctx: typer.Context,
        job: JobId,
        trial: Annotated[int, typer.Argument(help="Number of a trial.")],
        tail: Annotated[int, typer.Option(min=1, help="Last lines of each attempt's log.")] = 100,
    ) -> None:
        """What the attempts at a trial's stages wrote."""
        server: Server = ctx.obj
        with server.client() as client:
            typer.echo(client.log(job, trial, tail=tail), nl=False)


def _models() -> typer.Typer:
    app = typer.Typer(help="List, show, download.", no_args_is_help=True)

    @app.command("list")
    def list_some(
        ctx: typer.Context,
        job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
        dataset: Annotated[str | None, typer.Option(help="Only of this data set.")] = None,
        arch: Annotated[str | None, typer.Option(help="Only of this network.")] = None,
        precision: Annotated[str | None, typer.Option(help="Only fp32, fp16 or int8.")] = None,
        limit: Most = 50,
    ) -> None:
        """Models, newest first."""
        server: Server = ctx.obj
        with server.client() as client:
            found = client.models(job=job, dataset=dataset, arch=arch, precision=precision, page=min(limit, 1000))
            server.listed(itertools.islice(found, limit), MODEL_COLUMNS)

    @app.command()
    def show(ctx: typer.Context, model: ModelId) -> None:
        """One model: figures, and how a picture is prepared for it."""
        server: Server = ctx.obj
        with server.client() as client:
            server.told(client.model(model), show_model)

    @app.command()
    def download(
        ctx: typer.Context,
        model: ModelId,
        out: Annotated[Path, typer.Option(help="File or folder to write to.")] = Path(),
        onnx: Annotated[bool, typer.Option("--onnx", help="The ONNX file alone, not the bundle.")] = False,
    ) -> None:
        """Download a model's bundle. Started again after a break, it goes on where it was."""
        server: Server = ctx.obj
        with server.client() as client:
            name = str(client.model(model)["file"])
            name = name if onnx else name.removesuffix(".onnx") + ".zip"
            path = out / name if out.is_dir() else out
            with transfer_bar(f"download {path.name}") as moved:
                get = client.download if onnx else client.download_bundle
                get(model, path, progress=moved)
            typer.echo(str(path))

    return app


def _add_others(app: typer.Typer) -> None:
    @app.command()
    def front(
        ctx: typer.Context,
        jobs: Annotated[list[str] | None, typer.Argument(help="One job, or several to lay over one another.")] = None,
        dataset: Annotated[str | None, typer.Option(help="All jobs of this data set.")] = None,
        objective: Annotated[list[str] | None, typer.Option(help="A cost, across jobs; repeatable.")] = None,
    ) -> None:
        """The models that no other beats: of a job, or across jobs."""
        server: Server = ctx.obj
        with server.client() as client:
            if jobs is not None and len(jobs) == 1 and dataset is None and not objective:
                found = client.front(jobs[0])
            else:
                found = client.front_across(dataset=dataset, jobs=jobs or (), objectives=objective or ())
            server.told(found, show_front)

    @app.command()
    def audit(
        ctx: typer.Context,
        before: Annotated[int | None, typer.Option(min=1, help="Only entries with a smaller id.")] = None,
        limit: Most = 50,
    ) -> None:
        """What the tenant's keys have changed, newest first."""
        server: Server = ctx.obj
        with server.client() as client:
            server.listed(client.audit(before=before, limit=min(limit, 1000)), DEED_COLUMNS)


def _add_system(app: typer.Typer) -> None:
    @app.command()
    def devices(ctx: typer.Context) -> None:
        """Devices that latency and memory are measured on."""
        server: Server = ctx.obj
        with server.client() as client:
            server.listed(client.devices(), DEVICE_COLUMNS)

    @app.command("forget-device")
    def forget_device(ctx: typer.Context, name: Annotated[str, typer.Argument(help="The device.")]) -> None:
        """Take a device off the list; what it measured stays."""
        server: Server = ctx.obj
        with server.client() as client:
            client.forget_device(name)

    @app.command()
    def catalogue(ctx: typer.Context) -> None:
        """What the server's workers can build."""
        server: Server = ctx.obj
        with server.client() as client:
            server.told(client.catalogue(), show_catalogue)

    @app.command("metrics")
    def metrics_(ctx: typer.Context) -> None:
        """Counts, times and states in Prometheus' text format; the key needs the scope worker."""
        server: Server = ctx.obj
        with server.client() as client:
            typer.echo(client.metrics(), nl=False)

    @app.command()
    def health(ctx: typer.Context) -> None:
        """Whether the server can take jobs."""
        server: Server = ctx.obj
        with server.client() as client:
            server.show(client.ready())


# ---------------------------------------------------------------------------------------- helpers


def fields_of(pairs: Sequence[str]) -> dict[str, Json]:
    """Fields of the search from ``NAME=VALUE``; one value stands for a list of one; raises UserError."""
    read = options.values_of("set", "trials=4", pairs)
    lists = {name for name, value in read.items() if isinstance(getattr(JobSpec, name, None), tuple)}
    return {n: [value] if n in lists and not isinstance(value, list) else value for n, value in read.items()}


def _seen(server: Server, client: Client, job: Answer, *, watch: bool) -> None:
    if watch:
        job = watch_job(client, job["id"], Console(stderr=True))
    server.listed([job], JOB_COLUMNS)
    if watch and job["state"] != "done":
        raise typer.Exit(1)


app = typer.Typer()
app.add_typer(commands(messages), name="client")
