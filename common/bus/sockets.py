"""Sockets between the stages.

Of the services' code, zmq is imported here, by `monitor.py` and `handshakes.py` beside it, and by
`curve.py` and `doorkeeper.py` of `common/security/`. Clients have sockets of their own.

Every stage binds three sockets: `data` (PULL), `index` (PUB) and `control` (ROUTER); the gateway
binds one ROUTER for clients. All sends and receives are non-blocking: what a socket does not take
now stays with its sender, whose link keeps it anyway. Large frames are passed on without a copy.
"""

from __future__ import annotations

import errno
import os
import socket as system_socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import zmq

from tallybus.common.buffers import Buffer
from tallybus.common.bus.handshakes import Handshakes, Peer
from tallybus.common.bus.monitor import SocketMonitor
from tallybus.common.bus.socket_files import SocketFiles, SocketImpossible, SocketInUse
from tallybus.common.errors import EXIT_BUSY, EXIT_SETTINGS, ServiceError
from tallybus.common.files import Storage
from tallybus.common.security.curve import open_server, secure_client, secure_server
from tallybus.common.security.pairs import BUS, CLIENTS, Security
from tallybus.common.settings import endpoints
from tallybus.common.settings.endpoints import TCP, as_given

# As plain integers: operators of zmq's enumerations cost microseconds.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_POLLIN: Final = int(zmq.POLLIN)
_SOURCE: Final = int(zmq.SRCFD)
_POLLOUT: Final = int(zmq.POLLOUT)

_NOT_HERE: Final = (
    errno.ENODEV,
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
)
"""What binding says of an address, or a family of addresses, that this machine does not have."""

DEAD_PEER_OPTIONS: Final = {
    int(zmq.TCP_KEEPALIVE): 1,
    int(zmq.TCP_KEEPALIVE_IDLE): 5,
    int(zmq.TCP_KEEPALIVE_INTVL): 1,
    int(zmq.TCP_KEEPALIVE_CNT): 5,
    int(zmq.TCP_MAXRT): 10_000,
}
"""How a dead host is noticed over tcp. Not by ZMTP heartbeats: libzmq 4.3 aborts the process when
one is due on a connection whose peer died while its queue was full."""

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

_FOR_GOOD: Final = frozenset(
    {
        *(errno.EADDRNOTAVAIL, errno.ENODEV, errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
        *(errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP),
    }
)
"""Why a socket cannot listen as long as nobody changes something."""

COPY_BELOW: Final = 65_536
"""Frames shorter than this are copied: cheaper than keeping track of their readers."""
SOCKET_BUFFER_BYTES: Final = 4 << 20
"""What the system may hold for a connection: a whole batch, so that neither side waits in its
middle."""
RECONNECT_MS: Final = 20
"""How long a socket waits before it looks again for a peer that is not there."""
HANDSHAKE_MS: Final = 9_000
"""How long a connection may take until both sides have greeted. Ten seconds are promised."""
CLIENT_MESSAGES: Final = 64
"""Messages queued in each direction for one client."""


def new_context() -> Context:
    """A context of its own for one process, with one I/O thread."""
    return zmq.Context(io_threads=1)


@dataclass(frozen=True, slots=True)
class BusLimits:
    """Limits of every socket. `high_water_mark` counts messages, `max_message_bytes` one frame."""

    high_water_mark: int = 32
    max_message_bytes: int = 64 * 1024 * 1024
    broadcasts: int = 2_000


class EndpointUnusable(ServiceError):
    """A socket cannot listen where it should. Fields: `endpoint`, `reason`."""

    exit_code = EXIT_BUSY

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(
            f"cannot listen on {endpoint}: {reason}; stop what listens there, "
            "or choose another endpoint"
        )
        self.endpoint = endpoint
        self.reason = reason


class EndpointTaken(EndpointUnusable):
    """Another process listens where this one did."""


class EndpointWrong(EndpointUnusable):
    """A socket can never listen where it should, as things are. Fields: also `setting`."""

    exit_code = EXIT_SETTINGS
    restart = False

    def __init__(self, endpoint: str, reason: str, setting: str) -> None:
        ServiceError.__init__(
            self,
            f"cannot listen on {endpoint}: {reason}; it must be an address of this machine, a port "
            "that this user may use, or a path in a folder that it may write to: correct "
            f"{setting}",
        )
        self.endpoint = endpoint
        self.reason = reason
        self.setting = setting


@dataclass(slots=True)
class _File:
    """An ipc endpoint that a socket is bound to, and which file that made."""

    socket: zmq.Socket[bytes]
    endpoint: str
    path: Path
    made: tuple[int, int] | None = None

    def look(self) -> tuple[int, int] | None:
        """What is at the path now."""
        try:
            state = os.stat(self.path)
        except OSError:
            return None
        return state.st_dev, state.st_ino


class Bus:
    """Makes the sockets of one service. `endpoint(stage, socket, bind)` names where they meet.

    With `security` every socket that listens or connects over tcp is encrypted; set it before the
    first one is made.
    """

    def __init__(
        self,
        context: Context,
        endpoint: Callable[[str, str, bool], str],
        limits: BusLimits,
        security: Security | None = None,
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._limits = limits
        self.security = security
        self.handshakes = Handshakes()
        """Those of the sockets between services that are encrypted, or connect to names."""
        self._sockets: list[zmq.Socket[bytes]] = []
        self._monitors: list[SocketMonitor] = []
        # Not the ledger's storage: nothing of this is data.
        self._claims = SocketFiles(Storage())
        self._files: list[_File] = []

    def pull(self, stage: str) -> Port:
        """Where this stage takes batches from its predecessor."""
        socket = self._socket(zmq.PULL)
        socket.setsockopt(zmq.RCVHWM, self._limits.high_water_mark)
        self._listen(socket, stage, "data")
        return Port(socket)

    def push(self, stage: str) -> Port:
        """Where a predecessor gives batches to `stage`."""
        socket = self._socket(zmq.PUSH)
        socket.setsockopt(zmq.SNDHWM, self._limits.high_water_mark)
        # Without it, messages queue for a peer that is not there and die with the queue.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        self._connect(socket, [stage], "data")
        return Port(socket)

    def publisher(self, stage: str) -> Port:
        """Where this stage broadcasts."""
        socket = self._socket(zmq.PUB)
        socket.setsockopt(zmq.SNDHWM, self._limits.broadcasts)
        self._listen(socket, stage, "index")
        return Port(socket)

    def subscriber(self, stages: Sequence[str], topics: Sequence[bytes]) -> Port:
        """What other stages broadcast."""
        socket = self._socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, self._limits.broadcasts)
        for topic in topics:
            socket.setsockopt(zmq.SUBSCRIBE, topic)
        self._connect(socket, stages, "index")
        return Port(socket)

    def router(self, stage: str) -> Port:
        """Where this stage answers hellos and queries."""
        socket = self._socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._listen(socket, stage, "control")
        return Port(socket)

    def dealer(self, stage: str) -> Port:
        """Where hellos and queries for `stage` go out."""
        socket = self._socket(zmq.DEALER)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        self._connect(socket, [stage], "control")
        return Port(socket)

    def clients(self, endpoint: str, max_message_bytes: int) -> ClientPort:
        """The gateway's socket for clients; `Port.endpoint` tells the port where `*` was asked
        for."""
        socket = self._socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A client that reconnects keeps its routing id, and with it the answers it waits for.
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        # For each connection. What is beyond waits in the client and in `AnswerQueue`, bounded.
        socket.setsockopt(zmq.SNDHWM, CLIENT_MESSAGES)
        socket.setsockopt(zmq.RCVHWM, CLIENT_MESSAGES)
        socket.setsockopt(zmq.MAXMSGSIZE, min(max_message_bytes, self._limits.max_message_bytes))
        port = ClientPort(socket)
        if endpoint.startswith(TCP):
            # From before the first connection on.
            port.monitor = SocketMonitor(socket)
            port.tells_source = True
            port.has_users = self.security is not None
            self._monitors.append(port.monitor)
        self._bind(socket, endpoint, CLIENTS, "gateway.endpoint")
        return port

    @property
    def socket_files(self) -> list[Path]:
        """Files of the ipc endpoints bound here: libzmq leaves them behind, so their owner must
        not. Those that another process has replaced are not among them."""
        return [file.path for file in self._files if file.made == file.look()]

    def lost_files(self) -> bool:
        """Whether the file of a socket that listens was removed or replaced."""
        return any(file.made != file.look() for file in self._files)

    def listen_again(self) -> None:
        """Make the files of sockets again that were removed; their connections live on.

        Raises EndpointTaken where another process listens, EndpointUnusable where it cannot be.
        """
        for file in self._files:
            if file.made == file.look():
                continue
            try:
                self._claims.claim_again(file.path)
            except SocketInUse as error:
                raise EndpointTaken(file.endpoint, str(error)) from error
            except SocketImpossible as error:
                raise EndpointUnusable(file.endpoint, str(error)) from error
            try:
                # Beside the listener that is there, whose end would end its connections.
                file.socket.bind(as_given(file.endpoint))
            except zmq.ZMQError as error:
                raise EndpointUnusable(file.endpoint, os.strerror(error.errno or 0)) from error
            file.made = file.look()

    def close(self) -> None:
        """Close every socket at once: what mattered was acknowledged, the rest is sent again."""
        self.handshakes.close()
        for monitor in self._monitors:
            monitor.close()
        self._monitors.clear()
        for socket in self._sockets:
            socket.close(linger=0)
        self._sockets.clear()

    def release_files(self) -> None:
        """After `close`: others may listen where this bus did over ipc."""
        self._claims.release(self.socket_files)
        self._files.clear()

    def _bind(self, socket: zmq.Socket[bytes], endpoint: str, domain: str, setting: str) -> None:
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if self.security is not None and endpoint.startswith(TCP):
            secure_server(socket, self.security.pair(domain), domain)
        else:
            open_server(socket)
        endpoint = endpoints.absolute(endpoint)
        path = endpoints.socket_path(endpoint)
        if path is not None:
            try:
                self._claims.claim(path)
            except SocketInUse as error:
                raise EndpointUnusable(endpoint, str(error)) from error
            except SocketImpossible as error:
                raise EndpointWrong(endpoint, str(error), setting) from error
        refused: zmq.ZMQError | None = None
        bound = 0
        for place in endpoints.to_listen(endpoint):
            socket.setsockopt(zmq.IPV6, place.ipv6)
            try:
                socket.bind(as_given(place.endpoint))
                bound += 1
            except zmq.ZMQError as error:
                refused = error
                # Of several addresses of a name, this machine need not have all.
                if error.errno not in _NOT_HERE:
                    bound = 0
                    break
        if refused is not None and not bound:
            reason = os.strerror(refused.errno or 0)
            if refused.errno in _FOR_GOOD:
                raise EndpointWrong(endpoint, reason, setting) from refused
            raise EndpointUnusable(endpoint, reason) from refused
        if path is not None:
            file = _File(socket, endpoint, path)
            file.made = file.look()
            self._files.append(file)

    def _listen(self, socket: zmq.Socket[bytes], stage: str, name: str) -> None:
        """Let other services connect."""
        endpoint = self._endpoint(stage, name, True)
        if self.security is not None and endpoint.startswith(TCP):
            self.handshakes.watch(socket, f"{stage}.{name}")
        where = "bus.run_folder" if endpoint.startswith("ipc:") else "bus.bind_host or bus.host"
        self._bind(socket, endpoint, BUS, f"bus.{stage}_{name} or {where}")

    def _connect(self, socket: zmq.Socket[bytes], stages: Sequence[str], name: str) -> None:
        """Connect to other services, each of which has the same pair."""
        ends = [endpoints.absolute(self._endpoint(stage, name, False)) for stage in stages]
        peers = [Peer(endpoints.to_connect(endpoint)) for endpoint in ends]
        over_tcp = [peer for peer in peers if peer.endpoint.startswith(TCP)]
        # What is set holds for the connections made from then on.
        for peer in peers:
            if peer not in over_tcp:
                peer.connect(socket)
        keys = self.security is not None
        if over_tcp and self.security is not None:
            pair = self.security.pair(BUS)
            secure_client(socket, pair, pair.public)
        if over_tcp and (keys or any(len(peer.places) > 1 for peer in over_tcp)):
            self.handshakes.watch(socket, f"{','.join(stages)}.{name}", over_tcp, keys=keys)
        for peer in over_tcp:
            peer.connect(socket)

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, self._limits.max_message_bytes)
        for option, value in DEAD_PEER_OPTIONS.items():
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.SNDBUF, SOCKET_BUFFER_BYTES)
        socket.setsockopt(zmq.RCVBUF, SOCKET_BUFFER_BYTES)
        # The same each time: growing, it was a third of a second of the pause after a death.
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._sockets.append(socket)
        return socket


class Port:
    """One socket, non-blocking."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket

    @property
    def endpoint(self) -> str:
        """Where it is bound, with the port that the system chose."""
        value = self.socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(value, bytes)
        return os.fsdecode(value.rstrip(b"\x00"))

    def receive(self) -> list[Buffer] | None:
        """Frames of the next message (of a ROUTER, the peer first), or None when there is none."""
        socket = self.socket
        try:
            frame: Any = socket.recv(_NOBLOCK, copy=False)
        except zmq.Again:
            return None
        frames: list[Buffer] = [frame.bytes]
        while frame.more:
            frame = socket.recv(_NOBLOCK, copy=False)
            frames.append(frame.bytes if len(frame) < COPY_BELOW else frame.buffer)
        return frames

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Hand over a message; False when the socket takes none now."""
        socket = self.socket
        last = len(frames) - 1
        try:
            for position, frame in enumerate(frames):
                flags = _NOBLOCK_MORE if position < last else _NOBLOCK
                if len(frame) < COPY_BELOW:
                    socket.send(frame, flags)
                else:
                    socket.send(_shared(frame), flags, copy=False)
        except zmq.Again:
            return False
        return True

    def send_to(self, peer: bytes, frames: Sequence[Buffer]) -> bool | None:
        """Answer a peer of a ROUTER: True taken, False not now, None the peer is not there."""
        try:
            return self.send([peer, *frames])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return None


class ClientPort(Port):
    """The gateway's socket, which also tells who sent the last message that was received."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        super().__init__(socket)
        self.monitor: SocketMonitor | None = None
        """Of its connections, where they have descriptors: over tcp."""
        self.tells_source = False
        self.source = -1
        """With `tells_source`: descriptor of the connection that the last message came by."""
        self.has_users = False
        self.user = b""
        """With `has_users`: the public key that its sender has proved to hold."""

    def receive(self) -> list[Buffer] | None:
        """As `Port.receive`."""
        socket = self.socket
        try:
            frame: Any = socket.recv(_NOBLOCK, copy=False)
        except zmq.Again:
            return None
        frames: list[Buffer] = [frame.bytes]
        while frame.more:
            frame = socket.recv(_NOBLOCK, copy=False)
            frames.append(frame.bytes if len(frame) < COPY_BELOW else frame.buffer)
        if self.tells_source:
            try:
                self.source = frame.get(_SOURCE)
            except zmq.ZMQError:
                self.source = -1  # it was gone before its address could be asked for
        if self.has_users:
            self.user = _user(frame)
        return frames

    @property
    def empty(self) -> bool:
        """Whether no whole message waits to be received."""
        return not int(self.socket.getsockopt(zmq.EVENTS)) & _POLLIN


def _user(frame: Any) -> bytes:
    try:
        return bytes(frame.get("User-Id").encode("ascii", "replace"))
    except zmq.ZMQError:
        return b"?"  # no key is called so


def _shared(frame: Buffer) -> Any:
    # A frame that was received whole is passed on by reference, without a copy or a callback.
    if not isinstance(frame, memoryview) or not isinstance(frame.obj, zmq.Frame):
        return frame
    return frame.obj if frame.nbytes == len(frame.obj) else frame


class Selector:
    """Waits for ports, and for `wake` from another thread.

    `strategy`: `low_latency` polls all the time, `balanced` and `low_cpu` sleep until something
    arrives. (Polling for 20 or 50 µs before sleeping was tried: on two cores both throughput and
    latency got worse.)
    """

    def __init__(self, strategy: str) -> None:
        self._sleeps = strategy != "low_latency"
        self._poller = zmq.Poller()
        self._masks: dict[Port, int] = {}
        self._wake_read, self._wake_write = system_socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._poller.register(self._wake_read, zmq.POLLIN)

    def watch(self, port: Port, readable: bool, writable: bool = False) -> None:
        """What `wait` waits for on this port from now on; nothing is fine."""
        mask = (_POLLIN if readable else 0) | (_POLLOUT if writable else 0)
        if self._masks.get(port, 0) == mask:
            return
        self._masks[port] = mask
        if mask:
            self._poller.register(port.socket, mask)
        else:
            self._poller.unregister(port.socket)

    def wait(self, timeout_ns: int) -> set[Any]:
        """Sockets that are ready, possibly none: after `wake`, or when the time is over."""
        if self._sleeps:
            # Rounded up: a wait that is over too early would only be repeated.
            timeout_ms = timeout_ns // 1_000_000 + 1 if timeout_ns > 0 else 0
            return self._taken(self._poller.poll(timeout_ms))
        limit = time.monotonic_ns() + timeout_ns
        while True:
            events = self._poller.poll(0)
            if events or time.monotonic_ns() >= limit:
                return self._taken(events)

    def wake(self) -> None:
        """End the current or the next `wait`. May be called from any thread or signal handler."""
        try:
            self._wake_write.send(b"\0")
        except OSError:
            # A full pipe wakes as well as one more byte; a closed one has nobody left to wake.
            return

    def close(self) -> None:
        """Close the wake-up pipe; the ports belong to the bus."""
        self._wake_read.close()
        self._wake_write.close()

    def _taken(self, events: list[tuple[Any, int]]) -> set[Any]:
        ready = {socket for socket, _ in events}
        wake = self._wake_read.fileno()
        if wake in ready:
            ready.discard(wake)
            self._wake_read.recv(4096)
        return ready
