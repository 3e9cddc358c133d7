"""Bytes per picture at every size and quality, from those that were measured on the user's own pictures.

Bytes between two measured sizes are read off a straight line in log bytes over log pixels (payload
grows like a power of the pixels), between two measured qualities in log bytes over quality. Beyond
the measured range the last piece is prolonged, and ``extrapolated`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from stillhouse.search.domain import Json, Size
from stillhouse.search.errors import DatasetError


class ByteCurve:
    """Mean bytes per picture over image size, for one fit, codec, quality and colour.

    Args:
        rows: Measured ``{colour, fit, size, codec, quality, mean_bytes}``; rows without a colour are of ``rgb``.
        fit, codec, quality, colour: What the device does.

    Raises:
        DatasetError: No such rows, or a quality that one measured quality cannot tell.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Json]], *, fit: str, codec: str, quality: int, colour: str = "rgb"
    ) -> None:
        measured: dict[Size, dict[float, float]] = {}
        for row in rows:
            if (row.get("colour", "rgb"), row["fit"], row["codec"]) == (colour, fit, codec):
                measured.setdefault(Size.parse(row["size"]), {})[float(row["quality"])] = math.log(row["mean_bytes"])
        if not measured:
            raise DatasetError(
                f"bytes per picture were not measured for {colour}, fit {fit} and codec {codec} on this data set; "
                "ingest it again, or choose another colour, fit or codec"
            )
        self._points: dict[float, float] = {}
        for size, by_quality in sorted(measured.items()):
            if len(by_quality) == 1 and quality not in by_quality:
                only = next(iter(by_quality))
                raise DatasetError(
                    f"bytes per picture at {size} were measured at {codec} quality {only:g} only, which does not "
                    f"tell quality {quality}; choose quality {only:g}, or ingest the data set again"
                )
            self._points.setdefault(math.log(size.pixels), _line(quality, by_quality))

    def bytes(self, size: Size) -> float:
        """Mean bytes of a picture of this size.

        Raises:
            DatasetError: Another size than the only one measured.
        """
        at = math.log(size.pixels)
        if len(self._points) == 1 and at not in self._points:
            raise DatasetError(
                f"bytes per picture were measured at one size only, which does not tell {size}; "
                "ingest the data set again"
            )
        return math.exp(_line(at, self._points))

    def extrapolated(self, size: Size) -> bool:
        """True outside the measured sizes."""
        return not min(self._points) <= math.log(size.pixels) <= max(self._points)


# ---------------------------------------------------------------------------------------- helpers


def _line(at: float, points: Mapping[float, float]) -> float:
    """Piecewise linear through the points (two at least, unless ``at`` is one); the end pieces go on."""
    if at in points:
        return points[at]
    places = sorted(points)
    right = min(max(1, sum(place < at for place in places)), len(places) - 1)
    low, high = places[right - 1], places[right]
    return points[low] + (points[high] - points[low]) * (at - low) / (high - low)
