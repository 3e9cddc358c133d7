"""What a person sees while a job runs: bars with an ETA on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stillhouse.search.domain import Json, StageKind, StagePlan
from stillhouse.search.forecast import Forecast
from stillhouse.search.job import DatasetRecord, JobRecord, StageRecord, TrialRecord
from stillhouse.search.ports import Ledger

ETA_EVERY_S = 2.0
"""How often a job's ETA is asked for."""


class Left(TimeRemainingColumn):
    """Seconds left: those that the task was told as its field ``left``, else by its own speed."""

    def render(self, task: Task) -> Text:
        """As text."""
        left = task.fields.get("left")
        if left is None:
            return super().render(task)
        minutes, seconds = divmod(max(0, round(left)), 60)
        return Text(f"{minutes // 60:d}:{minutes % 60:02d}:{seconds:02d}", style="progress.remaining")


class Watcher:
    """Shows the ledger's state; call ``dataset`` or ``job`` as often as you like."""

    def __init__(self, ledger: Ledger, console: Console) -> None:
        self._ledger, self._console = ledger, console
        self._forecast = Forecast(ledger)
        self._eta: tuple[float, float | None] = (-math.inf, None)
        self._bars: dict[str, TaskID] = {}
        self._said: set[str] = set()
        self._seen_event = 0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            Left(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=300,
        )

    def __enter__(self) -> Watcher:
        self._progress.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._progress.stop()

    def dataset(self, dataset_id: str) -> None:
        """Shows how far the ingest stage is."""
        record = self._ledger.dataset(dataset_id)
        self._stages([record.stage_key])

    def ready(self, dataset: DatasetRecord) -> None:
        """Says what was read, and every note about it."""
        summary = dataset.summary
        splits = ", ".join(f"{count} {split}" for split, count in summary["splits"].items())
        self._say(
            f"data set {dataset.name}: {summary['pictures']} pictures, {len(summary['classes'])} classes ({splits})"
        )
        for note in (*summary["notes"], *summary["faults"]):
            self._say(f"  note: {note}")

    def job(self, job_id: str) -> None:
        """Shows trials, running stages, and says what has ended since the last call."""
        job, trials = self._ledger.job(job_id), self._ledger.trials(job_id)
        left = self._left(job, trials)
        self._bar("job", "trials", total=job.spec.trials, done=sum(self._share(trial) for trial in trials), left=left)
        for trial in trials:
            head = f"trial {trial.number} {trial.candidate}"
            if trial.state == "done" and trial.accuracy is not None:
                self._say(f"{head}: {trial.accuracy:.1%} on validation, {_millions(trial.cost.macs)} M MACs")
            elif trial.state == "stopped" and trial.accuracy is not None:
                self._say(f"{head}: {trial.accuracy:.1%} on validation after {trial.epochs} epochs; {trial.reason}")
            elif trial.state in ("infeasible", "failed", "stopped"):
                self._say(f"{head}: {trial.state} ({trial.reason})")
        self._stages([attempt.stage_key for attempt in self._ledger.open_attempts()])

    def _left(self, job: JobRecord, trials: list[TrialRecord]) -> float | None:
        """Seconds that a job still needs, as the API tells them; asked for now and then, counted down in between."""
        now, (told_at, left) = time.monotonic(), self._eta
        if not self._console.is_terminal:
            return None
        if now - told_at >= ETA_EVERY_S:
            stages = self._ledger.stages(key for trial in trials for key in trial.stages)
            told_at, left = self._eta = now, self._forecast.eta_s(job, trials, stages)
        return None if left is None else left - (now - told_at)

    def _share(self, trial: TrialRecord) -> float:
        """How much of a trial is done, from 0 to 1, by stages."""
        if trial.state in ("done", "failed", "paused", "stopped"):
            return 1.0
        if trial.state != "training" or not trial.stages:
            return 0.0
        stages = self._ledger.stages(trial.stages).values()
        return sum(stage.state == "done" for stage in stages) / len(trial.stages)

    def _stages(self, keys: list[str]) -> None:
        stages = self._ledger.stages([*keys, *(key for key in self._bars if key != "job")])
        for key, stage in stages.items():
            title = title_of(stage.plan)
            if stage.state == "running":
                at = stage.progress
                self._bar(key, title, total=at.get("total"), done=at.get("done", 0), note=note_of(at))
            elif key in self._bars:
                self._progress.remove_task(self._bars.pop(key))
                if stage.state == "done":
                    self._print(f"{title}: {_took(stage)}")

    def _bar(
        self, key: str, title: str, *, total: float | None, done: float, note: str = "", left: float | None = None
    ) -> None:
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(title, total=total, note=note, left=left)
        self._progress.update(self._bars[key], total=total, completed=done, note=note, left=left)

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(escape(line), highlight=False, soft_wrap=True)


def title_of(plan: StagePlan) -> str:
    """A stage in a few words, such as ``student lcnet_050 32x32->64x64 stride1``."""
    spec = plan.spec
    if plan.kind in (StageKind.STUDENT, StageKind.EXPORT):
        untrained = " (untrained, for its costs)" if plan.kind is StageKind.EXPORT and not plan.inputs else ""
        method = f" by {spec['method']}" if "method" in spec else ""
        sizes = f"{spec['image_size']}->{spec['network_size']}"
        until = f" to epoch {spec['until']}" if "until" in spec else ""
        return f"{plan.kind} {spec['arch']} {sizes} {spec['stem']}{method}{until}{untrained}"
    if plan.kind is StageKind.MEASURE:
        return f"measure at {spec['image_size']}" + (f" on {spec['split']}" if spec["split"] else "")
    return " ".join(str(part) for part in (plan.kind, spec.get("arch"), spec.get("size"), _views(spec)) if part)


def _views(spec: Mapping[str, Json]) -> str:
    """Which views of the pictures a stage tells of, where that is not all."""
    first, end = spec.get("part", (0, 0))
    if end - first in (0, spec.get("views")):
        return ""
    return f"view {end} of {spec['views']}" if end == first + 1 else f"views {first + 1}-{end} of {spec['views']}"


def note_of(progress: Mapping[str, Json]) -> str:
    """The epoch, validation accuracy and speed that a running stage reports."""
    parts = []
    if progress.get("epochs"):
        parts.append(f"epoch {progress.get('epoch')}/{progress['epochs']}")
    if progress.get("val_accuracy") is not None:
        parts.append(f"validation {progress['val_accuracy']:.1%}")
    if progress.get("images_per_s"):
        parts.append(f"{progress['images_per_s']:.0f} images/s")
    return ", ".join(parts)


def _took(stage: StageRecord) -> str:
    took = f"{stage.seconds:.1f} s" if stage.seconds is not None else "done"
    result = stage.result
    if result is not None and "val" in result.metrics:
        val = result.metrics["val"]
        took += f", {val['correct'] / val['total']:.1%} on validation"
    return took


def _millions(macs: int | None) -> str:
    return "?" if macs is None else f"{macs / 1e6:.1f}"
