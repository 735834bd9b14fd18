"""Statuses of transactions that have left the active window, looked up in the log files.

Reads the log; writes nothing. The window in memory answers nearly every query, so this one is kept
simple: a few ids of a segment are looked for one by one, for many there is one pass over it; and
there is a bound on all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.batch import Batch
from tallybus.common.files import Storage
from tallybus.common.record import STATUS_DTYPE, Stage, Status
from tallybus.common.wal.find import find_block
from tallybus.common.wal.reader import read_log
from tallybus.services.snapshotter.core import QueryRefused

OLD_STATUSES: Final = "old_statuses"
"""The limit's name, as clients are told it."""
MAX_COLD_IDS: Final = 4096
MAX_COLD_TRANSACTIONS: Final = 20_000_000
MAX_FOUND_SINGLY: Final = 256
"""Ids of one segment that are looked for one by one, at about half a millisecond each. For more of
them the segment is read, about a second for 10 million transactions that came one by one."""


class TooManyColdStatuses(QueryRefused):
    """A query asks for more old transactions than one answer may cost.

    Fields: `asked`, `limit`, and `unit` of both: transactions asked for, or to be read past.
    """

    def __init__(self, asked: int, limit: int, unit: str) -> None:
        super().__init__(
            f"statuses that are no longer in memory are read from the log, and this query needs "
            f"{asked} {unit}, more than the limit of {limit}: ask for fewer at once",
            {"limit": OLD_STATUSES, "asked": asked, "allowed": limit},
        )
        self.asked = asked
        self.limit = limit
        self.unit = unit


class LogStatuses:
    """Looks up statuses in the log of `folder`; the `ColdStatuses` of a `ReadState`.

    One call takes at most `max_ids` different ids, and reads past at most `max_transactions`
    transactions (never less than one segment): a segment costs as many as stand in it up to the
    last wanted one. Up to `max_singly` of one segment are looked for one by one.
    """

    def __init__(
        self,
        folder: Path,
        transactions_per_segment: int,
        *,
        cluster_id: int | None = None,
        storage: Storage | None = None,
        max_ids: int = MAX_COLD_IDS,
        max_transactions: int = MAX_COLD_TRANSACTIONS,
        max_singly: int = MAX_FOUND_SINGLY,
    ) -> None:
        self._folder = folder
        self._segment_size = transactions_per_segment
        self._cluster_id = cluster_id
        self._storage = storage
        self._max_ids = max_ids
        self._max_singly = max_singly
        self._max_transactions = max(max_transactions, transactions_per_segment)

    def __call__(self, ids: NDArray[np.uint64]) -> NDArray[Any]:
        """STATUS_DTYPE[k] of the durable transactions `ids` uint64[k], each at least 1.

        Raises TooManyColdStatuses before anything is read; DamagedLog and StorageError when the log
        cannot be read.
        """
        wanted, places = np.unique(ids, return_inverse=True)
        if len(wanted) > self._max_ids:
            raise TooManyColdStatuses(len(wanted), self._max_ids, "transactions")
        segments = (wanted - np.uint64(1)) // np.uint64(self._segment_size)
        ends = [*(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(wanted)]
        passed = sum(int(wanted[end - 1] - np.uint64(1)) % self._segment_size + 1 for end in ends)
        if passed > self._max_transactions:
            raise TooManyColdStatuses(
                passed, self._max_transactions, "transactions of the log to be read past"
            )
        found = np.zeros(len(wanted), STATUS_DTYPE)
        first = 0
        for end in ends:
            few = end - first <= self._max_singly
            for batch in (self._blocks if few else self._batches)(wanted[first:end]):
                _take(batch, wanted, found)
            first = end
        return found[places]

    def _batches(self, wanted: NDArray[np.uint64]) -> Iterator[Batch]:
        """Everything of one segment from the first of `wanted` to the last."""
        yield from read_log(
            self._folder,
            int(wanted[0]),
            int(wanted[-1]),
            self._segment_size,
            cluster_id=self._cluster_id,
            storage=self._storage,
        )

    def _blocks(self, wanted: NDArray[np.uint64]) -> Iterator[Batch]:
        """The blocks of one segment in which `wanted`, ascending, stand."""
        place = 0
        while place < len(wanted):
            block = find_block(
                self._folder,
                int(wanted[place]),
                self._segment_size,
                cluster_id=self._cluster_id,
                last_id=int(wanted[-1]),
                storage=self._storage,
            )
            yield block
            place = int(np.searchsorted(wanted, np.uint64(block.last_id), side="right"))


def _take(batch: Batch, wanted: NDArray[np.uint64], found: NDArray[Any]) -> None:
    """Fills in those of `wanted` that stand in `batch`."""
    low, high = np.searchsorted(wanted, [batch.first_id, batch.last_id + 1]).tolist()
    if low == high:
        return
    offsets = (wanted[low:high] - np.uint64(batch.first_id)).astype(np.intp)
    statuses = batch.records["status"]
    result = found[low:high]
    result["status"] = statuses[offsets]
    result["reason"] = batch.records["reason"][offsets]
    result["stage"] = np.where(result["status"] == Status.NONE, Stage.ON_SNAPSHOT, Stage.ERROR)
    linked = np.flatnonzero(result["status"] == Status.DUPLICATE)
    if len(linked):
        duplicates = np.flatnonzero(statuses == Status.DUPLICATE)
        result["duplicate_of"][linked] = batch.links[np.searchsorted(duplicates, offsets[linked])]
