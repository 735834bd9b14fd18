"""What the simulated stages share: a clock, a bad network, a disk that may lose what was not
synced.

Everything random comes from one generator, so a seed replays a run exactly. Broadcasts of two lives
of a stage keep their order, as they come over one connection; all else may be dropped, repeated,
delayed and reordered as the run's fault rates say. Control connections are whole until one of their
ends dies.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tallybus.common.frames import Buffer

MS = 1_000_000
SECOND = 1000 * MS
SLOWNESS = (1.0, 1.0, 1.0, 0.1, 10.0, 50.0)


class SimulationFailure(AssertionError):
    """A promise was broken. The message says which."""


def check(condition: object, message: str) -> None:
    """Raises SimulationFailure."""
    if not condition:
        raise SimulationFailure(message)


@dataclass(slots=True)
class Rates:
    """Probabilities of the faults of a run; `delay_ms` is a mean."""

    drop: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    delay_ms: float = 0.05
    crash: float = 0.0
    power: float = 0.0
    jump: float = 0.0


@dataclass(slots=True)
class Letter:
    """Frames on their way, sent by one life of a stage."""

    due: int
    life: int
    frames: list[Buffer]


@dataclass
class World:
    """Clock, randomness, counters and queues. A queue is named (kind, receiver, sender)."""

    rng: random.Random
    rates: Rates
    now: int = 1_000 * SECOND
    faults: Counter[str] = field(default_factory=Counter)
    queues: dict[tuple[str, str, str], list[Letter]] = field(default_factory=dict)
    slowness: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """How many times slower than others a connection is: what two stages tell may cross."""

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    def _delay(self, key: tuple[str, str, str]) -> int:
        if key not in self.slowness:
            self.slowness[key] = self.rng.choice(SLOWNESS)
        delay = self.rng.expovariate(1.0) * self.rates.delay_ms * self.slowness[key]
        if delay > 20:
            self.faults["delayed"] += 1
        return int(delay * MS)

    def send(
        self, kind: str, receiver: str, sender: str, life: int, frames: list[Buffer], *, lossy: bool
    ) -> None:
        """Put frames on their way. Unless `lossy`, they arrive once and in order."""
        key = (kind, receiver, sender.partition("/")[0])
        queue = self.queues.setdefault((kind, receiver, sender), [])
        whole: list[Buffer] = [bytes(frame) for frame in frames]
        if lossy and self.chance(self.rates.drop):
            self.faults["dropped"] += 1
            return
        queue.append(Letter(self.now + self._delay(key), life, whole))
        if lossy and self.chance(self.rates.repeat):
            self.faults["repeated"] += 1
            queue.append(Letter(self.now + 3 * self._delay(key), life, whole))

    def receive(self, kind: str, receiver: str, sender: str, *, lossy: bool) -> Letter | None:
        """The next letter that has arrived, or None."""
        queue = self.queues.get((kind, receiver, sender))
        if not queue:
            return None
        place = 0
        if lossy and len(queue) > 1 and self.chance(self.rates.reorder):
            place = self.rng.randrange(len(queue))
            if kind == "broadcast" and queue[place].life != queue[0].life:
                place = 0
            if place:
                self.faults["reordered"] += 1
        if queue[place].due > self.now:
            return None
        return queue.pop(place)

    def senders(self, kind: str, receiver: str) -> list[str]:
        """Who has something on its way to the receiver."""
        return sorted(
            name
            for (k, to, name), queue in self.queues.items()
            if (k, to) == (kind, receiver) and queue
        )

    def pending(self, kind: str, receiver: str, sender: str) -> int:
        return len(self.queues.get((kind, receiver, sender), ()))

    def clear(
        self, kind: str | None = None, receiver: str | None = None, sender: str | None = None
    ) -> None:
        """What is on its way between these is lost."""
        for key in list(self.queues):
            if all(
                want is None or want == have
                for want, have in zip((kind, receiver, sender), key, strict=True)
            ):
                del self.queues[key]


@dataclass(slots=True)
class Block:
    """A block of the log; a marker has no records."""

    term: int
    first: int
    timestamp: int
    gateway: int
    request: int
    records: NDArray[Any]
    links: NDArray[np.uint64]

    @property
    def last(self) -> int:
        return self.first + len(self.records) - 1


class Disk:
    """The log's blocks, of which the first `synced` survive anything, and snapshots."""

    def __init__(self, segment_size: int) -> None:
        self.segment_size = segment_size
        self.blocks: list[Block] = []
        self.synced = 0
        self.snapshots: dict[int, Any] = {}
        """Last transaction id → FrozenBalances."""

    @property
    def next_id(self) -> int:
        return self.blocks[-1].last + 1 if self.blocks else 1

    @property
    def term(self) -> int:
        return self.blocks[-1].term if self.blocks else 0

    @property
    def durable(self) -> int:
        return self.blocks[self.synced - 1].last if self.synced else 0

    def gateways(self) -> dict[int, int]:
        """The highest request in the log of each gateway."""
        found: dict[int, int] = {}
        for block in self.blocks:
            if block.gateway:
                found[block.gateway] = max(found.get(block.gateway, 0), block.request)
        return found

    def append(self, block: Block) -> None:
        """One block, or several where it passes the end of a segment."""
        check(block.first == self.next_id, f"block {block.first} follows {self.next_id - 1}")
        check(block.term >= self.term, f"a block of term {block.term} after term {self.term}")
        duplicates = int(np.count_nonzero(block.records["status"] == 7))
        check(duplicates == len(block.links), f"{duplicates} duplicates, {len(block.links)} links")
        records, links, first = block.records, block.links, block.first
        while len(records):
            room = self.segment_size - (first - 1) % self.segment_size
            head, records = records[:room], records[room:]
            own = int(np.count_nonzero(head["status"] == 7))
            self.blocks.append(
                Block(
                    block.term,
                    first,
                    block.timestamp,
                    block.gateway,
                    block.request,
                    head,
                    links[:own],
                )
            )
            links = links[own:]
            first += len(head)

    def mark(self, term: int) -> None:
        """A marker that carries a term."""
        nothing = np.empty(0, np.uint64)
        if term > self.term:
            empty = self.blocks[0].records[:0] if self.blocks else np.empty(0, [("status", "u1")])
            self.blocks.append(Block(term, self.next_id, 0, 0, 0, empty, nothing))

    def sync(self) -> None:
        self.synced = len(self.blocks)

    def lose_power(self, rng: random.Random) -> int:
        """Any number of the blocks that were not synced is gone. Returns how many."""
        kept = rng.randint(self.synced, len(self.blocks))
        lost = len(self.blocks) - kept
        del self.blocks[kept:]
        return lost

    def read(self, first: int, last: int) -> Iterator[Block]:
        """The blocks of this range, clipped to it."""
        check(
            last < self.next_id,
            f"{first} to {last} is to be read, the log ends before {self.next_id}",
        )
        for block in self.blocks:
            if not len(block.records) or block.last < first or block.first > last:
                continue
            low, high = max(first - block.first, 0), min(last, block.last) - block.first + 1
            before = int(np.count_nonzero(block.records["status"][:low] == 7))
            inside = int(np.count_nonzero(block.records["status"][low:high] == 7))
            yield Block(
                block.term,
                block.first + low,
                block.timestamp,
                block.gateway,
                block.request,
                block.records[low:high],
                block.links[before : before + inside],
            )
