"""Devices in every ledger: what ``stillhouse.search.ports.Ledger`` promises of them."""

import dataclasses
import time

from stillhouse.search.devices import DeviceRecord
from stillhouse.search.ports import Ledger

CAM = DeviceRecord("gate-cam", "onnxruntime 1.22.0", "d1", {"cpu": "Cortex-A53", "cores": 4, "machine": "aarch64"})


def test_devices_are_kept_as_they_last_announced_themselves(ledger: Ledger) -> None:
    assert ledger.devices() == []
    before = time.time()
    ledger.see_device(CAM)
    ledger.see_device(dataclasses.replace(CAM, name="a-phone"))
    newer = dataclasses.replace(CAM, runtime="onnxruntime 1.23.0", host={**CAM.host, "cores": 2})
    ledger.see_device(newer)
    phone, cam = ledger.devices()
    assert (phone.name, phone.code) == ("a-phone", CAM.code)
    assert cam == dataclasses.replace(newer, seen_at=cam.seen_at)
    assert before <= phone.seen_at <= cam.seen_at <= time.time()
    assert cam.at_hand(time.time())
    assert not cam.at_hand(time.time() + 60)
    assert ledger.forget_device("a-phone")
    assert not ledger.forget_device("a-phone")
    assert [each.name for each in ledger.devices()] == ["gate-cam"]


def test_a_device_counts_as_another_one_by_what_decides_its_figures() -> None:
    others = [
        dataclasses.replace(CAM, runtime="onnxruntime 1.23.0"),
        dataclasses.replace(CAM, measure="d2"),
        *(dataclasses.replace(CAM, host={**CAM.host, name: "other"}) for name in ("cpu", "cores", "machine")),
    ]
    assert len({each.code for each in (CAM, *others)}) == 6
    assert dataclasses.replace(CAM, host={**CAM.host, "system": "Linux 7"}).code == CAM.code


def test_the_catalogue_names_the_devices(ledger: Ledger) -> None:
    ledger.see_device(CAM)
    assert ledger.catalogue() is None
    ledger.publish_catalogue({"names": ["a"]})
    assert ledger.catalogue() == {"names": ["a"], "devices": {"gate-cam": CAM.code}}
    ledger.forget_device("gate-cam")
    assert ledger.catalogue() == {"names": ["a"]}
