"""The snapshotter's shell: snapshot files, reading the log for its core, and sockets around it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from tallybus.common import logs
from tallybus.common.batch import Batch
from tallybus.common.bus.messages import (
    TOPIC_ACKNOWLEDGE,
)
from tallybus.common.files import FileLock, StorageError
from tallybus.common.service.shell import Shell
from tallybus.common.settings.sections import data_folder
from tallybus.common.snapshot.balances import FrozenBalances, SnapshotFields, load_latest_snapshot
from tallybus.common.wal.reader import LogRefused, read_log
from tallybus.services.snapshotter.cold_statuses import LogStatuses
from tallybus.services.snapshotter.core import SnapshotterCore
from tallybus.services.snapshotter.metrics import SnapshotterMeter
from tallybus.services.snapshotter.read_state import ReadState
from tallybus.services.snapshotter.snapshot_writer import SnapshotWriter
from tallybus.services.snapshotter.transactions import LogTransactions

LOCK_NAME: Final = "snapshotter.lock"
READING_NS: Final = 10_000_000
"""How long the log is read in one turn, before queries get theirs."""
LOOKUPS_NS: Final = 1_000_000
"""How long single transactions are looked up in one turn, before other queries get theirs, and at
least one. A lookup takes about half a millisecond, or some when the disk has to be read."""


class SnapshotterService(Shell):
    """One snapshotter. Of the data folder it writes the snapshots and nothing else."""

    stage = "snapshotter"
    core: SnapshotterCore

    def prepare(self) -> None:
        ledger = self.settings.ledger
        self._folder = data_folder(self.settings)
        self._reading: Iterator[Batch] | None = None
        self._writer: SnapshotWriter | None = None
        self.recovered_segment = 0
        self._transactions: LogTransactions | None = None
        self._folder_lock: FileLock | None = None
        self.core = SnapshotterCore(
            self.new_incarnation(),
            self.heartbeat_ns,
            transactions_per_segment=ledger.transactions_per_segment,
            snapshot_frequency=ledger.snapshot_frequency,
        )
        self.sockets.open_stage(successor=None)
        self.sockets.open_questions("wal")
        self.sockets.subscribe(["wal"], [TOPIC_ACKNOWLEDGE])
        self.sockets.open_data()

    def new_meter(self) -> SnapshotterMeter:
        return SnapshotterMeter(self)

    @property
    def writer(self) -> SnapshotWriter | None:
        """What writes snapshots, once the state is recovered."""
        return self._writer

    def timeout_ns(self, now_ns: int) -> int:
        if self._reading is not None or self.core.lookups:
            return 0
        return super().timeout_ns(now_ns)

    def step(self, now_ns: int) -> None:
        if self.core.recovering:
            self._recover()
        self._read_log(now_ns)
        self._look_up()
        for segment, frozen in self.core.frozen:
            self._offer(segment, frozen)
        self.core.frozen.clear()
        if self._writer is not None and self._writer.error is not None:
            raise self._writer.error

    def close(self) -> None:
        super().close()
        writer = getattr(self, "_writer", None)
        if writer is not None:
            writer.close()
        lock = getattr(self, "_folder_lock", None)
        if lock is not None:
            lock.release()

    def _recover(self) -> None:
        welcome = self.core.welcome
        assert welcome is not None
        ledger = self.settings.ledger
        # The log stage has answered, so the folder is there. One at a time writes snapshots to it.
        self._folder_lock = self.storage.lock_exclusive(self._folder / LOCK_NAME)
        snapshot, rejected = load_latest_snapshot(
            self._folder,
            cluster_id=welcome.cluster,
            transactions_per_segment=ledger.transactions_per_segment,
            max_accounts=ledger.max_accounts,
            durable_index=welcome.next - 1,
        )
        for damage in rejected:
            self.log.warning("passed over a snapshot", extra=logs.fields(reason=str(damage)))
        cold = LogStatuses(
            self._folder, ledger.transactions_per_segment, cluster_id=welcome.cluster
        )
        if snapshot is None:
            state = ReadState(ledger.max_accounts, ledger.transactions_per_segment, cold=cold)
        else:
            state = ReadState.from_snapshot(snapshot, cold=cold)
            self.recovered_segment = snapshot.fields.segment
        self._transactions = LogTransactions(
            self._folder, ledger.transactions_per_segment, cluster_id=welcome.cluster
        )
        self._writer = SnapshotWriter(self.storage, self._folder, ledger.snapshots_kept)
        self.core.recovered(state)
        self.log.info(
            "recovered",
            extra=logs.fields(snapshot=state.index, behind=max(0, welcome.durable - state.index)),
        )

    def _read_log(self, now_ns: int) -> None:
        wanted = self.core.range_to_read(now_ns)
        if wanted is None:
            self._reading = None
            return
        welcome = self.core.welcome
        assert welcome is not None
        if self._reading is None:
            self._reading = read_log(
                self._folder,
                *wanted,
                self.settings.ledger.transactions_per_segment,
                cluster_id=welcome.cluster,
                progress=self.watch.report_progress("reading the log"),
            )
        until = now_ns + READING_NS
        while self._reading is not None and (now := time.monotonic_ns()) < until:
            batch = next(self._reading, None)
            if batch is None or batch.first_id != self.core.receiver.next_id:
                # The end of the range, or the stream has overtaken it: look again in the next turn.
                self._reading = None
                return
            self.core.on_log(batch, now)

    def _look_up(self) -> None:
        if self._transactions is None:
            return
        until = time.monotonic_ns() + LOOKUPS_NS
        while self.core.lookups and time.monotonic_ns() < until:
            lookup = self.core.lookups.popleft()
            try:
                found = self._transactions.find(lookup.tx_id, self.core.receiver.next_id - 1)
            except (LogRefused, StorageError) as error:
                # Who asked is told. Balances do not depend on it, so they go on being served.
                self.log.error(
                    "cannot read a transaction",
                    extra=logs.fields(transaction=lookup.tx_id, reason=str(error)),
                )
                path = str(error.path).encode(errors="replace").decode()
                self.core.lookup_failed(lookup, str(error), {"tx_id": lookup.tx_id, "path": path})
            else:
                self.core.looked_up(lookup, found)

    def _offer(self, segment: int, frozen: FrozenBalances) -> None:
        welcome = self.core.welcome
        assert welcome is not None
        assert self._writer is not None
        fields = SnapshotFields(
            cluster_id=welcome.cluster,
            segment=segment,
            transactions_per_segment=self.settings.ledger.transactions_per_segment,
            term=self.core.term,
            timestamp_ns=time.time_ns(),
        )
        if not self._writer.offer(fields, frozen):
            self.log.info(
                "skipped a snapshot, the last is still being written",
                extra=logs.fields(segment=segment),
            )
