"""A service's numbers as they travel to the gateway's page: what is packed is what a scrape has."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.metrics.counters import Histogram, Sample
from tallybus.common.metrics.packed import pack, unpack
from tallybus.common.view.scrape import parse


def histogram() -> Histogram:
    found = Histogram((1_000_000, 2_000_000), 1_000_000_000)
    for value in (500_000, 1_500_000, 1_500_000, 9_000_000):
        found.observe(value)
    return found


def test_what_is_packed_is_what_the_text_would_say() -> None:
    samples = [
        Sample("tallybus_ready", 1),
        Sample("tallybus_requests_total", 7, ("submit", "ok")),
        Sample("tallybus_requests_total", 2, ("submit", "timeout")),
        Sample("tallybus_request_seconds", histogram(), ("committed",)),
    ]
    text = (
        "tallybus_ready 1.0\n"
        'tallybus_requests_total{type="submit",outcome="ok"} 7.0\n'
        'tallybus_requests_total{type="submit",outcome="timeout"} 2.0\n'
        'tallybus_request_seconds_bucket{level="committed",le="0.001"} 1.0\n'
        'tallybus_request_seconds_bucket{level="committed",le="0.002"} 3.0\n'
        'tallybus_request_seconds_bucket{level="committed",le="+Inf"} 4.0\n'
        'tallybus_request_seconds_count{level="committed"} 4.0\n'
        'tallybus_request_seconds_sum{level="committed"} 0.0125\n'
    )
    assert unpack(pack(samples), 5.0) == parse(text, 5.0)


def test_whole_numbers_stay_exact() -> None:
    found = unpack(pack([Sample("tallybus_index", 2**63 + 1)]), 0.0)
    assert found.whole("tallybus_index") == 2**63 + 1


@pytest.mark.parametrize(
    "rows",
    [
        None,
        7,
        [7],
        [["tallybus_x", {}]],
        [[7, {}, 1]],
        [["tallybus_x", [], 1]],
        [["tallybus_x", {"a": 1}, 1]],
        [["tallybus_x", {}, "1"]],
        [["tallybus_x", {}, True]],
        [["tallybus_x", {}, None]],
        [["tallybus_x", {}, [[1.0], [1], 1]]],
        [["tallybus_x", {}, [[1.0], [1, 2]]]],
        [["tallybus_x", {}, [["a"], [1, 2], 1]]],
        [["tallybus_x", {}, [[], [], 1]]],
    ],
)
def test_what_are_no_metrics_is_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="these are no metrics"):
        unpack(msgpack.packb(rows), 0.0)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read(data: bytes) -> None:
    try:
        unpack(data, 0.0)
    except ValueError:
        return
