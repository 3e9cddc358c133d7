"""Knobs for tests that must reach all of a method."""

from stillhouse.distill.method import Method


def all_at_work(kind: type[Method]) -> dict[str, float]:
    """Knobs under which every part of a method works: one that is off by default gets its least useful value."""
    return {row["name"]: row["default"] or row["search"][0] for row in kind.describe()}
