"""Delivery between two stages: go-back-N over numbered items, without any I/O.

PUSH/PULL has no acknowledgement, so what is queued dies with a peer. A link makes up for that with
four duties, the same on every hop:

1. Every data message says who sends it and which ids it holds. `LinkReceiver` takes exactly the id
   that it expects next, slices off what it already has, and drops what leaves a gap.
2. The receiver's broadcast repeats the id that it expects next: acknowledgement, heartbeat and
   rewind request in one.
3. `LinkSender` keeps what it has sent until the *durable* index has passed it, and sends again from
   the id expected when the receiver's incarnation changes, asks for it, or stalls.
4. What a sender keeps is bounded; when it is full, its stage stops taking input. Between stages
   there is no other flow control.

Ids are transaction ids between stages and request numbers between a gateway and the sequencer. Time
comes in as nanoseconds of a monotonic clock. Invariant of a sender: `base <= cursor <= end`, where
`base` is the oldest id kept, `cursor` the next id to send and `end` the next id to be offered.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

from tallybus.common.errors import ServiceError

STALL_NS: Final = 500_000_000
"""How long an expectation may stand still, with items on the way, before they are sent again."""
STALL_REPEATS: Final = 3
"""How often the receiver must have repeated its expectation meanwhile."""
MAX_STALL_NS: Final = 8_000_000_000
"""Cap of the pause, doubled after each rewind that brought nothing: the receiver may just be
slow."""

BYTES_PER_WEIGHT: Final = 256
"""A plain transaction takes 40 bytes, one of a function up to some thousand."""

T = TypeVar("T")


def weigh(count: int, size: int) -> int:
    """Weight of a message of `count` transactions and `size` bytes: a count bounds what a sender
    keeps only as long as none of them is large (ADR 0009)."""
    return max(count, size // BYTES_PER_WEIGHT)


class LinkError(ServiceError):
    """A peer asks for what this side can no longer give: two histories have met. Fatal.

    Fields: `expected` (the id asked for), `base` (the oldest id kept).
    """

    def __init__(self, expected: int, base: int, end: int, peer: str) -> None:
        super().__init__(
            f"{peer} expects id {expected}, but ids {base} to {end - 1} are kept here: "
            "its history and this one differ; stop both and recover from the log"
        )
        self.expected = expected
        self.base = base
        self.end = end
        self.peer = peer


@dataclass(slots=True)
class Item(Generic[T]):
    """What a sender keeps: a message with ids `first` … `first + count - 1`, weighing `weight`."""

    first: int
    count: int
    weight: int
    message: T


class LinkSender(Generic[T]):
    """The sending end of a link. `capacity` bounds the summed weight (transactions) of what is
    kept.

    With `from_disk=True` the receiver can read older items elsewhere (the snapshotter reads the
    log), so an expectation below `base` is no error.
    """

    def __init__(self, next_id: int, capacity: int, peer: str, *, from_disk: bool = False) -> None:
        self.base = next_id
        self.end = next_id
        self.peer = peer
        self.peer_incarnation = 0
        self.expected = next_id
        self.capacity = capacity
        self.weight = 0
        self.rewinds = 0
        self.resent = 0
        self._from_disk = from_disk
        self._items: deque[Item[T]] = deque()
        self._sent = 0
        self._moved_ns = 0
        self._stall_ns = STALL_NS
        self._gap_at = 0
        self._repeats = 0

    @property
    def cursor(self) -> int:
        """The id of the next item to send."""
        return self._items[self._sent].first if self._sent < len(self._items) else self.end

    @property
    def full(self) -> bool:
        """Whether the stage must stop taking input."""
        return self.weight >= self.capacity

    @property
    def room(self) -> int:
        """Weight that may still be offered before the link is full."""
        return max(0, self.capacity - self.weight)

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, first: int, count: int, message: T, weight: int | None = None) -> None:
        """Keep and queue the item that follows the last one."""
        if first != self.end:
            raise LinkError(first, self.base, self.end, f"this stage itself, for {self.peer},")
        weight = count if weight is None else weight
        self._items.append(Item(first, count, weight, message))
        self.end = first + count
        self.weight += weight

    def peek(self) -> T | None:
        """The next message to send, or None. It stays next until `sent`."""
        return self._items[self._sent].message if self._sent < len(self._items) else None

    def sent(self, now_ns: int) -> None:
        """The message from `peek` was handed to the socket."""
        if self.cursor <= self.expected:
            # Nothing was on its way until now: the clock of the stall check starts here.
            self._moved_ns = now_ns
            self._repeats = 0
        self._sent += 1

    def acknowledge(
        self,
        incarnation: int,
        expected: int,
        now_ns: int,
        *,
        gap: bool = False,
        full: bool = False,
    ) -> None:
        """The receiver's broadcast: its incarnation, the id it expects next, whether it saw a gap,
        and whether it takes no input now because its own link is full."""
        if incarnation == self.peer_incarnation and expected < self.expected:
            return  # older than what this receiver has said since
        if expected > self.end:
            raise LinkError(expected, self.base, self.end, self.peer)
        if expected < self.base and not self._from_disk:
            raise LinkError(expected, self.base, self.end, self.peer)
        if incarnation != self.peer_incarnation:
            self.peer_incarnation = incarnation
            self.expected = expected
            self._gap_at = 0
            self._rewind(expected, now_ns)
            self._stall_ns = STALL_NS
            return
        self._repeats += 1
        if full:
            # It lives and takes nothing for now: what is on the way is not lost.
            self._moved_ns = now_ns
        if expected > self.expected:
            self.expected = expected
            self._moved_ns = now_ns
            self._repeats = 0
            self._stall_ns = STALL_NS
            self._gap_at = 0
            if self.cursor < expected:
                self._seek(expected)
        elif expected == self.expected and gap and self._gap_at != expected:
            # One rewind per gap: everything already on the way will be reported as the same gap.
            self._gap_at = expected
            self._rewind(expected, now_ns)

    def check_stall(self, now_ns: int) -> bool:
        """Send again from the expected id when nothing has moved for too long. True if it
        rewound."""
        if self._sent == 0 or self.expected >= self.cursor:
            self._moved_ns = now_ns
            return False
        if now_ns - self._moved_ns < self._stall_ns or self._repeats < STALL_REPEATS:
            # Silence is no stall: a busy receiver takes what is on the way when it comes back to
            # it.
            return False
        self._rewind(self.expected, now_ns)
        self._stall_ns = min(self._stall_ns * 2, MAX_STALL_NS)
        self._gap_at = 0
        return True

    def release(self, durable_index: int) -> None:
        """Forget every item whose last id is at most `durable_index`."""
        while self._items:
            item = self._items[0]
            if item.first + item.count - 1 > durable_index:
                break
            self._items.popleft()
            self.weight -= item.weight
            if self._sent:
                self._sent -= 1
            self.base = item.first + item.count

    def _rewind(self, expected: int, now_ns: int) -> None:
        before = self.cursor
        self._repeats = 0
        self._seek(expected)
        self._moved_ns = now_ns
        if self.cursor < before:
            self.rewinds += 1
            self.resent += before - self.cursor

    def _seek(self, expected: int) -> None:
        # The item that holds `expected`: the receiver slices off what it already has of it.
        position = bisect_right(self._items, expected, key=lambda item: item.first)
        if (
            position
            and expected < self._items[position - 1].first + self._items[position - 1].count
        ):
            position -= 1
        self._sent = position


class Verdict(Enum):
    """What a receiver does with a data message."""

    ACCEPT = "accept"
    REPEATED = "repeated"
    GAP = "gap"
    STALE = "stale"


class LinkReceiver:
    """The receiving end of a link: `next_id` is the id it takes next, and it takes no other.

    `peer` is the incarnation it takes data from (0: whoever comes), `term` the lowest term it
    takes.
    """

    def __init__(self, next_id: int, term: int = 0, peer: int = 0) -> None:
        self.next_id = next_id
        self.term = term
        self.peer = peer
        self.gap = False
        self.gaps = 0
        self.dropped = 0

    def fence(self, peer: int, term: int | None = None) -> None:
        """From now on take data only from this incarnation, and from no lower term."""
        self.peer = peer
        if term is not None:
            self.term = term

    def accept(self, term: int, incarnation: int, first: int, count: int) -> tuple[Verdict, int]:
        """Judge a message; for ACCEPT, also how many leading items are known already.

        On ACCEPT `next_id` moves behind the message.
        """
        if (self.peer and incarnation != self.peer) or term < self.term:
            self.dropped += count
            return Verdict.STALE, 0
        if first > self.next_id:
            self.gaps += not self.gap
            self.gap = True
            self.dropped += count
            return Verdict.GAP, 0
        end = first + count
        if end <= self.next_id:
            self.dropped += count
            return Verdict.REPEATED, 0
        skip = self.next_id - first
        self.term = term
        self.next_id = end
        self.gap = False
        return Verdict.ACCEPT, skip
