"""``stillhouse run`` and ``demo``: one whole job in the foreground."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stillhouse.search.compare import ties
from stillhouse.search.domain import Fit
from stillhouse.search.errors import UserError
from stillhouse.search.job import Epochs, JobSpec
from stillhouse.search.pareto import picks
from stillhouse.service import cli_options as options
from stillhouse.service.cli_messages import messages
from stillhouse.service.cli_options import SEARCH, TRAINING
from stillhouse.service.demo import demo_request, print_comparison
from stillhouse.service.progress import Watcher
from stillhouse.service.report import by_accuracy, front_table, left_out, model_file_name, pick_words
from stillhouse.service.run import Outcome, run_job
from stillhouse.service.settings import Settings
from stillhouse.service.wiring import Platform

app = typer.Typer()


@app.command()
def run(
    data: Annotated[str, typer.Argument(help="ImageFolder zip or folder, or 'textures' (built in).")],
    out: Annotated[Path, typer.Option(help="Folder for front.json, front.png and the .onnx files.")],
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
    trials: Annotated[int, typer.Option(help="Candidates to train.", rich_help_panel=SEARCH)] = 8,
    seed: Annotated[int, typer.Option(help="Makes a run repeatable.", rich_help_panel=SEARCH)] = 0,
    sampler: Annotated[
        str,
        typer.Option(
            help="auto (TPE by gain per second), tpe, gp, nsga2, random, brute_force.", rich_help_panel=SEARCH
        ),
    ] = "auto",
    eta: Annotated[int, typer.Option(help="Ratio of rungs; 1: no rungs.", rich_help_panel=SEARCH)] = 1,
    max_wall_s: Annotated[
        float | None,
        typer.Option(
            help="Seconds in which it may train, comparisons included; what is trained by then is still exported, "
            "measured and tested.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    max_device_s: Annotated[
        float | None,
        typer.Option(
            help="The same by the summed seconds of all workers at its stages: trainings, exports, measurements, "
            "comparisons.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    min_gain: Annotated[float, typer.Option(help="Least expected gain, a share.", rich_help_panel=SEARCH)] = 0.0,
    archs: Annotated[str, typer.Option(help="Only these networks, comma-separated.", rich_help_panel=SEARCH)] = "",
    image_sizes: Annotated[str, typer.Option(help="Only these picture sizes.", rich_help_panel=SEARCH)] = "",
    objectives: Annotated[
        str, typer.Option(help="Costs that the front is drawn over.", rich_help_panel=SEARCH)
    ] = "macs,image_bytes",
    ablate: Annotated[
        str,
        typer.Option(
            help="Front members that are also trained without a teacher and by plain KD, the best of which is shipped: "
            "none, best, all (or true).",
            rich_help_panel=SEARCH,
        ),
    ] = "none",
    codec: Annotated[str, typer.Option(help="How pictures are sent: jpeg or webp.", rich_help_panel=SEARCH)] = "jpeg",
    quality: Annotated[int, typer.Option(help="Quality of the codec, 1-100.", rich_help_panel=SEARCH)] = 90,
    colour: options.Colour = "rgb",
    qualities: options.Qualities = options.QUALITIES,
    precisions: options.Precisions = options.PRECISIONS,
    latency_threads: Annotated[int, typer.Option(help="CPU threads in latency.", rich_help_panel=SEARCH)] = 1,
    teacher: Annotated[
        str, typer.Option(help="NAME or NAME:CHECKPOINT.safetensors.", rich_help_panel=TRAINING)
    ] = "tf_efficientnet_lite0",
    teacher_size: Annotated[int, typer.Option(help="Side the teacher reads.", rich_help_panel=TRAINING)] = 192,
    epochs: Annotated[str, typer.Option(help="teacher,assistant,student.", rich_help_panel=TRAINING)] = "6,6,12",
    method: Annotated[
        str, typer.Option(help="tas, logits, pixel, dist ... (GET /catalogue).", rich_help_panel=TRAINING)
    ] = "tas",
    knob: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the method; repeatable.", rich_help_panel=TRAINING)
    ] = None,
    views: Annotated[int, typer.Option(help="Augmented crops per picture.", rich_help_panel=TRAINING)] = 4,
    ladder: Annotated[
        str, typer.Option(help="Sides of further assistants, falling: 128,96.", rich_help_panel=TRAINING)
    ] = "",
    mixup: Annotated[float, typer.Option(help="Share of views that are mixed.", rich_help_panel=TRAINING)] = 0.0,
    ema: Annotated[float, typer.Option(help="Decay of averaged weights; 0: none.", rich_help_panel=TRAINING)] = 0.0,
    schedule: Annotated[str, typer.Option(help="Rate: one_cycle or cosine.", rich_help_panel=TRAINING)] = "one_cycle",
    compile: Annotated[bool, typer.Option("--compile", help="For a GPU.", rich_help_panel=TRAINING)] = False,
    codec_share: Annotated[
        float,
        typer.Option(help="Share of the student's views sent through the codec.", rich_help_panel=TRAINING),
    ] = 0.5,
    classes: Annotated[int | None, typer.Option(help="First N classes only.", rich_help_panel=TRAINING)] = None,
    fit: Annotated[Fit, typer.Option(help="How pictures are fitted.", rich_help_panel=TRAINING)] = Fit.SQUASH,
    skip_faults: Annotated[bool, typer.Option(help="Leave unreadable pictures out and go on.")] = False,
) -> None:
    """Search, distil, export and measure: from DATA and a budget to ONNX models in --out.

    Started again with the same arguments, a stopped run goes on where it was.
    """
    given = dict(locals())
    with messages():
        platform = Platform(Settings.load())
        name, checkpoint = _teacher(platform, teacher)
        read = {"knobs": options.values_of("knob", "gamma=10", knob or ()), "epochs": Epochs.parse(epochs)}
        started_from = {"teacher": name, "teacher_checkpoint": checkpoint}
        search = options.search_of(given) | read | started_from
        spec = JobSpec(dataset="", budget=options.budget_of(given, budget), **search)
        _run(platform, data, spec, out, skip_faults)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("var/demo"),
    data: Annotated[str, typer.Option(help="Your own ImageFolder zip or folder.")] = "textures",
) -> None:
    """The main job in a few minutes, on built-in pictures or your own, with a no-teacher comparison."""
    with messages():
        platform = Platform(Settings.load())
        started = time.monotonic()
        outcome = _run(platform, data, demo_request(data), out, skip_faults=False)
        print_comparison(outcome, Console())
        Console().print(f"work took {time.monotonic() - started:.0f} s")


def _run(platform: Platform, data: str, spec: JobSpec, out: Path, skip_faults: bool) -> Outcome:
    console = Console()
    with Watcher(platform.ledger, console) as watcher:
        outcome = run_job(platform, data, spec, out=out, skip_faults=skip_faults, watcher=watcher)
    console.print(front_table(outcome.front))
    numbers = {member.id: number for number, member in enumerate(by_accuracy(outcome.front), start=1)}
    for name, member in picks(outcome.front, spec.objectives).items():
        said = f"{pick_words(name)}: model {numbers[member.id]}, {model_file_name(member)}"
        console.print(said, highlight=False, soft_wrap=True)
    for dear, cheap in sorted((numbers[a], numbers[b]) for a, b in ties(outcome.front, spec.objectives).items()):
        console.print(f"model {dear} is not significantly better on validation than the cheaper model {cheap}")
    networks = {deployment.trial_number for deployment in outcome.deployments}
    shown = {member.trial_number for member in outcome.front}
    console.print(f"{len(shown)} of {len(networks)} networks are on the front; written to {out}/:")
    for name in dict.fromkeys(("front.json", "front.png", *(path.name for path in outcome.files.values()))):
        console.print(f"  {name}", highlight=False)
    told = {(member.trial_number, name): why for member in outcome.front for name, why in left_out(member).items()}
    for (number, name), why in told.items():
        console.print(f"no {name} file of trial {number}: {why}", highlight=False, soft_wrap=True)
    if outcome.job.reason is not None:
        console.print(f"{outcome.job.reason}; the same command tries again", style="yellow", highlight=False)
    return outcome


def _teacher(platform: Platform, text: str) -> tuple[str, str | None]:
    name, _, checkpoint = text.partition(":")
    if not checkpoint:
        return name, None
    path = Path(checkpoint)
    if not path.is_file() or path.suffix != ".safetensors":
        raise UserError(f"a teacher's checkpoint must be a .safetensors file, but got {checkpoint!r}")
    return name, platform.store.put(path)
