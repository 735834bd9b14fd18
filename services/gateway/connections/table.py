"""Which connections of clients are cut, and why. Pure: numbers in, decisions out.

libzmq collects the frames of a message until its last one has come, and nothing bounds how many
there are. So a client whose message never ends could fill the memory. Two things are known of a
connection: how many bytes were read from it, and which whole messages came by it. From these
follows the least that it has sent of an unfinished message.

1. Every connection is looked at about once a second, and again as soon as the memory has grown.
2. A connection is suspected when it has sent more than the longest request since its last whole
   message. While the memory has grown much, those with most unfinished bytes are suspected too, of
   those that have not finished a message for a second. Tiny frames take far more memory than bytes
   on the network, and many connections can have a part of a message each.
3. Whole messages of a suspect may still wait to be received. So it is cut only when none has come
   by it although nothing was left to receive at some moment. It is also cut when so many messages
   came from others that one of its own had to be among them, because connections take turns.

Answers that are not read fill the memory as well. When it has grown much since they began to wait,
connections are cut that took next to none of them.

When there are too many connections, some make room for new ones: those that never sent a message,
and those whose key was revoked. Where there are none of these, the newest is not let in.

A connection with a routing id of megabytes is cut at its first message, because libzmq would put
that id before each of its messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from tallybus.common.protocol import MAX_HEADER_BYTES

LOOK_NS: Final = 1_000_000_000
"""Every connection is looked at as often as this."""
SOON_NS: Final = 50_000_000
"""After this time at the earliest, when the memory has grown or there are suspects."""
STEP_BYTES: Final = 16 << 20
"""Growth of the memory after which connections are looked at again."""
SLACK_BYTES: Final = MAX_HEADER_BYTES + (64 << 10)
"""What a message may have beside its largest payload: a header, however long, and encryption."""
GROWTH_BYTES: Final = 256 << 20
"""Growth of the memory after which unfinished messages are to blame."""
OLD_NS: Final = 1_000_000_000
"""From which age on they are."""
GREETING_BYTES: Final = 2_048
"""What a connection that has sent no message yet may have sent: the handshake."""
RELIEF_NS: Final = 5_000_000_000
"""How long it may take until the memory of what was cut is given back."""
ROUNDS: Final = 4
"""How often each connection had its turn before it is certain that nothing of a suspect waits."""

ENDLESS: Final = "endless_message"
MEMORY: Final = "memory"
TOO_MANY: Final = "too_many"
LONG_ID: Final = "long_routing_id"
UNREAD: Final = "unread_answers"
TAKEN_BYTES: Final = 64 << 10
"""A client reads nothing if it takes less than this in OLD_NS, while something waits for it."""
REASONS: Final = (ENDLESS, MEMORY, TOO_MANY, LONG_ID, UNREAD)
UNREAD_BYTES: Final = 32 << 20
"""Roughly what the answers take that one connection does not read: nobody tells how much it is."""
MAX_ROUTING_ID_BYTES: Final = 255
"""As ZMTP has it. libzmq takes any length, and repeats the id before every message."""

_NONE: Final[Mapping[int, int]] = MappingProxyType({})

Blamable: TypeAlias = "tuple[int, int, str, int]"
"""About how many bytes a connection holds in memory, its descriptor, why, and the memory before."""


@dataclass(slots=True)
class Connection:
    """One connection. `peer` is its address; `whole` the bytes that were read from it when its last
    message was known to be whole, `unfinished` those since. When nothing of note was unfinished
    for the last time: `since_ns`, with `memory` bytes in the process."""

    peer: str
    whole: int = 0
    unfinished: int = 0
    since_ns: int = 0
    memory: int = 0
    waits: bool = False
    """Whether something waits to be sent to it, at every look since `taken_ns`; then it had
    acknowledged `taken` bytes, and the process had `taken_memory`."""
    taken: int = 0
    taken_ns: int = 0
    taken_memory: int = 0
    user: bytes = b""
    """The key that its messages came with; empty before the first."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection to be cut: its descriptor, the address that it must still have, and why."""

    descriptor: int
    peer: str
    reason: str
    unfinished: int


class Connections:
    """The connections of one socket, by descriptor."""

    def __init__(self, most: int, longest_message: int) -> None:
        self.most = most
        self._allowed = longest_message + SLACK_BYTES
        self._open: dict[int, Connection] = {}
        self._heard: set[int] = set()
        """Those by which a whole message has come since the last look, or since the suspicion."""
        self._of: dict[bytes, int] = {}
        """How many connections each key has."""
        self._of_all = 0
        self._revoked: set[int] = set()
        """Connections by which somebody has asked whose key is not good any more."""
        self._messages = 0
        self._suspects: dict[int, tuple[str, int]] = {}
        """Why, and how many bytes were unfinished."""
        self._enough = 0
        self._looked_ns = 0
        self._asked_ns = 0
        self._looked_memory = 0
        self._last_memory = 0
        self._blamed_ns = -RELIEF_NS
        self._blamed_memory = 0

    def __len__(self) -> int:
        return len(self._open)

    def peers(self) -> dict[int, str]:
        """The address of each connection, by descriptor."""
        return {descriptor: each.peer for descriptor, each in self._open.items()}

    def accepted(self, descriptor: int, peer: str, now_ns: int) -> Cut | None:
        """A new connection. Whom to cut for it, where there are too many: the oldest by which no
        message has ever come, for connecting alone proves nothing, or whose key was revoked; where
        there is none, itself."""
        self.ended(descriptor)
        cut = None
        if len(self._open) >= self.most:
            cut = self._least_needed()
            if cut is None:
                return Cut(descriptor, peer, TOO_MANY, 0)
            self.ended(cut.descriptor)
        if not self._open:
            # Nobody was there to be looked at.
            self._asked_ns = self._looked_ns = now_ns
            self._looked_memory = 0
        self._open[descriptor] = Connection(
            peer,
            since_ns=now_ns,
            memory=self._last_memory,
            taken_ns=now_ns,
            taken_memory=self._last_memory,
        )
        return cut

    def _least_needed(self) -> Cut | None:
        for descriptor, connection in self._open.items():
            mute = not connection.whole and descriptor not in self._heard
            if mute or descriptor in self._revoked:
                return Cut(descriptor, connection.peer, TOO_MANY, connection.unfinished)
        return None

    def ended(self, descriptor: int) -> str:
        """A connection is gone; returns its address, empty if it was not known."""
        connection = self._open.pop(descriptor, None)
        self._suspects.pop(descriptor, None)
        self._heard.discard(descriptor)
        self._revoked.discard(descriptor)
        if connection is None:
            return ""
        if connection.user:
            self._count(connection.user, -1)
        return connection.peer

    def heard(self, descriptor: int) -> None:
        """A whole message has come by this connection. Called for each message: must be cheap."""
        self._heard.add(descriptor)
        self._messages += 1

    def spoke(self, descriptor: int, user: bytes) -> Cut | None:
        """A message has come from the holder of this key. Whom to cut: this connection, when its
        key has more of them already than it leaves to others."""
        connection = self._open.get(descriptor)
        if connection is None or connection.user == user:
            return None
        if connection.user:
            self._count(connection.user, -1)
        connection.user = user
        # Compared with the places that no key has. A connection without a message has no key yet.
        if self._count(user, 1) <= self.most - self._of_all + 1:
            return None
        return Cut(descriptor, connection.peer, TOO_MANY, 0)

    def _count(self, user: bytes, change: int) -> int:
        self._of_all += change
        count = self._of.pop(user, 0) + change
        if count:
            self._of[user] = count
        return count

    def revoked(self, descriptor: int) -> None:
        """Its key is not good any more, and it was told so: it makes room when room is needed. Not
        before, for a request that is on its way would seem to be lost."""
        if descriptor in self._open:
            self._revoked.add(descriptor)

    def long_routing_id(self, descriptor: int) -> Cut | None:
        """A message has come from a client whose routing id is too long; None: by none of these."""
        connection = self._open.get(descriptor)
        return None if connection is None else Cut(descriptor, connection.peer, LONG_ID, 0)

    def next_look_ns(self) -> int | None:
        """When to ask `due` next; None while there is no connection."""
        return self._asked_ns + SOON_NS if self._open else None

    def due(self, now_ns: int, memory: int) -> bool:
        """Whether to look at all connections now. `memory`: bytes that the process has."""
        self._asked_ns = now_ns
        if not self._open:
            return False
        self._looked_memory = min(self._looked_memory, memory)
        if now_ns - self._looked_ns >= LOOK_NS:
            return True
        return not self._suspects and memory - self._looked_memory >= STEP_BYTES

    @property
    def suspects(self) -> bool:
        """Whether `to_cut` waits for proof."""
        return bool(self._suspects)

    def look(
        self, now_ns: int, memory: int, read: Mapping[int, int], taken: Mapping[int, int] = _NONE
    ) -> None:
        """A look at all connections. `read`: bytes that were read from each so far. `taken`: of
        those for which something waits to be sent, the bytes that they have acknowledged so far."""
        heard, self._heard = self._heard, set()
        old: list[Blamable] = []
        self._suspects.clear()
        for descriptor, connection in self._open.items():
            total = read.get(descriptor)
            if total is None:
                continue
            if descriptor in heard:
                connection.whole = total
            connection.unfinished = total - connection.whole
            connection.memory = connection.memory or memory
            if connection.unfinished <= GREETING_BYTES:
                connection.since_ns, connection.memory = now_ns, memory
            elif connection.unfinished > self._allowed:
                self._suspects[descriptor] = ENDLESS, connection.unfinished
            elif now_ns - connection.since_ns >= OLD_NS:
                old.append((connection.unfinished, descriptor, MEMORY, connection.memory))
            connection.taken_memory = connection.taken_memory or memory
            acknowledged = taken.get(descriptor)
            if acknowledged is None or not connection.waits:
                connection.waits = acknowledged is not None
                connection.taken = acknowledged or 0
                connection.taken_ns, connection.taken_memory = now_ns, memory
                continue
            waited_ns = now_ns - connection.taken_ns
            slowly = (acknowledged - connection.taken) * OLD_NS < TAKEN_BYTES * waited_ns
            if slowly and waited_ns >= OLD_NS:
                old.append((UNREAD_BYTES, descriptor, UNREAD, connection.taken_memory))
        self._blame(old, now_ns, memory)
        self._enough = self._messages + ROUNDS * len(self._open)
        self._looked_ns = now_ns
        self._looked_memory = self._last_memory = memory

    def _blame(self, old: list[Blamable], now_ns: int, memory: int) -> None:
        """Suspect the largest of these, if the memory has grown much since the first began."""
        grown = memory - min((begun for *_, begun in old), default=memory)
        if grown <= GROWTH_BYTES:
            return
        if now_ns - self._blamed_ns < RELIEF_NS and memory < self._blamed_memory + STEP_BYTES:
            return  # what was cut lately may still have to be freed
        self._blamed_ns, self._blamed_memory = now_ns, memory
        for size, descriptor, reason, _ in sorted(old, reverse=True):
            self._suspects[descriptor] = reason, size
            grown -= size
            if grown <= GROWTH_BYTES // 2:
                return

    def to_cut(self, now_ns: int, nothing_left: bool) -> list[Cut]:
        """Whom to cut. `nothing_left`: no message waits to be received, now."""
        if now_ns - self._looked_ns < SOON_NS:
            return []
        for descriptor in self._heard.intersection(self._suspects):
            # Who does not read may ask for more all the time.
            if self._suspects[descriptor][0] != UNREAD:
                del self._suspects[descriptor]
        if not nothing_left and self._messages < self._enough:
            return []
        cuts = [
            Cut(
                descriptor,
                self._open[descriptor].peer,
                reason,
                0 if reason == UNREAD else unfinished,
            )
            for descriptor, (reason, unfinished) in self._suspects.items()
        ]
        self._suspects.clear()
        return cuts
