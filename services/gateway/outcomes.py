"""Outcomes of transactions that are computed and not readable yet, for status queries.

Once a transaction is on the snapshot, the snapshotter answers for it and its outcome is forgotten
here.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from tallybus.common.frames import Results
from tallybus.common.record import FAILURE_DTYPE, Stage


class RecentOutcomes:
    """The transactor's results in order and without gaps, from the oldest unreadable one on."""

    def __init__(self) -> None:
        self._results: deque[Results] = deque()

    def add(self, results: Results) -> None:
        """Results that follow the last ones."""
        self._results.append(results)

    def clear(self) -> None:
        """Forget everything: what comes next does not follow."""
        self._results.clear()

    def forget(self, index: int) -> None:
        """Everything up to `index` is readable."""
        while self._results and self._results[0].first + self._results[0].count - 1 <= index:
            self._results.popleft()

    def cut(self, start: int) -> int | None:
        """Drop results that reach to `start` or beyond; the first id dropped, None if none was."""
        dropped = None
        while self._results and self._results[-1].first + self._results[-1].count > start:
            dropped = self._results.pop().first
        return dropped

    def covers(self, tx_id: int) -> bool:
        """Whether the outcomes from this id on are known here."""
        return bool(self._results) and self._results[0].first <= tx_id

    def fill(self, rows: Any, keys: Any) -> None:
        """Put the failures among `keys` u64[n] into `rows` STATUS_DTYPE[n]."""
        for results in self._results:
            wanted = (keys >= results.first) & (keys < results.first + results.count)
            if wanted.any():
                _fill(rows, keys, np.flatnonzero(wanted), results)


def _fill(rows: Any, keys: Any, places: Any, results: Results) -> None:
    failures = np.frombuffer(results.failures, FAILURE_DTYPE)
    counts = [row[4] for row in results.batches]
    firsts = np.repeat(np.array([row[2] for row in results.batches], np.uint64), counts)
    ids = failures["offset"].astype(np.uint64) + firsts
    found = np.minimum(np.searchsorted(ids, keys[places]), max(len(ids) - 1, 0))
    if not len(ids):
        return
    hit = ids[found] == keys[places]
    places, found = places[hit], found[hit]
    rows["stage"][places] = Stage.ERROR
    rows["status"][places] = failures["status"][found]
    rows["duplicate_of"][places] = failures["duplicate_of"][found]
