"""Bytes per picture between and beyond what was measured."""

import pytest

from stillhouse.search.curve import ByteCurve
from stillhouse.search.domain import Size
from stillhouse.search.errors import DatasetError


def row(side, mean, quality=90, fit="squash", codec="jpeg"):
    return {"fit": fit, "size": f"{side}x{side}", "codec": codec, "quality": quality, "mean_bytes": mean}


MEASURED = [row(32, 400.0), row(64, 1600.0), row(128, 6400.0)]


def test_bytes_lie_on_a_power_law_between_and_beyond_measured_sizes():
    curve = ByteCurve(MEASURED, fit="squash", codec="jpeg", quality=90)
    assert curve.bytes(Size(48, 48)) == pytest.approx(400 * 48**2 / 32**2)
    assert curve.bytes(Size(256, 256)) == pytest.approx(25600)
    assert curve.bytes(Size(16, 16)) == pytest.approx(100)
    assert [curve.extrapolated(Size(n, n)) for n in (31, 32, 128, 129)] == [True, False, False, True]


def test_bytes_between_qualities_are_linear_in_log_bytes():
    rows = [row(32, 100.0, 50), row(32, 400.0, 90), row(64, 300.0, 50), row(64, 1200.0, 90)]
    rows += [row(32, 9.0, 50, fit="crop"), row(64, 9.0, 90, codec="webp")]
    assert ByteCurve(rows, fit="squash", codec="jpeg", quality=70).bytes(Size(32, 32)) == pytest.approx(200)
    assert ByteCurve(rows, fit="squash", codec="jpeg", quality=90).bytes(Size(64, 64)) == pytest.approx(1200)


def test_one_measured_size_tells_no_other():
    curve = ByteCurve([row(32, 100.0)], fit="squash", codec="jpeg", quality=90)
    assert curve.bytes(Size(32, 32)) == pytest.approx(100)
    with pytest.raises(DatasetError, match="one size only, which does not tell 64x64"):
        curve.bytes(Size(64, 64))
