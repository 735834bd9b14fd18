"""What looks at a ledger tell: indexes, rates, restarts, a gateway that is lost, functions."""

from __future__ import annotations

import json

import pytest

from tallybus.cli.top import METRICS_HINT
from tallybus.common.stages import SERVICES
from tallybus.common.view.pipeline import HISTORY, PipelineView
from tallybus.pipeline import PipelineIndex
from tests.support.looks import (
    drawn,
    function,
    lost,
    metrics,
    replaced,
    row,
    sample,
    service,
    shown,
)

# -- stages ----------------------------------------------------------------------------------------


def test_indexes_gaps_and_rates_come_from_the_indexes_of_two_samples() -> None:
    report = shown(sample(10, 50), sample(12, 250))
    assert [(each.index, each.behind, each.tx_per_s) for each in report.stages] == [
        (50, None, None),  # the gateway's own, as its service tells
        (254, None, 100),
        (252, 2, 100),
        (250, 2, 100),
        (248, 2, 100),
    ]
    assert (report.tx_per_s, report.in_flight, report.interval_s) == (100, 4, 2)


def test_the_first_sample_has_no_rates() -> None:
    report = shown(sample(10))
    assert (report.tx_per_s, report.interval_s) == (None, None)
    assert row(report, "wal").index == 50


def test_an_index_that_went_back_has_no_rate() -> None:
    before = sample(1, 50)
    after = sample(2, index=PipelineIndex(40, 60, 60, 60, 2))
    report = shown(before, after)
    assert row(report, "sequencer").tx_per_s is None
    assert row(report, "wal").tx_per_s == 10
    assert (report.term, report.terms_seen) == (2, 2)


def test_a_service_that_was_not_heard_for_long_is_down() -> None:
    report = shown(sample(1, services=replaced("wal", heard_ms=2001)))
    assert row(report, "wal").state == "down"
    assert row(report, "wal").last_word_s == pytest.approx(2.001)
    assert row(report, "wal").uptime_s is None
    assert {each.state for each in report.stages if each.stage != "wal"} == {"up"}
    assert row(report, "sequencer").uptime_s == pytest.approx(91)


def test_a_service_that_was_never_heard_is_down() -> None:
    services = tuple(service(stage) for stage in SERVICES if stage != "snapshotter")
    report = shown(sample(1, services=services))
    found = row(report, "snapshotter")
    assert (found.state, found.index, found.last_word_s) == ("down", 48, None)
    assert "never" in drawn(report)


def test_a_new_incarnation_is_one_restart_though_its_pid_is_told_later() -> None:
    steps = [{}, {"incarnation": 8, "pid": 0}, {"incarnation": 8, "pid": 101}, {}]
    view = PipelineView(METRICS_HINT)
    seen = [
        row(view.add(sample(at, services=replaced("wal", **step))), "wal").restarts
        for at, step in enumerate(steps)
    ]
    assert seen == [0, 1, 1, 2]


def test_another_pid_is_a_restart() -> None:
    report = shown(sample(1), sample(2, services=replaced("gateway", pid=101)))
    assert [each.restarts for each in report.stages] == [1, 0, 0, 0, 0]


# -- a lost gateway --------------------------------------------------------------------------------


def test_a_lost_gateway_is_shown_with_what_was_told_last() -> None:
    report = shown(sample(1), sample(2, 60), lost(5))
    assert (report.answers, report.error, report.lost_s) == (False, "no answer", 3)
    assert [each.state for each in report.stages] == ["down", *["unknown"] * 4]
    assert (row(report, "wal").index, report.tx_per_s) == (60, None)
    assert row(report, "wal").last_word_s == pytest.approx(3.04)
    text = drawn(report)
    assert "the gateway does not answer, for 3.0 s: no answer" in text
    assert "what was told last" in text


def test_the_view_goes_on_when_the_gateway_is_back() -> None:
    view = PipelineView(METRICS_HINT)
    for each in (sample(0, 100), sample(1, 200), lost(2), lost(3)):
        view.add(each)
    report = view.add(sample(6, 700, services=replaced("gateway", incarnation=8)))
    assert (report.answers, report.lost_s, report.error) == (True, None, None)
    assert report.tx_per_s == 100  # the mean since it answered last
    assert list(view.history) == [None, 100, None, None, 100]
    assert row(report, "gateway").restarts == 1


def test_a_ledger_that_never_answered_is_shown_too() -> None:
    report = shown(lost(1), lost(4))
    assert (report.lost_s, report.term, report.functions) == (3, None, None)
    assert "does not answer" in drawn(report)
    json.dumps(report.as_json())


def test_the_history_is_bounded() -> None:
    view = PipelineView(METRICS_HINT)
    for at in range(HISTORY + 10):
        view.add(sample(at, at))
    assert list(view.history) == [1.0] * HISTORY


# -- functions -------------------------------------------------------------------------------------


def test_functions_have_calls_per_second_failures_and_fuel() -> None:
    report = shown(sample(1, functions=(function(10),)), sample(3, functions=(function(30),)))
    assert report.functions is not None
    (found,) = report.functions
    assert (found.calls, found.calls_per_s, found.fuel_total, found.fuel_mean) == (30, 10, 840, 28)
    assert found.failures == {"INSUFFICIENT_FUNDS": 2, "FUNCTION_130": 1}
    assert "INSUFFICIENT_FUNDS 2, FUNCTION_130 1" in drawn(report)


def test_a_count_of_calls_that_went_back_began_at_nothing() -> None:
    report = shown(sample(1, functions=(function(500),)), sample(3, functions=(function(30),)))
    assert report.functions is not None
    assert report.functions[0].calls_per_s == 15


def test_functions_that_cannot_be_read_are_as_they_were_and_say_why() -> None:
    gone = sample(2, functions=None, functions_error="the transactor is down")
    report = shown(sample(1, functions=(function(10),)), gone)
    assert report.functions is not None
    assert report.functions[0].calls == 10
    assert "not read: the transactor is down" in drawn(report)


def test_a_lost_gateway_leaves_the_states_to_the_metrics() -> None:
    report = shown(sample(1), lost(2, metrics=metrics(2) | {"gateway": "timed out"}))
    assert {each.stage: each.state for each in report.stages} == {
        "gateway": "down",
        "sequencer": "unknown",
        "transactor": "not ready",
        "wal": "up",
        "snapshotter": "up",
    }


def test_without_metrics_the_view_says_what_to_switch_on() -> None:
    report = shown(sample(1))
    assert (report.metrics, report.metrics_hint) == (None, METRICS_HINT)
    assert METRICS_HINT in drawn(report)
