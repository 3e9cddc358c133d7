"""What ``stillhouse client`` shows of jobs, models, fronts and devices: columns of tables, and lines of one thing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial

from rich.console import Console

from stillhouse.search.domain import Budget, Json, Size
from stillhouse.search.job import JobSpec
from stillhouse.service.cli_server import Columns, print_lines, print_table
from stillhouse.service.client import Answer
from stillhouse.service.report import pick_words, scaled, variant_words


def show_job(job: Answer) -> None:
    """Prints a job with its trials."""
    print_lines(job_lines(job))
    if job["trials"]:
        print_table(job["trials"], TRIAL_COLUMNS)


def show_model(model: Answer) -> None:
    """Prints a model."""
    print_lines(model_lines(model))


def show_front(front: Answer) -> None:
    """Prints a front, of one job or across jobs."""
    print_table(front["front"], MODEL_COLUMNS)
    print_lines(front_lines(front))


def show_catalogue(catalogue: Answer) -> None:
    """Prints what the workers can build, as ``stillhouse catalogue list`` does."""
    from stillhouse.service.cli_catalogue import show  # noqa: PLC0415 - a database's drivers, once they are needed

    show(catalogue, Console())


def show_estimate(limits: Budget, search: Mapping[str, Json], found: Answer) -> None:
    """Prints an estimate of a job with these limits and fields, as ``stillhouse estimate`` does."""
    from stillhouse.search.estimate import Estimate  # noqa: PLC0415 - numpy and those drivers, once they are needed
    from stillhouse.service.cli_estimate import show  # noqa: PLC0415

    show(Estimate.from_json(found), limits, tuple(search.get("objectives", JobSpec.objectives)), Console())


def job_lines(job: Answer) -> Iterator[str]:
    """A job without its trials: how it stands, what it asks for, what it waits for."""
    best = "" if job["best_accuracy"] is None else f", best {_percent(job['best_accuracy'])} on validation"
    trials = f"{job['trials_ended']} of {job['trials_wanted']} trials"
    yield f"{job['id']}  {job['dataset_name']}: {job['state']}, {trials}{best}"
    for name in ("reason", "waiting"):
        if job[name]:
            yield f"{name}: {job[name]}"
    spec = job["spec"]
    limits = [f"{name} {_plain(value)}" for name, value in spec["budget"].items() if name != "device"]
    yield f"limits: {', '.join(limits) or 'none'}; device {spec['budget']['device']}"
    teacher = "" if spec["method"] == "supervised" else f", teacher {spec['teacher']} at {spec['teacher_size']} px"
    epochs = ", ".join(f"{count} {who}" for who, count in spec["epochs"].items() if teacher or who == "student")
    yield f"training: {spec['method']}{teacher}; epochs {epochs}"
    yield f"search: {spec['sampler']}, over {', '.join(spec['objectives'])}; seed {spec['seed']}"
    yield from _times(job)


def model_lines(model: Answer) -> Iterator[str]:
    """A model: figures, and how a picture is prepared for it."""
    variant = variant_words(model.get("variant") or "")
    yield f"{model['model']}  {model['arch']} {_pixels(model)} {model.get('stem', '')} {model['precision']}".rstrip()
    yield f"job {model['job']}, trial {model['trial']}" + (f", {variant}" if variant else "")
    costs = (
        ("macs", 1e6, 1, "M MACs"),
        ("params", 1e6, 2, "M parameters"),
        ("model_bytes", 1, 0, "bytes of model"),
        ("image_bytes", 1, 0, "bytes per picture"),
    )
    yield ", ".join(f"{scaled(model[name], *how)} {unit}" for name, *how, unit in costs if model.get(name) is not None)
    test = model.get("test_pictures")
    split = f"{test:,} test pictures" if test else {"val": "validation"}.get(model["split"], model["split"])
    yield f"accuracy {_interval(model, 'accuracy')} on {split}"
    if model.get("accuracy_coded") is not None:
        yield f"accuracy {_interval(model, 'accuracy_coded')} as sent, {model['codec']} at quality {model['quality']}"
    for name, figures in (model.get("baselines") or {}).items():
        yield f"accuracy {_interval(figures, 'accuracy')} of the same network, {variant_words(name)}"
    yield from _latency(model)
    if model.get("note"):
        yield f"note: {model['note']}"
    steps = (model.get("preprocess") or {}).get("steps", ())
    yield from [f"before the model: {'; '.join(steps)}"] if steps else []
    yield f"{model['file']}  sha256 {model['sha256']}"


def front_lines(front: Answer) -> Iterator[str]:
    """Which accuracy a front is drawn by, which members to look at first, and which cannot be told apart."""
    if front["judged"] == "coded":
        yield "drawn by accuracy on pictures as sent, through the codec (sent)"
    for name, model in front["picks"].items():
        yield f"{pick_words(name)}: {model}"
    for dear, cheap in front.get("tied", {}).items():
        yield f"{dear} is not significantly better on validation than the cheaper {cheap}"


# ---------------------------------------------------------------------------------------- helpers


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _interval(figures: Mapping[str, Json], name: str) -> str:
    """An accuracy with its 95 % interval."""
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    return f"{figures[name]:.1%}" + ("" if low is None or high is None else f" ({low:.1%} to {high:.1%})")


def _plain(value: Json) -> str:
    return f"{value:,.10g}" if isinstance(value, int | float) else str(value)


def _side(size: Json) -> str:
    """Of a size as an answer holds it: ``64``, ``"64x64"`` or ``[48, 64]``."""
    return Size.parse("x".join(map(str, size)) if isinstance(size, list) else size).short


def _pixels(thing: Mapping[str, Json]) -> str:
    return f"{_side(thing['image_size'])}>{_side(thing['network_size'])}"


def _date(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%F %TZ}"


def _times(job: Answer) -> Iterator[str]:
    if job["started_at"] is None:
        return
    ended = job["finished_at"]
    took = "" if ended is None else f", took {ended - job['started_at']:,.0f} s"
    left = "" if job["eta_s"] is None else f", {job['eta_s']:,.0f} s left"
    yield f"started {_date(job['started_at'])}{took}{left}"


def _latency(model: Answer) -> Iterator[str]:
    if model["latency_ms"] is None:
        return
    p95 = "" if model.get("latency_p95_ms") is None else f", p95 {model['latency_p95_ms']:.4g}"
    memory = "" if model.get("memory_bytes") is None else f"; peak memory {model['memory_bytes'] / 1e6:,.1f} MB"
    where = [str(model[key]) for key in ("latency_device", "latency_cpu", "latency_runtime") if model.get(key)]
    threads = model.get("latency_threads")
    where += [f"{threads} thread{'s' if threads > 1 else ''}"] if threads else []
    yield f"latency {model['latency_ms']:.4g} ms{p95}{' on ' if where else ''}{', '.join(where)}{memory}"


def _fact(name: str, device: Answer) -> Json:
    return (device["host"] or {}).get(name)


JOB_COLUMNS: Columns = {
    "id": "id",
    "state": "state",
    "data set": "dataset_name",
    "trials": lambda job: f"{job['trials_ended']} of {job['trials_wanted']}",
    "best": lambda job: _percent(job["best_accuracy"]),
    "left": lambda job: None if job["eta_s"] is None else f"{job['eta_s']:,.0f} s",
}
TRIAL_COLUMNS: Columns = {
    "number": "number",
    "state": "state",
    "network": lambda trial: trial["candidate"]["arch"],
    "pixels": lambda trial: _pixels(trial["candidate"]),
    "accuracy": lambda trial: _percent(trial["val_accuracy"]),
    "stages": lambda trial: f"{trial['stages_done']} of {trial['stages']}",
    "reason": "reason",
}
MODEL_COLUMNS: Columns = {
    "model": "model",
    "network": "arch",
    "pixels": _pixels,
    "file": "precision",
    "M\nMACs": lambda model: scaled(model["macs"], 1e6, 1),
    "image\nbytes": lambda model: scaled(model["image_bytes"], 1, 0),
    "ms": lambda model: model["latency_ms"] and f"{model['latency_ms']:.3g}",
    "acc.": lambda model: f"{_percent(model['accuracy'])}{'' if model['split'] == 'test' else ' val'}",
    "sent": lambda model: _percent(model.get("accuracy_coded")),
}
DEVICE_COLUMNS: Columns = {
    "name": "name",
    "at hand": "at_hand",
    "seen": lambda device: device["seen_at"] and f"{max(0.0, time.time() - device['seen_at']):.0f} s ago",
    **{fact: partial(_fact, fact) for fact in ("cpu", "cores", "machine")},
    "runtime": "runtime",
}
DEED_COLUMNS: Columns = {
    "id": "id",
    "at": lambda deed: _date(deed["at"]),
    **{title: title.replace(" ", "_") for title in ("key id", "method", "path", "status", "request id")},
}
