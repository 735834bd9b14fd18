"""Metrics and health of real services: the numbers add up with the API, and the verdicts are true.

Nothing that connects to the HTTP ports harms a ledger.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from tallybus import Deposit, Function, Status, WaitLevel, deposits, transfers
from tallybus.common.metrics.table import METRICS, metrics_of
from tallybus.common.settings.sections import Settings
from tallybus.common.stages import PORTS, SERVICES
from tallybus.errors import Timeout
from tests.processes.pipeline import (
    PATIENCE_S,
    Pipeline,
    eventually,
    is_alive,
    make_settings,
    pipeline_of,
)
from tests.processes.scraped import (
    RETURNS,
    Samples,
    address_of,
    fetch,
    measured,
    ready,
    scrape,
    value,
    wait_ready,
)
from tests.processes.services import Services

NEEDS_FUNCTIONS: Final = {
    name for name in METRICS if "_function_" in name or "_client_work_" in name
}
"""Metrics that have no values before a function was registered and called."""


NEEDS_TCP: Final = {"tallybus_refused_connections_total"}
"""Metrics that have no values where a service listens to nobody over tcp."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline with metrics, that has executed a little of everything."""
    folder = tmp_path_factory.mktemp("metrics")
    settings = make_settings(folder / "data", **measured(ledger__transactions_per_segment=1000))
    with pipeline_of(settings, folder / "services.log") as pipeline:
        yield pipeline


def test_transactions_and_indexes_are_those_of_the_api(running: Pipeline) -> None:
    settings = running.settings
    accounts = np.arange(1, 501, dtype=np.uint64)
    before = {stage: scrape(settings, stage) for stage in PORTS}
    seen: dict[tuple[str, str], int] = {}

    def submit(kind: str, operations: Any, level: WaitLevel) -> None:
        result = client.submit_batch(operations, level)
        for status in result.statuses.tolist():
            key = kind, "ok" if status == Status.NONE else Status(status).name.lower()
            seen[key] = seen.get(key, 0) + 1

    with running.client() as client:
        submit("deposit", deposits(accounts, 100, accounts), WaitLevel.COMMITTED)
        submit("deposit", deposits(accounts, 100, accounts), WaitLevel.COMPUTED)  # duplicates
        submit("transfer", transfers(accounts, accounts[::-1].copy(), 60), WaitLevel.COMMITTED)
        submit("transfer", transfers(accounts, accounts[::-1].copy(), 150), WaitLevel.SNAPSHOT)
        assert client.submit(Deposit(1, 1))
        index = client.pipeline_index()
        eventually(
            lambda: client.pipeline_index().snapshot == index.sequenced, "everything is readable"
        )
        index = client.pipeline_index()
    assert len({status for _, status in seen}) == 3, "successes, duplicates, missing funds"
    seen["deposit", "ok"] += 1
    after = {stage: scrape(settings, stage) for stage in PORTS}

    executed = after["transactor"]["tallybus_transactions_total"]
    already = before["transactor"].get("tallybus_transactions_total", {})
    grown = {key: count - already.get(key, 0) for key, count in executed.items()}
    assert {
        (dict(key)["kind"], dict(key)["status"]): count for key, count in grown.items() if count
    } == seen

    for level in ("sequenced", "computed", "committed", "snapshot"):
        told = value(after["gateway"], "tallybus_pipeline_index", level=level)
        assert told == getattr(index, level) == index.sequenced
    for stage in PORTS:
        assert value(after[stage], "tallybus_index") == index.sequenced
        assert value(after[stage], "tallybus_term") == index.term
    eventually(
        lambda: all(
            value(scrape(settings, stage), "tallybus_durable_index") == index.sequenced
            for stage in PORTS
        ),
        "every stage knows that all is durable",
    )
    gateway = after["gateway"]
    submits = value(gateway, "tallybus_requests_total", type="submit", outcome="ok")
    old = before["gateway"].get("tallybus_requests_total", {})
    assert submits - old.get((("outcome", "ok"), ("type", "submit")), 0) == 5
    operations = "tallybus_submitted_operations_total"
    assert value(gateway, operations) - value(before["gateway"], operations) == sum(seen.values())
    for level, requests in (("none", 1), ("computed", 1), ("committed", 2), ("snapshot", 1)):
        name = "tallybus_request_seconds_count"
        waited = value(gateway, name, level=level) - value(before["gateway"], name, level=level)
        assert waited == requests, level
    for stage in PORTS:
        name = "tallybus_batch_transactions_sum"
        assert value(after[stage], name) - value(before[stage], name) == sum(seen.values()), stage
    assert value(gateway, "tallybus_clients") >= 1


def test_bytes_and_segments_are_those_on_disk(running: Pipeline) -> None:
    settings, folder = running.settings, running.settings.ledger.data

    def size() -> int:
        return sum(path.stat().st_size for path in folder.glob("wal*.bin"))

    def written() -> float:
        return value(scrape(settings, "wal"), "tallybus_log_written_bytes_total")

    with running.client() as client:
        client.submit_batch(deposits([1] * 1500, 1), WaitLevel.SNAPSHOT)
        last = client.pipeline_index().committed
    wal = scrape(settings, "wal")
    segment, transactions = divmod(last, 1000)
    assert value(wal, "tallybus_log_segment") == segment + 1
    assert value(wal, "tallybus_log_segment_transactions") == transactions
    assert value(wal, "tallybus_log_segment_capacity_transactions") == 1000
    assert value(wal, "tallybus_log_unsynced_transactions") == 0
    assert value(wal, "tallybus_log_sync_seconds_count") >= 1

    first_size, first_written = size(), written()
    with running.client() as client:
        # Less than what is left of the segment, so that no new file begins with a marker.
        client.submit_batch(deposits([1] * 10, 1), WaitLevel.COMMITTED)
    eventually(
        lambda: size() - first_size == written() - first_written > 400, "the same many bytes"
    )

    eventually(
        lambda: value(scrape(settings, "snapshotter"), "tallybus_snapshot_segment") == segment,
        "the snapshot is written",
    )
    snapshotter = scrape(settings, "snapshotter")
    path = folder / f"snapshot_{segment:06}.bin"
    assert value(snapshotter, "tallybus_snapshot_bytes") == path.stat().st_size
    assert abs(value(snapshotter, "tallybus_snapshot_time_seconds") - path.stat().st_mtime) < 60
    made = value(snapshotter, "tallybus_snapshots_total", result="written")
    assert made + value(snapshotter, "tallybus_snapshots_total", result="skipped") >= 1


@pytest.mark.parametrize("stage", PORTS)
def test_every_metric_has_values(running: Pipeline, stage: str) -> None:
    with running.client() as client:
        client.submit_and_wait(Deposit(2, 1), WaitLevel.SNAPSHOT)
        client.get_balance(2)
    samples = scrape(running.settings, stage)
    for metric in metrics_of(stage):
        name = metric.name + ("_count" if metric.type == "histogram" else "")
        if metric.name in NEEDS_FUNCTIONS or (metric.name in NEEDS_TCP and stage != "gateway"):
            continue
        assert samples.get(name), f"{name} has no values"
        for labels in samples[name]:
            assert {label for label, _ in labels} == set(metric.labels)
    assert value(samples, "process_resident_memory_bytes") > 0
    assert value(samples, "tallybus_ready") == 1


@pytest.mark.parametrize("stage", PORTS)
def test_only_documented_metrics_are_served(running: Pipeline, stage: str) -> None:
    _, text = fetch(running.settings, stage, "/metrics")
    served = {family.name: family for family in text_string_to_metric_families(text)}
    ours = {metric.name.removesuffix("_total"): metric for metric in metrics_of(stage)}
    assert {name for name in served if not name.startswith("process_")} == set(ours)
    for name, metric in ours.items():
        assert served[name].type == metric.type
        assert served[name].documentation == metric.help


def test_scrapers_that_ask_for_openmetrics_get_it(running: Pipeline) -> None:
    status, text = fetch(
        running.settings, "wal", "/metrics", accept="application/openmetrics-text; version=1.0.0"
    )
    assert status == 200
    assert text.endswith("# EOF\n")


def test_functions_are_counted_as_the_api_tells_them(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline(**measured())
    settings = pipeline.settings
    with pipeline.client() as client:
        client.register_function("returns", RETURNS)
        for status in (0, 0, 0, 1, 130, 130, 300):
            client.submit_and_wait(Function("returns", (status,)), WaitLevel.COMPUTED)
        client.submit_and_wait(Function("missing"), WaitLevel.COMPUTED)
        (info,) = client.list_functions()
    samples = scrape(settings, "transactor")
    assert value(samples, "tallybus_function_calls_total", function="returns") == info.calls == 7
    assert value(samples, "tallybus_function_fuel_total", function="returns") == info.fuel_total > 0
    failures = samples["tallybus_function_failures_total"]
    assert {dict(key)["status"]: count for key, count in failures.items()} == {
        "insufficient_funds": 1,
        "130": 2,
        "invalid_operation": 1,
    }
    assert sum(info.failures.values()) == 4
    executed = samples["tallybus_transactions_total"]
    assert {
        dict(key)["status"]: count
        for key, count in executed.items()
        if dict(key)["kind"] == "function"
    } == {"ok": 3, "insufficient_funds": 1, "function": 2, "invalid_operation": 2}
    assert value(samples, "tallybus_transactions_total", kind="function_registered", status="ok")
    times = samples.get("tallybus_function_call_seconds", {})
    assert (info.mean_ns is None) == (not times)
    gateway = scrape(settings, "gateway")
    assert value(gateway, "tallybus_requests_total", type="register", outcome="ok") == 1
    assert value(gateway, "tallybus_requests_total", type="functions", outcome="ok") == 1


def test_refused_and_malformed_requests_are_counted(running: Pipeline) -> None:
    def outcomes() -> dict[tuple[tuple[str, str], ...], float]:
        return scrape(running.settings, "gateway").get("tallybus_requests_total", {})

    malformed = (("outcome", "invalid_request"), ("type", "malformed"))
    timeout = (("outcome", "timeout"), ("type", "wait"))
    before = outcomes()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(running.endpoint)
        for _ in range(3):
            stranger.send(b"\xff\xff")
            assert stranger.poll(PATIENCE_S * 1000)
            stranger.recv_multipart()
    with running.client() as client, pytest.raises(Timeout):
        client.wait_for(10**12, WaitLevel.COMMITTED, timeout=0.05)
    eventually(lambda: outcomes().get(timeout, 0) - before.get(timeout, 0) == 1, "a time-out")
    assert outcomes()[malformed] - before.get(malformed, 0) == 3


def test_a_scrape_under_load_is_consistent(running: Pipeline) -> None:
    settings = running.settings
    stop = threading.Event()
    failures: list[BaseException] = []

    def load() -> None:
        try:
            with running.client() as client:
                while not stop.is_set():
                    client.submit_batch(deposits([3] * 700, 1), WaitLevel.COMPUTED)
        except BaseException as error:  # noqa: BLE001 (told by the test)
            failures.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        last: dict[str, Samples] = {}
        for _ in range(15):
            for stage in PORTS:
                samples = scrape(settings, stage)
                consistent(samples)
                grown(last.get(stage, {}), samples)
                last[stage] = samples
            rows = last["gateway"]["tallybus_pipeline_index"]
            levels = ("sequenced", "computed", "committed", "snapshot")
            indexes = [rows[(("level", level),)] for level in levels]
            assert indexes == sorted(indexes, reverse=True)
    finally:
        stop.set()
        thread.join()
    assert not failures
    assert value(last["transactor"], "tallybus_index") > 0


def consistent(samples: Samples) -> None:
    """Buckets never shrink towards larger bounds, and the last one is the count."""
    for name, rows in samples.items():
        if not name.endswith("_bucket"):
            continue
        by_labels: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        for labels, count in rows.items():
            bound = float(dict(labels)["le"])
            rest = tuple(pair for pair in labels if pair[0] != "le")
            by_labels.setdefault(rest, []).append((bound, count))
        for rest, buckets in by_labels.items():
            counts = [count for _, count in sorted(buckets)]
            assert counts == sorted(counts), name
            assert counts[-1] == samples[name.replace("_bucket", "_count")][rest]


def grown(before: Samples, after: Samples) -> None:
    """No counter goes back."""
    for name, rows in before.items():
        if name.endswith(("_total", "_count", "_bucket")):
            for labels, count in rows.items():
                assert after[name][labels] >= count, (name, labels)


def test_readiness_tells_of_a_stopped_log_and_of_its_return(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline(**measured())
    settings = pipeline.settings
    wait_ready(settings)
    pid = pipeline.supervisor.pid("wal")
    os.kill(pid, signal.SIGSTOP)
    try:
        for stage in ("transactor", "snapshotter", "gateway"):
            eventually(
                lambda stage=stage: any(
                    "the wal was not heard for" in reason
                    for reason in ready(settings, stage)["reasons"]
                ),
                f"the {stage} misses the log",
            )
            status, text = fetch(settings, stage, "/healthz")
            assert (status, json.loads(text)["alive"]) == (200, True)
        assert ready(settings, "sequencer")["ready"], "its transactor is well"
        assert value(scrape(settings, "gateway"), "tallybus_ready") == 0
        with pytest.raises(OSError, match="timed out"):
            fetch(settings, "wal", "/healthz", timeout=0.3)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_ready(settings)
    with pipeline.client() as client:
        assert client.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT).ok


def test_a_service_that_is_alone_lives_and_is_not_ready(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data", **measured())
    with Services(tmp_path) as services:
        expected = {
            "wal": ["no transactor has said hello yet", "the snapshotter was not heard of yet"],
            "sequencer": [
                "its hello was not answered yet",
                "the transactor was not heard of yet",
            ],
        }
        for stage in expected:
            services.start(stage, settings).wait_started()
        for stage, reasons in expected.items():
            eventually(lambda stage=stage: answers(settings, stage), f"the {stage} answers")
            status, text = fetch(settings, stage, "/healthz")
            assert (status, json.loads(text)["state"]) == (200, "running")
            assert ready(settings, stage)["reasons"] == reasons
            assert not services[stage].said("ready")
        # And cut off again, when the one that it had found is gone.
        transactor = services.start("transactor", settings)
        services["sequencer"].wait_ready()
        wait_ready(settings, "sequencer")
        transactor.kill()
        eventually(
            lambda: not ready(settings, "sequencer")["ready"], "the sequencer misses the transactor"
        )


def test_the_log_says_ready_when_readyz_says_so_for_the_first_time(tmp_path: Path) -> None:
    """The transactor replays the log after it has started, and is not ready before it is done."""
    settings = make_settings(tmp_path / "data", **measured())
    with Services(tmp_path) as services:
        for stage in ("wal", "snapshotter", "transactor"):
            services.start(stage, settings).wait_started()
        eventually(lambda: answers(settings, "transactor"), "the transactor answers")
        assert ready(settings, "transactor")["reasons"], "no sequencer is there"
        assert not services["transactor"].said("ready")
        for stage in ("sequencer", "gateway"):
            services.start(stage, settings)
        for stage in PORTS:
            services[stage].wait_ready()
        wait_ready(settings)
        for stage in PORTS:
            said = [line["message"] for line in services[stage].lines]
            assert said.count("ready") == said.count("started") == 1
            assert said.index("started") < said.index("ready")


def answers(settings: Settings, stage: str) -> bool:
    try:
        fetch(settings, stage, "/healthz")
    except OSError:
        return False
    return True


def test_restarts_are_counted(start_pipeline: Callable[..., Pipeline]) -> None:
    pipeline = start_pipeline(**measured())
    settings = pipeline.settings
    wait_ready(settings)
    first = scrape(settings, "transactor")
    assert value(first, "tallybus_restarts_total") == 0
    for number in (1, 2):
        pipeline.kill(["transactor"])

        def again(number: int = number) -> bool:
            pipeline.supervisor.watch()
            return (
                answers(settings, "transactor")
                and value(scrape(settings, "transactor"), "tallybus_restarts_total") == number
            )

        eventually(again, "it was started again")
    wait_ready(settings)
    second = scrape(settings, "transactor")
    started = "tallybus_start_time_seconds"
    assert value(second, started) > value(first, started)
    assert value(scrape(settings, "wal"), "tallybus_restarts_total") == 0


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_clients_that_hang_or_send_garbage_harm_nothing(running: Pipeline) -> None:
    settings = running.settings
    pid = running.supervisor.pid("transactor")
    fetch(settings, "transactor", "/metrics")
    threads = threads_of(pid)
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    noise = random.Random(5)
    with ExitStack() as stack:
        for number in range(60):
            client = socket.create_connection(address_of(settings, "transactor"), PATIENCE_S)
            stack.callback(client.close)
            said = [b"", b"GET /metr", noise.randbytes(300), b"GET /metrics HTTP/1.1\r\n\r\n"]
            with suppress(BrokenPipeError, ConnectionResetError):  # let go, to make room for others
                client.sendall(said[number % 4])
        with running.client() as client:
            result = client.submit_batch(deposits([4] * 100, 1), WaitLevel.SNAPSHOT)
            assert result.ok_count == 100
        assert scrape(settings, "transactor")["tallybus_index"]
        assert threads_of(pid) == threads
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) <= files + 20
        assert ready(settings, "transactor")["ready"]
    eventually(
        lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) <= files + 1,
        "every connection is closed",
    )


def test_a_port_that_is_taken_keeps_no_service_from_its_work(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    overrides = measured()
    first = overrides["metrics__base_port"]
    assert isinstance(first, int)
    with socket.socket() as other:
        other.bind(("127.0.0.1", first + 2))
        other.listen()
        pipeline = start_pipeline(**overrides)
        settings = pipeline.settings
        wait_ready(settings, *(each for each in SERVICES if each != "wal"))
        with pipeline.client() as client:
            assert client.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT).ok
        assert "metrics and health cannot be served yet" in pipeline.log_text()
    eventually(lambda: answers(settings, "wal"), "the port is taken as soon as it is free")
    wait_ready(settings, "wal")


def test_nothing_listens_when_nobody_asked_for_it(start_pipeline: Callable[..., Pipeline]) -> None:
    pipeline = start_pipeline()
    for stage, pid in pipeline.pids().items():
        assert is_alive(pid)
        sockets = listening(pid)
        assert len(sockets) == (1 if stage == "gateway" else 0), (stage, sockets)


def listening(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    inodes = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(path)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                ports.add(int(words[1].rpartition(":")[2], 16))
    return ports
