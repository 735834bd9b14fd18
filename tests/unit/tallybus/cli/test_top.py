"""`tallybus top`: what it makes of samples, how that is drawn, and the command around it."""

from __future__ import annotations

import inspect
import io
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tallybus.cli import main, top
from tallybus.cli.top import METRICS_HINT
from tallybus.cli.topdraw import count, frame, milliseconds, per_second, span, sparkline
from tallybus.client import Client
from tallybus.common import logs
from tallybus.common.metrics.counters import METRICS
from tallybus.common.metrics.server import MetricsServer, Response
from tallybus.common.settings.sections import load
from tallybus.common.stages import SERVICES
from tallybus.common.view import pipeline as pipeline_view
from tallybus.common.view import report as report_view
from tallybus.common.view.pipeline import HISTORY, Look, PipelineView, Report, StageRow
from tallybus.common.view.report import SegmentRow, latencies, quantile, rate
from tallybus.common.view.scrape import Scrape, parse
from tallybus.functions import FunctionInfo
from tallybus.operations import Deposit, Status
from tallybus.pipeline import PipelineIndex, ServiceInfo
from tests.support.fake_gateway import FakeGateway, FakeLedger, Message

NOW_NS = 1_700_000_000_000_000_000
STARTED_NS = NOW_NS - 90_000_000_000


def service(stage: str, **changes: Any) -> ServiceInfo:
    facts: dict[str, Any] = {
        "stage": stage,
        "pid": 100,
        "incarnation": 7,
        "term": 1,
        "index": 50,
        "next": 51,
        "durable": 50,
        "retained": 5,
        "started_ns": STARTED_NS,
        "heard_ms": 40,
        "cpu": "",
        "wait": "block",
    }
    return ServiceInfo(**(facts | changes))


def function(calls: int, **changes: Any) -> FunctionInfo:
    facts: dict[str, Any] = {
        "name": "fee",
        "version": 1,
        "crc32c": 9,
        "tx_id": 3,
        "calls": calls,
        "failures": {Status.INSUFFICIENT_FUNDS: 2, 130: 1},
        "fuel_total": 28 * calls,
        "fuel_limit": 1000,
        "mean_ns": 81.5,
    }
    return FunctionInfo(**(facts | changes))


def sample(at_s: float, committed: int = 50, **changes: Any) -> Look:
    """A look at a ledger that is well, two transactions behind at each stage."""
    facts: dict[str, Any] = {
        "index": PipelineIndex(committed + 4, committed + 2, committed, committed - 2, 1),
        "services": tuple(service(stage) for stage in SERVICES),
        "functions": (),
    }
    return Look(at_s, NOW_NS + int(at_s * 1e9), **(facts | changes))


def lost(at_s: float, **changes: Any) -> Look:
    return Look(at_s, NOW_NS + int(at_s * 1e9), error="no answer", **changes)


def shown(*looks: Look) -> Report:
    view = PipelineView(METRICS_HINT)
    return [view.add(each) for each in looks][-1]


def row(report: Report, stage: str) -> StageRow:
    return next(each for each in report.stages if each.stage == stage)


def replaced(stage: str, **changes: Any) -> tuple[ServiceInfo, ...]:
    """The services, one of them with other facts."""
    return tuple(service(each, **(changes if each == stage else {})) for each in SERVICES)


def drawn(report: Report, view: PipelineView | None = None, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    history = list(view.history) if view else []
    console.print(frame(report, history, "tcp://x", width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


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


# -- metrics ---------------------------------------------------------------------------------------

GATEWAY = """\
# HELP tallybus_request_seconds Time
# TYPE tallybus_request_seconds histogram
tallybus_request_seconds_bucket{le="0.001",level="committed",stage="gateway"} {fast}
tallybus_request_seconds_bucket{le="0.002",level="committed",stage="gateway"} {all}
tallybus_request_seconds_bucket{le="+Inf",level="committed",stage="gateway"} {all}
tallybus_request_seconds_bucket{le="+Inf",level="read",stage="gateway"} 4.0
tallybus_requests_total{outcome="ok",stage="gateway",type="submit"} 900.0
tallybus_requests_total{outcome="overloaded",stage="gateway",type="submit"} {refused}
tallybus_ready{stage="gateway"} 1.0
tallybus_link_in_flight{stage="gateway"} 3.0
tallybus_max_in_flight_transactions{stage="gateway"} 10.0
"""
TRANSACTOR = """\
tallybus_transactions_total{kind="transfer",stage="transactor",status="ok"} 800.0
tallybus_transactions_total{kind="transfer",stage="transactor",status="duplicate"} {failed}
tallybus_transactions_total{kind="deposit",stage="transactor",status="duplicate"} 1.0
tallybus_transactions_total{kind="deposit",stage="transactor",status="quota_exceeded"} 0.0
tallybus_ready{stage="transactor"} 0.0
"""
WAL = """\
tallybus_log_segment{stage="wal"} 4.0
tallybus_log_segment_transactions{stage="wal"} 250000.0
tallybus_log_segment_capacity_transactions{stage="wal"} 1e+06
"""
SNAPSHOTTER = """\
tallybus_snapshot_segment{stage="snapshotter"} 3.0
tallybus_snapshot_writing{stage="snapshotter"} 1.0
"""


def metrics(at_s: float, **numbers: object) -> dict[str, Scrape | str]:
    """Scrapes of four services; the sequencer's does not answer."""
    texts = {"gateway": GATEWAY, "transactor": TRANSACTOR, "wal": WAL, "snapshotter": SNAPSHOTTER}
    given = {"fast": 0, "all": 0, "refused": 0, "failed": 0} | numbers
    found: dict[str, Scrape | str] = {"sequencer": "127.0.0.1:1: refused"}
    for stage, text in texts.items():
        for name, value in given.items():
            text = text.replace(f"{{{name}}}", str(value))
        found[stage] = parse(text, at_s)
    return found


def measured() -> Report:
    first = metrics(1, fast=100, all=100, refused=5, failed=10)
    second = metrics(3, fast=160, all=200, refused=5, failed=30)
    return shown(sample(1, 1000, metrics=first), sample(3, 151_000, metrics=second))


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


def test_text_that_is_no_metric_of_ours_is_passed_over() -> None:
    text = (
        "# tallybus_x 1\nprocess_cpu_seconds_total 3\ntallybus_bad x\ntallybus_\n\n"
        'tallybus_a{name="b \\"c\\" {d}, \\\\n\\n"} 2.5 1700000\n'
    )
    found = parse(text, 1)
    assert found.values == {"tallybus_a": [({"name": 'b "c" {d}, \\n\n'}, 2.5)]}
    assert (found.one("tallybus_a"), found.one("tallybus_none")) == (2.5, None)
    assert found.by("tallybus_a", "name") == {'b "c" {d}, \\n\n': 2.5}


def test_every_metric_that_is_read_exists() -> None:
    source = inspect.getsource(pipeline_view) + inspect.getsource(report_view)
    names = set(re.findall(r'"(tallybus_\w+)"', source)) - {"tallybus_"}
    assert len(names) >= 10
    assert {name.removesuffix("_bucket") for name in names} <= set(METRICS)


# -- drawing ---------------------------------------------------------------------------------------


def test_a_sparkline_is_scaled_to_its_highest_value() -> None:
    assert sparkline([0, 50, 100, None, 100]) == "▁▅█ █"
    assert sparkline([0, 50, 100], ascii_only=True) == "_=#"
    assert sparkline([None, 0, 0]) == " ▁▁"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (span(None), "-"),
        (span(0.0404), "40 ms"),
        (span(59.94), "59.9 s"),
        (span(61), "1 min 1 s"),
        (span(7_260), "2 h 1 min"),
        (span(90_000), "1 d 1 h"),
        (count(None), "-"),
        (count(1_234_567), "1,234,567"),
        (per_second(0), "0"),
        (per_second(0.25), "0.2"),
        (per_second(1234.5), "1,234"),
        (milliseconds(0.1234), "0.123 ms"),
        (milliseconds(2500), "2,500 ms"),
        (milliseconds(None), "-"),
    ],
)
def test_numbers_are_short(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    view = PipelineView(METRICS_HINT)
    for at in range(300):
        report = view.add(
            sample(at, 10**12 * at, functions=(function(10**9),), metrics=metrics(at))
        )
    lines = drawn(report, view, width).splitlines()
    assert max(map(len, lines)) <= width
    for stage in SERVICES:
        assert any(line.startswith(stage) for line in lines)


@pytest.mark.parametrize("width", [50, 80, 120])
def test_a_number_is_shown_whole_or_not_at_all(width: int) -> None:
    report = shown(sample(1, 10**9), sample(2, 10**9 + 10**7, functions=(function(10**9),)))
    text = drawn(report, width=width)
    assert "1,010,000,000" in text
    table = text[: text.index("latency")]
    assert "…" not in table
    told = set(re.findall(r"[\d,]{7,}", text))
    assert told <= {
        *("1,010,000,004", "1,010,000,002", "1,010,000,000", "1,009,999,998", "10,000,000"),
        *("1,000,000,000", "28,000,000,000"),
    }


def test_what_others_wrote_is_not_taken_for_markup() -> None:
    bad = lost(1, metrics={"wal": "[red]x[/]"})
    report = shown(bad)
    assert "[red]x[/]" in drawn(report)


def test_a_frame_in_plain_ascii() -> None:
    report = measured()
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(frame(report, [1.0, 2.0], "tcp://x", 120, ascii_only=True))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().isascii()


# -- the command -----------------------------------------------------------------------------------


class Gateway(FakeGateway):
    """Also tells of its services, all well."""

    def reply(self, message: Message) -> list[bytes]:
        if message.op != "services":
            return super().reply(message)
        names = ServiceInfo.__dataclass_fields__
        rows = [{name: getattr(service(stage), name) for name in names} for stage in SERVICES]
        return [self._header(message, {"services": rows})]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["top", *map(str, arguments)])


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What to do instead of each pause between two looks; then Ctrl-C."""
    actions: list[Callable[[], None]] = []

    def pause(seconds: float) -> None:
        assert seconds >= 0
        if not actions:
            raise KeyboardInterrupt
        actions.pop(0)()

    monkeypatch.setattr(top, "_pause", pause)
    return actions


def nothing() -> None:
    pass


def deposit(gateway: FakeGateway) -> Callable[[], None]:
    def act() -> None:
        with Client(gateway.endpoint) as client:
            client.submit_batch([Deposit(account=1, amount=5)] * 7)

    return act


def test_once_prints_a_frame_with_the_rates_of_an_interval(
    pauses: list[Callable[[], None]],
) -> None:
    with Gateway() as gateway:
        pauses.append(deposit(gateway))
        done = run("--timeout", 30, "--once", "--endpoint", gateway.endpoint)
    assert (done.exit_code, done.stderr) == (0, "")
    for stage in SERVICES:
        assert stage in done.stdout
    assert METRICS_HINT.split(":")[0] in done.stdout
    assert "none registered" in done.stdout


def test_json_is_an_object_for_each_interval_until_ctrl_c(
    pauses: list[Callable[[], None]],
) -> None:
    with Gateway() as gateway:
        pauses += [deposit(gateway), nothing, deposit(gateway)]
        done = run("--timeout", 30, "--json", "--endpoint", gateway.endpoint)
    assert (done.exit_code, done.stderr) == (0, "")
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert [each["stages"][3]["index"] for each in (first, second, third)] == [7, 7, 14]
    assert first["tx_per_s"] == pytest.approx(7 / first["interval_s"])
    assert second["tx_per_s"] == 0
    assert first["metrics"] is None


def test_once_exits_with_3_when_the_ledger_does_not_answer(
    pauses: list[Callable[[], None]],
) -> None:
    pauses.append(nothing)
    done = run("--once", "--endpoint", "tcp://127.0.0.1:9", "--timeout", 0.05)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith("Error: ")


def test_it_goes_on_over_a_restart_of_the_gateway(pauses: list[Callable[[], None]]) -> None:
    ledger, gateways = FakeLedger(), []

    def restart() -> None:
        gateways.append(Gateway(ledger, endpoint=first.endpoint, incarnation=2))

    with Gateway(ledger) as first:
        # One look while it is away; then as many as it takes until it is found again.
        pauses += [nothing, first.stop, restart, *[nothing] * 100]
        try:
            done = run("--json", "--endpoint", first.endpoint, "--timeout", 1.5)
        finally:
            for each in gateways:
                each.stop()
    assert done.exit_code == 0
    answers = [json.loads(line)["answers"] for line in done.stdout.splitlines()]
    assert answers[:2] == [True, False]
    assert answers[-1]


def test_the_live_view_needs_a_terminal() -> None:
    done = run("--endpoint", "tcp://127.0.0.1:9")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--once or --json" in done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_view_takes_the_other_screen_and_gives_it_back(
    pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    pauses += [nothing, nothing]
    with Gateway() as gateway:
        arguments = ["top", "--timeout", "30", "--endpoint", gateway.endpoint]
        main.main(arguments, standalone_mode=False)
    text = terminal.getvalue()
    assert text.startswith("\x1b[?1049h")
    assert text.count("snapshotter") >= 3
    assert "\x1b[?1049l" in text[text.rindex("snapshotter") :]


@contextmanager
def serving(text: str) -> Iterator[int]:
    """One service's /metrics on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]

    def respond(path: str, accept: str) -> Response | None:
        return Response(200, text.encode()) if path == "/metrics" else None

    server = MetricsServer(("127.0.0.1", port), respond, logs.get("test"))
    server.start()
    assert server.wait_bound(10)
    try:
        yield port
    finally:
        server.close()


@pytest.mark.parametrize("by_option", [True, False])
def test_metrics_are_fetched_where_they_are_served(
    by_option: bool, pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "SCRAPE_SECONDS", 30.0)
    pauses.append(nothing)
    with Gateway() as gateway, serving(WAL) as port:
        base = port - 2  # the wal's port is the third
        given = (
            ("--metrics", f"127.0.0.1:{base}")
            if by_option
            else ("--set", "metrics.address=127.0.0.1", "--set", f"metrics.base_port={base}")
        )
        done = run("--timeout", 30, "--once", "--json", "--endpoint", gateway.endpoint, *given)
    found = json.loads(done.stdout)["metrics"]
    assert found["segment"]["transactions"] == 250_000
    assert "wal" not in found["unreachable"]
    assert f":{base}: " in found["unreachable"]["sequencer"]


def test_what_is_no_page_of_metrics_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "SCRAPE_SECONDS", 30.0)
    with serving("") as port:
        assert not isinstance(top._scrape(("127.0.0.1", port)), str)
    told = top._scrape(("127.0.0.1", port))
    assert isinstance(told, str)
    assert told.startswith(f"127.0.0.1:{port}: ")


@pytest.mark.parametrize("base", ["", ":9464", "h:0", "h:65535", "h:x", "::1:x", "a b:1:2", "h/x"])
def test_a_wrong_address_of_metrics_is_refused(base: str) -> None:
    done = run("--once", "--metrics", base)
    assert done.exit_code == 2
    assert "--metrics" in done.stderr


@pytest.mark.parametrize(
    ("base", "host", "port"),
    [
        ("node1", "node1", 9464),
        ("node1:7000", "node1", 7000),
        ("http://node1:7000/", "node1", 7000),
        ("[::1]:7000", "::1", 7000),
        ("::1", "::1", 9464),
        ("0.0.0.0", "127.0.0.1", 9464),
    ],
)
def test_an_address_of_metrics_stands_for_five(base: str, host: str, port: int) -> None:
    found = top._addresses(base, load(None, {}))
    assert found is not None
    assert found["sequencer"] == (host, port)
    assert found["gateway"] == (host, port + 4)
    assert len(found) == 5
