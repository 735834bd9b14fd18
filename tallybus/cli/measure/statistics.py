"""Percentiles of measured times."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil


def percentile(values: Sequence[int], percent: float) -> int:
    """The smallest measured value that `percent` of the values do not exceed (nearest rank).

    A value that was measured, never one in between. Raises ValueError without values.
    """
    if not len(values):
        raise ValueError("no values to take a percentile of")
    return sorted(values)[max(1, ceil(percent / 100 * len(values))) - 1]


def milliseconds(values: Sequence[int], percent: float) -> float:
    """A percentile of nanoseconds, in milliseconds to the microsecond."""
    return round(percentile(values, percent) / 1e6, 3)
