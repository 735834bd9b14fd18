"""What the simulated stages share: a clock, randomness and a bad network.

Everything random comes from one generator, so a seed replays a run exactly. Broadcasts of two lives
of a stage keep their order, as they come over one connection; all else may be dropped, repeated,
delayed and reordered as the run's fault rates say. Control connections are whole until one of their
ends dies. Data of a process that was replaced and data of the one in its place come over
connections of their own.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from tallybus.common.buffers import Buffer

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
    """All clocks, as if everything had been suspended."""
    wall: float = 0.0
    """The wall clock alone, in either direction."""
    pause: float = 0.0
    """A stage is stopped for a while and goes on (SIGSTOP, SIGCONT)."""
    zombie: float = 0.0
    """As `pause`, but it was replaced meanwhile."""
    rival: float = 0.0
    """A second log stage is started on the same folder."""


@dataclass(slots=True)
class Letter:
    """Frames on their way, sent by one life of a stage."""

    due: int
    life: int
    frames: list[Buffer]


Queue = list[Letter]


@dataclass
class World:
    """Clock, randomness, counters and queues. A queue has a kind, a receiver and a sender."""

    rng: random.Random
    rates: Rates
    now: int = 1_000 * SECOND
    faults: Counter[str] = field(default_factory=Counter)
    queues: dict[tuple[str, str], dict[str, Queue]] = field(default_factory=dict)
    """By kind and receiver, then by sender; none is empty."""
    slowness: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """How many times slower than others a connection is: what two stages tell may cross."""

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    def _delay(self, key: tuple[str, str, str]) -> int:
        slowness = self.slowness.get(key)
        if slowness is None:
            slowness = self.slowness[key] = self.rng.choice(SLOWNESS)
        delay = self.rng.expovariate(1.0) * self.rates.delay_ms * slowness
        if delay > 20:
            self.faults["delayed"] += 1
        return int(delay * MS)

    def send(
        self, kind: str, receiver: str, sender: str, life: int, frames: list[Buffer], *, lossy: bool
    ) -> None:
        """Put frames on their way. Unless `lossy`, they arrive once and in order."""
        if lossy and self.chance(self.rates.drop):
            self.faults["dropped"] += 1
            return
        key = (kind, receiver, sender.partition("/")[0])
        queue = self.queues.setdefault((kind, receiver), {}).setdefault(sender, [])
        whole: list[Buffer] = [bytes(frame) for frame in frames]
        queue.append(Letter(self.now + self._delay(key), life, whole))
        if lossy and self.chance(self.rates.repeat):
            self.faults["repeated"] += 1
            queue.append(Letter(self.now + 3 * self._delay(key), life, whole))

    def receive(self, kind: str, receiver: str, sender: str, *, lossy: bool) -> Letter | None:
        """The next letter that has arrived, or None."""
        senders = self.queues.get((kind, receiver))
        queue = senders and senders.get(sender)
        if not senders or not queue:
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
        letter = queue.pop(place)
        if not queue:
            del senders[sender]
        return letter

    def senders(self, kind: str, receiver: str) -> list[str]:
        """Who has something on its way to the receiver."""
        senders = self.queues.get((kind, receiver))
        return sorted(senders) if senders else []

    def pending(self, kind: str, receiver: str, sender: str) -> int:
        return len(self.queues.get((kind, receiver), {}).get(sender, ()))

    def clear(self, kind: str, receiver: str) -> None:
        """What is on its way to a receiver is lost."""
        self.queues.pop((kind, receiver), None)

    def hand_over(self, kind: str, receiver: str, heir: str) -> None:
        """What is on its way to a receiver goes to another one."""
        if (kind, receiver) in self.queues:
            self.queues[kind, heir] = self.queues.pop((kind, receiver))

    def cut(self, sender: str, life: int, *, kinds: tuple[str, ...]) -> None:
        """A sender has died: of what it sent last, the network delivers some."""
        for (kind, _), senders in self.queues.items():
            queue = senders.get(sender) if kind in kinds else None
            if not queue:
                continue
            # The kernel delivers what it had, up to some point.
            own = sum(letter.life == life for letter in queue)
            keep = self.rng.choice((0, own, self.rng.randint(0, own)))
            left: Queue = []
            for letter in queue:
                keep -= letter.life == life
                if letter.life != life or keep >= 0:
                    left.append(letter)
            queue[:] = left
            if not queue:
                del senders[sender]
