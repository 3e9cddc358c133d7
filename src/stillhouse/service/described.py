"""Classes of the planner as the API's schema tells them: each field in the words of the class's docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from stillhouse.search.domain import CHANNELS, COST_OBJECTIVES, PRECISIONS, Json
from stillhouse.search.job import ABLATIONS, CODECS, SAMPLERS, SCHEDULES

CHOICES: Mapping[str, tuple[str, ...]] = {
    "sampler": SAMPLERS,
    "schedule": SCHEDULES,
    "ablate": ABLATIONS,
    "codec": CODECS,
    "colour": tuple(CHANNELS),
}
"""What a field of a job may hold; ``ablate`` takes true and false too, for ``all`` and ``none``."""
ITEMS: Mapping[str, tuple[str, ...]] = {"objectives": COST_OBJECTIVES, "precisions": PRECISIONS}
"""What the items of a list may be."""
_EXPLAINED = re.compile(r"^    (\w+(?:, \w+)*): ((?:.*\n?)(?:^ {8}.*\n?)*)", re.MULTILINE)


def explained(cls: type) -> dict[str, str]:
    """The attributes of a class in the words of its docstring; empty where Python runs without docstrings."""
    attributes = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    found = {}
    for names, text in _EXPLAINED.findall(attributes):
        for name in names.split(", "):
            found[name] = " ".join(text.replace("``", "").split())
    return found


def choices(name: str) -> dict[str, Json]:
    """What the schema of a field says beside its type."""
    if name in CHOICES:
        return {"enum": list(CHOICES[name])}
    return {"items": {"type": "string", "enum": list(ITEMS[name])}} if name in ITEMS else {}
