"""The transactor's engine: all state that execution needs, and the batches through the kernels.

State is the balances and the window of user references, nothing else; both follow from the log. An
engine is used by one thread at a time and touches no socket, file or clock. A new one is brought to
the log's end with `restore_balances` (from a snapshot) and `apply` (from the log), then goes on
with `execute`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tallybus.common.errors import ServiceError
from tallybus.common.record import ENTRY_DTYPE, FAILURE_DTYPE, RECORD_DTYPE
from tallybus.common.replay import ReplayError, record_words, replay_balances, sum_of_balances
from tallybus.common.snapshotformat import CHUNK_ACCOUNTS
from tallybus.services.transactor import kernel
from tallybus.services.transactor.window import DuplicateWindow, window_start

__all__ = ["Engine", "EngineOrderError", "Executed", "window_start"]

MAX_BATCH: Final = 2**32 - 1
"""Records of one batch; failures name them with 32 bits."""
_FIRST_CAPACITY: Final = 16_384


class EngineOrderError(ServiceError):
    """A batch, a run of the log or a snapshot was given out of turn; nothing was changed.

    Fields: `what` was given, `got` its first id, `expected` the id that is next.
    """

    def __init__(self, what: str, got: int, expected: int) -> None:
        super().__init__(
            f"{what} begins with transaction {got}, but {expected} is next for it; "
            "the transactor must start again and replay its log"
        )
        self.what = what
        self.got = got
        self.expected = expected


class Executed(NamedTuple):
    """A batch after execution; the arrays are new and belong to the receiver."""

    records: NDArray[np.void]
    """RECORD_DTYPE[n], as they go to the log."""
    failures: NDArray[np.void]
    """FAILURE_DTYPE[k], ascending, offsets from the batch's first record."""
    links: NDArray[np.uint64]
    """uint64[d]: for each DUPLICATE in order the id of the first transaction."""


class Engine:
    """Balances and window of one ledger.

    `balances` is int64[max_accounts] and `touched` uint8[one per CHUNK_ACCOUNTS accounts], which
    only recovery writes. Memory is taken when it is first used.
    """

    def __init__(self, max_accounts: int, transactions_per_segment: int, seed: int) -> None:
        """`seed`: 64 bits that clients do not know; no result depends on it. ValueError if out of
        range."""
        if not 1 <= max_accounts <= 2**48:
            raise ValueError(f"max_accounts is {max_accounts}, not 1..2**48")
        self.balances: NDArray[np.int64] = np.zeros(max_accounts, np.int64)
        self.touched: NDArray[np.uint8] = np.zeros(-(-max_accounts // CHUNK_ACCOUNTS), np.uint8)
        self.window = DuplicateWindow(transactions_per_segment, seed)
        self.next_id = 1
        """Id of the first transaction that the balances do not have yet."""
        self._failures = np.empty((_FIRST_CAPACITY, 2), np.uint64)
        self._links = np.empty(_FIRST_CAPACITY, np.uint64)

    @property
    def max_accounts(self) -> int:
        return len(self.balances)

    @property
    def transactions_per_segment(self) -> int:
        return self.window.transactions_per_segment

    def execute(self, records: NDArray[np.void], first_id: int) -> Executed:
        """Execute RECORD_DTYPE[n] as transactions `first_id` up.

        The input is only read; it may be read-only and unaligned. Raises EngineOrderError unless
        `first_id` is next for balances and window (and the window was replayed from early enough),
        TypeError for another dtype or a batch that is not contiguous; in both cases nothing
        happened.
        """
        words = record_words(records)
        count = len(words)
        if count > MAX_BATCH:
            raise ValueError(f"a batch of {count} records; at most {MAX_BATCH} are possible")
        if first_id != self.next_id:
            raise EngineOrderError("the batch", first_id, self.next_id)
        if first_id != self.window.next_id:
            raise EngineOrderError("the window of user references", self.window.next_id, first_id)
        needed = window_start(first_id, self.transactions_per_segment)
        if self.window.first_id > needed:
            raise EngineOrderError("the window of user references", self.window.first_id, needed)

        out = np.empty(count, RECORD_DTYPE)
        out_words = record_words(out)
        if count > len(self._links):
            self._failures = np.empty((count, 2), np.uint64)
            self._links = np.empty(count, np.uint64)
        window = self.window
        control = window.control
        control[kernel.FAILURES] = 0
        control[kernel.LINKS] = 0
        start = 0
        while start < count:
            stop = min(start + window.room(), count)
            current, previous = window.current, window.previous
            kernel.execute(
                words, start, stop, out_words, self._failures, self._links, control, self.balances,
                current.table, current.refs, current.statuses,
                previous.table, previous.refs, previous.statuses,
            )  # fmt: skip
            window.advance(stop - start)
            start = stop
        self.next_id += count
        failed, linked = int(control[kernel.FAILURES]), int(control[kernel.LINKS])
        failures = self._failures[:failed].copy().reshape(-1).view(FAILURE_DTYPE)
        return Executed(out, failures, self._links[:linked].copy())

    def restore_balances(
        self, balances: NDArray[np.int64], touched: NDArray[np.uint8], last_id: int
    ) -> None:
        """Take over a snapshot's state after transaction `last_id`; the arrays are the engine's
        from now.

        balances: int64[max_accounts], touched: uint8[one per chunk]; both writable. Raises
        ValueError for other shapes and EngineOrderError when balances were replayed already.
        """
        if self.next_id != 1:
            raise EngineOrderError("a snapshot", 1, self.next_id)
        for name, given, own in (
            ("balances", balances, self.balances),
            ("touched", touched, self.touched),
        ):
            if given.dtype != own.dtype or given.shape != own.shape or not given.flags.carray:
                raise ValueError(
                    f"restored {name} are {given.dtype}{list(given.shape)}, expected writable "
                    f"{own.dtype}{list(own.shape)}; max_accounts may differ from the snapshot's"
                )
        if last_id < 0:
            raise ValueError(f"a snapshot after transaction {last_id}")
        self.balances = balances
        self.touched = touched
        self.next_id = last_id + 1

    def apply(
        self,
        records: NDArray[np.void],
        first_id: int,
        entries: NDArray[np.void] | None = None,
        *,
        balances: bool = True,
        window: bool = True,
    ) -> None:
        """Replay executed records `first_id` up from the log.

        records: RECORD_DTYPE[n]; entries: ENTRY_DTYPE[k] of the run's successful functions. With
        `balances` off only references are taken in, with `window` off only balances are moved:
        after a snapshot the window needs older records (from `window_start` of the log's next id
        on). Each of the two must go on exactly where it was; the window may begin at any segment's
        first transaction. Raises EngineOrderError (nothing changed) or ReplayError (the engine is
        unusable then).
        """
        words = record_words(records)
        if balances and first_id != self.next_id:
            raise EngineOrderError("a replayed run of balances", first_id, self.next_id)
        starts = window and self.window.next_id == 1 and first_id != 1
        if starts and (first_id - 1) % self.transactions_per_segment:
            raise EngineOrderError("a replayed run of user references", first_id, 1)
        if window and not starts and first_id != self.window.next_id:
            raise EngineOrderError(
                "a replayed run of user references", first_id, self.window.next_id
            )
        if balances:
            stored = np.empty(0, ENTRY_DTYPE) if entries is None else entries
            replay_balances(records, stored, self.balances, self.touched, first_id)
            self.next_id += len(words)
        if window:
            if starts:
                self.window.start_at(first_id)
            self._insert_refs(words)

    def sum_of_balances(self) -> int:
        """Exact sum of all balances: zero. Reads all of them: about 1 ms per million."""
        return sum_of_balances(self.balances)

    def _insert_refs(self, words: NDArray[np.uint64]) -> None:
        window = self.window
        start = 0
        while start < len(words):
            stop = min(start + window.room(), len(words))
            current = window.current
            offending = kernel.insert_refs(
                words, start, stop, window.control, current.table, current.refs, current.statuses
            )
            if offending >= 0:
                raise ReplayError(
                    window.next_id + int(offending) - start,
                    f"user_ref {int(words[offending, 1])} was used before in the same segment, "
                    "yet the record is no duplicate",
                )
            window.advance(stop - start)
            start = stop
