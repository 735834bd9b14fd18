"""The window of user references: which transaction had a reference first, and how it ended.

Two generations of N transactions, the current and the previous one. A generation has a hash table
of slots, and dense arrays of the references and statuses of its transactions, by offset. The
kernels search and fill them (`kernel.py` describes the slots); this module owns the memory and the
change of generation. Everything in the window follows from the log. Touches no file and no clock.

A table starts its next generation with a new stamp and needs no clearing, so changing the
generation swaps two objects: no pause, no new memory. After 255 stamps a table is replaced by a
fresh one.
ADR 0007 says why the tables are so. Statuses are kept to tell how a first one ended (ADR 0005).
"""

from __future__ import annotations

import math
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tallybus.common.memory import lazy_zeros
from tallybus.common.record import MAX_U64
from tallybus.services.transactor import kernel

Item = TypeVar("Item", bound=np.generic)

MAX_GENERATION: Final = 2**31
"""Most transactions of a generation; offsets have 32 bits in a slot."""
MAX_LOAD: Final = 0.5
"""Most slots in use, as a share. Nearly every search then ends in its first bucket: at 0.6, with
one bucket in nine full, a transfer took 50 ns instead of 37."""
LAST_STAMP: Final = 255


def table_slots(transactions: int) -> int:
    """Slots of the table for a generation: whole buckets, at least one."""
    buckets = math.ceil(transactions / (kernel.BUCKET * MAX_LOAD))
    return max(1, buckets) * kernel.BUCKET


def window_start(next_id: int, transactions_per_segment: int) -> int:
    """First transaction id that the window of a ledger about to execute `next_id` still holds."""
    generation = (next_id - 1) // transactions_per_segment
    return max(generation - 1, 0) * transactions_per_segment + 1


def _zeros(count: int, dtype: type[Item]) -> NDArray[Item]:
    """On the boundary of a cache line, as of a page. Untouched pages take no memory, and they are
    huge: references hit a table at random until it is full."""
    return lazy_zeros(count, dtype, "ledger.transactions_per_segment", huge=True)


def _hash_constants(seed: int) -> tuple[int, int, int]:
    """Three words from one (splitmix64, Steele, Lea and Flood 2014); the two multipliers odd."""
    words = []
    for step in range(1, 4):
        x = (seed + step * 0x9E3779B97F4A7C15) & MAX_U64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MAX_U64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MAX_U64
        words.append(x ^ (x >> 31))
    return words[0], words[1] | 1, words[2] | 1


class Generation:
    """References of up to N transactions: `table` u64[slots], `refs` u64[N], `statuses` u8[N].

    `number` counts from 0 (transaction t is in number (t-1)//N), `stamp` marks its slots, `count`
    is how many references it has.
    """

    __slots__ = ("count", "number", "refs", "stamp", "statuses", "table")

    def __init__(self, transactions: int) -> None:
        self.table = _zeros(table_slots(transactions), np.uint64)
        self.refs = _zeros(transactions, np.uint64)
        self.statuses = _zeros(transactions, np.uint8)
        self.stamp = 1
        self.number = 0
        self.count = 0

    def begin(self, number: int) -> None:
        """Forget everything and be generation `number`."""
        if self.stamp == LAST_STAMP:
            self.table = _zeros(len(self.table), np.uint64)
            self.stamp = 0
        self.stamp += 1
        self.number = number
        self.count = 0


class DuplicateWindow:
    """The two generations and the control words through which the kernels know them."""

    def __init__(self, transactions_per_segment: int, seed: int) -> None:
        """`seed`: any integer of 64 bits that clients do not know. Results never depend on it."""
        if not 1 <= transactions_per_segment <= MAX_GENERATION:
            raise ValueError(
                f"transactions_per_segment is {transactions_per_segment}, not 1..{MAX_GENERATION}"
            )
        if not 0 <= seed <= MAX_U64:
            raise ValueError("the seed of the user_ref table does not fit 64 bits")
        self.transactions_per_segment = transactions_per_segment
        self.current = Generation(transactions_per_segment)
        self.previous = Generation(transactions_per_segment)
        self.next_id = 1
        self.first_id = 1
        """Oldest id from which on the window knows all references, or that it has outlived."""
        self.control = np.zeros(kernel.CONTROL_WORDS, np.uint64)
        self.control[kernel.SEED : kernel.SEED + 3] = _hash_constants(seed)
        self._tell_generations()

    def status_of(self, tx_id: int) -> int:
        """How transaction `tx_id`, one that had a reference first, ended.

        Raises LookupError when the window does not reach back to it, or has not come to it.
        """
        number, offset = divmod(tx_id - 1, self.transactions_per_segment)
        if self.first_id <= tx_id < self.next_id:
            for generation in (self.current, self.previous):
                if generation.number == number:
                    return int(generation.statuses[offset])
        raise LookupError(
            f"transaction {tx_id} is not in the window of user references, which begins with "
            f"{max(self.first_id, window_start(self.next_id, self.transactions_per_segment))} and "
            f"goes to {self.next_id - 1}"
        )

    def start_at(self, first_id: int) -> None:
        """Begin empty at a generation's first transaction. Only before anything was inserted."""
        if self.next_id != 1 or (first_id - 1) % self.transactions_per_segment:
            raise ValueError(
                f"the window can only start at the first transaction of a segment and only once, "
                f"not at {first_id} (next is {self.next_id})"
            )
        self.next_id = self.first_id = first_id
        self.current.number = (first_id - 1) // self.transactions_per_segment
        self._tell_generations()

    def room(self) -> int:
        """Transactions that the generation of `next_id` still takes, changing to it where due."""
        offset = (self.next_id - 1) % self.transactions_per_segment
        number = (self.next_id - 1) // self.transactions_per_segment
        if number != self.current.number:
            self.previous, self.current = self.current, self.previous
            self.current.begin(number)
            self._tell_generations()
        self.control[kernel.FIRST_OFFSET] = offset
        return self.transactions_per_segment - offset

    def advance(self, count: int) -> None:
        """The kernel went over the next `count` transactions."""
        self.current.count = int(self.control[kernel.CURRENT_COUNT])
        self.next_id += count

    def _tell_generations(self) -> None:
        control, size = self.control, self.transactions_per_segment
        control[kernel.CURRENT_STAMP] = self.current.stamp
        control[kernel.PREVIOUS_STAMP] = self.previous.stamp
        control[kernel.CURRENT_COUNT] = self.current.count
        control[kernel.PREVIOUS_COUNT] = self.previous.count
        control[kernel.CURRENT_BASE] = self.current.number * size + 1
        control[kernel.PREVIOUS_BASE] = self.previous.number * size + 1
