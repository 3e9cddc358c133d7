"""The demo: one job sized for a few minutes on two cores, and what its teacher was worth."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from stillhouse.search.domain import Accuracy, Budget
from stillhouse.search.job import Epochs, JobSpec
from stillhouse.service.report import baseline_figures, by_accuracy, trained, upset, variant_words
from stillhouse.service.run import BUILTIN, Outcome


def demo_request(data: str) -> JobSpec:
    """The demo's job; the user's own pictures get a larger teacher and more epochs than the built-in tiles."""
    builtin = data == BUILTIN
    return JobSpec(
        dataset="",
        budget=Budget.from_json(
            {"max_macs": 60e6, "max_image_size": 64, "max_model_bytes": 16e6, "max_latency_ms": 20}
        ),
        trials=3,
        seed=0,
        teacher_size=112 if builtin else 192,
        epochs=Epochs(3, 3, 1) if builtin else Epochs(6, 6, 12),
        views=2 if builtin else 4,
        precisions=("fp32", "int8"),
        ablate="best",
    )


def print_comparison(outcome: Outcome, console: Console) -> None:
    """Prints each compared model beside the same network trained in other ways, at the same size and epochs."""
    spec, told = outcome.job.spec, set[str]()
    for member in by_accuracy(outcome.front):
        figures = baseline_figures(member)
        if not figures or member.test is None or member.onnx_sha256 in told:
            continue  # one file may be on the front at several picture qualities
        told.add(member.onnx_sha256)
        table = Table(title=f"What the teacher is worth: {member.candidate}", title_justify="left")
        table.add_column("training")
        table.add_column("epochs", justify="right")
        table.add_column("test accuracy (95 % interval)", justify="right")
        epochs = str(spec.epochs.student)
        table.add_row(f"{trained(member)}: shipped", epochs, _percent(member.test), style="bold")
        for name, figure in figures.items():
            table.add_row(variant_words(name), epochs, _percent(figure))
        notes = [f"{said}." for said in [upset(member)] if said is not None]
        if spec.method == "tas":
            assistant = f"{spec.epochs.assistant} epochs at {spec.teacher_size} px"
            notes.append(f"The distilled one starts from its assistant, which all trials share: {assistant}.")
        table.caption = " ".join(notes)
        console.print(table)


def _percent(accuracy: Accuracy) -> str:
    low, high = accuracy.interval()
    return f"{accuracy.value:.1%} ({low:.1%} - {high:.1%})"
