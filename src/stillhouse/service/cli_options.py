"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
import yaml

from stillhouse.search.domain import Budget, Json
from stillhouse.search.errors import BudgetError, UserError
from stillhouse.search.job import JobSpec

BUDGET, SEARCH, TRAINING = "Budget (each limit optional)", "Search", "Training"


def _limit(text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(help=text, rich_help_panel=BUDGET)
    return option


MaxMacs = Annotated[float | None, _limit("Multiply-accumulates of one picture, such as 60e6.")]
MaxFlops = Annotated[float | None, _limit("The same as FLOPs: 1 MAC = 2 FLOPs.")]
MaxParams = Annotated[float | None, _limit("Parameters.")]
MaxModelBytes = Annotated[float | None, _limit("Size of the ONNX file.")]
MaxImageBytes = Annotated[float | None, _limit("Mean bytes of a picture sent.")]
MaxKbitPerS = Annotated[float | None, _limit("Bandwidth in place of bytes; with --frames-per-s.")]
FramesPerS = Annotated[float | None, _limit("Pictures a second over that bandwidth.")]
MaxImageSize = Annotated[str | None, _limit("Largest picture captured: 64, or 48x64 (height x width).")]
MaxLatencyMs = Annotated[float | None, _limit("Median latency of one picture on --device.")]
MaxMemoryBytes = Annotated[float | None, _limit("Peak memory of inference on --device.")]
MinAccuracy = Annotated[float | None, _limit("Least top-1 accuracy on validation, between 0 and 1.")]
Device = Annotated[str | None, _limit("Device that latency and memory are measured on; by default local.")]
BudgetFile = Annotated[Path | None, _limit("YAML file with the same limits (max_macs: 60e6 ...); flags win.")]

Qualities = Annotated[
    str, typer.Option(help="Lower qualities that models are read at too, or none.", rich_help_panel=SEARCH)
]
Precisions = Annotated[str, typer.Option(help="Files of each model: fp32,fp16,int8.", rich_help_panel=SEARCH)]
Colour = Annotated[str, typer.Option(help="rgb, or grey for cameras without colour.", rich_help_panel=SEARCH)]
QUALITIES = ",".join(str(quality) for quality in JobSpec.qualities)
PRECISIONS = ",".join(JobSpec.precisions)

LIMITS = (
    "max_macs",
    "max_flops",
    "max_params",
    "max_model_bytes",
    "max_image_bytes",
    "max_kbit_per_s",
    "frames_per_s",
    "max_image_size",
    "max_latency_ms",
    "max_memory_bytes",
    "min_accuracy",
    "device",
)
"""Names of the options that are limits."""


def budget_of(options: Mapping[str, Json], file: Path | None) -> Budget:
    """The budget of a YAML file and of a command's options, which win.

    Args:
        options: A command's arguments by name; those that are no limits are passed over.
        file: The file, or None.

    Raises:
        BudgetError: The file, or a limit, cannot be read.
    """
    given = {name: options[name] for name in LIMITS if options[name] is not None}
    return Budget.from_json(_budget_file(file) | given)


def search_of(options: Mapping[str, Json]) -> dict[str, Json]:
    """The fields of a job's spec among a command's options, lists read from their text.

    Raises:
        UserError: A list cannot be read.
    """
    found = {field.name: options[field.name] for field in fields(JobSpec) if field.name in options}
    for name in found.keys() & {"archs", "image_sizes", "objectives", "precisions"}:
        found[name] = words(found[name])
    for name in found.keys() & {"ladder", "qualities"}:
        found[name] = whole_numbers(name, found[name])
    return {name: value for name, value in found.items() if name != "budget"}


def values_of(option: str, example: str, pairs: Sequence[str]) -> dict[str, Json]:
    """What an option that may be repeated gives as ``NAME=VALUE``, values as YAML; a name may be ``outer.inner``.

    Args:
        option: Its name.
        example: One pair that can be read.
        pairs: What came.

    Raises:
        UserError: Something cannot be read.
    """
    found: dict[str, Json] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            if not equals:
                raise ValueError
            *outer, last = name.strip().split(".")
            inner = found
            for step in outer:
                inner = inner.setdefault(step, {})
                if not isinstance(inner, dict):
                    raise ValueError
            inner[last] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError):
            raise UserError(f"--{option} is written NAME=VALUE, such as {example}, but got {pair!r}") from None
    return found


def words(text: str) -> tuple[str, ...]:
    """Comma-separated words."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers; none for an empty text or ``none``.

    Raises:
        UserError: Something else stands there.
    """
    found = () if text.strip() == "none" else words(text)
    if not all(word.isdecimal() for word in found):
        raise UserError(f"--{name} is written as whole numbers, such as 128,96, but got {text!r}")
    return tuple(int(word) for word in found)


def _budget_file(path: Path | None) -> dict[str, Json]:
    if path is None:
        return {}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BudgetError(f"--budget {path} cannot be read as YAML: {error}") from None
    if not isinstance(data, dict):
        raise BudgetError(f"--budget {path} must hold limits by name, such as 'max_macs: 60e6', but holds {data!r}")
    return {str(name): value for name, value in data.items()}
