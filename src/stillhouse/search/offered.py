"""What the workers offer, as the catalogue tells it: weights to start from, methods and what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.search.domain import Json
from stillhouse.search.errors import UnknownNameError


@dataclass(frozen=True)
class Weights:
    """Which weights a network can start from: by package, from the model hub, or none (random)."""

    package: frozenset[str] = frozenset()
    hub: frozenset[str] = frozenset()

    @classmethod
    def from_catalogue(cls, data: Mapping[str, Json]) -> Weights:
        """Reads the catalogue's ``weights`` entry."""
        entry = data.get("weights", {})
        return cls(frozenset(entry.get("package", ())), frozenset(entry.get("hub", ())))

    def source(self, arch: str) -> str:
        """``package``, ``hub`` or ``none``."""
        if arch in self.package:
            return "package"
        return "hub" if arch in self.hub else "none"


@dataclass(frozen=True)
class MethodNeeds:
    """What a method reads; the worker's catalogue says it, method by method."""

    teacher: bool
    assistant: bool
    features: str = ""


def method_needs(data: Mapping[str, Json], name: str, knobs: Mapping[str, Json] | None = None) -> MethodNeeds:
    """Reads one method of the catalogue's ``methods`` entry; features whose weight these knobs set to 0 are not needed.

    Raises:
        UnknownNameError: No worker offers the method.
    """
    methods = data.get("methods", {})
    if name not in methods:
        raise UnknownNameError.among("method", name, methods)
    entry = methods[name]
    read = all_knobs(data, name, knobs or {}).get(entry.get("features_by", ""), 1)
    return MethodNeeds(bool(entry["teacher"]), bool(entry["assistant"]), entry.get("features", "") if read else "")


def all_knobs(data: Mapping[str, Json], name: str, knobs: Mapping[str, Json]) -> dict[str, Json]:
    """Every knob of a method: those given, else its default. So one training has one key, however it was asked for."""
    known = data.get("methods", {}).get(name, {}).get("knobs", ())
    return {knob["name"]: knob["default"] for knob in known} | dict(knobs)
