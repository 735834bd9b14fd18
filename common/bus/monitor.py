"""What happens to a socket's connections: libzmq's monitor events, as small dataclasses.

The only place that knows their format. A monitor may be read without ever blocking, and never
makes the I/O thread wait: its events queue without limit until they are read, so read it in every
turn. It does not know its users. (Failures to accept are not told: a process that has no more
descriptors would have thousands of them in a second.)

The names of descriptors are good only until the next event of theirs: libzmq closes a descriptor
right after it said DISCONNECTED, and the next connection may get the same number. A connection
that another one with the same routing id has replaced (`ROUTER_HANDOVER`) stays open, without use,
until its peer closes it.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import zmq

from tallybus.common.buffers import Buffer

_HEAD: Final = struct.Struct("=HI")
_NOBLOCK: Final = int(zmq.NOBLOCK)


class What(Enum):
    """What has happened."""

    CONNECT_DELAYED = int(zmq.EVENT_CONNECT_DELAYED)
    """An attempt to connect has begun."""
    CONNECT_RETRIED = int(zmq.EVENT_CONNECT_RETRIED)
    """It has failed, and there will be another one."""
    CONNECTED = int(zmq.EVENT_CONNECTED)
    ACCEPTED = int(zmq.EVENT_ACCEPTED)
    DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
    HANDSHAKE_SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    HANDSHAKE_FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)


class Failure(Enum):
    """Why a handshake has failed."""

    MECHANISM = "mechanism"
    """One side encrypts and the other does not."""
    KEY = "key"
    """What the peer sent cannot be decrypted. Mostly it expects another key of this side."""
    REFUSED = "refused"
    """The authentication said no; `code` is its status (300, 400 or 500)."""
    PROTOCOL = "protocol"
    """The other side breaks the transport's protocol."""
    BROKEN = "broken"
    """The connection broke while it was greeting; `code` is the system's error number."""


@dataclass(frozen=True, slots=True)
class SocketEvent:
    """One event. `descriptor` is -1 where libzmq does not tell it: for handshakes.

    After HANDSHAKE_FAILED the next event is DISCONNECTED, with the descriptor of that connection.
    """

    what: What
    endpoint: str
    descriptor: int = -1
    failure: Failure | None = None
    code: int = 0

    @property
    def detail(self) -> str:
        """What `code` means, for people."""
        if self.failure is Failure.BROKEN:
            return os.strerror(self.code)
        if self.failure is Failure.REFUSED:
            return f"status {self.code}"
        return "" if self.failure is None else f"code {self.code:#x}"


_FAILED: Final = {
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): Failure.BROKEN,
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): Failure.PROTOCOL,
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): Failure.REFUSED,
}
_CODES: Final = {
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): Failure.KEY,
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): Failure.MECHANISM,
}
_PLAIN: Final = {what.value: what for what in What}
_OF_DESCRIPTORS: Final = (What.CONNECTED, What.ACCEPTED, What.DISCONNECTED)
ALL_EVENTS: Final = sum({*_PLAIN, *_FAILED})


def parse(frames: Sequence[Buffer]) -> SocketEvent | None:
    """The event in a monitor's message; None for one that is of no interest, or is none."""
    if len(frames) != 2 or len(frames[0]) != _HEAD.size:
        return None
    number, value = _HEAD.unpack(frames[0])
    endpoint = bytes(frames[1]).decode("utf-8", "replace")
    if failure := _FAILED.get(number):
        if failure is Failure.PROTOCOL:
            failure = _CODES.get(value, failure)
        return SocketEvent(What.HANDSHAKE_FAILED, endpoint, failure=failure, code=value)
    what = _PLAIN.get(number)
    if what is None:
        return None
    if what in _OF_DESCRIPTORS:
        return SocketEvent(what, endpoint, descriptor=value)
    return SocketEvent(what, endpoint, code=value)


class SocketMonitor:
    """Watches one socket from now on; `socket` is readable when there are events.

    Make it before the socket is bound or connected, and close it before that socket.
    """

    def __init__(self, socket: zmq.Socket[Any], events: int = ALL_EVENTS) -> None:
        self._watched = socket
        endpoint = f"inproc://tallybus-monitor-{uuid.uuid4().hex}"
        socket.monitor(endpoint, events)
        self.socket: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR, socket_class=zmq.Socket)
        self.socket.setsockopt(zmq.LINGER, 0)
        # With a limit a flood of events would block the thread that serves all connections.
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(endpoint)
        # libzmq wakes only a reader that has found nothing once. Without this look, a reader that
        # waits with the descriptor alone may miss every event, as nothing else ever looks.
        self.socket.get(zmq.EVENTS)

    def read(self) -> list[SocketEvent]:
        """The events since the last time, in order."""
        events: list[SocketEvent] = []
        while True:
            try:
                frames = self.socket.recv_multipart(_NOBLOCK)
            except zmq.Again:
                return events
            event = parse(frames)
            if event is not None:
                events.append(event)

    def close(self) -> None:
        """Stop watching. May be called again."""
        with suppress(zmq.ZMQError):
            self._watched.disable_monitor()
        self.socket.close(linger=0)
