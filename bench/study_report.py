"""Tables and plots of ``bench/study.py``'s rows.

Intervals are 95 % and by bootstrap over test pictures and, where there are several, over seeds. A difference of two
cells is paired: the same pictures, the same seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

Rows = Sequence[Mapping[str, Any]]
Name = tuple[str, int, str, str]
DRAWS = 4000
BEGIN, END = "<!-- study: written by bench/study.py, not by hand -->", "<!-- study: end -->"
LITE = "tf_efficientnet_lite0"
DEFAULT = "TAS + codec"
COLOURS = {
    "no teacher": "#9a9a9a",
    "KD": "#0072B2",
    "PD": "#56B4E9",
    "TAS": "#E69F00",
    "TAS, logits only": "#009E73",
    DEFAULT: "#D55E00",
}


def report(data: Mapping[str, Any], docs: Path | None) -> None:
    """Prints the table and the aims; with ``docs`` also writes them into the page, with the plots."""
    groups: dict[Name, list[Mapping[str, Any]]] = defaultdict(list)
    for row in data["rows"].values():
        groups[row["arch"], row["side"], row["grid"], row["way"]].append(row)
    if not groups:
        print("no row is finished yet")
        return
    text = "\n\n".join([_table(groups), _aims(groups)])
    print(text)
    if docs is None:
        return
    _plots(groups, docs / "images")
    page = docs / "benchmarks.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


# ------------------------------------------------------------------------------------------ figures


def right(rows: Rows) -> np.ndarray:
    """1 where a picture was told right: (seeds, pictures)."""
    ordered = sorted(rows, key=lambda row: row["seed"])
    return np.array(
        [np.unpackbits(np.frombuffer(bytes.fromhex(r["right"]), np.uint8))[: r["test"]["total"]] for r in ordered]
    )


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values (seeds, pictures) with its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    seeds, pictures = values.shape
    weights = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=DRAWS) / pictures
    by_seed = weights @ values.T  # (draws, seeds)
    taken = rng.integers(0, seeds, (DRAWS, seeds))
    means = np.take_along_axis(by_seed, taken, axis=1).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def difference(a: Rows, b: Rows) -> tuple[float, float, float, int]:
    """Mean of a - b over the seeds that both have, its interval, and how many seeds that are."""
    common = {row["seed"] for row in a} & {row["seed"] for row in b}
    pair = [right([row for row in rows if row["seed"] in common]).astype(np.int8) for rows in (a, b)]
    return *interval(pair[0] - pair[1]), len(common)


def difference_as_sent(a: Rows, b: Rows) -> tuple[float, float, float, int]:
    """The same on pictures after the codec, of which rows keep counts alone: an interval as if nothing were paired."""
    common = {row["seed"] for row in a} & {row["seed"] for row in b}
    shares = [
        np.mean([r["coded"]["correct"] / r["coded"]["total"] for r in rows if r["seed"] in common]) for rows in (a, b)
    ]
    half = 1.96 * np.sqrt(sum(share * (1 - share) for share in shares) / a[0]["coded"]["total"])
    mean = float(shares[0] - shares[1])
    return mean, mean - half, mean + half, len(common)


def teacher_share(rows: Rows) -> float | None:
    """Test accuracy over that of the teacher, the mean over seeds; None without one."""
    shares = [row["test"]["correct"] / row["teacher"]["correct"] for row in rows if row.get("teacher")]
    return float(np.mean(shares)) if shares else None


# ------------------------------------------------------------------------------------------- tables


def _table(groups: Mapping[Name, Rows]) -> str:
    head = (
        "| network | picture | grid | training | M MACs | bytes | epochs | student s | teacher + assistant s | val | "
        "**test** (95 %) | seeds | after JPEG q90 | of teacher |"
    )
    lines = [head, "|---|---|---|---|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|"]
    for name in sorted(groups, key=lambda n: (n[0] != LITE, n[0], -n[1], n[2], -right(groups[n]).mean())):
        rows, (arch, side, grid, way) = groups[name], name
        mean, low, high = interval(right(rows))
        share = teacher_share(rows)
        first = rows[0]
        lines.append(
            f"| {arch} | {side} | {grid} | {way} | {first['macs'] / 1e6:.1f} | {first['image_bytes']:.0f} | "
            f"{first['epochs']} | {_mean(r['student_s'] for r in rows):.0f} | "
            f"{_mean(r['mentors_s'] for r in rows):.0f} | {_share(rows, 'val')} | "
            f"**{100 * mean:.1f}** ({100 * low:.1f}-{100 * high:.1f}) | {len(rows)} | {_share(rows, 'coded')} | "
            f"{'-' if share is None else f'{100 * share:.1f} %'} |"
        )
    teachers = {row["seed"]: row["teacher"] for rows in groups.values() for row in rows if row.get("teacher")}
    own = ", ".join(f"{100 * t['correct'] / t['total']:.1f} %" for _, t in sorted(teachers.items()))
    total = next(iter(teachers.values()))["total"] if teachers else 0
    lines += ["", f"The teacher's own test accuracy, by seed: {own} on {total} pictures."]
    return "\n".join(lines)


def _aims(groups: Mapping[Name, Rows]) -> str:
    best = (LITE, 64, "to 128", DEFAULT)
    compared = [
        ("above the stock student without a teacher", best, (LITE, 64, "stock", "no teacher"), ">= 25 points"),
        ("above the same student without a teacher", best, (LITE, 64, "to 128", "no teacher"), ">= 8 points"),
        ("above the same, trained twice as long", best, (LITE, 64, "to 128", "no teacher 2x"), "equal time"),
        ("above plain KD", best, (LITE, 64, "to 128", "KD"), "beyond the interval"),
        ("above plain KD, pictures as sent", best, (LITE, 64, "to 128", "KD"), "beyond the interval"),
        ("above KD with the same codec, pictures as sent", best, (LITE, 64, "to 128", "KD + codec"), "-"),
        ("above KD with the same codec", best, (LITE, 64, "to 128", "KD + codec"), "-"),
        ("above TAS with features and ISRD, no codec", best, (LITE, 64, "to 128", "TAS"), "off unless it helps"),
        ("above TAS on logits alone, no codec", best, (LITE, 64, "to 128", "TAS, logits only"), "no loss"),
        ("above plain KD trained twice as long", best, (LITE, 64, "to 128", "KD 2x"), "equal time"),
        ("above the stock network fed 128 px, no teacher", best, (LITE, 128, "stock", "no teacher"), "equal MACs"),
        ("above the stock network fed 128 px, KD", best, (LITE, 128, "stock", "KD"), "equal MACs"),
    ]
    lines = ["| the default at 64 px is | points | 95 % | seeds | aim |", "|---|--:|---|--:|---|"]
    for what, a, b, aim in compared:
        if a in groups and b in groups:
            of = difference_as_sent if what.endswith("as sent") else difference
            mean, low, high, seeds = of(groups[a], groups[b])
            lines.append(f"| {what} | {100 * mean:+.1f} | {100 * low:+.1f} to {100 * high:+.1f} | {seeds} | {aim} |")
    for side, aim in ((64, 97), (32, 90)):
        rows = groups.get((LITE, side, "to 128", DEFAULT), [])
        share = teacher_share(rows)
        if share is not None:
            what = f"at {side} px, of the teacher's own accuracy"
            lines.append(f"| {what} | {100 * share:.1f} % | | {len(rows)} | >= {aim} % |")
    return "\n".join(lines)


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _share(rows: Rows, split: str) -> str:
    return f"{100 * _mean(row[split]['correct'] / row[split]['total'] for row in rows):.1f}"


# -------------------------------------------------------------------------------------------- plots


def _plots(groups: Mapping[Name, Rows], folder: Path) -> None:
    """Accuracy over bytes, of pictures as they are sent, and over MACs, of pictures as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    _plot(
        groups, folder, "image_bytes", 1.0, "bytes per picture (JPEG q90)", "test top-1 after JPEG q90, % (95 %)", _sent
    )
    _plot(groups, folder, "macs", 1e6, "million MACs", "test top-1, % (95 %)", lambda rows: interval(right(rows)))


def _sent(rows: Rows) -> tuple[float, float, float]:
    mean = float(np.mean([row["coded"]["correct"] / row["coded"]["total"] for row in rows]))
    half = 1.96 * float(np.sqrt(mean * (1 - mean) / rows[0]["coded"]["total"]))
    return mean, mean - half, mean + half


def _plot(
    groups: Mapping[Name, Rows],
    folder: Path,
    cost: str,
    unit: float,
    below: str,
    beside: str,
    figure_of: Callable[[Rows], tuple[float, float, float]],
) -> None:
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    panel = figure.subplots()
    for step, (way, colour) in enumerate(COLOURS.items()):
        names = [name for name in groups if name[0] == LITE and name[3] == way]
        for index, name in enumerate(sorted(names, key=lambda n: groups[n][0][cost])):
            mean, low, high = (100 * value for value in figure_of(groups[name]))
            x = groups[name][0][cost] / unit * 1.03 ** (step - len(COLOURS) / 2)  # side by side where costs are equal
            panel.errorbar(
                x,
                mean,
                yerr=[[mean - low], [high - mean]],
                fmt={"stock": "s", "stride1": "^"}.get(name[2], "o"),
                color=colour,
                capsize=2,
                label=None if index else way,
            )
            panel.annotate(f"{name[1]}", (x, mean), xytext=(3, 3), textcoords="offset points", fontsize=6)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("")
    panel.set_xlabel(
        f"{below}; those of one cost stand side by side\n"
        "numbers: picture side; square: stock, triangle: stride-1 stem, circle: upsampled to 128"
    )
    panel.set_ylabel(beside)
    panel.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    panel.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(folder / f"study-{cost.replace('_', '-')}.png", dpi=130, metadata={"Software": None})
