"""The page's HTTP server: files, a stream of reports (server-sent events), look-ups. GET and HEAD.

No connection to it can harm the gateway. The server has threads of its own, at most
`MAX_CONNECTIONS` of them, and at most `MAX_STREAMS` for streams. A connection has one request, with
a limit for its length, and with deadlines for it and for its answer. When there are too many, the
oldest one that is no stream makes room. The standard library reads the requests.

It opens its own sockets, reads the files in `static` once, and touches nothing else. Pages of other
sites cannot read its answers, unless a browser breaks the rules: the server answers no request
whose `Host` is a name that is not its own, so nobody can make another name lead here.
ADR 0014 says why the standard library serves it.
"""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

from tallybus.common import logs
from tallybus.common.bus.listening import listen
from tallybus.common.record import MAX_U64
from tallybus.common.settings.endpoints import address_of, is_loopback, shown

MAX_CONNECTIONS: Final = 64
MAX_STREAMS: Final = 32
MAX_HEAD_BYTES: Final = 16_384
"""What a request may say."""
REQUEST_S: Final = 5.0
"""From connecting to the last byte of the request."""
ANSWER_S: Final = 10.0
"""How long a browser may take to accept an answer, or one report of a stream."""
BEAT_S: Final = 10.0
"""A stream without reports says so often that it is alive."""
DEAD_PEER_MS: Final = 20_000
"""A browser whose machine has not acknowledged anything for so long is gone."""
BIND_AGAIN_S: Final = 2.0
MAX_ACCEPTED_PER_S: Final = 200
"""Connections beyond that wait: each costs the gateway a thread for a moment."""
ACCEPT_PAUSE_S: Final = 0.01
LINGER_S: Final = 1.0
"""How long a browser may take to close a connection that was answered."""
CHUNK_BYTES: Final = 65_536
POLL_S: Final = 0.5
RETRY_MS: Final = 1000
"""How soon a browser comes back when its stream ends."""

Json = dict[str, Any]
Reply = tuple[int, Json]
LookUp = Callable[[str, int, Callable[[], bool]], Reply | None]
"""Answers a look-up: of a "balance" or a "transaction", by number. The last argument says whether
the browser has gone; then None may be returned."""

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
_JSON: Final = "application/json"
_STREAM: Final = "text/event-stream"
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Connection": "close",
}
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([\w.-]+))(?::[0-9]{1,5})?", re.ASCII)
_LOOK_UPS: Final = {
    "/api/balance": ("balance", "account"),
    "/api/transaction": ("transaction", "id"),
}


class Reports(Protocol):
    """Where reports come from. They are numbered from 1."""

    def wait(self, after: int, seconds: float) -> tuple[int, bytes] | None:
        """The newest report, as one line of JSON, once its number is above `after`; None when that
        takes longer. `wait(0, 0)` is the latest."""
        ...


@dataclass(frozen=True, slots=True)
class File:
    """A file of the page."""

    content_type: str
    body: bytes


@cache
def static_files() -> dict[str, File]:
    """Every file in `static` by its path on the page; `/` is `index.html`."""
    found = {}
    for entry in files(__package__).joinpath("static").iterdir():
        _, dot, suffix = entry.name.rpartition(".")
        if entry.is_file() and dot + suffix in _TYPES:
            found[f"/{entry.name}"] = File(_TYPES[dot + suffix], entry.read_bytes())
    found["/"] = found["/index.html"]
    return found


def host_is_ours(header: str | None, own: str) -> bool:
    """Whether a request with this `Host` was meant for a page that listens on the host `own`."""
    host = _host_of(header)
    if is_loopback(host) or (host and host == own.lower()):
        return True
    # Only a name can be made to lead somewhere else.
    return address_of(host) is not None and not is_loopback(own)


def _host_of(header: str | None) -> str:
    match = _HOST.fullmatch((header or "").strip())
    return (match[1] or match[2]).lower() if match else ""


class PageServer:
    """Serves the page on an address until `close`. Port 0 takes a free one.

    `port` is the one it listens on, 0 until it does.
    """

    def __init__(
        self, address: tuple[str, int], reports: Reports, look_up: LookUp, log: logging.Logger
    ) -> None:
        self.port = 0
        self._address = address
        self._reports = reports
        self._look_up = look_up
        self._log = log
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._server: _Server | None = None
        """Set before it serves, so that `close` ends it for certain."""
        self._thread = threading.Thread(target=self._run, name="page-http", daemon=True)

    def start(self) -> None:
        static_files()
        self._thread.start()

    def close(self) -> None:
        """Stop listening and end every connection."""
        with self._lock:
            self._closing.set()
            server = self._server
        if server is not None:
            server.stop()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            server = self._listen()
            if server is None:
                return
            with server:
                with self._lock:
                    if self._closing.is_set():
                        return
                    self._server = server
                self.port = server.socket.getsockname()[1]
                self._log.info(
                    "serving the page", extra=logs.fields(url=f"http://{self._shown(self.port)}/")
                )
                server.serve_forever(POLL_S)
        except Exception:  # noqa: BLE001 (told in the log)
            # Whatever it is, the ledger goes on without its page.
            self._log.exception("the page is not served any more")

    def _listen(self) -> _Server | None:
        told = False
        while not self._closing.is_set():
            try:
                return _Server(self._address, self._reports, self._look_up, self._log)
            except OSError as error:
                if not told:
                    told = True
                    self._log.warning(
                        "the page cannot be served yet, trying again",
                        extra=logs.fields(address=self._shown(self._address[1]), reason=str(error)),
                    )
                self._closing.wait(BIND_AGAIN_S)
        return None

    def _shown(self, port: int) -> str:
        return shown((self._address[0], port))


class _Server(socketserver.ThreadingTCPServer):
    """A thread for each connection, and no more than there may be."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, address: tuple[str, int], reports: Reports, look_up: LookUp, log: logging.Logger
    ) -> None:
        self.host = address[0]
        self.reports = reports
        self.look_up = look_up
        self.log = log
        self.stopping = False
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, bool] = {}
        """Open connections in the order in which they came, and whether each is a stream."""
        self._failures = 0
        self._accepted = 0
        self._accepted_since = 0.0
        listener = listen(address, MAX_CONNECTIONS)
        self.address_family = listener.family
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def stop(self) -> None:
        """End `serve_forever` and every connection."""
        self.stopping = True
        # It wakes the thread that accepts, which else would look a moment later.
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        with self._lock:
            for connection in self._connections:
                _cut(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._pace()
        with self._lock:
            if len(self._connections) >= MAX_CONNECTIONS:
                oldest = next(each for each, streams in self._connections.items() if not streams)
                _cut(oldest)
                # Its thread ends by that; until then there may be one more.
                del self._connections[oldest]
            self._connections[request] = False
        super().process_request(request, client_address)

    def _pace(self) -> None:
        now = time.monotonic()
        if now - self._accepted_since >= 1:
            self._accepted, self._accepted_since = 0, now
        self._accepted += 1
        if self._accepted > MAX_ACCEPTED_PER_S:
            time.sleep(ACCEPT_PAUSE_S)

    def become_stream(self, connection: socket.socket) -> bool:
        """Whether there is room for one more stream; then this connection is one."""
        with self._lock:
            if sum(self._connections.values()) >= MAX_STREAMS:
                return False
            if connection in self._connections:
                self._connections[connection] = True
            return True

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:
            # It is called while the exception is handled.
            self.log.exception(  # noqa: LOG004
                "a request of the page failed", extra=logs.fields(failures=self._failures)
            )


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One connection: one request and its answer."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "Tallybus"
    sys_version = ""

    def setup(self) -> None:
        self._deadline = time.monotonic() + REQUEST_S
        self.connection: socket.socket = self.request
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS)
        self.rfile = io.BytesIO()
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        """Let the browser close first: closing while it still talks throws the answer away."""
        limit = time.monotonic() + LINGER_S
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left := limit - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(CHUNK_BYTES):
                    return

    def handle(self) -> None:
        self.close_connection = True
        # A browser that leaves, or is too slow, harms nobody.
        with suppress(OSError):
            try:
                self._handle()
            except OSError:
                raise
            except Exception:  # noqa: BLE001 (told in the log)
                self.server.handle_error(self.request, self.client_address)
                self._refuse(
                    HTTPStatus.INTERNAL_SERVER_ERROR, "this failed; the gateway's log says why"
                )

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (as the library calls it)
        """Requests are not logged."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The library's word on a request that is none."""
        self._refuse(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def _handle(self) -> None:
        head = self._read_head()
        if head is None:
            return
        self.rfile = io.BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        if not self.parse_request():
            return
        self.close_connection = True
        if self.command not in ("GET", "HEAD"):
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered")
        elif len(self.headers.get_all("Host", [])) > 1:
            self._refuse(HTTPStatus.BAD_REQUEST, "a request has one Host")
        elif not host_is_ours(self.headers.get("Host"), self.server.host):
            self._refuse(
                HTTPStatus.FORBIDDEN,
                "this page is not served under this name: use an IP address, localhost, or the "
                "name in the setting gateway.page",
            )
        else:
            self._route()

    def _read_head(self) -> bytes | None:
        """The request up to its empty line; None when none comes in time."""
        said = b""
        while b"\r\n\r\n" not in said and b"\n\n" not in said:
            if len(said) > MAX_HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too long")
                return None
            left = self._deadline - time.monotonic()
            if left <= 0:
                return None
            self.connection.settimeout(left)
            part = self.connection.recv(4096)
            if not part:
                return None
            said += part
        return said

    def _route(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/events":
            self._stream()
        elif path == "/api/report":
            self._send_report()
        elif path in _LOOK_UPS:
            self._send_look_up(*_LOOK_UPS[path], query)
        elif (file := static_files().get(path)) is not None:
            self._send(HTTPStatus.OK, file.content_type, file.body)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _send_report(self) -> None:
        report = self.server.reports.wait(0, REQUEST_S)
        if report is None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "there is no report yet")
        else:
            self._send(HTTPStatus.OK, _JSON, report[1])

    def _send_look_up(self, what: str, name: str, query: str) -> None:
        number = _number_in(query, name)
        if number is None:
            self._refuse(
                HTTPStatus.BAD_REQUEST, f"{name} must be given once, a number from 0 to {MAX_U64}"
            )
        elif (reply := self.server.look_up(what, number, self._gone)) is not None:
            status, told = reply
            self._send(status, _JSON, json.dumps(told).encode())

    def _gone(self) -> bool:
        """Whether the browser has left."""
        try:
            self.connection.setblocking(False)
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return self.server.stopping
        except OSError:
            return True

    def _stream(self) -> None:
        if not self.server.become_stream(self.connection):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_STREAMS} pages are open already")
            return
        self._send_bytes(_head(HTTPStatus.OK, _STREAM, None))
        if self.command == "HEAD":
            return
        self._send_bytes(b"retry: %d\n\n" % RETRY_MS)
        number = 0
        while not self.server.stopping:
            report = self.server.reports.wait(number, BEAT_S)
            if self._gone():
                return
            if report is None:
                self._send_bytes(b": no report\n\n")
            else:
                number, told = report
                self._send_bytes(b"id: %d\nevent: report\ndata: %b\n\n" % (number, told))

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(status, _JSON, json.dumps({"error": why}).encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        head = _head(status, content_type, len(body))
        self._send_bytes(head if getattr(self, "command", None) == "HEAD" else head + body)

    def _send_bytes(self, data: bytes) -> None:
        self.connection.settimeout(ANSWER_S)
        self.connection.sendall(data)


def _head(status: int, content_type: str, length: int | None) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Type: {content_type}"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    lines += (f"{name}: {value}" for name, value in _HEADERS.items())
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"


def _number_in(query: str, name: str) -> int | None:
    try:
        given = parse_qs(query, max_num_fields=8, keep_blank_values=True).get(name, [])
    except ValueError:
        return None
    if len(given) != 1 or not given[0].isascii() or not given[0].isdecimal():
        return None
    number = int(given[0]) if len(given[0]) <= 20 else MAX_U64 + 1
    return number if number <= MAX_U64 else None
