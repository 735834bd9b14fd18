"""The gateway's page of a real pipeline: what it tells is what the API tells, whatever happens."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tallybus import Deposit, Function, Transfer, WaitLevel, Withdrawal, deposits, transfers
from tallybus.client import Client
from tallybus.common.record import json_name
from tallybus.common.security.keys import Role
from tallybus.common.settings.sections import Settings, page_address
from tallybus.common.stages import SERVICES, STAGES
from tallybus.common.times import utc_text
from tallybus.common.view.pipeline import Report
from tallybus.embedded import Ledger
from tests.processes import slow_log
from tests.processes.encrypted import Keys, encrypted_settings
from tests.processes.pipeline import (
    PATIENCE_S,
    Pipeline,
    eventually,
    make_settings,
    pipeline_of,
    quiet_endpoint,
)
from tests.processes.scraped import RETURNS, address_of, measured, scrape, value
from tests.processes.services import Service, Services

MAX_I64: Final = 2**63 - 1
MAX_U64: Final = 2**64 - 1
LEVELS: Final = ("sequenced", "computed", "committed", "snapshot")


def free_page() -> str:
    return quiet_endpoint().removeprefix("tcp://")


def get(settings: Settings, path: str, timeout: float = PATIENCE_S) -> tuple[int, Any]:
    """Status and JSON; OSError when there is no answer."""
    address = page_address(settings)
    assert address is not None
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def report_of(settings: Settings) -> dict[str, Any]:
    status, report = get(settings, "/api/report")
    assert status == 200
    found: dict[str, Any] = report
    return found


def states(settings: Settings) -> dict[str, str]:
    return {each["stage"]: each["state"] for each in report_of(settings)["stages"]}


def row(report: dict[str, Any], stage: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in report["stages"] if each["stage"] == stage)
    return found


def wait_all_up(settings: Settings) -> None:
    eventually(lambda: set(states(settings).values()) == {"up"}, "every service is up")


@contextmanager
def events(settings: Settings, timeout: float = PATIENCE_S) -> Iterator[Iterator[dict[str, Any]]]:
    """Reports of the stream; the iterator ends when the stream does."""
    address = page_address(settings)
    assert address is not None
    with socket.create_connection(address, timeout) as client:
        client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")

        def reports() -> Iterator[dict[str, Any]]:
            for line in client.makefile("rb"):
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

        yield reports()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline with a page, and with metrics to compare it with."""
    folder = tmp_path_factory.mktemp("page")
    settings = make_settings(
        folder / "data",
        **measured(gateway__page=free_page(), ledger__transactions_per_segment=1_000_000),
    )
    with pipeline_of(settings, folder / "services.log") as pipeline:
        yield pipeline


def test_the_report_adds_up_with_the_api_and_the_metrics(running: Pipeline) -> None:
    settings = running.settings
    accounts = np.arange(1, 101, dtype=np.uint64)
    with running.client() as client:
        client.register_function("page_fee", RETURNS)
        for _ in range(20):
            client.submit_batch(deposits(accounts, 5), WaitLevel.COMMITTED)
            client.submit_batch(transfers(accounts, accounts[::-1].copy(), 10**9))
        client.submit_batch([Function("page_fee", (0,))] * 7)
        client.submit_batch([Function("page_fee", (130,))] * 3, WaitLevel.SNAPSHOT)
        index = client.pipeline_index()
        (function,) = client.list_functions()

        def all_told() -> bool:
            """Whether each service has told its numbers since then, and which process it is."""
            found = report_of(settings)
            called = [each["calls"] for each in found["functions"] or ()] == [10]
            known = all(each["pid"] for each in found["stages"])
            segment = found["metrics"]["segment"] or {}
            return called and known and segment.get("transactions") == index.committed

        eventually(all_told, "the report has everything")
        services = {each.stage: each for each in client.services()}
    report = report_of(settings)
    assert (report["answers"], report["error"], report["term"]) == (True, None, index.term)
    assert {name for name in Report.__dataclass_fields__ if name not in report} == set()
    assert (report["endpoint"], report["in_flight"]) == (running.endpoint, 0)
    for stage, level in zip(STAGES, LEVELS, strict=True):
        assert row(report, stage)["index"] == getattr(index, level) == index.sequenced
    for stage in SERVICES:
        shown = row(report, stage)
        assert shown["state"] == "up"
        assert shown["pid"] == services[stage].pid == running.pids()[stage]
        assert shown["incarnation"] == f"{services[stage].incarnation:016x}"
        assert shown["uptime_s"] > 0
        assert shown["restarts"] == 0
    assert report["not_ready"] == {}
    assert report["metrics"]["unreachable"] == {}

    (shown,) = report["functions"]
    assert (shown["name"], shown["version"], shown["calls"]) == (function.name, 1, function.calls)
    assert shown["failures"] == {"FUNCTION_130": 3}
    assert shown["fuel_total"] == function.fuel_total

    transactor, wal = scrape(settings, "transactor"), scrape(settings, "wal")
    failed = {
        each["reason"]: each["total"]
        for each in report["metrics"]["failures"]
        if each["what"] == "transaction"
    }
    told: dict[str, float] = {}
    for labels, count in transactor["tallybus_transactions_total"].items():
        status = dict(labels)["status"]
        if status != "ok" and count:
            told[status] = told.get(status, 0) + count
    assert failed == told
    assert failed["function"] == 3
    segment = report["metrics"]["segment"]
    assert segment["number"] == value(wal, "tallybus_log_segment")
    assert segment["transactions"] == value(wal, "tallybus_log_segment_transactions")
    assert segment["capacity"] == 1_000_000


def test_rates_and_latencies_are_of_the_load(running: Pipeline) -> None:
    settings = running.settings
    ending = threading.Event()
    sent: list[tuple[float, int]] = []

    def load() -> None:
        accounts = np.arange(1, 101, dtype=np.uint64)
        with running.client() as client:
            while not ending.wait(0.01):
                result = client.submit_batch(deposits(accounts, 1), WaitLevel.COMMITTED)
                sent.append((time.monotonic(), int(result.first_tx_id)))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        with events(settings) as reports:
            seen = []
            for report in reports:
                seen.append(report)
                if len(seen) == 6:
                    break
    finally:
        ending.set()
        thread.join()
    # From the first to the last report as many were committed as the rates between them say.
    counted = sum(each["tx_per_s"] * each["interval_s"] for each in seen[1:])
    assert counted == pytest.approx(row(seen[-1], "wal")["index"] - row(seen[0], "wal")["index"])
    assert counted > 100
    assert seen[-1]["history"][-5:] == [each["tx_per_s"] for each in seen[1:]]
    (committed,) = (each for each in seen[-1]["metrics"]["latency"] if each["level"] == "committed")
    assert committed["per_s"] > 1
    assert 0 < committed["p50_ms"] <= committed["p99_ms"]


def test_the_stream_tells_a_report_about_each_second(running: Pipeline) -> None:
    with events(running.settings) as reports:
        started = time.monotonic()
        first = next(reports)
        at_once_s = time.monotonic() - started
        rest = [next(reports) for _ in range(4)]
    assert at_once_s < 5
    times = [each["unix_ns"] for each in (first, *rest)]
    gaps = [(later - earlier) / 1e9 for earlier, later in pairwise(times)]
    assert all(0.4 < gap < 10 for gap in gaps), gaps
    assert [each["interval_s"] for each in rest] == pytest.approx(gaps, abs=0.1)


def test_a_balance_is_the_client_s(running: Pipeline) -> None:
    with running.client() as client:
        client.submit_and_wait(Deposit(7001, 1234), WaitLevel.SNAPSHOT)
        for account in (0, 7001, 9_999_999):
            expected = client.get_balance(account)
            status, told = get(running.settings, f"/api/balance?account={account}")
            assert status == 200
            assert told == {
                "account": str(account),
                "balance": str(expected.balance),
                "last_snapshot_tx_id": str(expected.last_snapshot_tx_id),
            }
    status, told = get(running.settings, "/api/balance?account=10000000")
    assert status == 400
    assert "does not exist" in told["error"]


def same_as_client(settings: Settings, client: Client, tx_id: int) -> dict[str, Any]:
    """The page's transaction, which must be the API's."""
    expected = client.get_transaction(tx_id, min_tx_id=tx_id)
    status, told = get(settings, f"/api/transaction?id={tx_id}")
    assert status == 200

    def text(number: int | None) -> str | None:
        return None if number is None else str(number)

    crc32c = expected.function_crc32c
    found: dict[str, Any] = dict(told)
    assert int(found.pop("last_snapshot_tx_id")) >= expected.last_snapshot_tx_id
    assert found == {
        "tx_id": str(tx_id),
        "timestamp_ns": str(expected.timestamp_ns),
        "time": utc_text(expected.timestamp_ns),
        "term": str(expected.term),
        "stage": client.get_status(tx_id).stage.name,
        "kind": getattr(expected.kind, "name", str(expected.kind)),
        "status": json_name(expected.status),
        "user_ref": str(expected.user_ref),
        "account": text(expected.account),
        "source": text(expected.source),
        "target": text(expected.target),
        "amount": text(expected.amount),
        "function": expected.function_name,
        "version": text(expected.function_version),
        "crc32c": None if crc32c is None else f"{crc32c:08x}",
        "params": [str(each) for each in expected.params],
        "entries": [
            {
                "account": str(each.account),
                "direction": each.direction.value,
                "amount": str(each.amount),
            }
            for each in expected.entries
        ],
        "duplicate_of": text(expected.duplicate_of),
    }
    return found


def test_every_kind_of_transaction_is_the_client_s(running: Pipeline) -> None:
    params = (0, -(2**63), MAX_I64)
    with running.client() as client:
        functions = [each.name for each in client.list_functions()]
        if "page_fee" not in functions:
            client.register_function("page_fee", RETURNS)
        client.unregister_function("page_fee")
        client.register_function("page_fee", RETURNS)
        results = [
            client.submit_and_wait(operation, WaitLevel.SNAPSHOT)
            for operation in (
                Deposit(7101, 500, user_ref=MAX_U64 - 1),
                Withdrawal(7101, 200),
                Transfer(7101, 7102, 50, user_ref=1),
                Transfer(7101, 7102, 10**9),
                Function("page_fee", params, user_ref=2**63),
                Function("page_fee", (200,)),
                Function("nobody", ()),
                Deposit(10_000_000, 1),
            )
        ]
        again = client.submit_and_wait(Deposit(7101, 500, user_ref=MAX_U64 - 1), WaitLevel.SNAPSHOT)
        last = client.pipeline_index().snapshot
        told = [same_as_client(running.settings, client, each.tx_id) for each in results]
        duplicate = same_as_client(running.settings, client, last)
        for tx_id in range(max(1, last - 40), last):
            same_as_client(running.settings, client, tx_id)
    assert again.duplicate_of == results[0].tx_id
    assert (duplicate["status"], duplicate["duplicate_of"]) == ("DUPLICATE", told[0]["tx_id"])
    assert told[0]["user_ref"] == "18446744073709551614"
    assert told[4]["params"] == ["0", "-9223372036854775808", "9223372036854775807"]
    assert {each["stage"] for each in told} == {"ON_SNAPSHOT", "ERROR"}


def test_what_is_not_there_is_404(running: Pipeline) -> None:
    with running.client() as client:
        last = client.pipeline_index().sequenced
    for tx_id in (0, last + 1_000_000, MAX_U64):
        status, told = get(running.settings, f"/api/transaction?id={tx_id}")
        assert (status, told["stage"]) == (404, "UNKNOWN")


def test_the_largest_numbers_are_exact(start_pipeline: Callable[..., Pipeline]) -> None:
    pipeline = start_pipeline(gateway__page=free_page())
    with pipeline.client() as client:
        client.submit_and_wait(Deposit(1, MAX_I64, user_ref=MAX_U64), WaitLevel.COMMITTED)
        result = client.submit_and_wait(Deposit(2, 1), WaitLevel.SNAPSHOT)
        found = same_as_client(pipeline.settings, client, 1)
    assert (found["amount"], found["user_ref"]) == (str(MAX_I64), str(MAX_U64))
    for account, balance in ((1, MAX_I64), (0, -(2**63)), (2, 1)):
        assert get(pipeline.settings, f"/api/balance?account={account}")[1] == {
            "account": str(account),
            "balance": str(balance),
            "last_snapshot_tx_id": str(result.tx_id),
        }


# -- services that stand still, die and come back --------------------------------------------------


@pytest.mark.slow
def test_it_stays_truthful_while_services_stand_still_and_die(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline(gateway__page=free_page())
    settings = pipeline.settings
    with pipeline.client() as client:
        client.submit_and_wait(Deposit(1, 100), WaitLevel.SNAPSHOT)
    wait_all_up(settings)

    frozen = pipeline.pids()["snapshotter"]
    os.kill(frozen, signal.SIGSTOP)
    try:
        eventually(lambda: states(settings)["snapshotter"] == "down", "it is seen to be down")
        eventually(
            lambda: "the snapshotter" in str(report_of(settings)["not_ready"].get("gateway")),
            "the gateway says why it is not ready",
        )
        eventually(
            lambda: "told nothing" in report_of(settings)["metrics"]["unreachable"]["snapshotter"],
            "its numbers are not taken for new",
        )
        with pipeline.client() as client:
            done = client.submit_and_wait(Deposit(1, 11), WaitLevel.COMMITTED)
        eventually(
            lambda: row(report_of(settings), "snapshotter")["behind"] == 1, "how far it is behind"
        )
        status, told = get(settings, "/api/balance?account=1")
        assert status == 504
        assert "does not answer" in told["error"]
        status, told = get(settings, f"/api/transaction?id={done.tx_id}")
        assert (status, told["stage"]) == (404, "COMMITTED")
        assert get(settings, "/api/transaction?id=1")[0] == 504
        assert report_of(settings)["answers"], "the stream goes on"
    finally:
        os.kill(frozen, signal.SIGCONT)
    wait_all_up(settings)
    assert get(settings, "/api/balance?account=1")[1]["balance"] == "111"

    for stage in STAGES:
        before = row(report_of(settings), stage)
        pipeline.kill([stage])
        if stage == "wal":
            eventually(lambda: states(settings)["wal"] == "down", "the wal is down")
        pipeline.supervisor.watch()
        eventually(
            lambda stage=stage: row(report_of(settings), stage)["restarts"] == 1,
            f"the restart of the {stage} is counted",
        )
        wait_all_up(settings)
        pid = pipeline.pids()[stage]
        # It tells once a second which process it is.
        eventually(
            lambda stage=stage, pid=pid: row(report_of(settings), stage)["pid"] == pid,
            "the new pid",
        )
        after = row(report_of(settings), stage)
        assert after["incarnation"] != before["incarnation"]
        assert after["index"] == before["index"]
    with pipeline.client() as client:
        client.submit_and_wait(Deposit(1, 1), WaitLevel.SNAPSHOT)
    assert get(settings, "/api/balance?account=1")[1]["balance"] == "112"
    report = report_of(settings)
    assert {each["stage"]: each["restarts"] for each in report["stages"]} == {
        each: int(each != "gateway") for each in SERVICES
    }


def test_a_service_that_recovers_is_not_ready_and_says_how_far_it_is(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data", gateway__page=free_page())
    hold = tmp_path / "hold"
    with Services(tmp_path) as services:
        services.start_all(settings)
        for stage in SERVICES:
            services[stage].wait_ready()
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            client.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT)
        wait_all_up(settings)
        services["wal"].kill()
        hold.touch()
        words = ["tests.processes.slow_log"]
        variables = {**settings.to_environment(), slow_log.VARIABLE: str(hold)}
        services.all["slow"] = Service(words, variables, tmp_path / "slow.log")

        def told() -> bool:
            reasons = report_of(settings)["not_ready"].get("wal", [])
            return any("verifying the log, 50" in each for each in reasons)

        eventually(told, "the page says how far the recovery is")
        eventually(
            lambda: row(report_of(settings), "wal")["uptime_s"] is None,
            "the time of the process before is not shown as its own",
        )
        report = report_of(settings)
        assert row(report, "wal")["state"] == "not ready"
        assert row(report, "wal")["index"] == 1, "as it was last told"
        hold.unlink()
        wait_all_up(settings)
        assert row(report_of(settings), "wal")["restarts"] == 1


def test_a_gateway_that_dies_ends_the_streams_and_comes_back_with_its_page(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline(gateway__page=free_page())
    settings = pipeline.settings
    with events(settings) as reports:
        next(reports)
        pipeline.kill(["gateway"])
        with suppress(ConnectionResetError):
            list(reports)  # it ends, or this hangs
    pipeline.supervisor.watch()

    def back() -> bool:
        try:
            return bool(row(report_of(settings), "gateway")["restarts"] == 1)
        except OSError:
            return False

    eventually(back, "the page is served again, and knows of the restart")
    wait_all_up(settings)


def test_a_clean_stop_ends_the_streams_and_waits_for_nobody(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data", gateway__page=free_page())
    with Services(tmp_path) as services:
        services.start_all(settings)
        for stage in SERVICES:
            services[stage].wait_ready()
        with events(settings) as reports:
            next(reports)
            started = time.monotonic()
            services.stop("gateway")
            assert time.monotonic() - started < 10
            list(reports)
        services.stop(*STAGES)


def test_a_gateway_alone_says_what_it_does_not_know(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data", gateway__page=free_page())
    with Services(tmp_path) as services:
        services.start("gateway", settings)

        def told() -> bool:
            try:
                return bool(report_of(settings)["answers"])
            except OSError:
                return False

        eventually(told, "the page is served")
        report = report_of(settings)
        assert {each["stage"]: each["state"] for each in report["stages"]} == {
            each: "not ready" if each == "gateway" else "down" for each in SERVICES
        }
        assert "the wal was not heard of yet" in report["not_ready"]["gateway"]
        assert [each["index"] for each in report["stages"][1:]] == [None] * 4
        assert (report["tx_per_s"], report["in_flight"], report["term"]) == (None, None, None)
        assert report["functions"] is None
        status, answer = get(settings, "/api/balance?account=1")
        assert status == 504
        assert "not heard of" in answer["error"]


def test_a_taken_port_keeps_no_gateway_from_its_work(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        page = f"127.0.0.1:{other.getsockname()[1]}"
        settings = make_settings(tmp_path / "data", gateway__page=page)
        with pipeline_of(settings, tmp_path / "log") as pipeline:
            with pipeline.client() as client:
                client.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT)
            assert "the page cannot be served yet" in pipeline.log_text()
            other.close()

            def served() -> bool:
                try:
                    return get(settings, "/api/balance?account=1")[1]["balance"] == "5"
                except OSError:
                    return False

            eventually(served, "the page is served once the port is free")


def test_with_keys_the_page_has_everything_and_looks_up(tmp_path: Path) -> None:
    """Over tcp, encrypted: no service serves metrics, and the page's look-ups have no key."""
    keys = Keys(tmp_path)
    keys.create("alice", Role.ADMIN)
    settings = encrypted_settings(tmp_path / "data", keys, gateway__page=free_page())
    with pipeline_of(settings, tmp_path / "log") as pipeline:
        with Client(pipeline.endpoint, timeout=PATIENCE_S, key=keys.client("alice")) as client:
            client.submit_and_wait(Deposit(1, 5, user_ref=MAX_U64), WaitLevel.SNAPSHOT)
            assert same_as_client(settings, client, 1)["user_ref"] == str(MAX_U64)
        assert get(settings, "/api/balance?account=1")[1]["balance"] == "5"
        wait_all_up(settings)
        eventually(
            lambda: (report_of(settings)["metrics"]["segment"] or {}).get("transactions") == 1,
            "the numbers of the services came over the bus",
        )
        assert report_of(settings)["metrics"]["unreachable"] == {}


def test_an_embedded_ledger_has_no_page(tmp_path: Path) -> None:
    page = free_page()
    settings = make_settings(tmp_path / "data", gateway__page=page)
    host, _, port = page.rpartition(":")
    with Ledger.open(tmp_path / "data", settings=settings) as ledger:
        ledger.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), PATIENCE_S)


def test_without_a_page_nothing_is_measured_and_nothing_listens(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline()
    with pipeline.client() as client:
        client.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT)
    assert page_address(pipeline.settings) is None
    assert "page" not in pipeline.log_text()


def test_the_ports_of_page_and_metrics_are_two(running: Pipeline) -> None:
    assert page_address(running.settings) != address_of(running.settings, "gateway")
