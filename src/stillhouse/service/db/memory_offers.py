"""The memory ledger's part about who does the work: what the workers can do, and the devices that measure."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from stillhouse.search.devices import DeviceRecord
from stillhouse.search.domain import Json
from stillhouse.service.db.records import as_json, as_text, with_devices


class MemoryOffers:
    """Catalogue and devices; see ``stillhouse.search.ports.Ledger`` for what each method promises."""

    _lock: threading.RLock
    _catalogue: Mapping[str, Json] | None
    _devices: dict[str, DeviceRecord]

    def publish_catalogue(self, data: Mapping[str, Json]) -> None:
        """Replaces the catalogue."""
        kept = as_json(dict(data))
        with self._lock:
            self._catalogue = kept

    def catalogue(self) -> Mapping[str, Json] | None:
        """The catalogue last published, with the devices."""
        with self._lock:
            known = copy.deepcopy(self._catalogue)
            return None if known is None else with_devices(known, self._devices.values())

    def see_device(self, device: DeviceRecord) -> None:
        """Inserts or replaces it."""
        kept = replace(device, runtime=as_text(device.runtime), host=as_json(dict(device.host)), seen_at=time.time())
        with self._lock:
            self._devices[device.name] = kept

    def devices(self) -> list[DeviceRecord]:
        """All, by name."""
        with self._lock:
            return [copy.deepcopy(self._devices[name]) for name in sorted(self._devices)]

    def forget_device(self, name: str) -> bool:
        """Drops it."""
        with self._lock:
            return self._devices.pop(name, None) is not None
