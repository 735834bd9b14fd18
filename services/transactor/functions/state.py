"""Memory of function calls: what compiled code reads and writes, for one engine.

Holds the arrays of `layout.py` and the buffers that they point to, and knows nothing of
WebAssembly: without a runtime every call ends as one of a function that is not registered. Memory
is taken when it is first used. Used by one thread at a time.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.memory import lazy_zeros
from tallybus.common.record import ENTRY_DTYPE, MAX_ENTRIES, MAX_PARAMS, MAX_U64
from tallybus.services.transactor.functions import layout
from tallybus.services.transactor.functions.budget import UNBOUNDED, WorkBudget
from tallybus.services.transactor.functions.calling import call_function

_FIRST_ENTRIES: Final = 65_536
_MOST_KEPT_ENTRIES: Final = 1 << 20
"""A buffer that grew beyond this is given back after its batch."""
_MOST_OF_SLICE: Final = 1 << 18
"""Entries of 4 MiB: a slice that made so many is logged before more are made."""
_PARAMS: Final = MAX_PARAMS
NO_END: Final = MAX_U64
ENTRY_NS: Final = 100
RECORD_NS: Final = 500
"""What an entry, and a call that was recorded and not run, keep the ledger for behind the
transactor: they are logged and read again."""
MOST_STRETCH: Final = 16
"""A submit's work may count for at most so many times as long as it ran."""


class CallState:
    """State and slots of one engine's functions.

    `words` is u64[STATE_WORDS] on a boundary of 16 bytes; `slots` u64[count, SLOT_WORDS]. Neither
    ever moves.
    """

    def __init__(self, slots: int) -> None:
        """`slots`: the most functions that may be live at a time."""
        # One page: more than the words need, and aligned to more than they need.
        self.words: NDArray[np.uint64] = lazy_zeros(layout.STATE_WORDS, np.uint64)
        self.slots: NDArray[np.uint64] = lazy_zeros(slots * layout.SLOT_WORDS, np.uint64).reshape(
            slots, layout.SLOT_WORDS
        )
        self._entries = np.empty((0, 2), np.int64)
        self._kept = np.empty(0, np.int64)
        self._places = np.empty(0, np.uint64)
        self._params = np.empty((0, _PARAMS), np.int64)
        self._ends = np.empty(0, np.uint64)
        self._times = np.empty(0, np.uint64)
        self._elapsed_ns = 0
        self._slice_began_ns = 0
        self.words[layout.STATE] = self.words.ctypes.data
        self.words[layout.SLOTS] = self.slots.ctypes.data
        self.words[layout.CALL_FUNCTION] = call_function.address

    def begin(
        self,
        balances: NDArray[np.int64],
        places: NDArray[np.uint64],
        params: NDArray[np.int64],
        ends: NDArray[np.uint64] | None = None,
        budget: WorkBudget = UNBOUNDED,
    ) -> None:
        """Take in a batch: `places` u64[k], the slots of its names (NO_SLOT where none is live);
        `params` int64[m, 8], contiguous, one row per call; `ends` u64[s], the row past the last
        call of each submit in it, each of which has the `budget`. All are used until `finish`."""
        words = self.words
        if self._kept.size < params.size:
            self._kept = np.empty(params.size, np.int64)
        if not len(self._entries):
            self._replace_entries(_FIRST_ENTRIES)
        if ends is None or not len(ends):
            ends = np.array([len(params)], np.uint64)
        self._places = places
        self._params = params
        self._ends = ends
        self._times = np.zeros(len(ends), np.uint64)
        self._elapsed_ns = 0
        words[layout.BALANCES] = balances.ctypes.data
        words[layout.LIMIT] = len(balances)
        words[layout.PARAMS] = params.ctypes.data
        words[layout.ROWS] = len(params)
        words[layout.PLACES] = places.ctypes.data
        words[layout.NAMES] = len(places)
        words[layout.KEPT] = self._kept.ctypes.data
        words[layout.NEXT] = 0
        words[layout.ENDS] = ends.ctypes.data
        words[layout.TIMES] = self._times.ctypes.data
        words[layout.SUBMITS] = len(ends)
        words[layout.SUBMIT] = 0
        words[layout.END_ROW] = ends[0] if len(ends) > 1 else NO_END
        words[layout.BUDGET_NS] = budget.ns
        words[layout.BUDGET_ENTRIES] = budget.entries
        words[layout.SUBMIT_ENTRIES] = 0
        words[layout.SPENT_BY] = 0
        words[layout.LAST_SLOT] = 0
        self.begin_slice(UNBOUNDED.ns)

    def begin_slice(self, slice_ns: int) -> None:
        """Calls may now be made, for about so long; those of the batch go on where they were."""
        words = self.words
        words[layout.KEPT_COUNT] = 0
        words[layout.USED] = 0
        words[layout.UNITS] = 0
        words[layout.LOOKED_NS] = self._now_ns()
        # Where time is counted in fuel, looking costs nothing.
        words[layout.LOOK_AFTER] = layout.LOOK_UNITS if words[layout.CLOCK] else 1
        words[layout.SLICE_NS] = words[layout.SLICE_LEFT_NS] = slice_ns
        words[layout.STOP] = 0
        self._slice_began_ns = time.monotonic_ns()

    def _now_ns(self) -> int:
        """The clock of `calling.py`."""
        if self.words[layout.CLOCK]:
            return time.thread_time_ns()
        return int(self.words[layout.VIRTUAL_NS])

    @property
    def full(self) -> bool:
        """Whether the slice has made so many entries that it had better end here."""
        return len(self._entries) >= _MOST_OF_SLICE

    def grow(self) -> None:
        """Make room for more entries of the batch, at least for those of one more call."""
        used = int(self.words[layout.USED])
        before = self._entries
        self._replace_entries(max(2 * len(before), used + MAX_ENTRIES))
        self._entries[:used] = before[:used]

    def not_run(self, calls: int) -> None:
        """So many calls of the slice were recorded and not run."""
        self._elapsed_ns += calls * RECORD_NS

    def end_slice(self) -> tuple[NDArray[np.int64], NDArray[np.void]]:
        """What the slice kept: int64[m] of parameters, and ENTRY_DTYPE[e]; new arrays."""
        words = self.words
        took = max(0, self._now_ns() - int(words[layout.LOOKED_NS]))
        explained = int(words[layout.UNITS]) * layout.NS_PER_UNIT
        self._times[int(words[layout.SUBMIT])] += np.uint64(min(took, explained))
        if words[layout.LAST_SLOT]:
            offset = int(words[layout.LAST_SLOT]) - int(words[layout.SLOTS])
            self.slots[offset // (8 * layout.SLOT_WORDS), layout.WORK_NS] += np.uint64(took)
        self._elapsed_ns += time.monotonic_ns() - self._slice_began_ns
        kept = self._kept[: int(words[layout.KEPT_COUNT])].copy()
        used = int(words[layout.USED])
        self._elapsed_ns += used * ENTRY_NS
        entries = self._entries[:used].copy().reshape(-1).view(ENTRY_DTYPE)
        if len(self._entries) > _MOST_KEPT_ENTRIES:
            self._replace_entries(_FIRST_ENTRIES)
        return kept, entries

    def finish(self) -> list[int]:
        """The batch is done: the nanoseconds for which the calls of each submit kept the ledger.

        That is more than they ran where they made many entries, and where the machine is busy with
        other things: others have waited for it all the same. A pause of the whole process is
        nobody's work, so there is a limit.
        """
        times: list[int] = self._times.tolist()
        ran = sum(times)
        if self.words[layout.CLOCK] and self._elapsed_ns > ran > 0:
            elapsed = min(self._elapsed_ns, MOST_STRETCH * ran)
            times = [each * elapsed // ran for each in times]
        self._places = self._places[:0]
        self._params = self._params[:0]
        return times

    def _replace_entries(self, count: int) -> None:
        self._entries = np.empty((count, 2), np.int64)
        self.words[layout.ENTRIES] = self._entries.ctypes.data
        self.words[layout.CAPACITY] = count
