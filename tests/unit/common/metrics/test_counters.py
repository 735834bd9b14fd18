"""Metrics: what is counted, how it is told, and that the page about it names just what there is."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.errors import SettingsError
from tallybus.common.metrics.counters import (
    SIZES,
    TIMES_NS,
    Histogram,
    Outcomes,
    Sample,
    kind_label,
    status_label,
    times,
)
from tallybus.common.metrics.table import METRICS, metrics_of
from tallybus.common.record import FAILURE_DTYPE, RECORD_DTYPE, Kind, Status
from tallybus.common.settings.sections import Settings, load, metrics_address
from tallybus.common.stages import PORTS, SERVICES
from tallybus.services.transactor.metrics import MAX_FUNCTIONS, OTHERS, functions, totals
from tests.support.folders import DOCS, PROJECT

PAGE = DOCS / "metrics.md"


# The table and the page about it


def documented() -> dict[str, tuple[str, str, str, str]]:
    """Rows of the page's tables: type, labels, services and meaning by name."""
    rows: dict[str, tuple[str, str, str, str]] = {}
    for line in PAGE.read_text("utf-8").splitlines():
        match = re.fullmatch(r"\| `(tallybus_\w+)` \| (\w+) \| (.*?) ?\| (.*?) \| (.*) \|", line)
        if match:
            assert match[1] not in rows, f"{match[1]} is documented twice"
            rows[match[1]] = (match[2], match[3], match[4], match[5])
    return rows


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_documented(name: str) -> None:
    metric = METRICS[name]
    assert name in documented(), f"docs/metrics.md lacks {name}"
    served = "all" if metric.stages == PORTS else ", ".join(metric.stages)
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    assert documented()[name] == (metric.type, labels, served, metric.help)


def test_no_metric_is_documented_that_is_not_there() -> None:
    assert set(documented()) == set(METRICS)


def test_queries_on_the_page_use_metrics_that_are_there() -> None:
    text = PAGE.read_text("utf-8")
    queries = "\n".join(re.findall(r"```promql\n(.*?)```", text, re.DOTALL))
    used = set(re.findall(r"tallybus_\w+", queries))
    exposed = {
        name + suffix
        for name, metric in METRICS.items()
        for suffix in (("_bucket", "_sum", "_count") if metric.type == "histogram" else ("",))
    }
    assert used
    assert used <= exposed


@pytest.mark.parametrize("name", METRICS)
def test_names_follow_the_conventions(name: str) -> None:
    metric = METRICS[name]
    assert re.fullmatch(r"tallybus(_[a-z]+)+", name)
    assert (metric.type == "counter") == name.endswith("_total")
    assert not re.search(r"_(ms|us|ns|milliseconds|kb|mb|count|sum|bucket)(_|$)", name)
    assert metric.help.endswith(".")
    assert "stage" not in metric.labels
    assert set(metric.stages) <= set(PORTS)


def test_ports_of_the_services_are_documented() -> None:
    settings = load(environ={}, overrides={"metrics.address": "127.0.0.1"})
    text = PAGE.read_text("utf-8")
    for stage in SERVICES:
        address = metrics_address(settings, stage)
        assert address is not None
        assert f"| {stage} | {address[1]} |" in text


# Where they are served


def test_nothing_is_served_unless_it_was_asked_for() -> None:
    assert [metrics_address(Settings(), stage) for stage in SERVICES] == [None] * 5


def test_each_service_has_a_port_of_its_own() -> None:
    settings = load(environ={}, overrides={"metrics.address": "0.0.0.0", "metrics.base_port": 1000})
    addresses = [metrics_address(settings, stage) for stage in PORTS]
    assert addresses == [("0.0.0.0", port) for port in range(1000, 1005)]
    with pytest.raises(KeyError, match="elsewhere"):
        metrics_address(settings, "elsewhere")


def test_the_highest_base_port_leaves_room_for_all() -> None:
    settings = load(environ={}, overrides={"metrics.address": "::1", "metrics.base_port": 65_531})
    assert max(address[1] for s in SERVICES if (address := metrics_address(settings, s))) == 65_535


def test_an_embedded_ledger_serves_nothing() -> None:
    overrides = {"metrics.address": "127.0.0.1", "bus.transport": "inproc"}
    settings = load(environ={}, overrides=overrides)
    assert metrics_address(settings, "wal") is None


@pytest.mark.parametrize(
    "text", ["127.0.0.1:9464", "[::1]:9464", "[::1", "a b", "http://x", "x/y", "é"]
)
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="without a port"):
        load(environ={"TALLYBUS_METRICS_ADDRESS": text})


@pytest.mark.parametrize("text", ["127.0.0.1", "0.0.0.0", "::1", "::", "fe80::1%eth0", "my-host"])
def test_names_and_addresses_are_taken(text: str) -> None:
    assert load(environ={"TALLYBUS_METRICS_ADDRESS": text}).metrics.address == text


def test_who_does_without_metrics_does_not_load_the_client_library() -> None:
    program = """
import sys, tempfile
from tallybus import Ledger, Deposit, WaitLevel
from tallybus.common.settings.sections import load
settings = load(environ={}, overrides={"metrics.address": "127.0.0.1"})
with tempfile.TemporaryDirectory() as folder, Ledger.open(
    folder + "/data", settings=settings, max_accounts=100, transactions_per_segment=100
) as ledger:
    ledger.submit_and_wait(Deposit(1, 1), WaitLevel.SNAPSHOT)
    import threading
    print([thread.name for thread in threading.enumerate() if thread.name == "metrics"])
print([name for name in sys.modules if name.startswith("prometheus_client")])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=PROJECT,
    )
    assert (done.stdout, done.returncode) == ("[]\n[]\n", 0), done.stderr


# Histograms


@pytest.mark.parametrize("bounds", [SIZES, TIMES_NS])
def test_bounds_of_buckets_ascend(bounds: tuple[int, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_a_bucket_holds_its_upper_bound_and_all_below() -> None:
    histogram = Histogram((1, 10, 100))
    for value in (0, 1, 2, 10, 11, 100, 101, 5000):
        histogram.observe(value)
    assert histogram.buckets() == [(1, 2), (10, 4), (100, 6), (float("inf"), 8)]
    assert histogram.sum == 5225


def test_times_are_told_in_seconds() -> None:
    histogram = times()
    histogram.observe(2_000_000)
    assert histogram.sum == 0.002
    assert [bound for bound, _ in histogram.buckets()][:5] == [
        5e-05,
        0.0001,
        0.00025,
        0.0005,
        0.001,
    ]
    assert [count for bound, count in histogram.buckets() if bound in (0.001, 0.0025)] == [0, 1]


# Transactions by kind and status


def counted(outcomes: Outcomes) -> dict[tuple[str, ...], float]:
    found = {}
    for name, value, labels in outcomes.samples():
        assert name == "tallybus_transactions_total"
        assert labels not in found
        assert isinstance(value, int)
        found[labels] = value
    return {labels: value for labels, value in found.items() if value}


def batch(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Records and failures of transactions given by kind and status."""
    records = np.zeros(len(rows), RECORD_DTYPE)
    records["kind"] = [kind for kind, _ in rows]
    records["status"] = [status for _, status in rows]
    offsets = [offset for offset, (_, status) in enumerate(rows) if status]
    failures = np.zeros(len(offsets), FAILURE_DTYPE)
    failures["offset"] = offsets
    failures["status"] = [rows[offset][1] for offset in offsets]
    return records, failures


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from([0, 1, 2, 3, 4, 5, 99, 255]),
                st.sampled_from([0, 0, 0, 1, 5, 7, 9, 50, 128, 200, 255]),
            ),
            min_size=1,
            max_size=30,
        ),
        max_size=4,
    )
)
def test_transactions_are_counted_by_kind_and_status(batches: list[list[tuple[int, int]]]) -> None:
    outcomes = Outcomes()
    expected: dict[tuple[str, ...], int] = {}
    for rows in batches:
        outcomes.count(*batch(rows))
        for kind, status in rows:
            labels = kind_label(kind), status_label(status)
            expected[labels] = expected.get(labels, 0) + 1
    assert counted(outcomes) == expected


def test_kinds_and_statuses_are_labels_of_a_fixed_set() -> None:
    assert {kind_label(number) for number in range(256)} == {
        *(kind.name.lower() for kind in Kind),
        "other",
    }
    assert {status_label(number) for number in range(256)} == {
        "ok",
        *(status.name.lower() for status in Status if status),
        "function",
        "other",
    }


# Functions


def row(name: str, calls: int, failures: dict[int, int] | None = None) -> dict[str, object]:
    return {
        "name": name,
        "version": 3,
        "calls": calls,
        "fuel": calls * 10,
        "failures": failures or {},
        "mean_ns": 250.0 if calls else None,
        "p99_ns": 900.0 if calls else None,
        "work_ns": 250 * calls,
        "reasons": {},
        "suspended": False,
    }


def test_functions_are_told_one_by_one() -> None:
    fee = row("fee", 7, {1: 2, 130: 1, 9: 1}) | {"reasons": {8: 1}, "suspended": True}
    samples = list(functions([fee, row("new", 0)]))
    assert set(samples) == {
        Sample("tallybus_function_calls_total", 7, ("fee",)),
        Sample("tallybus_function_fuel_total", 70, ("fee",)),
        Sample("tallybus_function_failures_total", 2, ("fee", "insufficient_funds")),
        Sample("tallybus_function_failures_total", 1, ("fee", "130")),
        Sample("tallybus_function_failures_total", 1, ("fee", "quota_exceeded")),
        Sample("tallybus_function_version", 3, ("fee",)),
        Sample("tallybus_function_call_seconds", 2.5e-07, ("fee",)),
        Sample("tallybus_function_call_tail_seconds", 9e-07, ("fee",)),
        Sample("tallybus_function_work_seconds_total", 1.75e-06, ("fee",)),
        Sample("tallybus_function_reasons_total", 1, ("fee", "time")),
        Sample("tallybus_function_suspended", 1, ("fee",)),
        Sample("tallybus_function_calls_total", 0, ("new",)),
        Sample("tallybus_function_fuel_total", 0, ("new",)),
        Sample("tallybus_function_work_seconds_total", 0, ("new",)),
        Sample("tallybus_function_suspended", 0, ("new",)),
        Sample("tallybus_function_version", 3, ("new",)),
    }


def test_of_very_many_functions_the_rest_is_told_together() -> None:
    many = [row(f"f{number}", number, {1: 1}) for number in range(MAX_FUNCTIONS + 3)]
    calls = {
        labels[0]: value
        for name, value, labels in functions(many)
        if name == "tallybus_function_calls_total"
    }
    assert len(calls) == MAX_FUNCTIONS + 1
    assert calls[OTHERS] == 0 + 1 + 2
    assert calls[f"f{MAX_FUNCTIONS + 2}"] == MAX_FUNCTIONS + 2
    failures = [sample for sample in functions(many) if sample.labels[0] == OTHERS][3:]
    assert failures == [
        Sample("tallybus_function_failures_total", 3, (OTHERS, "insufficient_funds"))
    ]


def test_what_all_functions_take_is_told_beside_what_they_may_take() -> None:
    found = {
        "binaries_bytes": 5,
        "binaries_limit": 100,
        "code_bytes": 6,
        "code_limit": 200,
        "compile_ms": 1_500,
        "compile_limit_ms": 120_000,
        "waiting": 2,
        "waiting_bytes": 9,
    }
    samples = list(totals(found, [{"unusable": ""}, {"unusable": "too much memory"}]))
    assert samples == [
        Sample("tallybus_functions_binaries_bytes", 5.0, ("used",)),
        Sample("tallybus_functions_binaries_bytes", 100.0, ("limit",)),
        Sample("tallybus_functions_code_bytes", 6.0, ("used",)),
        Sample("tallybus_functions_code_bytes", 200.0, ("limit",)),
        Sample("tallybus_functions_compile_seconds", 1.5, ("used",)),
        Sample("tallybus_functions_compile_seconds", 120.0, ("limit",)),
        Sample("tallybus_functions_waiting", 2),
        Sample("tallybus_functions_unusable", 1),
    ]
    assert list(totals({}, [])) == []


def test_every_service_has_metrics() -> None:
    assert {name for stage in PORTS for name in (m.name for m in metrics_of(stage))} == set(METRICS)
