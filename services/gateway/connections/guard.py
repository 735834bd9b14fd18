"""Watches the connections of clients over tcp, and cuts those that `Connections` says.

Asks the system how many bytes each connection has received, and how much memory the process has.
A connection is cut by shutting it down: libzmq then finds it closed, drops what it has of an
unfinished message, and closes it. Its descriptor belongs to libzmq and may be another connection's
by now, so the peer's address is compared first, on a duplicate that cannot change hands meanwhile.

Only on Linux are bytes and memory told; elsewhere the number of connections is limited, and that
is all.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import resource
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from tallybus.common import logs
from tallybus.common.buffers import Buffer
from tallybus.common.bus.handshakes import BAD_HANDSHAKE, NO_ENCRYPTION
from tallybus.common.bus.monitor import Failure, SocketEvent, What, parse
from tallybus.common.bus.sockets import ClientPort
from tallybus.common.service import open_files
from tallybus.common.settings.endpoints import plain_host, shown
from tallybus.services.gateway.connections.table import (
    MAX_ROUTING_ID_BYTES,
    REASONS,
    TOO_MANY,
    Connections,
    Cut,
)

RESERVED_FILES: Final = 256
"""Descriptors that the process needs for anything but connections of clients."""
TRIM_NS: Final = 1_000_000_000
"""How long after a cut freed memory is given back to the system: libzmq drops the message first."""
TRIMS: Final = 3
"""How often, because dropping millions of frames takes a while."""

_TELLS_BYTES: Final = sys.platform == "linux"
_TCP_INFO: Final = struct.Struct("@120xQQ8xI")
"""Of the kernel's `struct tcp_info`: `tcpi_bytes_acked`, `tcpi_bytes_received` (both since Linux
4.1) and `tcpi_notsent_bytes` (since 4.6)."""
_UNREAD: Final = struct.Struct("@i")
_RESET: Final = struct.pack("@ii", 1, 0)


class ConnectionGuard:
    """`connections` is how many there are now, `cuts` how many were cut, by reason. `refused` is
    counted up for handshakes that failed, by reason."""

    def __init__(
        self,
        port: ClientPort,
        connections: Connections,
        refused: dict[str, int],
        log: logging.Logger,
        *,
        encrypted: bool,
    ) -> None:
        self.connections = connections
        self.cuts = dict.fromkeys(REASONS, 0)
        self._port = port
        self._refused = refused
        self._log = log
        self._encrypted = encrypted
        self._memory: Memory | None = None
        with suppress(OSError):
            self._memory = Memory() if _TELLS_BYTES else None
        self._failed: SocketEvent | None = None
        self._ending: set[int] = set()
        """Descriptors of connections that were cut here and are still to be closed."""
        self._trims = 0
        self._trim_ns = 0
        self._throttles = {
            reason: logs.Throttle() for reason in (*REASONS, NO_ENCRYPTION, BAD_HANDSHAKE)
        }
        for reason in (NO_ENCRYPTION, BAD_HANDSHAKE):
            refused.setdefault(reason, 0)

    def next_ns(self) -> int | None:
        """When `step` has something to do; None: whenever it is called."""
        return None if self._memory is None else self.connections.next_look_ns()

    def close(self) -> None:
        """Look at nothing any more."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def step(self, now_ns: int) -> None:
        """Once a turn, after messages were received."""
        if self._trims and now_ns >= self._trim_ns:
            self._trims -= 1
            self._trim_ns = now_ns + TRIM_NS
            with suppress(RuntimeError):  # no thread to be had; the memory is used again anyway
                threading.Thread(target=give_memory_back, name="trim", daemon=True).start()
        connections = self.connections
        if not connections or self._memory is None:
            return
        if connections.suspects:
            for cut in connections.to_cut(now_ns, self._port.empty):
                self._cut(cut, now_ns)
        due_ns = connections.next_look_ns()
        if due_ns is None or now_ns < due_ns:
            return
        memory = self._memory.bytes_held()
        if connections.due(now_ns, memory):
            read, taken = {}, {}
            for descriptor in connections.peers():
                seen = traffic(descriptor)
                if seen is None:
                    connections.ended(descriptor)
                    continue
                read[descriptor] = seen.read
                if seen.waits:
                    taken[descriptor] = seen.acknowledged
            connections.look(now_ns, memory, read, taken)

    def heard(self, descriptor: int, client: bytes, user: bytes, now_ns: int) -> bool:
        """A whole message has come; whether to read it. Called for each message: must be cheap."""
        self.connections.heard(descriptor)
        if len(client) > MAX_ROUTING_ID_BYTES:
            cut = self.connections.long_routing_id(descriptor)
            if cut is not None:
                self._cut(cut, now_ns)
            return False
        if user and (cut := self.connections.spoke(descriptor, user)) is not None:
            self._cut(cut, now_ns)
            return False
        return True

    def on_monitor(self, frames: Sequence[Buffer], now_ns: int) -> None:
        """A message of the monitor of the clients' socket."""
        event = parse(frames)
        if event is None:
            return
        if event.what is What.ACCEPTED:
            self._on_accepted(event.descriptor, now_ns)
        elif event.what is What.HANDSHAKE_FAILED:
            self._failed = event
        elif event.what is What.DISCONNECTED:
            peer = self.connections.ended(event.descriptor)
            failed, self._failed = self._failed, None
            if event.descriptor in self._ending:
                self._ending.discard(event.descriptor)
            elif failed is not None:
                self._on_failed(failed, peer)

    def _on_accepted(self, descriptor: int, now_ns: int) -> None:
        self._ending.discard(descriptor)
        peer = peer_of(descriptor)
        if not peer:
            return  # gone already
        cut = self.connections.accepted(descriptor, peer, now_ns)
        if cut is not None:
            self._cut(cut, now_ns)

    def _on_failed(self, event: SocketEvent, peer: str) -> None:
        if event.failure is Failure.REFUSED:
            return  # who has refused it has told it
        plain = self._encrypted and event.failure is Failure.MECHANISM
        reason = NO_ENCRYPTION if plain else BAD_HANDSHAKE
        self._refused[reason] += 1
        held_back = self._throttles[reason].passes(time.monotonic())
        if held_back is not None:
            why = {
                Failure.MECHANISM: "it does not encrypt" if plain else "it encrypts",
                Failure.KEY: "it expects another key of this gateway",
            }.get(event.failure or Failure.BROKEN, event.detail)
            self._log.warning(
                "refused a connection",
                extra=logs.fields(
                    address=peer or None, reason=reason, why=why, held_back=held_back
                ),
            )

    def _cut(self, cut: Cut, now_ns: int) -> None:
        if not shut_down(cut.descriptor, cut.peer):
            return
        self.connections.ended(cut.descriptor)
        self._ending.add(cut.descriptor)
        self.cuts[cut.reason] += 1
        if cut.reason != TOO_MANY:
            if not self._trims:
                self._trim_ns = now_ns + TRIM_NS
            self._trims = TRIMS
        held_back = self._throttles[cut.reason].passes(time.monotonic())
        if held_back is not None:
            self._log.warning(
                "cut a connection",
                extra=logs.fields(
                    address=cut.peer,
                    reason=cut.reason,
                    unfinished_bytes=cut.unfinished,
                    connections=len(self.connections),
                    held_back=held_back,
                ),
            )


def allow_files(wanted: int, log: logging.Logger) -> int:
    """Raise the process's own limit of open files for so many connections, as far as it may.

    Returns how many connections there can be; tells the log when they are fewer.
    """
    needed = wanted + RESERVED_FILES
    soft = open_files.allow(needed)
    if soft >= needed:
        return wanted
    possible = max(1, soft - RESERVED_FILES, soft // 2)
    log.warning(
        "fewer connections than gateway.max_connections: the limit of open files is too low",
        extra=logs.fields(wanted=wanted, possible=possible, open_files=soft),
    )
    return possible


def peer_of(descriptor: int) -> str:
    """The address and port of who is connected there; empty if nobody is."""
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:
        return ""
    try:
        return _address(connection)
    finally:
        connection.detach()


class Traffic(NamedTuple):
    """Bytes read from a connection so far, and bytes that its peer has acknowledged; whether more
    wait in the system to be sent."""

    read: int
    acknowledged: int
    waits: bool


def traffic(descriptor: int) -> Traffic | None:
    """What has gone over a connection; None if there is none any more."""
    try:
        # What kind of address it has plays no part, and would cost two calls to find out.
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=descriptor)
    except OSError:
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        unread = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(_UNREAD.size))
    except OSError:
        return None
    finally:
        connection.detach()
    if len(info) < _TCP_INFO.size:
        return None
    acknowledged, received, unsent = _TCP_INFO.unpack(info)
    return Traffic(received - _UNREAD.unpack(unread)[0], acknowledged, bool(unsent))


def shut_down(descriptor: int, peer: str) -> bool:
    """End this connection, if it is still the one with that peer."""
    try:
        own = os.dup(descriptor)
    except OSError:
        return False
    try:
        connection = socket.socket(fileno=own)
    except OSError:
        os.close(own)
        return False
    with connection:
        if _address(connection) != peer:
            return False
        with suppress(OSError):
            # Once libzmq closes it, the peer is told at once, even while its window is full.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.shutdown(socket.SHUT_RDWR)
    return True


class Memory:
    """What the process has of the machine's memory. Stays open: descriptors may run out."""

    def __init__(self) -> None:
        self._descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def bytes_held(self) -> int:
        """Resident bytes."""
        return int(os.pread(self._descriptor, 256, 0).split()[1]) * resource.getpagesize()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def give_memory_back() -> None:
    """Give memory that was freed back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _address(connection: socket.socket) -> str:
    try:
        host, port, *_ = connection.getpeername()
    except (OSError, ValueError):
        return ""
    return shown((plain_host(host), port))
