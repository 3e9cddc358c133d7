"""Tasks, one a file. ``registry()`` finds them by scanning this folder."""

from __future__ import annotations

import sys
from functools import cache

from stillhouse.distill.plugins import scan
from stillhouse.distill.task import Task


@cache
def registry() -> dict[str, type[Task]]:
    """Tasks by name."""
    return scan(sys.modules[__name__], Task)  # type: ignore[type-abstract]
