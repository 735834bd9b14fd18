"""Whether the ledger lets a client in: what handshakes tell, and when to try again. No I/O.

libzmq connects and shakes hands by itself, and tells how that ended. It tells a refusal once, and
ends the connection for good: the client has to connect again.

One case looks like another. A gateway with another key than expected ends the connection, and so
does a gateway that dies. libzmq then tries again without end. So when a client with a key cannot
send for a while, its shell looks closer (`LOOKS`). It tries three connections, one after another.
If the gateway ends the first and the third, which shake hands, and keeps the second, on which the
client says nothing, then it is alive, and cannot be talked to with this key.

A shell keeps a connection while `connection` is a number, and makes a new one when the number
changes. It tells of handshakes, and runs the look that `look` asks for. Times are nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from tallybus.common.times import NEVER_NS
from tallybus.errors import AccessDenied

_MILLISECOND: Final = 1_000_000
FRESH_NS: Final = 2_000 * _MILLISECOND
"""A refusal of a connection that is older is asked for again: it may be from long ago."""
PAUSE_NS: Final = 250 * _MILLISECOND
"""Between a refusal and the next attempt; requests in between are refused at once."""
SUSPECT_AFTER_NS: Final = 500 * _MILLISECOND
"""How long a client with a key cannot send before it looks why."""
LOOK_LIMIT_NS: Final = 1_000 * _MILLISECOND
LOOK_AGAIN_NS: Final = 10 * _MILLISECOND
KEPT_NS: Final = 200 * _MILLISECOND
"""A connection that is there for so long was not one too many."""
LONGEST_PAUSE_NS: Final = 8_000 * _MILLISECOND
ELSEWHERE_NS: Final = 150 * _MILLISECOND
LONGEST_ELSEWHERE_NS: Final = 5_000 * _MILLISECOND
"""How long a gateway that may be at one of several places is waited for at one, first and at most.
Longer each time around: somewhere it may be far away."""


class Handshake(Enum):
    """How an attempt to connect went."""

    READY = "ready"
    REFUSED = "refused"
    """The gateway does not take this key."""
    UNCHECKED = "unchecked"
    """The gateway could not find out whether it takes it."""
    MISMATCH = "mismatch"
    """One side encrypts and the other does not."""
    OTHER_KEY = "other key"
    """The other side is not the gateway that the key was made for."""
    CLOSED = "closed"
    """The other side ended the connection without a word."""
    GREETED = "greeted"
    """Of a look that says nothing: greeted as ZeroMQ greets, and the connection is still there."""
    GARBAGE = "garbage"
    """The other side does not speak ZeroMQ's protocol; libzmq has given up."""
    NOTHING = "nothing"


REFUSALS: Final = frozenset(
    {Handshake.REFUSED, Handshake.UNCHECKED, Handshake.MISMATCH, Handshake.OTHER_KEY}
)
"""What is told once and ends the connection."""


class Look(Enum):
    """A connection made only to find out what is there."""

    KEYED = "keyed"
    """With this client's key, once."""
    SILENT = "silent"
    """Plain tcp, saying nothing."""


LOOKS: Final = (
    (Look.KEYED, Handshake.CLOSED),
    (Look.SILENT, Handshake.GREETED),
    (Look.KEYED, Handshake.CLOSED),
)
"""What shows that the gateway has another key than expected. A gateway that dies, or takes no more
connections, and a proxy in front of one that is down, fail one of these."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the connection is refused: `reason` as in AccessDenied, `text` for people."""

    reason: str
    text: str

    def error(self, addition: str = "") -> AccessDenied:
        """A new exception of it; its text ends with `addition`."""
        return AccessDenied(self.text + addition, request=None, reason=self.reason)


class Access:
    """Of one client of the ledger at `endpoint`, with the key called `key` or without (None)."""

    def __init__(self, endpoint: str, key: str | None, now: int, places: int = 1) -> None:
        """`places`: at how many places the gateway may be."""
        self.connection: int | None = 1
        """Number of the connection to have; None: none for now."""
        self.look: Look | None = None
        """What to find out now; `looked` is told until it is another one, or None."""
        self.endpoint = endpoint
        self._key = key
        self._connected_at = now
        self._refusal: Refusal | None = None
        self._again_at = NEVER_NS
        self._numbers = 1
        self._suspicious = False
        self.is_stalled = False
        """Whether `calm` would do anything."""
        self._look_at = NEVER_NS
        self._look_since = 0
        self._step = 0
        self._pause = SUSPECT_AFTER_NS
        self.place = 0
        """At which place to connect."""
        self._places = places
        self._found = places == 1
        """Whether it was met at this place: then it will be there again."""
        self._elsewhere_at = NEVER_NS
        self._patience = ELSEWHERE_NS

    def refusal(self, now: int) -> Refusal | None:
        """For a new request: why it is refused; None if it may be tried."""
        if self._refusal is None or now < self._again_at:
            return self._refusal
        self._refusal = None
        self._connect(now)
        return None

    def handshake(self, seen: Handshake, now: int) -> Refusal | None:
        """How the handshake of the connection ended; the refusal if that is one."""
        if self.connection is None:
            return None
        match seen:
            case Handshake.READY:
                self._suspicious = False
                self._found = True
                self._elsewhere_at = NEVER_NS
                return None
            case Handshake.GARBAGE:
                self.connection = None
                self._again_at = now + PAUSE_NS
                return None
            case _ if seen in REFUSALS:
                if now - self._connected_at > FRESH_NS:
                    self._connect(now)
                    return None
                return self._refuse(seen, now)
            case _:
                return None

    def stalled(self, now: int) -> None:
        """There is something to send, and the socket takes nothing."""
        if self.is_stalled or self.connection is None:
            return
        if not self._found:
            self.is_stalled = True
            self._elsewhere_at = max(now, self._connected_at + self._patience)
        if self._key is None:
            return
        self.is_stalled = True
        self._pause = SUSPECT_AFTER_NS
        self._look_at = now if self._suspicious else now + SUSPECT_AFTER_NS

    def calm(self) -> None:
        """Something was sent, or nobody waits any more: nothing has to be found out."""
        if self.is_stalled:
            self.is_stalled = False
            self.look = None
            self._look_at = self._elsewhere_at = NEVER_NS

    def tick(self, now: int) -> None:
        """Does what time alone asks for."""
        if self._refusal is None and self.connection is None and now >= self._again_at:
            self._connect(now)
        if self.look is None and now >= self._elsewhere_at:
            self._go_elsewhere(now)
        if self.look is None and now >= self._look_at:
            self._begin(0, now)

    def looked(self, seen: Handshake, now: int) -> Refusal | None:
        """What `look` has found so far. Gives the refusal if that is one."""
        time = now - self._look_since
        if (seen is Handshake.NOTHING and time < LOOK_LIMIT_NS) or (
            seen is Handshake.GREETED and time < KEPT_NS
        ):
            self._look_at = now + LOOK_AGAIN_NS
            return None
        if seen is LOOKS[self._step][1]:
            if self._step + 1 < len(LOOKS):
                self._begin(self._step + 1, now)
                return None
            return self._refuse(seen, now)
        self.look = None
        self._look_at = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_NS)
        if seen in REFUSALS:
            return self._refuse(seen, now)
        if seen is Handshake.GARBAGE:
            self._connect(now)
        return None

    def wake(self) -> int:
        """When to call `tick`, and `looked` while there is a `look`."""
        if self.connection is None and self._refusal is None:
            return min(self._again_at, self._look_at, self._elsewhere_at)
        return min(self._look_at, NEVER_NS if self.look is not None else self._elsewhere_at)

    def _go_elsewhere(self, now: int) -> None:
        self.place = (self.place + 1) % self._places
        if self.place == 0:
            self._patience = min(2 * self._patience, LONGEST_ELSEWHERE_NS)
        self._connect(now)
        self._elsewhere_at = now + self._patience

    def _connect(self, now: int) -> None:
        self._numbers += 1
        self.connection = self._numbers
        self._connected_at = now
        self._again_at = NEVER_NS

    def _begin(self, step: int, now: int) -> None:
        self._step = step
        self.look = LOOKS[step][0]
        self._look_since = now
        self._look_at = now + LOOK_AGAIN_NS

    def _refuse(self, seen: Handshake, now: int) -> Refusal:
        self.calm()
        self._suspicious = seen is Handshake.CLOSED
        self.connection = None
        self._again_at = now + PAUSE_NS
        self._refusal = _refusal(seen, self.endpoint, self._key)
        return self._refusal


def _refusal(seen: Handshake, endpoint: str, key: str | None) -> Refusal:
    """The refusal that a handshake is."""
    if key is None:
        return Refusal(
            "encryption",
            f"the ledger at {endpoint} lets in only clients with a key, and none was given. Ask "
            "the one who runs it for a key (tallybus keys create). Give its file as key, --key or "
            "TALLYBUS_KEY",
        )
    match seen:
        case Handshake.REFUSED:
            return Refusal(
                "key",
                f"the ledger at {endpoint} refuses the key {key!r}: it was revoked, or never was a "
                "key of this ledger. Ask the one who runs it (tallybus keys list)",
            )
        case Handshake.UNCHECKED:
            return Refusal(
                "key",
                f"the ledger at {endpoint} could not check the key {key!r}, and so lets nobody in; "
                "the log of its gateway says why",
            )
        case Handshake.MISMATCH:
            return Refusal(
                "encryption",
                f"a key was given, but what listens at {endpoint} does not encrypt. Is that the "
                "right address? Leave the key out only where nobody else can listen or answer",
            )
        case _:
            return Refusal(
                "encryption",
                f"the gateway at {endpoint} is not the one that the key {key!r} was made for: it "
                "has another public key than the one in the key's file. Check the address. If the "
                "gateway's keys were made anew, ask for a new key. If it cannot check any key at "
                "the moment, its log says so",
            )
