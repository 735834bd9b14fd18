"""A small HTTP server in one daemon thread: GET of a few paths, for scrapers and health checks.

Nothing that connects to it can harm the service: there is one thread, at most `MAX_CONNECTIONS`
connections (the oldest makes room for a new one), a short limit for what a request may say, and a
deadline for each connection as a whole. It answers one request per connection. An address that is
taken is tried again until it is free; the service runs on meanwhile.

It opens its own sockets, and touches nothing else. ADR 0012 says why it is our own.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tallybus.common import logs
from tallybus.common.bus.listening import listen
from tallybus.common.settings.endpoints import shown

MAX_CONNECTIONS: Final = 16
MAX_REQUEST_BYTES: Final = 8192
DEADLINE_S: Final = 5.0
"""From connecting to the last byte of the answer taken."""
BIND_AGAIN_S: Final = 2.0
CHUNK_BYTES: Final = 65_536

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Response:
    """An answer to a request."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Respond = Callable[[str, str], Response | None]
"""What is at a path (the first argument) for an `Accept` header (the second); None: nothing."""


@dataclass(slots=True, eq=False)
class _Connection:
    """A client: what it has said so far, or what it still has to take."""

    socket: socket.socket
    deadline: float
    said: bytearray
    answer: memoryview | None = None


class MetricsServer:
    """Serves `respond` on an address until `close`. Port 0 takes a free one.

    `port` is the one it listens on, 0 until it does.
    """

    def __init__(self, address: tuple[str, int], respond: Respond, log: logging.Logger) -> None:
        self.port = 0
        self._address = address
        self._respond = respond
        self._log = log
        self._closing = False
        self._failures = 0
        self._connections: dict[socket.socket, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop listening, drop every connection, end the thread."""
        self._closing = True
        with suppress(OSError):
            self._wake_write.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join()
        else:
            self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            listener = self._listen()
            if listener is None:
                return
            with listener:
                self._selector.register(listener, selectors.EVENT_READ)
                while not self._closing:
                    self._turn(listener)
        except Exception:  # noqa: BLE001 (told in the log)
            # Whatever it is, the ledger goes on without its metrics.
            self._log.exception("metrics and health are not served any more")
        finally:
            for connection in list(self._connections.values()):
                self._drop(connection)
            self._selector.close()

    def _listen(self) -> socket.socket | None:
        told = False
        while not self._closing:
            try:
                listener = listen(self._address, MAX_CONNECTIONS)
            except OSError as error:
                if not told:
                    told = True
                    self._log.warning(
                        "metrics and health cannot be served yet, trying again",
                        extra=logs.fields(address=self._shown(self._address[1]), reason=str(error)),
                    )
                self._selector.select(BIND_AGAIN_S)
                continue
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            self._log.info(
                "serving metrics and health", extra=logs.fields(address=self._shown(self.port))
            )
            return listener
        return None

    def _shown(self, port: int) -> str:
        return shown((self._address[0], port))

    def _turn(self, listener: socket.socket) -> None:
        now = time.monotonic()
        due = min((each.deadline for each in self._connections.values()), default=None)
        events = self._selector.select(None if due is None else max(0.0, due - now))
        for key, mask in events:
            if key.fileobj is listener:
                self._accept(listener)
            elif isinstance(key.data, _Connection) and key.data.socket in self._connections:
                try:
                    self._serve(key.data, mask)
                except OSError:
                    self._drop(key.data)
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if connection.deadline <= now:
                self._drop(connection)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # gone again, or there is no descriptor left for it
        client.setblocking(False)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._drop(next(iter(self._connections.values())))
        connection = _Connection(client, time.monotonic() + DEADLINE_S, bytearray())
        self._connections[client] = connection
        self._selector.register(client, selectors.EVENT_READ, connection)

    def _drop(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        del self._connections[connection.socket]
        connection.socket.close()

    def _serve(self, connection: _Connection, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            part = connection.socket.recv(CHUNK_BYTES)
            if not part:
                self._drop(connection)
                return
            if connection.answer is not None:
                return  # it was answered; see below
            connection.said += part
            response = self._answered(bytes(connection.said))
            if response is None:
                return
            connection.answer = memoryview(response)
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
        if connection.answer:
            try:
                sent = connection.socket.send(connection.answer)
            except BlockingIOError:
                return
            connection.answer = connection.answer[sent:]
            if not connection.answer:
                # Closed by the client: closing while it still talks would throw the answer away.
                connection.socket.shutdown(socket.SHUT_WR)
                self._selector.modify(connection.socket, selectors.EVENT_READ, connection)

    # -- requests --------------------------------------------------------------------------------

    def _answered(self, said: bytes) -> bytes | None:
        """The answer to what a client has said, or None while its request is not whole."""
        head, whole, _ = said.partition(b"\r\n\r\n")
        if not whole:
            if len(said) > MAX_REQUEST_BYTES:
                return _packed(Response(431, b"the request is too long\n"))
            first, ended, _ = said.partition(b"\r\n")
            if (ended or len(first) > 512) and not _request_line(first):
                return _packed(Response(400, b"this is not an HTTP request\n"))
            return None
        lines = head.split(b"\r\n")
        words = _request_line(lines[0])
        if words is None or len(head) > MAX_REQUEST_BYTES:
            return _packed(Response(400, b"this is not an HTTP request\n"))
        method, target = words
        if method not in ("GET", "HEAD"):
            return _packed(Response(405, b"only GET and HEAD are answered\n"), allow=True)
        accept = ""
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"accept":
                accept = value.decode("latin-1").strip()
        try:
            response = self._respond(target.partition("?")[0], accept)
        except Exception:  # noqa: BLE001 (told in the log)
            self._failures += 1
            if self._failures & (self._failures - 1) == 0:
                self._log.exception(
                    "a request for metrics failed", extra=logs.fields(failures=self._failures)
                )
            response = Response(500, b"this failed; the service's log says why\n")
        if response is None:
            response = Response(404, b"there are /metrics, /healthz and /readyz\n")
        return _packed(response, body=method == "GET")


def _request_line(line: bytes) -> tuple[str, str] | None:
    words = line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or not words[0].isalpha():
        return None
    try:
        return words[0].decode("ascii"), words[1].decode("ascii")
    except UnicodeDecodeError:
        return None


def _packed(response: Response, *, body: bool = True, allow: bool = False) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if allow:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
    return head + response.body if body else head
