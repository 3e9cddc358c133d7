"""The SQL ledger's part about who does the work: what the workers can do, and the devices that measure."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sqlalchemy import delete, select, update

from stillhouse.search.devices import DeviceRecord
from stillhouse.search.domain import Json
from stillhouse.service.db.records import as_json, as_text, device_record, with_devices
from stillhouse.service.db.sessions import Sessions, insert_new, rows_changed
from stillhouse.service.db.tables import CatalogueRow, DeviceRow

_CATALOGUE_ID = 1


class OfferTables:
    """Catalogue and devices; see ``stillhouse.search.ports.Ledger`` for what each method promises."""

    _sessions: Sessions

    def publish_catalogue(self, data: Mapping[str, Json]) -> None:
        """Replaces the catalogue."""
        values = {"data": as_json(dict(data)), "published_at": time.time()}
        with self._sessions.write() as session:
            if not insert_new(session, CatalogueRow, values | {"id": _CATALOGUE_ID}):
                session.execute(update(CatalogueRow).where(CatalogueRow.id == _CATALOGUE_ID).values(**values))

    def catalogue(self) -> Mapping[str, Json] | None:
        """The catalogue last published, with the devices."""
        with self._sessions.read() as session:
            row = session.get(CatalogueRow, _CATALOGUE_ID)
            devices = [device_record(device) for device in session.scalars(select(DeviceRow))]
            return None if row is None else with_devices(row.data, devices)

    def see_device(self, device: DeviceRecord) -> None:
        """Inserts or replaces it."""
        values: dict[str, Json] = {
            "runtime": as_text(device.runtime),
            "measure": device.measure,
            "host": as_json(dict(device.host)),
            "seen_at": time.time(),
        }
        with self._sessions.write() as session:
            if not insert_new(session, DeviceRow, values | {"name": device.name}):
                session.execute(update(DeviceRow).where(DeviceRow.name == device.name).values(**values))

    def devices(self) -> list[DeviceRecord]:
        """All, by name."""
        with self._sessions.read() as session:
            return [device_record(row) for row in session.scalars(select(DeviceRow).order_by(DeviceRow.name))]

    def forget_device(self, name: str) -> bool:
        """Deletes its row."""
        with self._sessions.write() as session:
            return rows_changed(session, delete(DeviceRow).where(DeviceRow.name == name)) == 1
