"""The one check of names and knobs that every door uses."""

import dataclasses

import pytest

from stillhouse.search.check import check_request
from stillhouse.search.domain import Budget
from stillhouse.search.errors import UnknownNameError, UserError
from stillhouse.search.job import JobSpec

CATALOGUE = {
    "tasks": ["classification"],
    "names": ["resnet18", "lcnet_050", "a_vit"],
    "image_sizes": ["32x32"],
    "archs": {
        "lcnet_050": {
            "family": "cnn",
            "stems": ["stock"],
            "macs_per_class": 8,
            "params_per_class": 9,
            "cells": {"32x32|stock": {"macs": 1000, "params": 100}},
        },
        "a_vit": {
            "family": "vit",
            "stems": ["stock", "half_patch"],
            "macs_per_class": 8,
            "params_per_class": 9,
            "cells": {
                f"{side}x{side}|{stem}": {"macs": 1000, "params": 100}
                for side, stem in ((32, "stock"), (48, "stock"), (56, "half_patch"))
            },
        },
    },
    "methods": {
        "pixel": {
            "teacher": True,
            "assistant": False,
            "knobs": [
                {"name": "gamma", "type": "float", "default": 10.0, "low": 0.0, "high": 1000.0},
                {"name": "free", "type": "str", "default": "x", "low": None, "high": None},
            ],
        },
        "tas": {"teacher": True, "assistant": True, "knobs": []},
    },
}
GOOD = JobSpec("ds", method="pixel", teacher="resnet18", archs=("lcnet_050",), knobs={"gamma": 5, "free": "y"})


def test_a_good_request_passes() -> None:
    check_request(CATALOGUE, GOOD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "resnet19"}, "unknown .*'resnet19'; did you mean resnet18"),
        ({"archs": ("lcnet_051",)}, "unknown .*'lcnet_051'; did you mean lcnet_050"),
        ({"task": "classify"}, "unknown task 'classify'; did you mean classification"),
        ({"method": "pixels"}, "unknown method 'pixels'; did you mean pixel"),
        ({"knobs": {"gama": 1.0}}, "unknown knob of method pixel 'gama'; did you mean gamma"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        check_request(CATALOGUE, dataclasses.replace(GOOD, **changes))


def test_a_device_is_known_once_it_announced_itself() -> None:
    wanted = dataclasses.replace(GOOD, budget=Budget(device="gate-cam"))
    check_request(CATALOGUE | {"devices": {"gate-cam": "1"}}, wanted)
    for known in ({}, {"devices": {"phone": "1"}}):
        with pytest.raises(UserError, match=r"unknown device 'gate-cam'; known: local.*agent URL --name gate-cam"):
            check_request(CATALOGUE | known, wanted)


@pytest.mark.parametrize("value", [-1.0, 1001, "much", True])
def test_a_knob_out_of_range_says_the_range_and_what_came(value: object) -> None:
    with pytest.raises(UserError, match=r"knob gamma of method pixel.*but got|must hold for knob gamma") as caught:
        check_request(CATALOGUE, dataclasses.replace(GOOD, knobs={"gamma": value}))
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"archs": ("a_vit",), "teacher_size": 200},
            "teacher_size must be a multiple of 16.*a_vit.*got 200; take 192 or 208",
        ),
        ({"archs": (), "teacher_size": 200}, "teacher_size must be a multiple of 16"),
        ({"archs": ("a_vit",), "ladder": (96, 56)}, "a side of ladder must be a multiple of 16.*got 56; take 48 or 64"),
        ({"archs": ("a_vit",), "ladder": (96, 7)}, "got 7; take 16,"),
        ({"teacher": "a_vit", "teacher_size": 200, "method": "pixel"}, "teacher_size must be a multiple of 16"),
    ],
)
def test_pictures_that_a_patch_does_not_divide_are_told_before_any_work(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_request(
            CATALOGUE, dataclasses.replace(JobSpec("ds", teacher="resnet18", archs=("lcnet_050",)), **changes)
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"archs": ("a_vit",), "ladder": (96, 48)},
        {"archs": ("lcnet_050",), "teacher_size": 200, "ladder": (97,)},
        {"archs": ("a_vit",), "teacher_size": 200, "method": "pixel"},
    ],
)
def test_sides_that_fit_pass(changes: dict[str, object]) -> None:
    check_request(CATALOGUE, dataclasses.replace(JobSpec("ds", teacher="resnet18"), **changes))


def test_a_network_that_reads_colours_only_is_refused_for_grey() -> None:
    with pytest.raises(UserError, match="costs of lcnet_050 must be known for grey pictures"):
        check_request(CATALOGUE, dataclasses.replace(GOOD, colour="grey"))
    check_request(CATALOGUE, dataclasses.replace(GOOD, colour="grey", archs=()))
