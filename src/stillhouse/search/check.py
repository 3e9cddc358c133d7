"""Is a request one that the workers can do? The same answer at every door."""

from __future__ import annotations

from collections.abc import Mapping

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import LOCAL, Json
from stillhouse.search.errors import UnknownNameError, UserError
from stillhouse.search.job import JobSpec
from stillhouse.search.offered import method_needs


def check_request(catalogue: Mapping[str, Json], spec: JobSpec) -> None:
    """Checks every name and knob of a job against what the workers published.

    Raises:
        UnknownNameError: A teacher, architecture, task, method or knob that no worker knows.
        UserError: A device that never announced itself; a knob of the wrong type or out of its range; pictures that
            the patches of a ViT do not divide; a network whose costs are not known for the colour.
    """
    device = spec.budget.device
    if device not in (devices := (LOCAL, *catalogue.get("devices", ()))):
        raise UserError(
            f"unknown device {device!r}; known: {', '.join(devices)}. A device is known once its agent has asked for "
            f"work: run on it: stillhouse agent URL --name {device}"
        )
    known = Catalogue.from_json(catalogue)
    known.check_teacher(spec.teacher)
    for arch in spec.archs:
        known.check_arch(arch, spec.colour)
    if spec.task not in catalogue.get("tasks", (spec.task,)):
        raise UnknownNameError.among("task", spec.task, catalogue["tasks"])
    needs = method_needs(catalogue, spec.method)
    if spec.ladder and not needs.assistant:
        with_one = sorted(name for name, entry in catalogue["methods"].items() if entry["assistant"])
        raise UserError(
            f"a ladder is made of assistants, but method {spec.method} has none; leave ladder out, or take method "
            + " or ".join(with_one)
        )
    _check_sides(known, spec, assistants=needs.assistant)
    knobs = {knob["name"]: knob for knob in catalogue["methods"][spec.method]["knobs"]}
    for name, value in spec.knobs.items():
        if name not in knobs:
            raise UnknownNameError.among(f"knob of method {spec.method}", name, knobs)
        _check_range(f"knob {name} of method {spec.method}", value, knobs[name])


def _check_sides(known: Catalogue, spec: JobSpec, *, assistants: bool) -> None:
    """Teacher and assistant read pictures of ``teacher_size``, each rung of a ladder pictures of its own side."""
    reads = [(spec.teacher, ("teacher_size", spec.teacher_size))]
    if assistants:
        sides = [("teacher_size", spec.teacher_size), *(("a side of ladder", side) for side in spec.ladder)]
        reads += [(arch, side) for arch in spec.archs or sorted(known.archs) for side in sides]
    for arch, (what, side) in reads:
        step = known.archs[arch].side_step if arch in known.archs else 1
        if side % step:
            near = [str(found) for found in (side // step * step, (side // step + 1) * step) if found]
            raise UserError(
                f"{what} must be a multiple of {step}, the patch of {arch}, but got {side}; "
                f"take {' or '.join(near)}, or name networks without it"
            )


def _check_range(what: str, value: Json, knob: Mapping[str, Json]) -> None:
    low, high = knob.get("low"), knob.get("high")
    if low is None and high is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{what} must be a number, but got {value!r}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise UserError(f"{low} <= value <= {high} must hold for {what}, but got {value!r}")
