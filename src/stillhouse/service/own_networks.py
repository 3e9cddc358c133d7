"""Networks that a user added to the catalogue; their entries lie in the home folder.

The worker publishes them beside the shipped ones, which win under the same name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from stillhouse.search.domain import Json
from stillhouse.service.settings import Settings


def own_networks(home: Path) -> dict[str, Json]:
    """Entries by name, in the form of the catalogue's ``archs``."""
    path = _path(home)
    found: dict[str, Json] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def add_own_network(settings: Settings, name: str, entry: Mapping[str, Json]) -> None:
    """Keeps an entry, in place of an earlier one of the name; the next start publishes it."""
    path = _path(settings.home)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps({**own_networks(settings.home), name: entry}, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
    for published in settings.cache.glob("catalogue-*.json"):  # kept by digest of the code, which knows nothing of it
        published.unlink()


def _path(home: Path) -> Path:
    return home / "catalogue.json"
