"""Knobs for tests that must reach all of a method."""

from collections.abc import Mapping
from typing import Any

from stillhouse.distill.method import Method


def at_work(kind: type[Method], knobs: Mapping[str, float] | None = None) -> Any:
    """Params under which every part of a method works: one that is off by default gets its least useful value."""
    whole = {row["name"]: row["default"] or row["search"][0] for row in kind.describe()}
    return kind.params_from(whole | dict(knobs or {}))
