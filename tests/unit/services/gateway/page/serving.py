"""The page's HTTP server on a free port, with reports and look-ups that a test makes up."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from tallybus.services.gateway.page.server import PageServer, Reply

LOG = logging.getLogger("tallybus.test")


PATIENCE_S = 20.0


class FakeReports:
    """Reports that a test makes."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.number = 0
        self.line = b""
        self.closed = False

    def tell(self, **report: Any) -> None:
        with self.changed:
            self.number += 1
            self.line = json.dumps(report).encode()
            self.changed.notify_all()

    def wait(self, after: int, seconds: float) -> tuple[int, bytes] | None:
        with self.changed:
            self.changed.wait_for(lambda: self.number > after or self.closed, seconds)
            return (self.number, self.line) if self.number > after else None

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class FakeLookUp:
    """Answers at once, or (`hold`) not before the browser has gone."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.hold = False
        self.left = threading.Event()

    def __call__(self, what: str, number: int, gone: Callable[[], bool]) -> Reply | None:
        self.asked.append((what, number))
        if number == 13:
            raise RuntimeError("on purpose")
        if not self.hold:
            return (404, {"error": "no such"}) if number == 404 else (200, {"number": str(number)})
        while not gone():
            time.sleep(0.005)
        self.left.set()
        return None


class Serving:
    """A server on a free port."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.reports, self.look_up = FakeReports(), FakeLookUp()
        self.server = PageServer((host, port), self.reports, self.look_up, LOG)
        self.server.start()

    def connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE_S)

    def ask(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def exchanged(self, said: bytes) -> bytes:
        """What is answered until the connection is closed."""
        with self.connected() as client:
            client.sendall(said)
            parts = []
            while part := client.recv(65_536):
                parts.append(part)
            return b"".join(parts)

    def stream(self) -> socket.socket:
        client = self.connected()
        client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return client


def threads() -> int:
    """Of servers and their connections."""
    return sum(
        thread.name == "page-http" or "process_request_thread" in thread.name
        for thread in threading.enumerate()
    )


def until(client: socket.socket, wanted: bytes) -> bytes:
    """What is received up to and with `wanted`."""
    said = bytearray()
    while wanted not in said[-len(wanted) - (1 << 20) :]:
        part = client.recv(1 << 20)
        assert part, f"it ended after {bytes(said[:200])!r}"
        said += part
    return bytes(said)
