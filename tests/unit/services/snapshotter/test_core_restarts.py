"""A snapshotter that starts from any of its snapshots answers as one that read the whole log."""

import random
from pathlib import Path

import numpy as np
import pytest

from tallybus.common.batch import Batch
from tallybus.common.buffers import as_buffer
from tallybus.common.bus.messages import Answer, Query, StageStatus, Welcome
from tallybus.common.bus.transaction import Transaction, transaction_in
from tallybus.common.files import Storage
from tallybus.common.functions.registry import FunctionRegistry, FunctionVersion, name_words
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Status
from tallybus.common.snapshot.balances import (
    SnapshotFields,
    function_snapshot_path,
    load_latest_snapshot,
    sidecar_path,
    snapshot_path,
    write_frozen,
)
from tallybus.common.wal.reader import read_log
from tallybus.services.snapshotter.core import SnapshotterCore
from tallybus.services.snapshotter.read_state import ReadState
from tallybus.services.snapshotter.transactions import LogTransactions
from tallybus.services.wal.log import Log
from tests.support.batches import batch_of

N = 16
CLUSTER = 5
ACCOUNTS = 50
NAMES = ("fee", "split", "a_name_of_just_under_32_letters")


class Written:
    """A log of calls, registrations and deposits; `ran` is which function each call ran."""

    def __init__(self, folder: Path, seed: int, last: int) -> None:
        rng = random.Random(seed)
        self.folder = folder
        self.last = last
        self.registry = FunctionRegistry()
        self.ran: dict[int, tuple[str, int] | None] = {}
        log = Log.open(folder, Storage(), N, CLUSTER)
        tx_id = 1
        while tx_id <= last:
            count = min(rng.choice((1, 1, 1, 5, 40)), last - tx_id + 1)
            log.append(self._batch(tx_id, count, rng), tx_id - 1)
            log.sync()
            tx_id += count
        log.close()

    def _batch(self, first: int, count: int, rng: random.Random) -> Batch:
        records = np.zeros(count, RECORD_DTYPE)
        params: list[int] = []
        entries: list[tuple[int, int]] = []
        for place in range(count):
            tx_id, row = first + place, records[place]
            name = rng.choice(NAMES)
            live = self.registry.live(name)
            kind = rng.choice((Kind.DEPOSIT, Kind.FUNCTION, Kind.FUNCTION_REGISTERED))
            row["kind"] = kind
            if kind == Kind.DEPOSIT:
                row["account"], row["amount"], row["entry_count"] = 1, tx_id, 2
            elif kind == Kind.FUNCTION:
                row["amount"] = rng.randint(0, 8)
                params += [tx_id * 10 + word for word in range(int(row["amount"]))]
                self.ran[tx_id] = live and (live.name, live.version)
                row["function"] = live.crc32c if live else 0
                row["account"] = live.transaction_id if live else 0
                row["status"] = 0 if live else Status.INVALID_OPERATION
                if live:
                    row["entry_count"] = 2
                    entries += [(2, -tx_id), (3, tx_id)]
            else:
                words = name_words(name).tolist()
                row["amount"] = len(words)
                params += words
                if rng.random() < 0.2:
                    row["status"] = Status.INVALID_OPERATION
                    continue
                crc = 0 if live and rng.random() < 0.3 else rng.choice((1000, 2000))
                version = FunctionVersion(name, self.registry.next_version(name), crc, tx_id)
                self.registry.apply(version)
                row["function"], row["account"] = crc, version.version
        return batch_of(
            first,
            records,
            params=np.array(params, "<i8"),
            entries=np.array(entries, ENTRY_DTYPE),
            term=1,
            timestamp_ns=10**9 + first,
        )


class Reader:
    """A core with its shell's work around it: snapshots, the log, lookups."""

    def __init__(self, written: Written, *, from_snapshot: bool) -> None:
        self.written = written
        self.core = SnapshotterCore(1, 10**8, transactions_per_segment=N, snapshot_frequency=1)
        last = written.last
        self.core.on_welcome(Welcome("wal", 2, 1, 1, last + 1, last, CLUSTER), 0)
        snapshot = None
        if from_snapshot:
            snapshot, _ = load_latest_snapshot(
                written.folder,
                cluster_id=CLUSTER,
                transactions_per_segment=N,
                max_accounts=ACCOUNTS,
                durable_index=last,
            )
        self.start = 0 if snapshot is None else snapshot.fields.last_tx_id
        self.state = (
            ReadState(ACCOUNTS, N) if snapshot is None else ReadState.from_snapshot(snapshot)
        )
        self.core.recovered(self.state)
        self.core.on_status(StageStatus("wal", 1, 2, last, last + 1, last), 0)
        while (wanted := self.core.range_to_read(0)) is not None:
            for batch in read_log(written.folder, *wanted, N, cluster_id=CLUSTER):
                self.core.on_log(batch, 0)

    def write_snapshots(self) -> None:
        for segment, frozen in self.core.frozen:
            fields = SnapshotFields(CLUSTER, segment, N, 1, 1)
            write_frozen(Storage(), self.written.folder, fields, frozen)

    def transactions(self) -> list[Transaction | None]:
        log = LogTransactions(self.written.folder, N, cluster_id=CLUSTER)
        for tx_id in range(1, self.written.last + 1):
            keys = as_buffer(np.array([tx_id], "<u8"))
            self.core.on_query(b"g", Query(tx_id, "transaction", 0, keys))
        while self.core.lookups:
            lookup = self.core.lookups.popleft()
            self.core.looked_up(lookup, log.find(lookup.tx_id, self.written.last))
        found = []
        for _, answer in self.core.replies:
            assert isinstance(answer, Answer)
            assert answer.error == ""
            found.append(transaction_in(answer, answer.query))
        self.core.replies.clear()
        return found


@pytest.mark.parametrize("seed", range(6))
def test_it_answers_the_same_from_every_snapshot(tmp_path: Path, seed: int) -> None:
    written = Written(tmp_path / "data", seed, last=6 * N + 5)
    whole = Reader(written, from_snapshot=False)
    assert whole.state.functions == written.registry
    expected = whole.transactions()
    ran = {each.tx_id: each.function for each in expected if each is not None}
    assert {tx_id: ran[tx_id] for tx_id in written.ran} == written.ran
    whole.write_snapshots()
    starts = []
    for segment in range(6, -1, -1):
        again = Reader(written, from_snapshot=True)
        starts.append(again.start)
        assert again.state.functions == whole.state.functions
        assert again.state.balances.tobytes() == whole.state.balances.tobytes()
        assert again.transactions() == expected
        # Lose it, each time another one of its files, so that the next start uses the one before.
        path = snapshot_path(written.folder, segment)
        functions = function_snapshot_path(written.folder, segment)
        files = [path, functions, sidecar_path(path), sidecar_path(functions)]
        if segment:
            files[(segment + seed) % 4].unlink()
    assert starts == [N * segment for segment in range(6, -1, -1)]
