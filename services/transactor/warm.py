"""Pages of the window's tables, brought in before execution needs them.

A table is hit at random, so a fresh one costs a page fault for nearly every reference until all of
it is there: hundreds of milliseconds in which nothing else is executed. This moves that cost to
idle moments, to a second thread while a log is replayed, and, for the table of the next generation,
spreads it over the current one. It belongs to ADR 0007.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any, Final

from numpy.typing import NDArray

from tallybus.services.transactor.window import DuplicateWindow

STEP_BYTES: Final = 2 << 20
IDLE_STEPS: Final = 8
MANY: Final = 100_000
"""References that hit most pages of a table."""
_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE of madvise(2), Linux 5.14: makes pages writable and leaves what is in
them."""


class PageWarmer:
    """Brings the pages of one array in, step by step. Contents are never changed."""

    def __init__(self, array: NDArray[Any]) -> None:
        start = -(-array.ctypes.data // STEP_BYTES) * STEP_BYTES
        self._next = start
        self._end = (array.ctypes.data + array.nbytes) // STEP_BYTES * STEP_BYTES
        self._size = max(self._end - start, 1)
        self._array = array
        try:
            self._madvise = ctypes.CDLL(None).madvise
        except (OSError, AttributeError):
            self._next = self._end
            return
        self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    @property
    def done(self) -> float:
        """Share of the array that is in, from 0 to 1."""
        return 1.0 if self._next >= self._end else 1.0 - (self._end - self._next) / self._size

    def step(self) -> None:
        """Bring in 2 MiB more; a system that cannot ends it."""
        if self._next >= self._end:
            return
        if self._madvise(self._next, STEP_BYTES, _POPULATE_WRITE) == 0:
            self._next += STEP_BYTES
        else:
            self._next = self._end


def warm_for_replay(window: DuplicateWindow, references: int) -> None:
    """Bring in, while the caller goes on, what so many references to come will hit.

    For a fresh window. Another core does it in the time of the replay, which took up to four times
    as long where the system had to find the memory first.
    """
    fill = window.transactions_per_segment
    arrays = []
    if references >= MANY:
        arrays += [window.current.table, window.current.refs[:references]]
    if references >= fill + MANY:
        arrays.append(window.previous.table)
    warmers = [PageWarmer(array) for array in arrays]

    def warm() -> None:
        for warmer in warmers:
            # Not in one call: the replay could map no memory meanwhile.
            while warmer.done < 1:
                warmer.step()

    if warmers:
        threading.Thread(target=warm, name="window-warmer", daemon=True).start()


class WindowWarmer:
    """Warms the current table when the service is idle, and the next one while this one fills."""

    def __init__(self, window: DuplicateWindow) -> None:
        self._window = window
        self._current = PageWarmer(window.current.table)
        # The previous generation's table becomes the next one's.
        self._next = PageWarmer(window.previous.table)
        self._number = window.current.number

    def idle(self) -> None:
        """Nothing else is to be done at the moment."""
        for _ in range(IDLE_STEPS):
            self._current.step()

    def keep_up(self) -> None:
        """Called in every turn: the next table is brought in as fast as this generation fills."""
        window = self._window
        if window.current.number != self._number:
            self._number = window.current.number
            self._current = self._next
            self._next = PageWarmer(window.previous.table)
        filled = window.current.count / window.transactions_per_segment
        if filled > self._next.done:
            self._next.step()
