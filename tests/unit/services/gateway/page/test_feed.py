"""The page's reports: what a gateway has heard in, what a browser is told out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tallybus.common.bus.messages import StageMetrics
from tallybus.common.metrics.counters import Sample, times
from tallybus.common.metrics.packed import pack
from tallybus.common.stages import SERVICES
from tallybus.common.view.pipeline import HISTORY, SILENT_MS, Report
from tallybus.services.gateway.page.feed import STALE_NS, Feed, Heard, Index, Service, as_services

UNIX_NS = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
FACTS = {"version": "1.2.3", "endpoint": "tcp://x", "max_accounts": 10}


def service(stage: str, **changes: Any) -> Service:
    facts: dict[str, Any] = {
        "stage": stage,
        "pid": 100,
        "incarnation": 7,
        "term": 1,
        "index": 50,
        "next": 51,
        "durable": 50,
        "retained": 5,
        "started_ns": UNIX_NS - 90 * SECOND,
        "heard_ms": 40,
        "cpu": "",
        "wait": "balanced",
    }
    return Service(**(facts | changes))


def told(stage: str, at: float, *samples: Sample, **changes: Any) -> tuple[StageMetrics, int]:
    """The metrics of a stage, told and heard at that second."""
    facts: dict[str, Any] = {"incarnation": 7, "time": UNIX_NS + int(at * SECOND), "reasons": []}
    ready = Sample("tallybus_ready", int(not changes.get("reasons")))
    message = StageMetrics(stage=stage, samples=pack((ready, *samples)), **(facts | changes))
    return message, int(at * SECOND)


def heard(at: float, committed: int = 50, **changes: Any) -> Heard:
    """What is known of a ledger that is well, two transactions behind at each stage."""
    facts: dict[str, Any] = {
        "index": Index(committed + 4, committed + 2, committed, committed - 2, 1),
        "services": tuple(map(service, SERVICES)),
        "metrics": {stage: told(stage, at) for stage in SERVICES},
    }
    return Heard(int(at * SECOND), UNIX_NS + int(at * SECOND), **(facts | changes))


def shown(*looks: Heard) -> dict[str, Any]:
    feed = Feed(FACTS)
    report: dict[str, Any] = {}
    for each in looks:
        report = feed.add(each)
    json.dumps(report, allow_nan=False)
    return report


def row(report: dict[str, Any], stage: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in report["stages"] if each["stage"] == stage)
    return found


def but(stage: str, **changes: Any) -> tuple[Service, ...]:
    """The services, one of them with other facts."""
    return tuple(service(each, **(changes if each == stage else {})) for each in SERVICES)


def states(report: dict[str, Any]) -> dict[str, str]:
    return {each["stage"]: each["state"] for each in report["stages"]}


def test_a_report_is_that_of_top_with_facts_of_the_page() -> None:
    report = shown(heard(1), heard(2, 250))
    assert set(report) == {
        *Report.__dataclass_fields__,
        *FACTS,
        "history",
        "not_ready",
    }
    assert (report["answers"], report["error"], report["version"]) == (True, None, "1.2.3")
    assert set(states(report).values()) == {"up"}
    assert [each["index"] for each in report["stages"]] == [50, 254, 252, 250, 248]
    assert [each["behind"] for each in report["stages"]] == [None, None, 2, 2, 2]
    assert (report["tx_per_s"], report["history"]) == (200, [None, 200])
    assert (report["metrics"]["unreachable"], report["metrics_hint"]) == ({}, None)
    assert report["not_ready"] == {}


def test_the_history_is_bounded_and_ends_with_the_present_rate() -> None:
    report = shown(*(heard(at, at * at) for at in range(1, HISTORY + 5)))
    assert len(report["history"]) == HISTORY
    assert report["history"][-1] == report["tx_per_s"]


def test_what_was_never_heard_is_not_known() -> None:
    services = tuple(service(stage) for stage in SERVICES if stage != "wal")
    metrics = {stage: told(stage, 1) for stage in SERVICES if stage != "wal"}
    report = shown(
        heard(1, services=services, metrics=metrics, index=Index(9, 9, None, 3, None)),
        heard(2, services=services, metrics=metrics, index=Index(19, 9, None, 3, None)),
    )
    assert (row(report, "wal")["state"], row(report, "wal")["index"]) == ("down", None)
    assert row(report, "snapshotter")["behind"] is None
    assert (report["in_flight"], report["tx_per_s"]) == (None, None)
    assert (report["term"], report["terms_seen"]) == (None, 0)
    assert row(report, "sequencer")["tx_per_s"] == 10


def test_a_stage_that_is_heard_again_has_no_rate_from_nothing() -> None:
    report = shown(heard(1, index=Index(9, 9, None, 3, 1)), heard(2, 1_000_000))
    assert report["tx_per_s"] is None


def test_a_service_that_stands_still_is_down_and_its_numbers_are_not_new() -> None:
    late = 2 + STALE_NS / SECOND + 1
    metrics = {stage: told(stage, 1 if stage == "wal" else late) for stage in SERVICES}
    report = shown(
        heard(1), heard(late, services=but("wal", heard_ms=SILENT_MS + 1), metrics=metrics)
    )
    assert states(report) == {each: "down" if each == "wal" else "up" for each in SERVICES}
    assert report["metrics"]["unreachable"] == {"wal": "told nothing for 5.0 s"}
    assert report["metrics"]["segment"] is None


def test_a_service_that_recovers_says_so_though_it_is_silent() -> None:
    why = "it is recovering: verifying the log, 34.0 % of 500 bytes"
    metrics = {stage: told(stage, 9) for stage in SERVICES}
    metrics["wal"] = told("wal", 9, incarnation=0, reasons=[why])
    silent = but("wal", heard_ms=8000)
    report = shown(heard(1), heard(9, services=silent, metrics=metrics))
    assert row(report, "wal")["state"] == "not ready"
    assert report["not_ready"] == {"wal": [why]}
    assert row(report, "wal")["uptime_s"] is None
    # The same of one that knows its incarnation already, while the gateway knows the old one.
    metrics["wal"] = told("wal", 9, incarnation=8, reasons=[why])
    report = shown(heard(1), heard(9, services=silent, metrics=metrics))
    assert report["not_ready"] == {"wal": [why]}


def test_a_process_that_was_replaced_is_not_believed() -> None:
    metrics = {stage: told(stage, 2) for stage in SERVICES}
    metrics["wal"] = told("wal", 2, incarnation=6, reasons=["it was replaced"])
    report = shown(heard(1), heard(2, metrics=metrics))
    assert (row(report, "wal")["state"], report["not_ready"]) == ("up", {})
    assert "another process" in report["metrics"]["unreachable"]["wal"]


def test_a_service_that_is_not_watched_is_named() -> None:
    metrics = {stage: told(stage, 1) for stage in SERVICES if stage != "transactor"}
    report = shown(heard(1, metrics=metrics))
    assert "gateway.page" in report["metrics"]["unreachable"]["transactor"]
    assert report["functions"] is None
    assert "gateway.page" in report["functions_error"]


def test_metrics_that_are_garbage_are_told_and_harm_nothing_else() -> None:
    bad = StageMetrics("wal", 7, UNIX_NS, samples=b"\xc1"), SECOND
    metrics = {stage: told(stage, 1) for stage in SERVICES} | {"wal": bad}
    report = shown(heard(1, metrics=metrics), heard(2, metrics=metrics))
    assert list(report["metrics"]["unreachable"]) == ["wal"]
    assert states(report)["wal"] == "up"


def test_restarts_are_those_counted_by_the_supervisor_or_seen_whichever_are_more() -> None:
    counted = {stage: told(stage, 1, Sample("tallybus_restarts_total", 3)) for stage in SERVICES}
    report = shown(heard(1, metrics=counted))
    assert {each["restarts"] for each in report["stages"]} == {3}
    again = [heard(at, services=but("wal", incarnation=100 + at, pid=at)) for at in range(2, 9)]
    report = shown(heard(1, metrics=counted), *again)
    assert {each["stage"]: each["restarts"] for each in report["stages"]}["wal"] == 7


def test_a_silent_loop_is_told_and_what_was_known_is_kept() -> None:
    feed = Feed(FACTS)
    feed.add(heard(1))
    feed.add(heard(2, 60))
    report = feed.silence(5 * SECOND, UNIX_NS + 5 * SECOND, "it is busy")
    assert (report["answers"], report["error"], report["lost_s"]) == (False, "it is busy", 3)
    assert states(report) == {each: "down" if each == "gateway" else "unknown" for each in SERVICES}
    assert (row(report, "wal")["index"], report["history"]) == (60, [None, 10, None])
    assert report["version"] == "1.2.3"
    report = feed.add(heard(7, 110))
    assert (report["answers"], report["lost_s"], report["tx_per_s"]) == (True, None, 10)


# -- functions and rates ---------------------------------------------------------------------------


def functions(at: float, calls: int) -> dict[str, tuple[StageMetrics, int]]:
    samples = (
        Sample("tallybus_term", 1),
        Sample("tallybus_function_calls_total", calls, ("fee",)),
        Sample("tallybus_function_fuel_total", 28 * calls, ("fee",)),
        Sample("tallybus_function_version", 4, ("fee",)),
        Sample("tallybus_function_call_seconds", 81.5e-9, ("fee",)),
        Sample("tallybus_function_failures_total", 2, ("fee", "insufficient_funds")),
        Sample("tallybus_function_failures_total", 1, ("fee", "130")),
        Sample("tallybus_function_calls_total", 9, ("(others)",)),
    )
    found = {stage: told(stage, at) for stage in SERVICES}
    found["transactor"] = told("transactor", at, *samples)
    return found


def test_functions_come_from_the_metrics_of_the_transactor() -> None:
    report = shown(heard(1, metrics=functions(1, 10)), heard(3, metrics=functions(3, 30)))
    fee, others = report["functions"]
    assert (fee["name"], fee["version"], fee["calls"], fee["calls_per_s"]) == ("fee", 4, 30, 10)
    assert (fee["fuel_total"], fee["fuel_mean"]) == (840, 28)
    assert fee["mean_ns"] == pytest.approx(81.5)
    assert fee["failures"] == {"INSUFFICIENT_FUNDS": 2, "FUNCTION_130": 1}
    assert (others["name"], others["version"], others["calls"]) == ("(others)", 0, 9)
    assert report["functions_error"] is None


def test_the_same_numbers_seen_twice_keep_their_rates() -> None:
    last = functions(3, 30)
    report = shown(
        heard(1, metrics=functions(1, 10)), heard(3, metrics=last), heard(3.6, metrics=last)
    )
    assert report["functions"][0]["calls_per_s"] == 10


def test_rates_are_of_the_time_between_the_tellings() -> None:
    """And not of the times at which they were looked at."""
    report = shown(heard(1.9, metrics=functions(1, 10)), heard(3.1, metrics=functions(3, 30)))
    assert report["functions"][0]["calls_per_s"] == 10


def test_functions_of_a_transactor_that_is_down_are_as_they_were() -> None:
    gone = but("transactor", heard_ms=SILENT_MS + 1)
    report = shown(
        heard(1, metrics=functions(1, 10)), heard(2, metrics=functions(1, 10), services=gone)
    )
    assert report["functions"][0]["calls"] == 10
    assert report["functions_error"] == "the transactor is down"


def test_latency_failures_and_segment_are_of_the_metrics() -> None:
    waits = times()
    before = {stage: told(stage, 1) for stage in SERVICES}
    before["gateway"] = told("gateway", 1, Sample("tallybus_request_seconds", waits, ("read",)))
    for _ in range(10):
        waits.observe(1_000_000)
    after = {stage: told(stage, 3) for stage in SERVICES}
    after["gateway"] = told(
        "gateway",
        3,
        Sample("tallybus_request_seconds", waits, ("read",)),
        Sample("tallybus_requests_total", 4, ("submit", "overloaded")),
    )
    after["wal"] = told(
        "wal",
        3,
        Sample("tallybus_log_segment", 4),
        Sample("tallybus_log_segment_transactions", 25),
        Sample("tallybus_log_segment_capacity_transactions", 100),
    )
    metrics = shown(heard(1, metrics=before), heard(3, metrics=after))["metrics"]
    (read,) = metrics["latency"]
    assert (read["level"], read["per_s"]) == ("read", 5)
    assert 0.5 < read["p50_ms"] <= read["p99_ms"] <= 1
    assert [(each["reason"], each["total"]) for each in metrics["failures"]] == [("overloaded", 4)]
    assert (metrics["segment"]["number"], metrics["segment"]["transactions"]) == (4, 25)


def test_rows_of_services_may_have_more_than_is_shown() -> None:
    plain = {name: getattr(service("wal"), name) for name in Service.__dataclass_fields__}
    assert as_services([plain | {"another": 1}]) == (service("wal"),)
