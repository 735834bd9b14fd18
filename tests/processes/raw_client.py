"""A client of the gateway without any library: bytes over tcp, as ZMTP 3.1 has them.

It can do what no library lets one do: stop in the middle of a message, or never end it.
"""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Final

import msgpack

from tests.processes.pipeline import PATIENCE_S

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE: Final = 1
LONG: Final = 2


def ready(identity: bytes = b"") -> bytes:
    """The command that ends the handshake of a DEALER with this routing id."""
    command = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    command += b"\x08Identity" + struct.pack(">I", len(identity)) + identity
    if len(command) < 256:
        return b"\x04" + bytes([len(command)]) + command
    return b"\x06" + struct.pack(">Q", len(command)) + command


def frame(data: bytes, *, more: bool = False) -> bytes:
    """A frame of a message, as it is sent."""
    flags = MORE if more else 0
    if len(data) < 256:
        return bytes([flags, len(data)]) + data
    return bytes([flags | LONG]) + struct.pack(">Q", len(data)) + data


def mechanism(endpoint: str) -> bytes:
    """The mechanism that a server greets with: it tells who has sent no more than 11 bytes."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as looking:
        looking.sendall(GREETING[:11])
        greeting = b""
        while len(greeting) < len(GREETING):
            part = looking.recv(len(GREETING) - len(greeting))
            if not part:
                raise ConnectionResetError("the gateway has closed the connection")
            greeting += part
    return greeting[12:32].rstrip(b"\0")


class RawClient:
    """A connection that has greeted, and does with its messages what it likes."""

    def __init__(self, endpoint: str, *, greet: bool = True, identity: bytes = b"") -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        self.address = "{}:{}".format(*self.socket.getsockname())
        if greet:
            self.socket.sendall(GREETING)
            assert self._take(len(GREETING))[10] == 3
            self.socket.sendall(ready(identity))
            _, length = self._take(2)
            assert self._take(length).startswith(b"\x05READY")

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def receive(self) -> list[bytes]:
        """The frames of the next message."""
        frames: list[bytes] = []
        while True:
            flags = self._take(1)[0]
            (length,) = struct.unpack(">Q", self._take(8)) if flags & LONG else self._take(1)
            frames.append(self._take(length))
            if not flags & MORE:
                return frames

    def send(self, header: dict[str, object], *payloads: bytes) -> None:
        """A whole request."""
        frames = [msgpack.packb({"v": 1, **header}), *payloads]
        last = len(frames) - 1
        self.socket.sendall(b"".join(frame(each, more=n < last) for n, each in enumerate(frames)))

    def ask(self, header: dict[str, object], *payloads: bytes) -> dict[str, object]:
        """A whole request, and the header of the next answer."""
        self.send(header, *payloads)
        answer: dict[str, object] = msgpack.unpackb(self.receive()[0])
        return answer

    def closed_within(self, seconds: float) -> bool:
        """Whether the other side closes the connection; what comes before that is passed over."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(65_536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def _take(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self.socket.recv(count - len(parts))
            if not part:
                raise ConnectionResetError("the gateway has closed the connection")
            parts += part
        return parts
