"""What was acknowledged as COMMITTED is there after SIGKILL of everything; damage is refused."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tallybus import (
    Client,
    ClientClosed,
    Deposit,
    OutcomeUnknown,
    WaitLevel,
    deposits,
    transfers,
)
from tallybus.common.record import RECORD_DTYPE, Kind, Status
from tallybus.common.settings.sections import Settings
from tallybus.common.stages import START_ORDER
from tallybus.common.wal.block import HEADER_SIZE
from tallybus.errors import TallybusError
from tallybus.supervisor import Supervisor
from tests.processes.pipeline import (
    PATIENCE_S,
    Command,
    Pipeline,
    assert_balances,
    blocks,
    eventually,
    make_settings,
    pipeline_of,
    quiet_endpoint,
    replay,
    tidy,
)

ACCOUNTS = 50
SEGMENT = 4_000


@dataclass
class Load:
    """Clients that submit random batches, in step with one another, until they are stopped.

    In step: none is ahead of the slowest by so much that a batch which that one sends again could
    have left the duplicate window.
    """

    endpoint: str
    seed: int
    acknowledged: list[tuple[int, NDArray[Any], Any]] = field(default_factory=list)
    unknown: int = 0
    error: Exception | None = None

    def __post_init__(self) -> None:
        self._step = threading.Condition()
        self._done = dict.fromkeys(("refs 1", "refs 2", "no refs"), 0)
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, args=(name, number), name=name)
            for number, name in enumerate(self._done)
        ]

    @property
    def transactions(self) -> int:
        return sum(self._done.values())

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._step:
            self._stopping = True
            self._step.notify_all()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive(), f"client {thread.name} hangs"

    def slowest(self) -> int:
        return min(self._done.values())

    def has_passed(self, transactions: int, slowest: int) -> bool:
        """So many are done in all, and more than `slowest` by each client; or one has failed."""
        done = self.transactions >= transactions and self.slowest() > slowest
        return self.error is not None or done

    def _run(self, name: str, number: int) -> None:
        random_ = np.random.default_rng([self.seed, number])
        try:
            with Client(self.endpoint, timeout=PATIENCE_S) as client:
                while self._wait_in_step(name):
                    batch = random_batch(random_, number + 1 if name.startswith("refs") else 0)
                    self._submit(client, batch)
                    with self._step:
                        self._done[name] += len(batch)
                        self._step.notify_all()
        except (TallybusError, AssertionError) as error:
            self.error = error
            with self._step:
                self._done[name] = 2**60
                self._step.notify_all()

    def _wait_in_step(self, name: str) -> bool:
        with self._step:
            while not self._stopping and self._done[name] > self.slowest() + SEGMENT // 8:
                self._step.wait()
            return not self._stopping

    def _submit(self, client: Client, batch: NDArray[Any]) -> None:
        try:
            result = client.submit_batch(batch, WaitLevel.COMMITTED)
        except OutcomeUnknown as error:
            if error.retry_safe:
                # With references a client has to find out by itself.
                raise
            self.unknown += len(batch)
            return
        assert result.level >= WaitLevel.COMMITTED
        with self._step:
            self.acknowledged.append((result.first_tx_id, batch, result))


def random_batch(random_: np.random.Generator, owner: int) -> NDArray[Any]:
    """1 to 60 operations of all kinds; with an owner (not 0) each has a reference of its own."""
    count = int(random_.integers(1, 61))
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = random_.choice([Kind.DEPOSIT, Kind.TRANSFER, Kind.WITHDRAWAL], count)
    records["account"] = random_.integers(1, ACCOUNTS, count)
    is_transfer = records["kind"] == Kind.TRANSFER
    records["counterparty"] = np.where(is_transfer, random_.integers(1, ACCOUNTS, count), 0)
    records["amount"] = random_.integers(1, 2_000, count)
    if owner:
        records["user_ref"] = random_.integers(1, 2**56, count) * 8 + owner
    return records


def assert_nothing_lost(load: Load, pipeline: Pipeline) -> int:
    """Everything acknowledged stands in the log as it was told; balances follow from the log."""
    with pipeline.client() as client:
        last = client.pipeline_index().committed
        log = replay(pipeline.settings, last)
        for first, batch, result in load.acknowledged:
            position = first - 1
            assert first > 0
            if (result.duplicate_of == 0).all():
                logged = log.records[position : position + len(batch)]
                assert_same(logged, batch, result.statuses)
                continue
            # The client had sent it twice: every transaction is known by its first sending.
            logged = log.records[result.tx_ids.astype(np.int64) - 1]
            assert_same(logged, batch, result.statuses)
        refs = log.records["user_ref"][
            (log.records["user_ref"] != 0) & (log.records["status"] != Status.DUPLICATE)
        ]
        assert len(np.unique(refs)) == len(refs), "one effect for each reference"
        assert_balances(client, log.oracle, ACCOUNTS, last)
    return last


def assert_same(logged: NDArray[Any], batch: NDArray[Any], statuses: NDArray[Any]) -> None:
    for name in ("kind", "account", "counterparty", "amount", "user_ref"):
        assert (logged[name] == batch[name]).all()
    assert (logged["status"] == statuses).all()


@pytest.mark.parametrize("seed", [1, 2])
def test_acknowledged_transactions_survive_sigkill_of_all_processes_under_load(
    seed: int, tmp_path: Path
) -> None:
    random_ = random.Random(seed)
    settings = make_settings(
        tmp_path / "data",
        ledger__transactions_per_segment=SEGMENT,
        ledger__max_accounts=1_000,
    )
    errors = tmp_path / "services.log"
    with Load(settings.gateway.endpoint, seed) as load:
        for _ in range(3):
            with pipeline_of(settings, errors) as pipeline:
                target = load.transactions + random_.randrange(500, 4_000)
                # Everybody has been answered since the start: what was sent again is settled.
                slowest = load.slowest()
                eventually(partial(load.has_passed, target, slowest), "the load goes on")
                assert load.error is None, load.error
                time.sleep(random_.random() * 0.05)
                pipeline.kill(random_.sample(START_ORDER, 5))
            # Killed once more while it starts and recovers.
            with errors.open("ab") as log:
                started = Supervisor(settings, stderr=log)
                try:
                    started.start()
                    time.sleep(random_.random() * 1.5)
                finally:
                    Pipeline(started, settings, errors).kill()
                    started.stop()
        with pipeline_of(settings, errors) as pipeline:
            slowest = load.slowest()
            eventually(lambda: load.error or load.slowest() > slowest, "the load goes on")
            load.__exit__()
            assert load.error is None, load.error
            last = assert_nothing_lost(load, pipeline)
            acknowledged = sum(len(batch) for _, batch, _ in load.acknowledged)
            assert last >= acknowledged > 1_500
            assert last > SEGMENT, "segments were rotated"


# --- torn tail --------------------------------------------------------------------------------


def random_load(client: Client, batches: int, seed: int) -> None:
    random_ = np.random.default_rng(seed)
    for _ in range(batches):
        client.submit_batch(random_batch(random_, 1), WaitLevel.COMMITTED)


@pytest.mark.parametrize("where", ["in the header", "in the payload", "rubbish"])
def test_a_torn_tail_is_cut_off_and_the_ledger_goes_on(where: str, tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data", ledger__max_accounts=1_000)
    errors = tmp_path / "services.log"
    with pipeline_of(settings, errors) as pipeline, pipeline.client() as client:
        random_load(client, 20, seed=3)
        pipeline.kill()
    wal = settings.ledger.data / "wal.bin"
    last_block = [block for block in blocks(wal) if not block.is_marker][-1]
    if where == "rubbish":
        last = last_block.last_id
        with wal.open("ab") as file:
            file.write(b"\x00\xffTBLK" + bytes(range(200)))
    else:
        # As after a power cut: the disk got half of the last block, and nothing behind it.
        last = last_block.first_id - 1
        middle = HEADER_SIZE // 2 if where == "in the header" else HEADER_SIZE + 20
        os.truncate(wal, last_block.offset + middle)
    with pipeline_of(settings, errors) as pipeline, pipeline.client() as client:
        assert client.pipeline_index().committed == last
        assert "cut off a torn tail" in pipeline.log_text()
        assert_balances(client, replay(settings, last).oracle, ACCOUNTS, last)
        result = client.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT)
        assert result.tx_id == last + 1
        assert result.ok
        assert_balances(client, replay(settings, last + 1).oracle, ACCOUNTS, last + 1)


# --- damage -----------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[tuple[Settings, Path, int]]:
    """A ledger of two segments that was stopped; a bit of its first segment has flipped."""
    settings = make_settings(
        tmp_path / "data", ledger__transactions_per_segment=100, ledger__max_accounts=1_000
    )
    with (
        pipeline_of(settings, tmp_path / "services.log") as pipeline,
        pipeline.client() as client,
    ):
        random_load(client, 8, seed=4)
    path = settings.ledger.data / "wal_000001.bin"
    block = [each for each in blocks(path) if not each.is_marker][1]
    flip(path, block.offset + HEADER_SIZE + 32)
    yield settings, path, block.offset
    tidy(settings)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def arguments(settings: Settings) -> list[str]:
    """Options that make a command use these settings."""
    chosen = []
    for entry in settings.effective():
        if entry.origin != "default" and entry.setting.key != "ledger.data":
            chosen += ["--set", f"{entry.setting.key}={entry.value}"]
    return ["--data", str(settings.ledger.data), *chosen]


@pytest.mark.parametrize("words", [["up"], ["serve", "wal"]], ids=" ".join)
def test_damage_below_the_durable_index_is_refused_with_file_and_offset(
    words: list[str],
    damaged: tuple[Settings, Path, int],
    start_command: Callable[..., Command],
) -> None:
    settings, path, offset = damaged
    before = {file.name: file.read_bytes() for file in path.parent.glob("wal*.bin")}
    command = start_command(*words, *arguments(settings))
    assert command.wait(PATIENCE_S / 2) not in (0, -signal.SIGKILL)
    assert command.stdout == ""
    assert str(path) in command.stderr
    assert f"offset {offset}" in command.stderr
    assert "Traceback" not in command.stderr
    assert {file.name: file.read_bytes() for file in path.parent.glob("wal*.bin")} == before


def test_damage_in_the_last_block_of_a_log_that_was_stopped_is_refused_too(
    tmp_path: Path, start_command: Callable[..., Command]
) -> None:
    settings = make_settings(tmp_path / "data", ledger__max_accounts=1_000)
    with (
        pipeline_of(settings, tmp_path / "services.log") as pipeline,
        pipeline.client() as client,
    ):
        random_load(client, 4, seed=5)
    path = settings.ledger.data / "wal.bin"
    block = [each for each in blocks(path) if not each.is_marker][-1]
    flip(path, block.offset + HEADER_SIZE + 32)
    command = start_command("up", *arguments(settings))
    assert command.wait(PATIENCE_S / 2) not in (0, -signal.SIGKILL)
    command.end()
    tidy(settings)
    assert str(path) in command.stderr
    assert f"offset {block.offset}" in command.stderr


# --- one pipeline per folder ------------------------------------------------------------------


@pytest.mark.parametrize("same_run_folder", [True, False])
def test_a_second_pipeline_on_the_same_folder_is_refused_and_the_first_goes_on(
    same_run_folder: bool,
    tmp_path: Path,
    start_pipeline: Callable[..., Pipeline],
    start_command: Callable[..., Command],
) -> None:
    first = start_pipeline()
    second = quiet_endpoint()
    options = ["--data", str(first.data), "--endpoint", second]
    if not same_run_folder:
        (tmp_path / "other").mkdir(mode=0o700)
        options += ["--set", f"bus.run_folder={tmp_path / 'other'}"]
    with first.client() as client:
        for _ in range(3):
            client.submit_and_wait(Deposit(1, 100), WaitLevel.SNAPSHOT)
        pids = first.pids()
        command = start_command("up", *options)
        code = command.wait(PATIENCE_S / 2)
        assert code not in (0, -signal.SIGKILL)
        assert command.stdout == ""
        assert "held by" in command.stderr
        assert str(first.data) in command.stderr
        assert "Traceback" not in command.stderr
        assert first.pids() == pids
        result = client.submit_batch(transfers([1, 1], [2, 3], [50, 60]), WaitLevel.SNAPSHOT)
        assert result.first_tx_id == 4
        assert client.get_balances([0, 1, 2, 3]).balances.tolist() == [-300, 190, 50, 60]


def test_batches_of_clients_that_vanish_are_whole_or_not_there(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline(ledger__transactions_per_segment=500)
    told: dict[int, int] = {}
    for number in range(1, 6):
        client = pipeline.client()
        refs = [[1_000 * number + 3 * i + k for k in range(3)] for i in range(200)]
        pending = [
            client.begin_batch(deposits([number] * 3, [1] * 3, three), WaitLevel.COMMITTED)
            for three in refs
        ]
        client.close(wait=False)
        for each, three in zip(pending, refs, strict=True):
            try:
                told[three[0]] = each.result().first_tx_id
            except (OutcomeUnknown, ClientClosed):
                continue
    with pipeline.client() as client:
        mine = client.submit_and_wait(Deposit(9, 1), WaitLevel.SNAPSHOT).tx_id
        # What the others have sent may still be on its way: compare as of one moment.
        read = client.get_balances(np.arange(10), min_tx_id=mine)
        log = replay(pipeline.settings, read.last_snapshot_tx_id)
        assert read.balances.tolist() == [log.oracle.balance(number) for number in range(10)]
    logged = log.records["user_ref"][log.records["account"] != 9]
    logged = logged[: len(logged) // 3 * 3].reshape(-1, 3)
    assert (logged - logged[:, :1] == [0, 1, 2]).all()
    assert len(np.unique(logged)) == logged.size
    for first_ref, tx_id in told.items():
        assert log.records["user_ref"][tx_id - 1] == first_ref
