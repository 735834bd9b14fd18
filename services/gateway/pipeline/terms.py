"""The sequencer's terms, as a gateway hears of them: what was told in one, and still holds in a
later one.

A new term begins where its sequencer goes on giving ids. What older terms told of ids from there on
is void, because those ids are given again. A gateway may miss a term between two others. Ids may
have been given again in it. Then only what was on disk by then still holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

TERMS_KEPT: Final = 1024


class Terms:
    """`current` is the term that was heard of last, 0 before the first; `start` its first id."""

    def __init__(self) -> None:
        self.current = 0
        self.start = 0
        self._voids: deque[tuple[int, int]] = deque(maxlen=TERMS_KEPT)
        """Terms heard of, and from which id on each voids what was told before it."""

    def begin(self, term: int, start: int, committed: int) -> int | None:
        """A term above the current one began at `start`; ids up to `committed` were on disk in the
        current one. Returns the first id from which on everything told before is void; None: there
        was no term before."""
        known, self.current = self.current, term
        self.start = start
        # Between the term known here and this one others may have given the ids up to its start
        # again; then only what was durable in the known term is sure.
        skipped = term > known + 1
        void = min(start, committed + 1) if skipped else start
        self._voids.append((term, void if known else 0))
        return void if known else None

    def voids(self, term: int, rows: Sequence[Sequence[int]]) -> bool:
        """Whether `term` speaks of ids that a later one gave again (rows have the first id and the
        count behind gateway and request)."""
        if term >= self.current:
            return False
        valid = min((void for later, void in self._voids if later > term), default=0)
        return any(row[2] + row[3] > valid for row in rows)

    def holding(self, term: int, index: int) -> int:
        """How much of `index`, told in `term`, holds in the current one."""
        return min(index, self.start - 1) if term < self.current else index
