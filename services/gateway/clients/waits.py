"""Who waits for which index, and until when. Plain heaps; finished requests are skipped, not
removed."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

COMPACT_FROM: Final = 1024


class Waiter(Protocol):
    """What is waited for by: anything with a mark that it was answered already."""

    done: bool


W = TypeVar("W", bound=Waiter)


class Marks(Generic[W]):
    """Waiters ordered by a number (an id or a time) that something else will reach."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, W]] = []
        self._sequence = 0
        self._compact_at = COMPACT_FROM

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, mark: int, waiter: W) -> None:
        """`waiter` is due once `reached` is called with `mark` or more."""
        self._sequence += 1
        if len(self._heap) >= self._compact_at:
            # Finished ones go when they are as many as the rest, so this costs little each.
            self._heap = [entry for entry in self._heap if not entry[2].done]
            heapq.heapify(self._heap)
            self._compact_at = max(COMPACT_FROM, 2 * len(self._heap))
        heapq.heappush(self._heap, (mark, self._sequence, waiter))

    def reached(self, value: int) -> Iterator[W]:
        """Take out, in order, every unanswered waiter whose mark is at most `value`."""
        while self._heap and self._heap[0][0] <= value:
            waiter = heapq.heappop(self._heap)[2]
            if not waiter.done:
                yield waiter

    def next_mark(self) -> int | None:
        """The lowest mark of an unanswered waiter."""
        while self._heap and self._heap[0][2].done:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
