"""The plain counters that services keep of what is measured; `common/metrics/table.py` lists it.

A service counts per batch, in integers that one thread writes and any thread may read; nothing is
locked. `common/metrics/exposition.py` turns them into Prometheus text when somebody asks.

Importing this is cheap: it needs nothing but the standard library and numpy, and makes no thread.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from tallybus.common.record import FIRST_USER_STATUS, Kind, Status

TIMES_NS: Final = tuple(
    round(seconds * 1e9)
    for seconds in (
        *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
        *(0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    )
)
"""Upper bounds of the buckets of times, in nanoseconds: 50 µs to 10 s."""
SIZES: Final = tuple(4**power for power in range(11))
"""Upper bounds of the buckets of batch sizes, in transactions: 1 to 1,048,576."""


MAX_COMPARED: Final = 12
"""Different numbers that are looked for one by one; beyond it sorting is cheaper."""


class Histogram:
    """Counts of integers by bucket. `unit`: how many of them are one of the unit that is shown."""

    __slots__ = ("bounds", "counts", "total", "unit")

    def __init__(self, bounds: Sequence[int], unit: int = 1) -> None:
        self.bounds = bounds
        self.unit = unit
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def observe(self, value: int) -> None:
        """Count one more. A value that equals a bucket's upper bound belongs to it. For one
        thread."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[float, int]]:
        """Upper bounds in the unit shown (the last is infinite), and how many are at most that."""
        rows: list[tuple[float, int]] = []
        seen = 0
        for bound, count in zip((*self.bounds, None), tuple(self.counts), strict=True):
            seen += count
            rows.append((float("inf") if bound is None else bound / self.unit, seen))
        return rows

    @property
    def sum(self) -> float:
        """Of everything observed, in the unit shown."""
        return self.total / self.unit


def times() -> Histogram:
    """A histogram of nanoseconds, shown in seconds."""
    return Histogram(TIMES_NS, 1_000_000_000)


def sizes() -> Histogram:
    """A histogram of numbers of transactions."""
    return Histogram(SIZES)


Values: TypeAlias = "float | Histogram"


class Sample(NamedTuple):
    """A value of the metric `name`, with values of its labels in the order of the table."""

    name: str
    value: Values
    labels: tuple[str, ...] = ()


class Meter:
    """What one service counts while it runs. Each has its own kind, with what only it knows."""

    def __init__(self) -> None:
        self.batch_transactions = sizes()
        self.batch_seconds = times()

    def handled(self, transactions: int, started_ns: int) -> None:
        """A batch was handled that was begun at this time of the monotonic clock."""
        self.batch_transactions.observe(transactions)
        self.batch_seconds.observe(time.monotonic_ns() - started_ns)

    def samples(self) -> Iterable[Sample]:
        """Values of this service's own metrics. Called in another thread, when it has recovered."""
        return ()


class Outcomes:
    """Transactions by kind and status."""

    def __init__(self) -> None:
        # What will come is told from the start, as 0: rates of it are right from the first one on.
        self._counts: dict[tuple[int, int], int] = {(kind, 0): 0 for kind in _KINDS}
        self._kinds = _Tally()
        self._codes = _Tally()

    def count(self, records: np.ndarray[Any, Any], failures: np.ndarray[Any, Any]) -> None:
        """Count a batch of RECORD_DTYPE[n] of which FAILURE_DTYPE[f] are those that failed."""
        kinds = records["kind"].copy()
        found = self._kinds.of(kinds)
        if len(failures):
            statuses = failures["status"]
            if len(found) == 1:
                codes = statuses | np.uint16(found[0][0] << 8)
            else:
                codes = kinds.take(failures["offset"]).astype(np.uint16) << 8 | statuses
            for code, number in self._codes.of(codes):
                kind, status = divmod(code, 256)
                self._add(kind, status, number)
                # Counted below with all of their kind.
                self._add(kind, 0, -number)
        for kind, number in found:
            self._add(kind, 0, number)

    def _add(self, kind: int, status: int, number: int) -> None:
        self._counts[kind, status] = self._counts.get((kind, status), 0) + number

    def samples(self) -> Iterator[Sample]:
        """`tallybus_transactions_total`."""
        shown: dict[tuple[str, str], int] = {}
        for (kind, status), count in tuple(self._counts.items()):
            labels = kind_label(kind), status_label(status)
            shown[labels] = shown.get(labels, 0) + count
        for labels, count in shown.items():
            # Of a batch that is being counted right now, the failures may be known first.
            yield Sample("tallybus_transactions_total", max(0, count), labels)


class _Tally:
    """How often each number occurs in arrays that hold few different ones, mostly the same ones.

    Comparing is what numpy does fastest: 2 µs for each different one of 16,384 bytes, where
    `bincount` takes 40 to 180 µs and `unique` more.
    """

    def __init__(self) -> None:
        self._known: list[int] = []

    def of(self, codes: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
        """The numbers in the array and how often each is there; an empty one has none."""
        found = []
        left = len(codes)
        for code in self._known:
            if not left:
                break
            number = int(np.count_nonzero(codes == code))
            if number:
                found.append((code, number))
                left -= number
        if left:
            values, numbers = np.unique(codes, return_counts=True)
            found = list(zip(values.tolist(), numbers.tolist(), strict=True))
            found.sort(key=lambda pair: -pair[1])
            known = dict.fromkeys((*(code for code, _ in found), *self._known))
            self._known = list(known)[:MAX_COMPARED]
        return found


_KINDS: Final = {int(kind): kind.name.lower() for kind in Kind}
_STATUSES: Final = {int(status): status.name.lower() for status in Status} | {0: "ok"}


def kind_label(kind: int) -> str:
    """A transaction's kind as a label: `transfer`; `other` for what is no kind at all."""
    return _KINDS.get(kind, "other")


def status_label(status: int) -> str:
    """A status as a label: `ok` for success, `function` for all those of functions' own."""
    if status >= FIRST_USER_STATUS:
        return "function"
    return _STATUSES.get(status, "other")
