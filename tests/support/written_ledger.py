"""A data folder as a ledger leaves it, written by the engine and the log without any process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from crc32c import crc32c

from tallybus.common.files import Storage
from tallybus.common.functions.binaries import binary_path
from tallybus.common.record import RECORD_DTYPE, Kind
from tallybus.common.snapshot.balances import SnapshotFields
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.outcome import Outcome
from tallybus.services.transactor.registrar import Registrar
from tallybus.services.wal.log import Log
from tests.support.log_samples import CLUSTER
from tests.support.snapshots import write_snapshot


class WrittenLedger:
    """Executes what it is told and logs it durably, one block for each call. To be closed."""

    def __init__(self, folder: Path, per_segment: int = 1_000, max_accounts: int = 100) -> None:
        self.folder = folder
        self.per_segment = per_segment
        self.storage = Storage()
        self.log = Log.open(folder, self.storage, per_segment, CLUSTER)
        self.engine = Engine(max_accounts, per_segment, 7)
        self.registrar = Registrar(self.engine)
        self._touched = np.ones_like(self.engine.touched)

    def register(self, name: str, binary: bytes, override: bool = False) -> int:
        """Register a function, or end it with an empty binary; the transaction's id."""
        record = np.zeros(1, RECORD_DTYPE)
        record["kind"] = Kind.FUNCTION_REGISTERED
        record["function"] = crc32c(binary)
        record["account"] = override
        version = self.registrar.registry.next_version(name)
        path = binary_path(self.folder, name, version)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(binary)
        return self._write(self.registrar.register(record, self.engine.next_id, name, binary))

    def deposit(self, account: int, amount: int, count: int = 1) -> int:
        """Deposits; the id of the first."""
        records = np.zeros(count, RECORD_DTYPE)
        records["kind"], records["account"], records["amount"] = Kind.DEPOSIT, account, amount
        return self._write(self.engine.execute(records, self.engine.next_id))

    def call(self, name: str, *params: Sequence[int], user_ref: int = 0) -> int:
        """Calls with these rows of parameters in one batch; the id of the first."""
        records = np.zeros(len(params), RECORD_DTYPE)
        records["kind"], records["user_ref"] = Kind.FUNCTION, user_ref
        rows = np.zeros((len(params), 8), np.int64)
        for row, given in zip(rows, params, strict=True):
            row[: len(given)] = given
        return self._write(self.engine.execute(records, self.engine.next_id, [name], rows))

    def snapshot(self) -> None:
        """A snapshot of the last full segment, which ends where the ledger is now."""
        last = self.engine.next_id - 1
        assert last % self.per_segment == 0
        fields = SnapshotFields(CLUSTER, last // self.per_segment, self.per_segment, 1, 1)
        write_snapshot(
            self.storage,
            self.folder,
            fields,
            self.engine.balances,
            self._touched,
            self.registrar.registry.versions(),
        )

    def fill_segment(self) -> None:
        """Deposits up to the end of the segment."""
        rest = -(self.engine.next_id - 1) % self.per_segment
        if rest:
            self.deposit(9, 1, rest)

    def write(self, executed: Outcome) -> int:
        """Log what somebody else has executed, as a later or an older ledger would have it."""
        self.engine.next_id += executed.batch.count
        self.engine.window.advance(executed.batch.count)
        return self._write(executed)

    def _write(self, executed: Outcome) -> int:
        first = self.log.next_id
        batch = replace(
            executed.batch,
            first_id=first,
            term=1,
            timestamp_ns=1_700_000_000_000_000_000 + first,
            gateway=11,
            request=first,
        )
        self.log.append(batch, first - 1)
        self.log.sync()
        return first

    def close(self) -> None:
        self.log.close()
        self.registrar.close()
