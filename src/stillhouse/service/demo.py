"""The demo: one job sized for a few minutes on two cores, and what its teacher was worth."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from stillhouse.search.domain import Accuracy, Budget
from stillhouse.search.job import Epochs, JobSpec
from stillhouse.service.run import BUILTIN, Outcome


def demo_request(data: str) -> JobSpec:
    """The demo's job; the user's own pictures get a larger teacher and more epochs than the built-in tiles."""
    builtin = data == BUILTIN
    return JobSpec(
        dataset="",
        budget=Budget.from_json(
            {"max_macs": 60e6, "max_image_size": 64, "max_model_bytes": 16e6, "max_latency_ms": 20}
        ),
        trials=4,
        seed=0,
        teacher_size=112 if builtin else 192,
        epochs=Epochs(3, 3, 1) if builtin else Epochs(6, 6, 12),
        views=2 if builtin else 4,
        ablate="best",
    )


def print_comparison(outcome: Outcome, console: Console) -> None:
    """Prints the best model beside the same network trained without a teacher at the same size and epochs."""
    for member in outcome.front:
        baseline = member.details.get("baselines", {}).get("no_teacher")
        if baseline is None or member.test is None:
            continue
        table = Table(title=f"What the teacher is worth: {member.candidate}", title_justify="left")
        table.add_column("training")
        table.add_column("epochs", justify="right")
        table.add_column("test accuracy (95 % interval)", justify="right")
        spec = outcome.job.spec
        epochs = str(spec.epochs.student)
        table.add_row(f"distilled ({member.details['method']})", epochs, _percent(member.test))
        table.add_row("without a teacher", epochs, _percent(Accuracy(**baseline)))
        if spec.method == "tas":
            assistant = f"{spec.epochs.assistant} epochs at {spec.teacher_size} px"
            table.caption = f"The distilled one starts from its assistant, which all trials share: {assistant}."
        console.print(table)


def _percent(accuracy: Accuracy) -> str:
    low, high = accuracy.interval()
    return f"{accuracy.value:.1%} ({low:.1%} - {high:.1%})"
