"""The one check of names and knobs that every door uses."""

import dataclasses

import pytest

from stillhouse.search.check import check_request
from stillhouse.search.errors import UnknownNameError, UserError
from stillhouse.search.job import JobSpec

CATALOGUE = {
    "tasks": ["classification"],
    "names": ["resnet18", "lcnet_050"],
    "image_sizes": ["32x32"],
    "archs": {
        "lcnet_050": {
            "family": "cnn",
            "stems": ["stock"],
            "head_features": 8,
            "head_bias": True,
            "cells": {"32x32|stock": {"macs": 1000, "params": 100}},
        }
    },
    "methods": {
        "pixel": {
            "teacher": True,
            "assistant": False,
            "knobs": [
                {"name": "gamma", "type": "float", "default": 10.0, "low": 0.0, "high": 1000.0},
                {"name": "free", "type": "str", "default": "x", "low": None, "high": None},
            ],
        }
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


@pytest.mark.parametrize("value", [-1.0, 1001, "much", True])
def test_a_knob_out_of_range_says_the_range_and_what_came(value: object) -> None:
    with pytest.raises(UserError, match=r"knob gamma of method pixel.*but got|must hold for knob gamma") as caught:
        check_request(CATALOGUE, dataclasses.replace(GOOD, knobs={"gamma": value}))
    assert repr(value) in str(caught.value)
