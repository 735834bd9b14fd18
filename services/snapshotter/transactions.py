"""Single transactions, read from the log as they are asked for.

Reads the log and writes nothing. Nothing is kept between two calls, so memory does not depend on
what was asked for, and a segment that is closed meanwhile is just another file.
"""

from __future__ import annotations

from pathlib import Path

from tallybus.common.bus.transaction import LoggedTransaction
from tallybus.common.files import Storage
from tallybus.common.wal.find import find_transaction


class LogTransactions:
    """Looks up transactions in the log of `folder`."""

    def __init__(
        self,
        folder: Path,
        transactions_per_segment: int,
        *,
        cluster_id: int,
        storage: Storage | None = None,
    ) -> None:
        self._folder = folder
        self._segment_size = transactions_per_segment
        self._cluster_id = cluster_id
        self._storage = storage

    def find(self, tx_id: int, last_id: int) -> LoggedTransaction:
        """The durable transaction `tx_id`, from 1 to `last_id`, which is durable as well.

        Raises LogRefused and StorageError when the log cannot be read.
        """
        batch = find_transaction(
            self._folder,
            tx_id,
            self._segment_size,
            cluster_id=self._cluster_id,
            last_id=last_id,
            storage=self._storage,
        )
        return LoggedTransaction(
            tx_id=tx_id,
            record=batch.records[0],
            duplicate_of=int(batch.links[0]) if len(batch.links) else 0,
            params=batch.params,
            entries=batch.entries,
            timestamp_ns=batch.timestamp_ns,
            term=batch.term,
        )
