"""The measuring tools: what they send, count and report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tallybus.cli import connect, main
from tallybus.cli.errors import CommandFailed
from tallybus.cli.measure import latency, load
from tallybus.cli.measure.background import FULL_BATCH, Sent, background, batch_of, send_steadily
from tallybus.cli.measure.disk_speed import DiskLimits, measure_disk
from tallybus.cli.measure.drive import drive
from tallybus.cli.measure.statistics import milliseconds, percentile
from tallybus.cli.measure.workload import (
    FUNDING,
    MAX_AMOUNT,
    OVERDRAFT_AMOUNT,
    POOL_OPERATIONS,
    Workload,
    WorkloadKind,
    first_ref,
    funding,
)
from tallybus.cli.target import Target
from tallybus.client import Client
from tallybus.common.record import Kind, Level
from tallybus.errors import Overloaded, Timeout
from tallybus.operations import BatchResult, Operations
from tests.unit.tallybus.cli.fake_ledger import FakeLedger, FakePending

DISK = DiskLimits(100_000_000, 0.5, (1_000_000, 2_000_000, 3_000_000))


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> FakeLedger:
    fake = FakeLedger()

    @contextmanager
    def open_clients(
        endpoint: str, timeout_s: float, count: int, key: str | None
    ) -> Iterator[list[FakeLedger]]:
        yield [fake.open(endpoint, timeout_s, key) for _ in range(count)]

    monkeypatch.setattr(connect, "open_client", fake.open)
    monkeypatch.setattr(connect, "open_clients", open_clients)
    for module in (load, latency):
        monkeypatch.setattr(module, "measure_disk", lambda *_, **__: DISK)
    return fake


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def make(kind: WorkloadKind, batch: int = 10, ref: int | None = None, seed: int = 1) -> Workload:
    return Workload(kind, accounts=50, batch=batch, ops=20_000, seed=seed, first_ref=ref)


def take(source: Workload, sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([source.take(size).copy() for size in sizes])


def test_transfers_stay_within_the_accounts_and_some_ask_for_too_much() -> None:
    made = take(make("transfer"), [10] * 1_000)
    assert set(made["kind"]) == {Kind.TRANSFER}
    for name in ("account", "counterparty"):
        assert (made[name].min(), made[name].max()) == (1, 50)
    too_much = made["amount"] == OVERDRAFT_AMOUNT
    assert 0.005 < too_much.mean() < 0.04
    assert 1 <= made["amount"][~too_much].min() <= made["amount"][~too_much].max() <= MAX_AMOUNT
    assert not made["user_ref"].any()


def test_deposits_and_mixtures_are_what_they_say() -> None:
    made = take(make("deposit"), [10] * 1_000)
    assert set(made["kind"]) == {Kind.DEPOSIT}
    assert not made["counterparty"].any()
    assert made["amount"].max() <= MAX_AMOUNT
    made = take(make("mixed"), [10] * 1_000)
    shares = [np.mean(made["kind"] == kind) for kind in (1, 2, 3)]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.05)
    transfers = made["kind"] == Kind.TRANSFER
    assert made["counterparty"][transfers].all()
    assert not made["counterparty"][~transfers].any()


def test_the_seed_decides_the_operations() -> None:
    first, again, other = (take(make("mixed", seed=seed), [10] * 50) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("batch", [1, 7, 4_096, 5_000])
def test_refs_are_unique_over_many_rounds_of_the_pool(batch: int) -> None:
    source = make("transfer", batch=batch, ref=first_ref(123, 100_000))
    made = take(source, [batch] * (100_000 // batch) + [1])
    assert made["user_ref"].all()
    assert len(np.unique(made["user_ref"])) == len(made)


def test_a_batch_is_contiguous_for_the_wire() -> None:
    assert make("transfer", ref=1).take(7).flags.c_contiguous


@given(st.integers(0, 2**64 - 1), st.integers(1, 10**9))
def test_no_ref_is_zero_wherever_they_start(bits: int, ops: int) -> None:
    stride = 0xD1342543DE82EF95
    start = first_ref(bits, ops)
    assert 0 <= start < 2**64
    assert (-start * pow(stride, -1, 2**64)) % 2**64 > ops + POOL_OPERATIONS


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_start_that_would_lead_to_zero_is_moved(steps: int) -> None:
    stride = 0xD1342543DE82EF95
    start = first_ref(-steps * stride, 10)
    assert all((start + index * stride) % 2**64 for index in range(20))


def test_funding_reaches_every_account_once() -> None:
    made = np.concatenate([funding(25, 10, position) for position in (0, 10, 20)])
    assert made["account"].tolist() == list(range(1, 26))
    assert set(made["amount"]) == {FUNDING}


def clients(*ledgers: FakeLedger) -> list[Client]:
    return [cast(Client, each) for each in ledgers]


class NotedPending(FakePending):
    """Notes when its answer is taken."""

    def __init__(self, outcome: BatchResult, events: list[str], name: str) -> None:
        super().__init__(outcome)
        self._events, self._name = events, name

    def result(self, timeout: float | None = None) -> BatchResult:
        self._events.append(f"end {self._name}")
        return super().result(timeout)


class Recorder(FakeLedger):
    """Notes when a batch is begun and when its answer is taken."""

    def __init__(self, events: list[str], name: str) -> None:
        super().__init__()
        self._events, self._name = events, name

    def begin_batch(self, operations: Operations, wait: Level = Level.COMMITTED) -> FakePending:
        self._events.append(f"begin {self._name}")
        return NotedPending(self.submit_batch(operations, wait), self._events, self._name)


def test_the_driver_keeps_its_window_full_and_takes_answers_in_order() -> None:
    events: list[str] = []
    both = [Recorder(events, "a"), Recorder(events, "b")]
    measured = drive(
        clients(*both), make("deposit"), ops=45, batch=10, window=3, level=Level.COMPUTED
    )
    assert both[0].sizes == [10, 10, 5]
    assert both[1].sizes == [10, 10]
    assert events[:3] == ["begin a", "begin b", "begin a"]
    assert [event for event in events if event.startswith("end")] == [
        f"end {name}" for name in "ababa"
    ]
    depth = list(itertools.accumulate(1 if event.startswith("begin") else -1 for event in events))
    assert (max(depth), depth[-1]) == (3, 0)
    assert (measured.ops, measured.failed, len(measured.request_ns)) == (45, 0, 5)
    assert measured.seconds > 0


def test_the_driver_counts_rejections_by_reason_and_reports_progress() -> None:
    fake = FakeLedger()
    told: list[int] = []
    measured = drive(
        clients(fake),
        make("transfer"),
        ops=3_000,
        batch=10,
        window=2,
        level=Level.COMMITTED,
        progress=told.append,
    )
    assert measured.failed == 3_000 - fake.statuses.count(0) > 0
    assert measured.rejected == {"INSUFFICIENT_FUNDS": measured.failed}
    assert (measured.first_tx_id, measured.last_tx_id) == (1, 3_000)
    assert sum(told) == 3_000


def test_a_failing_request_ends_the_run() -> None:
    fake = FakeLedger()
    fake.failures[1] = Overloaded("full", request="submit", attempts=1)
    with pytest.raises(Overloaded):
        drive(clients(fake), make("deposit"), ops=50, batch=10, window=2, level=Level.COMPUTED)


def test_the_report_has_the_measurement_and_the_limits(ledger: FakeLedger) -> None:
    done = run(
        *("load", "--kind", "transfer", "--ops", 5_000, "--batch", 100, "--accounts", 30),
        *("--clients", 2, "--in-flight", 3, "--unique-refs", "--seed", 5, "--json"),
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ops"] == 5_000
    assert report["tx_per_s"] == pytest.approx(5_000 / report["seconds"], rel=0.01)
    assert 0 < report["failed"] < 500
    assert report["rejected"] == {"INSUFFICIENT_FUNDS": report["failed"]}
    assert 0 < report["batch_p50_ms"] <= report["batch_p99_ms"] <= report["batch_max_ms"]
    assert (report["disk_mb_per_s"], report["fdatasync_p50_ms"]) == (200.0, 2.0)
    assert report["log_bytes_per_tx"] is None
    assert report["share_of_disk_limit"] is None
    assert (report["clients"], report["in_flight"], report["wait"]) == (2, 3, "committed")
    assert (report["funded_accounts"], report["warm_up_ops"]) == (30, 2_000)
    assert len(ledger.statuses) == 30 + 2_000 + 5_000
    assert "DUPLICATE" not in ledger.status_names()
    assert len(ledger.refs) == 7_000


def test_connections_may_be_shared_by_clients(ledger: FakeLedger) -> None:
    done = run(
        *("load", "--kind", "deposit", "--ops", 100, "--batch", 1, "--clients", 8),
        *("--connections", 2, "--json"),
    )
    report = json.loads(done.stdout)
    assert (report["clients"], report["connections"], report["in_flight"]) == (8, 2, 1)
    assert len(ledger.opened) == 2
    assert set(ledger.sizes) == {1}
    assert report["funded_accounts"] == 0


def test_a_run_that_does_not_wait_for_the_disk_is_followed_by_a_wait(ledger: FakeLedger) -> None:
    done = run(
        *("load", "--kind", "mixed", "--ops", 50, "--batch", 10, "--accounts", 5),
        *("--wait", "none", "--json"),
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["failed"] == 0


def test_the_share_of_the_disks_limit_needs_the_logs_files(tmp_path: Path) -> None:
    (tmp_path / "wal.bin").write_bytes(b"x" * 100)
    (tmp_path / "wal_000001.bin").write_bytes(b"x" * 50)
    (tmp_path / "snapshot_000001.bin").write_bytes(b"x" * 999)
    at = Target("tcp://127.0.0.1:1", tmp_path, tmp_path)
    assert at.log_bytes() == 150
    assert Target("tcp://127.0.0.1:1", tmp_path, None).log_bytes() is None
    plan = load.Plan("deposit", 10, 10, 1, 1, 1, 1, Level.COMMITTED, False, 1, 1.0)
    measured = drive(
        clients(FakeLedger()), make("deposit"), ops=10, batch=10, window=1, level=Level.COMMITTED
    )
    measured.seconds = 1e-6
    report = load.make_report(plan, at, load.Outcome(measured, DISK, 40.0))
    assert report["tx_per_s"] == 10_000_000
    assert report["share_of_disk_limit"] == 2.0
    assert report["disk_folder_is"] == "data folder"


def test_settings_need_a_ledger_of_ones_own(ledger: FakeLedger) -> None:
    assert run("load", "--set", "ledger.max_accounts=5").exit_code == 2


def test_accounts_beyond_the_ledgers_limit_are_told(ledger: FakeLedger) -> None:
    ledger.max_accounts = 10
    done = run("load", "--ops", 10, "--accounts", 10)
    assert done.exit_code == 1
    assert "max_accounts" in done.stderr


def test_a_ledger_that_is_not_there_ends_both_tools(ledger: FakeLedger) -> None:
    ledger.unreachable = Timeout("no answer", request="ping", level=None, seconds=5)
    for command in ("load", "latency"):
        done = run(command)
        assert (done.exit_code, done.stderr) == (3, "Error: no answer\n")


@pytest.mark.parametrize("level", ["computed", "committed", "snapshot"])
def test_latency_times_one_deposit_at_a_time(ledger: FakeLedger, level: str) -> None:
    done = run("latency", "--level", level, "--samples", 20, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["p50_ms"] <= report["p90_ms"] <= report["p99_ms"] <= report["max_ms"]
    assert (report["fdatasync_p50_ms"], report["samples"], report["rate"]) == (2.0, 20, 0)
    assert report["level"] == level
    assert set(ledger.sizes) == {1}
    assert len(ledger.statuses) == 20 + latency.WARM_UP_SAMPLES
    assert ledger.levels[-1] is Level[level.upper()]


@pytest.mark.parametrize(("given", "rate"), [("max", None), ("100000", 100_000)])
def test_latency_is_measured_while_the_load_runs(
    ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch, given: str, rate: int | None
) -> None:
    events: list[object] = []

    class FakeBackground:
        def stop(self) -> Sent:
            events.append(("stopped after", len(ledger.statuses)))
            return Sent(500, 2.0)

    @contextmanager
    def load_beside(endpoint: str, **options: object) -> Iterator[FakeBackground]:
        events.append(options)
        yield FakeBackground()

    monkeypatch.setattr(latency, "background", load_beside)
    done = run("latency", "--rate", given, "--samples", 20, "--accounts", 7, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rate"] == (given if rate is None else rate)
    assert report["reached_rate"] == 250.0
    assert events == [
        {"rate": rate, "accounts": 7, "timeout_s": 30.0, "key": None},
        ("stopped after", 20 + 2 * latency.WARM_UP_SAMPLES),
    ]


def test_a_load_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(CommandFailed, match=r"background load ended early: .*no connection"),
        background("tcp://127.0.0.1:9", rate=1, accounts=1, timeout_s=0.2),
    ):
        raise AssertionError("it started")


def test_latency_refuses_levels_that_cannot_be_timed(ledger: FakeLedger) -> None:
    assert run("latency", "--level", "none").exit_code == 2
    assert run("latency", "--rate", "fast").exit_code == 2


def test_a_steady_load_sends_at_its_rate() -> None:
    fake = FakeLedger()
    rate = 20_000
    turns = itertools.count()
    sent = send_steadily(
        clients(fake)[0],
        make("deposit", batch=batch_of(rate)),
        rate=rate,
        running=lambda: next(turns) < 50,
    )
    assert sent.ops == 50 * batch_of(rate) == len(fake.statuses)
    # The 50 requests are due over 49 intervals; a busy machine may take longer, never shorter.
    assert sent.ops_per_s <= rate * 50 / 49 * 1.001


def test_a_full_load_does_not_wait() -> None:
    fake = FakeLedger()
    turns = itertools.count()
    source = Workload("deposit", accounts=5, batch=FULL_BATCH, ops=1, seed=1)
    send_steadily(clients(fake)[0], source, rate=None, running=lambda: next(turns) < 2)
    assert fake.sizes == [FULL_BATCH, FULL_BATCH]


def test_percentiles_are_values_that_were_measured() -> None:
    assert [percentile([3, 1, 2, 4], percent) for percent in (0, 25, 50, 51, 99, 100)] == [
        1,
        1,
        2,
        3,
        4,
        4,
    ]
    assert percentile(range(1, 1_001), 99) == 990
    assert milliseconds([1_234_567], 50) == 1.235
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_disk_is_measured_and_nothing_is_left_behind(tmp_path: Path) -> None:
    limits = measure_disk(tmp_path, sequential_bytes=1)
    assert limits.bytes_written == 32 << 20
    assert limits.mb_per_s > 0
    assert limits.fdatasync_p50_ms > 0
    assert list(tmp_path.iterdir()) == []
    both = limits + limits
    assert both.mb_per_s == pytest.approx(limits.mb_per_s)
    assert len(both.sync_ns) == 2 * len(limits.sync_ns)
