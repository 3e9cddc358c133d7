"""What a job may ask for, and that it survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stillhouse.search.domain import Budget, Fit
from stillhouse.search.errors import UserError
from stillhouse.search.job import Epochs, JobSpec

LEARNING: dict[str, Any] = {
    "ladder": (160, 96),
    "mixup": 0.5,
    "ema": 0.99,
    "schedule": "cosine",
    "codec_share": 0.25,
    "feature_cache_bytes": 1000,
    "compile": True,
}


@pytest.mark.parametrize("name", LEARNING)
def test_each_way_to_learn_survives_json(name: str) -> None:
    spec = JobSpec("ds", **{name: LEARNING[name]})
    assert spec != JobSpec("ds")
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_survives_json() -> None:
    spec = JobSpec(
        "ds", Budget(max_macs=5), classes=3, knobs={"gamma": 1.0}, epochs=Epochs(1, 2, 3), fit=Fit.CROP,
        objectives=("latency_ms",), archs=("a", "b"), image_sizes=("32x32",), ablate=True, **LEARNING,
    )  # fmt: skip
    again = JobSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert isinstance(again.ladder, tuple)


@pytest.mark.parametrize(
    "changes",
    [
        {"ladder": (191,)},
        {"ladder": (96, 64, 33)},
        {"teacher_size": 96, "ladder": (64,)},
        {"mixup": 0.0},
        {"mixup": 1.0},
        {"ema": 0.0},
        {"ema": 0.9999},
        {"codec_share": 0.0},
        {"codec_share": 1.0},
        {"feature_cache_bytes": 0},
        {"schedule": "one_cycle"},
    ],
)
def test_what_can_be_asked_for(changes: dict[str, Any]) -> None:
    spec = JobSpec("ds", **changes)
    assert all(getattr(spec, name) == value for name, value in changes.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ladder": (192,)}, r"ladder must fall from below teacher_size, 192, but got \(192,\)"),
        ({"ladder": (200, 96)}, "ladder must fall"),
        ({"ladder": (96, 96)}, "ladder must fall"),
        ({"ladder": (64, 96)}, "ladder must fall"),
        ({"teacher_size": 64, "ladder": (96,)}, "ladder must fall from below teacher_size, 64"),
        ({"ladder": (96, 0)}, "every side of ladder must be >= 1"),
        ({"ladder": (96, -32)}, "every side of ladder"),
        ({"mixup": -0.1}, "0 <= mixup <= 1 must hold, but got -0.1"),
        ({"mixup": 1.1}, "0 <= mixup <= 1 must hold"),
        ({"mixup": float("nan")}, "mixup"),
        ({"ema": 1.0}, "0 <= ema < 1 must hold, but got 1.0"),
        ({"ema": -0.5}, "0 <= ema < 1 must hold"),
        ({"ema": float("nan")}, "ema"),
        ({"schedule": "linear"}, "schedule must be one_cycle or cosine, but got 'linear'"),
        ({"codec_share": 2}, "0 <= codec_share <= 1 must hold, but got 2"),
        ({"codec_share": -1}, "0 <= codec_share <= 1 must hold"),
        ({"feature_cache_bytes": -1}, "feature_cache_bytes must be >= 0, but got -1"),
        ({"trials": 0}, "trials must be >= 1"),
        ({"views": 0}, "views must be >= 1"),
        ({"seed": -1}, "0 <= seed"),
        ({"teacher_size": 16}, "32 <= teacher_size <= 512"),
        ({"classes": 1}, "classes must be >= 2"),
        ({"codec": "png"}, "codec must be jpeg or webp"),
        ({"colour": "gray"}, "unknown colour 'gray'; did you mean grey"),
        ({"quality": 0}, "1 <= quality <= 100"),
        ({"ablate": "some"}, "ablate must be"),
        ({"latency_threads": 0}, "1 <= latency_threads <= 64"),
        ({"objectives": ()}, "at least one cost objective"),
    ],
)
def test_what_cannot_be_asked_for(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        JobSpec("ds", **changes)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        *((name, name) for name in ("none", "best", "all")),
        *((True, "all"), (False, "none"), ("true", "all"), ("false", "none")),
    ],
)
def test_ablate_is_kept_as_a_word(given: bool | str, kept: str) -> None:
    spec = JobSpec("ds", ablate=given)
    assert spec.ablate == spec.to_json()["ablate"] == kept
    assert JobSpec.from_json(spec.to_json() | {"ablate": given}) == spec


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": ("mac",)}, "unknown cost objective 'mac'"),
        ({"budget": Budget(device="my phone")}, "device's name must have .* but got 'my phone'"),
        ({"budget": Budget(device="")}, "device's name must have"),
    ],
)
def test_names_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        JobSpec("ds", **changes)
