"""``stillhouse estimate``: what a budget leaves, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stillhouse.search.check import check_request
from stillhouse.search.domain import Cost, Fit, Size
from stillhouse.search.estimate import Estimate, Option
from stillhouse.search.job import JobSpec
from stillhouse.service import cli_options as options
from stillhouse.service.api.estimates import answer
from stillhouse.service.progress import Watcher
from stillhouse.service.run import read_dataset
from stillhouse.service.settings import Settings
from stillhouse.service.wiring import Platform


def command(messages: Callable[[], AbstractContextManager[None]]) -> Callable[..., None]:
    """The command; ``messages`` turns errors into a message and an exit code."""

    def estimate(
        data: Annotated[str, typer.Argument(help="ImageFolder zip or folder, or 'textures' (built in).")],
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
        archs: Annotated[str, typer.Option(help="Only these networks, comma-separated.")] = "",
        image_sizes: Annotated[str, typer.Option(help="Only these picture sizes.")] = "",
        objectives: Annotated[str, typer.Option(help="Costs to name the cheapest by.")] = "macs,image_bytes",
        teacher_size: Annotated[int, typer.Option(help="Side the teacher reads.")] = 192,
        classes: Annotated[int | None, typer.Option(help="First N classes only.")] = None,
        codec: Annotated[str, typer.Option(help="How pictures are sent: jpeg or webp.")] = "jpeg",
        quality: Annotated[int, typer.Option(help="Quality of the codec, 1-100.")] = 90,
        fit: Annotated[Fit, typer.Option(help="How pictures are fitted.")] = Fit.SQUASH,
        skip_faults: Annotated[bool, typer.Option(help="Leave unreadable pictures out and go on.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """How many networks fit a budget, which limit binds, and what relaxing each would open. Trains nothing."""
        given = dict(locals())
        with messages():
            platform, console = Platform(Settings.load()), Console()
            spec = JobSpec(
                dataset="",
                budget=options.budget_of(given, budget),
                archs=options.words(archs),
                image_sizes=options.words(image_sizes),
                objectives=options.words(objectives),
                teacher_size=teacher_size,
                classes=classes,
                codec=codec,
                quality=quality,
                fit=fit,
            )
            catalogue = platform.ledger.catalogue() or {}
            check_request(catalogue, spec)
            with Watcher(platform.ledger, Console(stderr=True)) as watcher:
                dataset = read_dataset(platform, data, skip_faults=skip_faults, watcher=watcher)
            found = answer(platform.ledger, catalogue, dataset, spec)
            if as_json:
                typer.echo(json.dumps(found.to_json(), indent=1))
            else:
                show(found, console)

    return estimate


def show(found: Estimate, console: Console) -> None:
    """Prints an estimate."""
    known = f", of which {found.unmeasured} are not measured on the device yet" if found.unmeasured else ""
    console.print(f"{found.fits} of {found.candidates} candidates fit{known}", highlight=False)
    if found.binds is not None:
        count = found.ruled_out_alone[found.binds]
        console.print(f"{found.binds} binds: it alone rules out {count}", highlight=False)
    if found.reason is not None:
        console.print(found.reason, highlight=False, soft_wrap=True)
    table = Table("", "network", "sent -> computed", "M MACs", "M FLOPs", "bytes a picture", "M parameters")
    for name, option in found.cheapest.items():
        _row(table, f"cheapest in {name}", option)
    if found.likely_best is not None:
        _row(table, "likely best", found.likely_best)
    if table.row_count:
        console.print(table)
    if found.relax:
        relaxed = Table("limit", "relaxed by", "to", "opens", "likely best of these")
        for each in found.relax:
            best = "" if each.likely_best is None else str(each.likely_best.candidate)
            relaxed.add_row(each.limit, f"{each.by:.0%}", _limit(each.value), str(each.opens), best)
        console.print(relaxed)


def _row(table: Table, what: str, option: Option) -> None:
    candidate, cost = option.candidate, option.cost
    sizes = f"{candidate.image_size} -> {candidate.network_size} {candidate.stem}"
    table.add_row(what, candidate.arch, sizes, *_figures(cost))


def _figures(cost: Cost) -> tuple[str, ...]:
    macs, params = (cost.macs or 0) / 1e6, (cost.params or 0) / 1e6
    return f"{macs:.1f}", f"{2 * macs:.1f}", f"{cost.image_bytes or 0:,.0f}", f"{params:.2f}"


def _limit(value: float | Size) -> str:
    return str(value) if isinstance(value, Size) else f"{value:,.10g}"
