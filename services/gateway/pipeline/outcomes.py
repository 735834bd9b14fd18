"""Outcomes of transactions that are computed and not readable yet, for status queries.

Once a transaction is on the snapshot, the snapshotter answers for it and its outcome is forgotten
here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from tallybus.common.buffers import as_buffer
from tallybus.common.bus.messages import Results
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

    def cut_at(self, start: int) -> None:
        """Drop the outcomes of `start` and all behind it."""
        while self._results and self._results[-1].first + self._results[-1].count > start:
            last = self._results.pop()
            if last.first < start:
                self._results.append(_before(last, start))

    def covers(self, tx_id: int) -> bool:
        """Whether the outcomes from this id on are known here."""
        return bool(self._results) and self._results[0].first <= tx_id

    def fill(self, rows: Any, keys: Any) -> None:
        """Put the failures among `keys` u64[n] into `rows` STATUS_DTYPE[n]."""
        for results in self._results:
            wanted = (keys >= results.first) & (keys < results.first + results.count)
            if wanted.any():
                _fill(rows, keys, np.flatnonzero(wanted), results)


def _before(results: Results, end: int) -> Results:
    """The part of these results that concerns ids below `end`."""
    batches = []
    kept = []
    failures = np.frombuffer(results.failures, FAILURE_DTYPE)
    for gateway, request, first, count, failed in results.batches:
        own, failures = failures[:failed], failures[failed:]
        if first >= end:
            break
        own = own[own["offset"] < end - first]
        batches.append([gateway, request, first, min(count, end - first), len(own)])
        kept.append(own)
    return replace(
        results,
        count=end - results.first,
        batches=batches,
        failures=as_buffer(np.concatenate(kept)),
    )


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
    rows["reason"][places] = failures["reason"][found]
    rows["leg"][places] = failures["leg"][found]
    rows["duplicate_of"][places] = failures["duplicate_of"][found]
