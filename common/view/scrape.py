"""One look at a service's numbers: its metrics by name, from Prometheus text or from the bus.

Pure: reads no clock and no socket. What a service does not tell (it recovers, or is another
version) is None, never a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_PREFIX: Final = "tallybus_"
_LINE: Final = re.compile(r"(\w+)(?:\{(.*)\})?\s+(\S+)", re.ASCII)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"', re.ASCII)
_ESCAPED: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Scrape:
    """One service's numbers at the time `at_s` (seconds of a monotonic clock).

    `values` has the samples of every metric as pairs of labels and value.
    """

    at_s: float
    values: Mapping[str, list[tuple[Mapping[str, str], float]]]

    def one(self, name: str) -> float | None:
        """The value of a metric without labels of its own; None if it is not told."""
        rows = self.values.get(name)
        return rows[0][1] if rows else None

    def whole(self, name: str) -> int | None:
        """The same as a whole number."""
        value = self.one(name)
        return int(value) if value is not None and math.isfinite(value) else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums of a metric by one of its labels, in the order told."""
        sums: dict[str, float] = {}
        for labels, value in self.values.get(name, ()):
            key = labels.get(label, "")
            sums[key] = sums.get(key, 0.0) + value
        return sums


def parse(text: str, at_s: float) -> Scrape:
    """Our own metrics from Prometheus text. Lines that are none are passed over."""
    values: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for line in text.splitlines():
        match = _LINE.match(line) if line.startswith(_PREFIX) else None
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        labels = {
            name: _ESCAPED.sub(lambda each: "\n" if each[1] == "n" else each[1], text)
            for name, text in _LABEL.findall(match[2] or "")
        }
        values.setdefault(match[1], []).append((labels, value))
    return Scrape(at_s, values)
