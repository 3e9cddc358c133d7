"""Training methods, one a file. ``registry()`` finds them by scanning this folder."""

from __future__ import annotations

import sys
from functools import cache

from stillhouse.distill.method import Method
from stillhouse.distill.plugins import scan


@cache
def registry() -> dict[str, type[Method]]:
    """Methods by name."""
    return scan(sys.modules[__name__], Method)  # type: ignore[type-abstract]
