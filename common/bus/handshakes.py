"""Connections between services that did not come about: the log tells of them, and some are begun
anew.

A peer that proves its key is judged in `common/security/doorkeeper.py`. Two others never get that
far: a plain client, and one that expects another key of this service. They end in the middle of the
handshake, and only the socket's monitor tells.

libzmq gives a connection up for good when the other side has keys and this side has none, or the
other way round. That happens where services get their keys one after the other. This module then
connects anew, so the order does not matter.

A host may be reached at one of several places (`common/settings/endpoints.py`). libzmq would stay
with the first. This module tries the next one where nothing answers.

It costs nothing per message, and belongs to the thread of its sockets. ADR 0013 tells what libzmq
does by itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import zmq

from tallybus.common import logs
from tallybus.common.bus.monitor import Failure, SocketMonitor, What
from tallybus.common.settings.endpoints import Place, as_given

LOOK_NS: Final = 1_000_000_000
"""How often to look, and so to connect anew."""
REPEATED: Final = 10
"""So many connections in a row break in the handshake before the log says that the service has
another key. A few break when a service ends."""

NO_ENCRYPTION: Final = "no_encryption"
BAD_HANDSHAKE: Final = "bad_handshake"
"""Why a listening socket did not let a connection in. Either it came without encryption, or it
broke off, as it does where the other side expects another key."""

_MEANINGS: Final = {
    Failure.MECHANISM: "it does not encrypt: give every service the same security.keys",
    Failure.KEY: "it has another bus.key",
    Failure.BROKEN: "it ends every handshake: most likely it has another bus.key, or none",
    Failure.REFUSED: "it refuses this service's key",
    Failure.PROTOCOL: "what listens there is no service of a ledger",
}
_EVENTS: Final = int(
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_ATTEMPTS: Final = int(zmq.EVENT_CONNECT_DELAYED | zmq.EVENT_CONNECT_RETRIED)
ATTEMPT_MS: Final = 3_000
"""How long an attempt at one of several places may take."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Handshakes that failed in the same way since the last look. `socket` is the stage's socket,
    such as `wal.data`. `connects` says whether this service is the side that connects. `detail`
    says more, if anything is known."""

    socket: str
    endpoint: str
    connects: bool
    failure: Failure
    detail: str
    count: int


@dataclass(slots=True)
class Peer:
    """Whom a socket connects to: the places where that one may be, and which of them is tried."""

    places: Sequence[Place]
    at: int = 0

    @property
    def endpoint(self) -> str:
        """Where it is looked for now."""
        return self.places[self.at].endpoint

    def connect(self, socket: zmq.Socket[Any]) -> None:
        """Begin to connect. What a socket is told holds for the connections made from then on."""
        socket.setsockopt(zmq.IPV6, self.places[self.at].ipv6)
        if len(self.places) > 1:
            socket.setsockopt(zmq.CONNECT_TIMEOUT, ATTEMPT_MS)
        socket.connect(as_given(self.endpoint))

    def connect_anew(self, socket: zmq.Socket[Any], *, elsewhere: bool = False) -> None:
        """Give the connection up, and begin another, with `elsewhere` at the next place."""
        # A socket that still has the endpoint would take the second connect for a mistake.
        with suppress(zmq.ZMQError):
            socket.disconnect(as_given(self.endpoint))
        self.at = (self.at + elsewhere) % len(self.places)
        self.connect(socket)


@dataclass(slots=True)
class _Watched:
    name: str
    socket: zmq.Socket[Any]
    monitor: SocketMonitor
    peers: Sequence[Peer]
    """Whom it connects to; none where it listens."""
    broken: Counter[str] = field(default_factory=Counter)
    """How many broke in a row, by endpoint."""


class Handshakes:
    """Watches sockets, each from before it is bound or connected."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []

    def __len__(self) -> int:
        return len(self._watched)

    def watch(
        self, socket: zmq.Socket[Any], name: str, peers: Sequence[Peer] = (), *, keys: bool = True
    ) -> None:
        """From now on. `peers`: whom the socket is going to connect to, if it does. Without `keys`
        handshakes are not looked at."""
        events = _EVENTS if keys else 0
        if any(len(peer.places) > 1 for peer in peers):
            events |= _ATTEMPTS
        self._watched.append(_Watched(name, socket, SocketMonitor(socket, events), peers))

    def look(self) -> list[Trouble]:
        """What has failed since the last look. A connection that libzmq has given up is begun
        anew."""
        return [trouble for watched in self._watched for trouble in _look(watched)]

    def close(self) -> None:
        """Before the sockets are."""
        for watched in self._watched:
            watched.monitor.close()
        self._watched.clear()


def _look(watched: _Watched) -> list[Trouble]:
    seen: Counter[tuple[str, Failure, str]] = Counter()
    retried: dict[str, bool] = {}
    """Whether the last attempt that was heard of has failed, by endpoint."""
    for event in watched.monitor.read():
        if event.what in (What.CONNECT_DELAYED, What.CONNECT_RETRIED):
            retried[event.endpoint] = event.what is What.CONNECT_RETRIED
        elif event.failure is not None:
            seen[event.endpoint, event.failure, event.detail] += 1
            watched.broken[event.endpoint] += event.failure is Failure.BROKEN
        elif event.what is What.HANDSHAKE_SUCCEEDED:
            watched.broken.pop(event.endpoint, None)
    connects = bool(watched.peers)
    troubles = []
    given_up = set()
    for (endpoint, failure, detail), count in seen.items():
        if connects and failure is Failure.BROKEN:
            # libzmq tries again by itself.
            if watched.broken[endpoint] < REPEATED:
                continue
        elif connects:
            given_up.add(endpoint)
        elif failure is Failure.REFUSED:
            continue  # its refuser has counted it and told the log
        troubles.append(Trouble(watched.name, endpoint, connects, failure, detail, count))
    # Of a name, libzmq tells the address that it was resolved to.
    known = given_up <= {peer.endpoint for peer in watched.peers}
    for peer in watched.peers:
        if given_up and (not known or peer.endpoint in given_up):
            peer.connect_anew(watched.socket)
        elif len(peer.places) > 1 and retried.get(peer.endpoint):
            peer.connect_anew(watched.socket, elsewhere=True)
    return troubles


class HandshakeReport:
    """Tells the operator of troubles, in few lines however many there are. `refused` counts by
    reason who was not let in."""

    def __init__(self, log: logging.Logger, refused: dict[str, int]) -> None:
        self._log = log
        self._refused = refused
        self._throttles: dict[tuple[str, Failure], logs.Throttle] = {}

    def take(self, troubles: Iterable[Trouble], now: float) -> None:
        """What `Handshakes.look` has found; `now` is the monotonic clock's in seconds."""
        for trouble in troubles:
            reason = NO_ENCRYPTION if trouble.failure is Failure.MECHANISM else BAD_HANDSHAKE
            if not trouble.connects:
                self._refused[reason] = self._refused.get(reason, 0) + trouble.count
            throttle = self._throttles.setdefault(
                (trouble.socket, trouble.failure), logs.Throttle()
            )
            held_back = throttle.passes(now)
            if held_back is None:
                continue
            facts: dict[str, object] = {"socket": trouble.socket, "endpoint": trouble.endpoint}
            if trouble.connects:
                facts["reason"] = _MEANINGS[trouble.failure]
            else:
                facts |= {"reason": reason, "connections": trouble.count}
            if trouble.detail:
                facts["why"] = trouble.detail
            facts["held_back"] = held_back
            self._log.warning(
                "cannot connect to another service" if trouble.connects else "refused a connection",
                extra=logs.fields(**facts),
            )
