"""Connections that only find out what is at an endpoint; see `access.Look`.

Each is tried once, sends no message, and is closed when it is known how it went. They never block
and decide nothing.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import zmq

from tallybus.client.access import Handshake, Look
from tallybus.common.bus.monitor import Failure, SocketEvent, SocketMonitor, What
from tallybus.common.security.curve import secure_client
from tallybus.common.security.keys import ClientKey
from tallybus.common.settings.endpoints import Place

VERDICTS: Final = int(
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
"""Events that come at most once for each attempt that somebody asked for: they may be left unread
for as long as nobody looks. All others come with every attempt that libzmq makes by itself."""
_ALL_OF_ONE: Final = VERDICTS | int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_DISCONNECTED)
_SIGNATURE: Final = 0xFF
_FAILURES: Final = {
    Failure.MECHANISM: Handshake.MISMATCH,
    Failure.KEY: Handshake.OTHER_KEY,
    Failure.PROTOCOL: Handshake.GARBAGE,
    Failure.BROKEN: Handshake.CLOSED,
}
STATUS_FAILED: Final = 500


def meaning(event: SocketEvent) -> Handshake | None:
    """How the handshake went that an event tells of; None: it tells of none."""
    match event.what:
        case What.HANDSHAKE_SUCCEEDED:
            return Handshake.READY
        case What.HANDSHAKE_FAILED if event.failure is Failure.REFUSED:
            return Handshake.UNCHECKED if event.code == STATUS_FAILED else Handshake.REFUSED
        case What.HANDSHAKE_FAILED if event.failure is not None:
            return _FAILURES[event.failure]
        case _:
            return None


class Looking(Protocol):
    """A look that is under way."""

    def seen(self) -> Handshake:
        """What has been seen so far."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


def start(look: Look, context: zmq.Context[Any], place: Place, key: ClientKey) -> Looking:
    """Begins to look."""
    if look is Look.KEYED:
        return _Keyed(context, place, key)
    return _Silent(context, place)


class _Keyed:
    """One handshake with the client's key."""

    def __init__(self, context: zmq.Context[Any], place: Place, key: ClientKey) -> None:
        self._socket = _once(context, zmq.DEALER, place)
        secure_client(self._socket, key.pair, key.gateway)
        self._monitor = SocketMonitor(self._socket, _ALL_OF_ONE)
        self._seen = Handshake.NOTHING
        self._socket.connect(place.endpoint)

    def seen(self) -> Handshake:
        for event in self._monitor.read():
            found = meaning(event)
            if self._seen is Handshake.NOTHING:
                # Only what libzmq cannot make anything of ends without a word about why.
                self._seen = found or Handshake.GARBAGE
        return self._seen

    def close(self) -> None:
        self._monitor.close()
        self._socket.close(linger=0)


class _Silent:
    """A tcp connection that is made and listened to."""

    def __init__(self, context: zmq.Context[Any], place: Place) -> None:
        self._socket = _once(context, zmq.STREAM, place)
        # Of a connection that it made itself, a STREAM socket does not always tell the end.
        self._monitor = SocketMonitor(self._socket, int(zmq.EVENT_DISCONNECTED))
        self._seen = Handshake.NOTHING
        self._socket.connect(place.endpoint)

    def seen(self) -> Handshake:
        if self._monitor.read():
            self._seen = Handshake.CLOSED
        while int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            # Each message comes after the connection's name; an empty one is its begin, or its end.
            _, data = self._socket.recv_multipart(zmq.DONTWAIT)
            if data and self._seen is Handshake.NOTHING:
                greets = data[0] == _SIGNATURE
                self._seen = Handshake.GREETED if greets else Handshake.GARBAGE
        return self._seen

    def close(self) -> None:
        self._monitor.close()
        self._socket.close(linger=0)


def _once(context: zmq.Context[Any], kind: int, place: Place) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind, socket_class=zmq.Socket)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.RECONNECT_IVL, -1)
    socket.set(zmq.IPV6, place.ipv6)
    return socket
