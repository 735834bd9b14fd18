"""What the cores of all stages have in common: an identity, broadcasts, answers and a heartbeat.

A core turns messages into messages. Its shell hands it what arrived, then sends what the core has
put into `broadcasts` (topic and message for the PUB socket), `replies` (peer and message for the
control ROUTER) and `requests` (for the successor's control socket), and whatever `next_data()`
gives for the data socket. Time comes in as nanoseconds; a core reads no clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

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
"""How long an acknowledgement may wait: it frees memory, and each one wakes the predecessor."""
PRESENCE_NS: Final = 1_000_000_000
HELLO_EVERY_NS: Final = 20_000_000


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
