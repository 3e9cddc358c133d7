"""What a person sees who waits for a server: a bar on a terminal, a line for each trial that ended."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from stillhouse.search.domain import Json
from stillhouse.search.errors import DatasetError
from stillhouse.search.states import LIVE
from stillhouse.service.client import Answer, Client

POLL_S = 1.0
_ENDED = ("done", "failed", "infeasible", "stopped")


def watch_job(client: Client, job_id: str, console: Console) -> Answer:
    """Shows a job until it has ended; gives it then."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    told: set[int] = set()
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task(job_id, total=None, note="")
        while True:
            job = client.job(job_id)
            for trial in job["trials"]:
                if trial["state"] in _ENDED and trial["number"] not in told:
                    told.add(trial["number"])
                    console.print(escape(_line(trial)), highlight=False, soft_wrap=True)
            bars.update(task, completed=job["trials_ended"], total=job["trials_wanted"], note=_note(job))
            if job["state"] not in LIVE:
                return job
            time.sleep(POLL_S)


def await_dataset(client: Client, dataset_id: str, console: Console) -> Answer:
    """Waits until a data set has been read.

    Raises:
        DatasetError: It cannot be read.
    """
    with console.status("the pictures are being read"):
        while (dataset := client.dataset(dataset_id))["state"] == "pending":
            time.sleep(POLL_S)
    if dataset["state"] == "failed":
        raise DatasetError(str(dataset["reason"]), faults=dataset["faults"])
    return dataset


def _line(trial: Answer) -> str:
    candidate = trial["candidate"]
    head = f"trial {trial['number']} {candidate['arch']} {candidate['image_size']}->{candidate['network_size']}"
    if trial["val_accuracy"] is None:
        return f"{head}: {trial['state']} ({trial['reason']})"
    return f"{head}: {trial['state']}, {trial['val_accuracy']:.1%} on validation"


def _note(job: Answer) -> str:
    """State, seconds left, and what runs."""
    running: list[Json] = [trial["running"]["kind"] for trial in job["trials"] if trial["running"]]
    left = "" if job["eta_s"] is None else f", {job['eta_s']:.0f} s left"
    return f"{job['state']}{left} {' '.join(dict.fromkeys(running))}".strip()
