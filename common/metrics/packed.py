"""A service's metrics as they travel on the bus, to the gateway that shows them on its page.

Packed by each service and unpacked by the page's thread; what lies between takes it for bytes.
A msgpack list with one item for each value: name, labels (a map), and a number, or for a histogram
a list of upper bounds (the last is left out, it is infinite), counts up to each of them, and the
sum. Pure, and whatever is unpacked may be garbage: that raises ValueError.
ADR 0014 says why they travel so, and not as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgpack

from tallybus.common.buffers import Buffer
from tallybus.common.metrics.counters import Histogram, Sample
from tallybus.common.metrics.table import METRICS
from tallybus.common.view.scrape import Scrape

Rows = list[tuple[Mapping[str, str], float]]


def pack(samples: Iterable[Sample]) -> bytes:
    """The samples of one service."""
    rows = []
    for name, value, labels in samples:
        named = dict(zip(METRICS[name].labels, labels, strict=True))
        rows.append((name, named, _histogram(value) if isinstance(value, Histogram) else value))
    packed: bytes = msgpack.packb(rows)
    return packed


def _histogram(value: Histogram) -> list[Any]:
    buckets = value.buckets()
    bounds = [bound for bound, _ in buckets[:-1]]
    return [bounds, [count for _, count in buckets], value.sum]


def unpack(data: Buffer, at_s: float) -> Scrape:
    """What was packed, as of `at_s`, with the names that Prometheus text has: a histogram's counts
    are `NAME_bucket`, `NAME_count` and `NAME_sum`. Raises ValueError.
    """
    values: dict[str, Rows] = {}
    try:
        for name, labels, value in msgpack.unpackb(data):
            for label, text in labels.items():
                if not isinstance(label, str) or not isinstance(text, str):
                    raise ValueError(f"label {label!r} of {name!r} is {text!r}")
            if isinstance(value, list):
                _take_histogram(values, name, labels, *value)
            else:
                values.setdefault(_name(name), []).append((labels, _number(value)))
    except (
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        msgpack.UnpackException,
    ) as error:
        raise ValueError(f"these are no metrics: {error or type(error).__name__}") from error
    return Scrape(at_s, values)


def _take_histogram(
    values: dict[str, Rows],
    name: object,
    labels: dict[str, str],
    bounds: list[object],
    counts: list[object],
    total: object,
) -> None:
    name = _name(name)
    texts = [*(repr(float(_number(bound))) for bound in bounds), "+Inf"]
    rows = values.setdefault(f"{name}_bucket", [])
    for bound, count in zip(texts, counts, strict=True):
        rows.append(({**labels, "le": bound}, _number(count)))
    values.setdefault(f"{name}_count", []).append((labels, _number(counts[-1])))
    values.setdefault(f"{name}_sum", []).append((labels, _number(total)))


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a metric is called {value!r}")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"a value is {value!r}")
    assert isinstance(value, int | float)
    return value
