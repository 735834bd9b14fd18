"""What the cores of all stages have in common: an identity, broadcasts, answers and a heartbeat.

A core turns messages into messages. Its shell hands it what arrived, with `on_message`, then sends
what the core has put into `broadcasts` (topic and message for the PUB socket), `replies` (peer and
message for the control ROUTER) and `requests` (for the successor's control socket), and whatever
`next_data()` gives for the data socket. Time comes in as nanoseconds; a core reads no clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from tallybus.common.bus.link import LinkSender
from tallybus.common.bus.messages import (
    TOPIC_ACKNOWLEDGE,
    TOPIC_EVENT,
    TOPIC_STATUS,
    Message,
    Presence,
    StageStatus,
)
from tallybus.common.errors import EXIT_REPLACED, ServiceError

PACE_NS: Final = 20_000_000
"""How long an acknowledgement may wait: it frees memory, and each one wakes the predecessor
(ADR 0008)."""
PRESENCE_NS: Final = 1_000_000_000
HELLO_EVERY_NS: Final = 20_000_000


class Channel(IntEnum):
    """What kind of socket a message came in on."""

    DATA = 1
    """Batches from the predecessor."""
    CONTROL = 2
    """Hellos and queries from other stages."""
    ANSWER = 3
    """Answers to what this stage has asked another one."""
    BROADCAST = 4
    """Statuses, and events of stages that it subscribes to."""


class Source(NamedTuple):
    """Where a message came from."""

    channel: Channel
    peer: bytes = b""
    """Of CONTROL: whom an answer is for."""


FROM_DATA: Final = Source(Channel.DATA)
FROM_ANSWER: Final = Source(Channel.ANSWER)
FROM_BROADCAST: Final = Source(Channel.BROADCAST)

Take: TypeAlias = Callable[[Any, Source, int], None]
"""Takes one kind of message in: the message, where it came from, and the time in nanoseconds."""
Routes: TypeAlias = Mapping[tuple[Channel, type[Message]], Take]


def alone(take: Callable[[Any], None]) -> Take:
    """For a method that needs the message alone."""
    return lambda message, _source, _now_ns: take(message)


def timed(take: Callable[[Any, int], None]) -> Take:
    """For a method that needs the message and the time."""
    return lambda message, _source, now_ns: take(message, now_ns)


def answered(take: Callable[[bytes, Any], None]) -> Take:
    """For a method that answers: it needs the peer, and the message."""
    return lambda message, source, _now_ns: take(source.peer, message)


class Fenced(ServiceError):
    """A newer instance of this stage has taken over; this one must stop and change nothing more.

    Fields: `stage`, `incarnation`, `by` (what replaced it).
    """

    exit_code: ClassVar[int] = EXIT_REPLACED

    def __init__(self, stage: str, incarnation: int, by: str) -> None:
        super().__init__(
            f"this {stage} ({incarnation:016x}) was replaced by {by}; "
            "it stops so that there is one history"
        )
        self.stage = stage
        self.incarnation = incarnation
        self.by = by


class StageCore(ABC):
    """Base of the stage cores. `incarnation` is a random u64 that is new at every start."""

    stage: str

    def __init__(self, incarnation: int, heartbeat_ns: int) -> None:
        self.incarnation = incarnation
        self.term = 0
        self.broadcasts: list[tuple[bytes, Message]] = []
        self.replies: list[tuple[bytes, Message]] = []
        self.requests: list[Message] = []
        self._heartbeat_ns = heartbeat_ns
        self._told: StageStatus | None = None
        self._acknowledged: StageStatus | None = None
        self._acknowledged_ns = 0
        self.status_pending = False
        self.presence: Presence | None = None
        self._presence_ns = 0
        self._hello_ns: int | None = None
        self._routes = self.routes()

    @abstractmethod
    def routes(self) -> Routes:
        """What this stage takes in: for each kind of message and socket the method for it."""

    def on_message(self, source: Source, message: Message, now_ns: int) -> None:
        """Take in one message: the only way into a core for what other stages send. What is not for
        this stage changes nothing: broadcasts reach many, and a peer may be of another release."""
        take = self._routes.get((source.channel, type(message)))
        if take is not None:
            take(message, source, now_ns)

    @abstractmethod
    def status(self) -> StageStatus:
        """What this stage broadcasts about itself now."""

    @property
    def greeting(self) -> bool:
        """Whether a hello waits for its answer."""
        return False

    @property
    def awaits(self) -> str:
        """What this stage lacks to have its place in the pipeline, in words; empty: nothing."""
        return "its hello was not answered yet" if self.greeting else ""

    @abstractmethod
    def tick(self, now_ns: int) -> None:
        """Once a turn, after everything that arrived was handed over."""

    @property
    def outgoing(self) -> LinkSender[Any] | None:
        """The sending end of the link to the successor, where there is one already."""
        return getattr(self, "link", None)

    def next_data(self) -> Message | None:
        """The next message for the data socket, or None. It stays next until `data_sent`."""
        return None

    def data_sent(self, now_ns: int) -> None:
        """The message from `next_data` was handed to the socket."""
        raise AssertionError(f"the {self.stage} sends no data")

    def announce(self, message: Message) -> None:
        """Broadcast something that only gateways need."""
        self.broadcasts.append((TOPIC_EVENT, message))

    def heartbeat(self, now_ns: int) -> None:
        """Broadcast the status: at once when somebody waits for what is new in it, soon when
        anything is, and at least once in every heartbeat interval.

        Called last in a turn, so that what the status acknowledges was announced before it.
        """
        status = self.status()
        last = self._acknowledged
        since = now_ns - self._acknowledged_ns
        changed = status != last
        if (
            last is None
            or since >= self._heartbeat_ns
            or (changed and (since >= PACE_NS or _pressing(status, last)))
        ):
            if self.presence is not None and (
                last is None or now_ns - self._presence_ns >= PRESENCE_NS
            ):
                self._presence_ns = now_ns
                self.announce(self.presence)
            self._acknowledged = self._told = status
            self._acknowledged_ns = now_ns
            self.status_pending = False
            self.broadcasts.append((TOPIC_ACKNOWLEDGE, status))
            return
        self.status_pending = changed
        if self._told is not None and self.urgent(status, self._told):
            self._told = status
            self.broadcasts.append((TOPIC_STATUS, status))

    def urgent(self, status: StageStatus, last: StageStatus) -> bool:
        """Whether clients wait for what has changed. Acknowledgements only free memory."""
        return False

    def hello_due(self, now_ns: int) -> bool:
        """Whether to say hello (again): at once, then at most every 20 ms."""
        if self._hello_ns is not None and now_ns - self._hello_ns < HELLO_EVERY_NS:
            return False
        self._hello_ns = now_ns
        return True


def _pressing(status: StageStatus, last: StageStatus) -> bool:
    """Whether the predecessor has to act on what has changed."""
    return (
        status.term != last.term
        or status.peer != last.peer
        or status.gap > last.gap
        or status.full != last.full
    )
