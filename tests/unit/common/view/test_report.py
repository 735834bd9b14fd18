"""What the services' metrics tell: latencies, failures, the segment, and what is missing."""

from __future__ import annotations

import inspect
import re

import pytest

from tallybus.common.metrics.table import METRICS
from tallybus.common.stages import SERVICES
from tallybus.common.view import pipeline as pipeline_view
from tallybus.common.view import report as report_view
from tallybus.common.view.report import SegmentRow, latencies, quantile, rate
from tallybus.common.view.scrape import parse
from tests.support.looks import GATEWAY, drawn, measured, metrics, row, sample, shown


def test_latency_is_of_the_requests_between_two_scrapes() -> None:
    found = measured().metrics
    assert found is not None
    committed, read = found.latency
    # Of 100 new ones 60 took up to 1 ms, 40 up to 2 ms.
    assert (committed.level, committed.per_s) == ("committed", 50)
    assert committed.p50_ms == pytest.approx(1000 * 0.001 * 50 / 60)
    assert committed.p99_ms == pytest.approx(1 + 39 / 40)
    assert (read.level, read.per_s, read.p50_ms, read.p99_ms) == ("read", 0, None, None)


def test_failures_are_by_reason_the_busiest_first() -> None:
    found = measured().metrics
    assert found is not None
    assert [(each.what, each.reason, each.total, each.per_s) for each in found.failures] == [
        ("transaction", "duplicate", 31, 10),
        ("request", "overloaded", 5, 0),
    ]


def test_the_segment_tells_when_it_is_full() -> None:
    found = measured().metrics
    assert found is not None
    assert found.segment == SegmentRow(4, 250_000, 1_000_000, 10.0, 3, True)


def test_the_metrics_tell_who_is_not_ready_and_what_is_in_flight() -> None:
    report = measured()
    assert row(report, "transactor").state == "not ready"
    assert (row(report, "gateway").in_flight, row(report, "gateway").max_in_flight) == (3, 10)
    assert row(report, "sequencer").in_flight is None
    text = drawn(report)
    assert "5 (50%)" in text
    assert "250,000 of 1,000,000 (25.0%), full in 10.0 s; last snapshot: 3, writing one" in text
    assert "no metrics: sequencer: 127.0.0.1:1: refused" in text


def test_numbers_of_an_earlier_scrape_are_not_shown_as_new() -> None:
    gone = dict.fromkeys(SERVICES, "refused")
    report = shown(sample(1, metrics=metrics(1, failed=3)), sample(2, metrics=gone))
    assert report.metrics is not None
    assert (report.metrics.latency, report.metrics.failures, report.metrics.segment) == (
        [],
        [],
        None,
    )
    text = drawn(report)
    assert "the gateway's metrics: does not answer" in text
    assert "the wal's metrics: does not answer" in text


def test_counters_that_went_back_count_from_nothing() -> None:
    before = parse(GATEWAY.replace("{fast}", "100").replace("{all}", "500"), 1)
    now = parse(GATEWAY.replace("{fast}", "20").replace("{all}", "20"), 2)
    assert latencies(now, before)[0].per_s == 20
    assert rate(20, 500, 2) == 10
    assert rate(20, 10, 0) is None
    assert rate(20, None, 1) is None


@pytest.mark.parametrize(
    ("share", "buckets", "expected"),
    [
        (0.5, [], None),
        (0.5, [(1.0, 0), (float("inf"), 0)], None),
        (0.5, [(1.0, 10), (float("inf"), 10)], 500),
        (0.99, [(1.0, 0), (2.0, 0), (float("inf"), 5)], 2000),
        (0.75, [(1.0, 50), (3.0, 100), (float("inf"), 100)], 2000),
    ],
)
def test_quantiles(share: float, buckets: list[tuple[float, float]], expected: float) -> None:
    assert quantile(share, buckets) == expected


def test_every_metric_that_is_read_exists() -> None:
    source = inspect.getsource(pipeline_view) + inspect.getsource(report_view)
    names = set(re.findall(r'"(tallybus_\w+)"', source)) - {"tallybus_"}
    assert len(names) >= 10
    assert {name.removesuffix("_bucket") for name in names} <= set(METRICS)
