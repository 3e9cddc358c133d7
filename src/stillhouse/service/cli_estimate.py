"""``stillhouse estimate``: what a budget leaves, before anything is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from stillhouse.search.check import check_request
from stillhouse.search.domain import Budget, Fit, Size
from stillhouse.search.errors import DatasetError
from stillhouse.search.estimate import RELAXED, Estimate, Option, estimate_job
from stillhouse.search.job import DatasetRecord, JobSpec
from stillhouse.service import cli_options as options
from stillhouse.service.cli_messages import messages
from stillhouse.service.progress import Watcher
from stillhouse.service.report import scaled
from stillhouse.service.run import BUILTIN, read_dataset
from stillhouse.service.settings import Settings
from stillhouse.service.wiring import Platform


def command(messages: Callable[[], AbstractContextManager[None]]) -> Callable[..., None]:
    """The command; ``messages`` turns errors into a message and an exit code."""

    def estimate(
        data: Annotated[
            str, typer.Argument(help="Id of a data set, ImageFolder zip or folder, or 'textures' (built in).")
        ],
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
        colour: options.Colour = "rgb",
        qualities: options.Qualities = options.QUALITIES,
        precisions: options.Precisions = options.PRECISIONS,
        latency_threads: Annotated[int, typer.Option(help="CPU threads in latency.")] = 1,
        fit: Annotated[Fit, typer.Option(help="How pictures are fitted.")] = Fit.SQUASH,
        skip_faults: Annotated[bool, typer.Option(help="Leave unreadable pictures out and go on.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """How many networks fit a budget, which limit binds, and what relaxing each would open.

        Nothing is trained. Latency, memory and exact file size are known where an earlier run measured them.
        """
        given = dict(locals())
        with messages():
            platform = Platform(Settings.load())
            spec = JobSpec(dataset="", budget=options.budget_of(given, budget), **options.search_of(given))
            found = _answered(platform, data, spec, skip_faults)
            if as_json:
                typer.echo(json.dumps(found.to_json(), indent=2))
            else:
                show(found, spec.budget, spec.objectives, Console())

    return estimate


def _answered(platform: Platform, data: str, spec: JobSpec, skip_faults: bool) -> Estimate:
    catalogue = platform.ledger.catalogue() or {}
    check_request(catalogue, spec)
    dataset = _dataset(platform, data, skip_faults)
    return estimate_job(platform.ledger, catalogue, dataset, dataclasses.replace(spec, dataset=dataset.id))


def _dataset(platform: Platform, data: str, skip_faults: bool) -> DatasetRecord:
    """The data set of this id; else the pictures that ``data`` names, read now if they were not before."""
    known = {record.id: record for record in platform.ledger.datasets()}
    if data in known and not Path(data).exists():
        return known[data]
    if data != BUILTIN and not Path(data).exists():
        raise DatasetError(
            f"no file, no folder and no id of a data set: {data!r}; give an ImageFolder zip or folder, {BUILTIN!r}, or "
            "an id that this home knows (stillhouse client datasets list)"
        )
    with Watcher(platform.ledger, Console(stderr=True)) as watcher:
        return read_dataset(platform, data, skip_faults=skip_faults, watcher=watcher)


def show(found: Estimate, budget: Budget, objectives: Sequence[str], console: Console) -> None:
    """Prints an estimate of a job with such a budget and objectives."""
    device = budget.device
    known = f"{found.measured} measured on {device}, {found.unmeasured} not yet"
    console.print(
        f"{'at most ' if found.is_upper_bound else ''}{found.fits} of {found.candidates} candidates fit ({known})",
        highlight=False,
    )
    if found.binds is not None:
        count = found.ruled_out_alone[found.binds]
        console.print(f"{found.binds} binds: it alone rules out {count}", highlight=False)
    elif not found.fits:
        console.print("no limit binds alone: each candidate lies beyond several", highlight=False)
    if found.reason is not None:
        console.print(found.reason, highlight=False, markup=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    if found.likely_best is not None:
        console.print("", _options(found, found.likely_best, objectives))
        console.print(f"likely best: {found.why}", highlight=False, markup=False, soft_wrap=True)
    if found.relax:
        console.print("", _limits(found, budget))


def _options(found: Estimate, best: Option, objectives: Sequence[str]) -> Table:
    """The cheapest by each cost and the likely best; of what was not measured, the least it can take."""
    rows = {name.replace("_", " "): option for name, option in found.cheapest.items()} | {"likely best": best}
    unknown = [name for name in objectives if name not in found.cheapest]
    on_device = any(option.measured for option in rows.values())
    table = Table(caption="1 MAC = 2 FLOPs; pixels: of the picture > inside the network", **_COMPACT)
    table.add_column("least", no_wrap=True)
    table.add_column("network", overflow="fold")
    for name in ("pixels", "stem"):
        table.add_column(name, no_wrap=True)
    for name in ("M\nMACs", "M\nparams", "image\nbytes", "model\nkB", *(("\nms", "peak\nMB") if on_device else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for name in unknown:
        table.add_row(name.replace("_", " "), "not measured yet")
    for what, option in rows.items():
        candidate, cost = option.candidate, option.cost
        table.add_row(
            what,
            candidate.arch,
            f"{candidate.image_size.short}>{candidate.network_size.short}",
            candidate.stem,
            scaled(cost.macs, 1e6, 1),
            scaled(cost.params, 1e6, 2),
            scaled(cost.image_bytes, 1, 0),
            ("" if option.measured else ">=") + scaled(cost.model_bytes, 1e3, 0),
            *(
                (scaled(cost.latency_ms, 1, 2), scaled(cost.memory_bytes if option.measured else None, 1e6, 0))
                if on_device
                else ()
            ),
        )
    return table


def _limits(found: Estimate, budget: Budget) -> Table:
    """What each limit rules out, and how many more fit when it alone is relaxed."""
    table = Table(caption=_LIMITS_CAPTION, **_COMPACT)
    table.add_column("limit", no_wrap=True)
    for name in ("", "\nout", "\nonly", *(f"\n+{by:.0%}" for by in RELAXED)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"likely best\nat +{RELAXED[-1]:.0%}", overflow="fold")
    for name, count in found.ruled_out.items():
        steps = [each for each in found.relax if each.limit == name]
        best = steps[-1].likely_best
        value, alone = _limit(getattr(budget, name)), found.ruled_out_alone[name]
        opened = [f"+{each.opens}" for each in steps]
        table.add_row(name, value, str(count), str(alone), *opened, "-" if best is None else _named(best))
    return table


_LIMITS_CAPTION = "out: ruled out by the limit; only: by no other; +10%: what 10 % more opens"
_COMPACT: dict[str, Any] = {
    "box": SIMPLE_HEAD,
    "padding": (0, 1, 0, 0),
    "pad_edge": False,
    "show_edge": False,  # a network's name of 21 letters fits in 80 columns
    "caption_justify": "left",
}


def _named(option: Option) -> str:
    candidate = option.candidate
    return f"{candidate.arch} {candidate.image_size.short}>{candidate.network_size.short} {candidate.stem}"


def _limit(value: float | Size) -> str:
    return value.short if isinstance(value, Size) else f"{value:,.10g}"


app = typer.Typer()
app.command("estimate")(command(messages))
