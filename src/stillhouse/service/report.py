"""What a finished job is told as: ``front.json``, ``front.png``, and a table for the terminal.

``front.json`` is a list, most accurate first, by the accuracy that counts. ``image_size`` and ``network_size`` are one
integer for a square size (so that a script can compare it with a limit) and ``[height, width]`` for any other.
``accuracy`` is that of the ONNX file on ``split``: ``test`` for members of a finished job's front, else ``val``;
``accuracy_low`` and ``accuracy_high`` are its 95 % Wilson interval. ``image_bytes`` is the mean over the data set's own
pictures at ``codec`` and ``quality``; ``accuracy_coded`` is the accuracy on pictures that went through that codec, and
the one that counts (``judged`` is ``coded``) where a job limits or minimises bytes per picture: one file may then be
several entries, one for each quality that is worth its bytes.
``variant`` says how the network in ``file`` was trained
(``distilled``, ``no_teacher`` or ``plain_kd``); ``baselines`` holds the test figures of the same network trained in the
other ways, and ``note`` says so where one of them beat the job's own method. ``left_out`` says which precisions are
not offered for this network, and why. ``family`` lists the same network at other precisions and qualities.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from stillhouse.search.domain import DISTILLED, Accuracy, Deployment, Json, Size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS: Mapping[str, tuple[float, str]] = {
    "macs": (1e6, "million MACs"),
    "params": (1e6, "million parameters"),
    "model_bytes": (1e3, "model file, kB"),
    "image_bytes": (1e3, "bytes per picture, kB"),
    "latency_ms": (1.0, "median latency, ms"),
    "memory_bytes": (1e6, "peak memory, MB"),
}
"""Cost objective -> (how much one unit is, axis label)."""

# Okabe & Ito's colours: told apart by colour-blind readers too.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#9a9a9a"
_WORDS: Mapping[str, str] = {"no_teacher": "no teacher", "plain_kd": "plain KD"}
_MARKERS: Mapping[str, str] = {"no_teacher": "D", "plain_kd": "^", DISTILLED: "v"}


def model_file_name(deployment: Deployment) -> str:
    """Name of the deployment's ONNX file: unique within a job, safe on every file system."""
    candidate = deployment.candidate
    sizes = f"{candidate.image_size}-{candidate.network_size}"
    variant = "" if deployment.variant == DISTILLED else f"-{deployment.variant}"
    name = f"{deployment.trial_number:02d}-{candidate.arch}-{sizes}-{candidate.stem}-{deployment.precision}{variant}"
    return re.sub(r"[^A-Za-z0-9._-]", "_", name) + ".onnx"


def trained(deployment: Deployment) -> str:
    """How a deployment was trained, in words: ``distilled (tas)``, ``no teacher``, ``plain KD``."""
    method = deployment.details.get("method")
    return variant_words(deployment.variant) + (f" ({method})" if deployment.variant == DISTILLED and method else "")


def variant_words(variant: str) -> str:
    """A variant in words."""
    return _WORDS.get(variant, variant.replace("_", " "))


def pick_words(pick: str) -> str:
    """Why a member of a front is named (``pareto.picks``), in words."""
    return "best trade-off" if pick == "knee" else f"least {pick.replace('_', ' ')} within 1 point of the best"


def scaled(value: float | None, unit: float, digits: int) -> str:
    """A figure in units of so much; ``-`` where it is not known."""
    return "-" if value is None else f"{value / unit:,.{digits}f}"


def upset(deployment: Deployment) -> str | None:
    """Says so where a baseline beat the job's own method and is the file that is shipped; else None."""
    others = baseline_figures(deployment)
    if not deployment.is_baseline or not others:
        return None
    own = DISTILLED if DISTILLED in others else next(iter(others))
    return f"{variant_words(deployment.variant)} beat {variant_words(own)} on validation, and is what is shipped"


def baseline_figures(deployment: Deployment, *, judged: str = "plain") -> dict[str, Accuracy]:
    """Test accuracy of the same network trained in other ways, by variant; empty where it was not compared.

    Args:
        deployment: Of a front.
        judged: ``plain``, or ``coded`` for that on pictures as sent.
    """
    name = "baselines_coded" if judged == "coded" else "baselines"
    found: Mapping[str, Json] = deployment.details.get(name) or {}
    return {name: Accuracy(**entry) for name, entry in found.items() if entry is not None}


def left_out(deployment: Deployment) -> Mapping[str, str]:
    """Precision -> why no file of it is offered for this network."""
    return deployment.details.get("left_out") or {}


def front_entry(deployment: Deployment, *, file: str | None) -> dict[str, Json]:
    """A deployment as an entry of ``front.json``.

    Args:
        deployment: With or without a test accuracy.
        file: Name of its ONNX file beside ``front.json``; None when it is not written out.
    """
    candidate, cost, details = deployment.candidate, deployment.cost, deployment.details
    accuracy = deployment.test or deployment.validation
    coded = deployment.coded if deployment.test is None else deployment.coded_test
    return {
        "model": deployment.id,
        "arch": candidate.arch,
        "image_size": _size(candidate.image_size),
        "network_size": _size(candidate.network_size),
        "stem": candidate.stem,
        "macs": cost.macs,
        "params": cost.params,
        "model_bytes": cost.model_bytes,
        "image_bytes": cost.image_bytes,
        "latency_ms": cost.latency_ms,
        "latency_p95_ms": cost.latency_p95_ms,
        "memory_bytes": cost.memory_bytes,
        **_shares(accuracy),
        "split": "val" if deployment.test is None else "test",
        "test_pictures": None if deployment.test is None else deployment.test.total,
        "val_accuracy": deployment.validation.value,
        **_shares(coded, "accuracy_coded"),
        "val_accuracy_coded": None if deployment.coded is None else deployment.coded.value,
        "judged": deployment.judged,
        "codec": (details.get("picture") or {}).get("codec"),
        "quality": deployment.quality,
        "variant": deployment.variant,
        "baselines": {name: _shares(figure) for name, figure in baseline_figures(deployment).items()},
        "note": upset(deployment),
        "baselines_coded": {n: _shares(f) for n, f in baseline_figures(deployment, judged="coded").items()},
        "precision": deployment.precision,
        "left_out": dict(left_out(deployment)),
        "method": details.get("method"),
        "seed": details.get("seed"),
        **_measured_on(details.get("measured") or {}),
        "preprocess": dict(deployment.preprocess),
        "file": file,
    }


def _measured_on(measured: Mapping[str, Json]) -> dict[str, Json]:
    """What a latency is worth nothing without."""
    cpu = (measured.get("host") or {}).get("cpu")
    told = {name: measured.get(name) for name in ("device", "threads", "runtime")} | {"cpu": cpu}
    return {f"latency_{name}": value for name, value in told.items()}


def write_front(
    deployments: Sequence[Deployment], front: Sequence[Deployment], out: Path, *, objectives: Sequence[str]
) -> None:
    """Writes ``front.png`` and then ``front.json`` into a folder, each whole or not at all.

    Args:
        deployments: All of the job, for the picture.
        front: Those of them that are on the front; at least one.
        out: A folder that is there; the models lie in it under ``model_file_name``.
        objectives: Costs that the front is drawn over, one panel each.
    """
    picture = out / "front.png.tmp"
    draw_front(deployments, front, picture, objectives=objectives)
    picture.replace(out / "front.png")
    on_front = {member.id for member in front}
    entries = []
    for member in by_accuracy(front):
        own = [d for d in deployments if d.trial_number == member.trial_number and not d.is_baseline]
        family = [front_entry(each, file=model_file_name(each)) for each in own if each.id not in on_front]
        entries.append(front_entry(member, file=model_file_name(member)) | {"family": family})
    text = out / "front.json.tmp"
    text.write_text(json.dumps(entries, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    text.replace(out / "front.json")


def front_table(front: Sequence[Deployment]) -> Table:
    """The front for the terminal, most accurate first; the numbers are those in ``front.png``.

    Below a model that was compared stands the same network trained in the other ways.
    """
    compared = any(baseline_figures(member) for member in front)
    table = Table(title="Pareto front", caption=_caption(front), box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("network", overflow="fold")
    table.add_column("pixels", no_wrap=True)
    table.add_column("stem", no_wrap=True)
    files = len({member.precision for member in front}) > 1
    if files:
        table.add_column("file", no_wrap=True)
    for name in ("M\nMACs", "model\nkB", "\nq", "image\nkB", "\nms", "acc.\n%", "95 %\nint.", "sent\n%"):
        table.add_column(name, justify="right", no_wrap=True)
    if compared:
        table.add_column("trained", min_width=10)
    for number, member in enumerate(by_accuracy(front), start=1):
        candidate, cost, accuracy = member.candidate, member.cost, member.test or member.validation
        table.add_row(
            str(number),
            candidate.arch,
            f"{candidate.image_size.short}>{candidate.network_size.short}",
            candidate.stem,
            *([member.precision] if files else []),
            scaled(cost.macs, 1e6, 1),
            scaled(cost.model_bytes, 1e3, 0),
            str(member.quality or "-"),
            scaled(cost.image_bytes, 1e3, 2),
            scaled(cost.latency_ms, 1, 2),
            *_percents(accuracy),
            _share(member.coded if member.test is None else member.coded_test),
            *([trained(member)] if compared else []),
        )
        sent = baseline_figures(member, judged="coded")
        for name, figure in baseline_figures(member).items():
            empty = [""] * (10 if files else 9)
            through = _share(sent[name]) if name in sent else ""
            table.add_row(*empty, *_percents(figure), through, variant_words(name), style="dim")
    return table


def by_accuracy(front: Sequence[Deployment]) -> list[Deployment]:
    """Most accurate first, by the accuracy that counts, on the test split where that was read; ties by trial number."""
    return sorted(front, key=lambda member: (-member.shown.value, member.trial_number, -(member.quality or 0)))


# ---------------------------------------------------------------------------------------- picture


def draw_front(
    deployments: Sequence[Deployment], front: Sequence[Deployment], path: Path, *, objectives: Sequence[str]
) -> None:
    """Draws accuracy over each objective as a PNG, with 95 % intervals, members of the front numbered.

    In each panel a line joins those members that are also the best of that panel alone.
    """
    # Imported here since it takes half a second that every other command would have to wait for.
    from matplotlib.figure import Figure  # noqa: PLC0415

    members = by_accuracy(front)
    columns = min(2, len(objectives))
    rows = math.ceil(len(objectives) / columns)
    legend_inches = 0.55 + 0.17 * math.ceil(len(members) / 2)
    figure = Figure(figsize=(5.2 * columns + 0.4, 3.9 * rows + legend_inches), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    others = [item for item in deployments if item.trial_number not in {member.trial_number for member in members}]
    for panel, objective in zip(panels, objectives, strict=False):
        _draw_panel(panel, others, members, objective)
    for panel in list(figure.axes)[len(objectives) :]:
        panel.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for number, member in enumerate(members, start=1):
        handles.append(figure.axes[0].plot([], [], linestyle="none", marker=f"${number}$", color="black")[0])
        file = f" {member.precision}" + (f" q{member.quality}" if member.judged == "coded" else "")
        labels.append(str(member.candidate) + file + (f", {trained(member)}" if baseline_figures(member) else ""))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    figure.suptitle("Accuracy over cost: what no other model beats", fontsize=11)
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def _draw_panel(panel: Axes, others: Sequence[Deployment], members: Sequence[Deployment], objective: str) -> None:
    unit, label = UNITS[objective]
    if others:
        _draw_points(panel, others, objective, color=_GREY, marker="s", label="other models (validation)")
    split = " or ".join(sorted({"test" if member.test else "validation" for member in members}))
    _draw_compared(panel, members, objective)
    _draw_points(panel, members, objective, color=_BLUE, marker="o", label=f"front ({split}), 95 % interval")
    steps = _best_of_panel(members, objective)
    panel.plot(*zip(*steps, strict=True), color=_BLUE, alpha=0.45, linewidth=1.6, drawstyle="steps-post", zorder=1)
    for number, member in enumerate(members, start=1):
        at = (member.objective(objective) / unit, member.shown.value * 100)
        panel.annotate(str(number), at, xytext=(5, 4), textcoords="offset points", fontsize=9)
    costs = [item.objective(objective) for item in (*others, *members)]
    if max(costs) > 3 * min(costs):
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(_sparse)
    panel.margins(x=0.12)
    panel.tick_params(axis="x", which="both", labelsize=8)
    panel.set_xlabel(label)
    sent = " on pictures as sent" if members[0].judged == "coded" else ""
    panel.set_ylabel(f"top-1 accuracy{sent}, %")
    panel.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.6)
    panel.set_axisbelow(True)


def _draw_compared(panel: Axes, members: Sequence[Deployment], objective: str) -> None:
    """Marks the same networks trained in other ways, each tied to its member of the front."""
    look: dict[str, Any] = {"color": _ORANGE, "markersize": 5, "markerfacecolor": "white"}
    for number, member in enumerate(members, start=1):
        x = member.objective(objective) / UNITS[objective][0]
        for name, figure in baseline_figures(member, judged=member.judged).items():
            ends = [figure.value * 100, member.shown.value * 100]
            panel.plot([x, x], ends, color=_ORANGE, linewidth=0.8, linestyle=":")
            panel.plot(x, ends[0], marker=_MARKERS.get(name, "s"), linestyle="none", **look)
            panel.annotate(
                str(number), (x, ends[0]), xytext=(5, -9), textcoords="offset points", fontsize=8, color=_ORANGE
            )
    for name in sorted({name for member in members for name in baseline_figures(member)}):
        marker, label = _MARKERS.get(name, "s"), f"same network, {variant_words(name)}"
        panel.plot([], [], marker=marker, linestyle=":", label=label, **look)


def _draw_points(
    panel: Axes, items: Sequence[Deployment], objective: str, *, color: str, marker: str, label: str
) -> None:
    accuracies = [item.shown for item in items]
    values = [100 * accuracy.value for accuracy in accuracies]
    below = [value - 100 * accuracy.interval()[0] for value, accuracy in zip(values, accuracies, strict=True)]
    above = [100 * accuracy.interval()[1] - value for value, accuracy in zip(values, accuracies, strict=True)]
    costs = [item.objective(objective) / UNITS[objective][0] for item in items]
    panel.errorbar(
        costs,
        values,
        yerr=[below, above],
        fmt=marker,
        color=color,
        markersize=5,
        capsize=2,
        elinewidth=0.9,
        label=label,
    )


def _best_of_panel(members: Sequence[Deployment], objective: str) -> list[tuple[float, float]]:
    """(cost, accuracy in %) of the members that lead in this panel alone, cheapest first."""
    leading: list[tuple[float, float]] = []
    for member in sorted(members, key=lambda item: (item.objective(objective), -item.shown.value)):
        value = 100 * member.shown.value
        if not leading or value > leading[-1][1]:
            leading.append((member.objective(objective) / UNITS[objective][0], value))
    return leading


def _sparse(value: float, _position: float) -> str:
    """Labels 2 and 5 of each decade of a log axis, beside the powers of ten."""
    leading = value / 10 ** math.floor(math.log10(value))
    return f"{value:g}" if round(leading, 6) in (2.0, 5.0) else ""


# ---------------------------------------------------------------------------------------- helpers


def _shares(accuracy: Accuracy | None, name: str = "accuracy") -> dict[str, Json]:
    low, high = (None, None) if accuracy is None else accuracy.interval()
    return {name: None if accuracy is None else accuracy.value, f"{name}_low": low, f"{name}_high": high}


def _size(size: Size) -> int | list[int]:
    return size.height if size.height == size.width else [size.height, size.width]


def _percents(accuracy: Accuracy) -> tuple[str, str]:
    """Accuracy and its interval, in percent."""
    low, high = accuracy.interval()
    return f"{100 * accuracy.value:.1f}", f"{100 * low:.0f}-{100 * high:.0f}"


def _share(accuracy: Accuracy | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy.value:.1f}"


def _caption(front: Sequence[Deployment]) -> str:
    if not front:
        return "no model meets the budget"
    tested = [member.test for member in front if member.test is not None]
    accuracy, split = (tested[0], "test") if len(tested) == len(front) else (front[0].validation, "validation")
    lines = ["pixels: of the picture > inside the network", f"accuracy on {accuracy.total} {split} pictures"]
    codec = next((picture["codec"] for member in front if (picture := member.details.get("picture"))), None)
    if codec is not None:
        counts = ": the accuracy that counts" if front[0].judged == "coded" else ""
        lines.append(f"sent: the same after {codec} at quality q, which image kB is measured with{counts}")
    if any(baseline_figures(member) for member in front):
        lines.append("below a model: the same network trained in other ways, for comparison")
    for number, member in enumerate(by_accuracy(front), start=1):
        lines += [f"model {number}: {said}"] if (said := upset(member)) is not None else []
    return "\n".join(lines)
