"""The little HTTP server: what it answers, and that nobody who connects can hold it up."""

import http.client
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tallybus.common.metrics import server as module
from tallybus.common.metrics.server import MAX_CONNECTIONS, MetricsServer, Response
from tests.support.listening import listens
from tests.support.waiting import eventually

LOG = logging.getLogger("tallybus.test")
PATIENCE_S = 20.0
LARGE = 30_000_000
"""More than the system takes for a connection."""


def respond(path: str, accept: str) -> Response | None:
    if path == "/metrics":
        return Response(200, f"accept={accept}\n".encode(), "text/plain; version=0.0.4")
    if path == "/readyz":
        return Response(503, b"not yet\n")
    if path == "/large":
        return Response(200, b"x" * LARGE)
    if path == "/broken":
        raise RuntimeError("on purpose")
    return None


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    running = MetricsServer(("127.0.0.1", 0), respond, LOG)
    running.start()
    assert listens(running, PATIENCE_S)
    yield running
    running.close()
    assert not any(thread.name == "metrics" for thread in threading.enumerate())


def ask(
    server: MetricsServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def connected(server: MetricsServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)


def exchanged(server: MetricsServer, said: bytes) -> bytes:
    """What is answered until the connection is closed."""
    with connected(server) as client:
        client.sendall(said)
        parts = []
        while part := client.recv(65_536):
            parts.append(part)
        return b"".join(parts)


def closed(client: socket.socket) -> bool:
    """Waits until the other side has closed the connection."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_page_is_served_with_its_type(server: MetricsServer) -> None:
    status, headers, body = ask(server, "/metrics?x=1", headers={"Accept": "text/plain"})
    assert (status, body) == (200, b"accept=text/plain\n")
    assert headers["Content-Type"] == "text/plain; version=0.0.4"
    assert headers["Connection"] == "close"


def test_a_verdict_comes_with_its_status(server: MetricsServer) -> None:
    status, _, body = ask(server, "/readyz")
    assert (status, body) == (503, b"not yet\n")


def test_head_is_answered_without_a_body(server: MetricsServer) -> None:
    status, headers, body = ask(server, "/readyz", "HEAD")
    assert (status, headers["Content-Length"], body) == (503, "8", b"")


def test_other_paths_and_methods_are_refused(server: MetricsServer) -> None:
    assert ask(server, "/")[0] == 404
    status, headers, _ = ask(server, "/metrics", "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_a_large_answer_arrives_whole(server: MetricsServer) -> None:
    assert ask(server, "/large")[2] == b"x" * LARGE


def test_an_error_is_told_and_the_server_goes_on(
    server: MetricsServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(server, "/broken")[0] == 500
    assert "a request for metrics failed" in caplog.text
    assert ask(server, "/metrics")[0] == 200


def test_a_request_may_come_in_pieces(server: MetricsServer) -> None:
    with connected(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /readyz HTTP/1.0\r\nHost: x\r\n\r\n":
            client.sendall(bytes([byte]))
        assert client.recv(65_536).startswith(b"HTTP/1.1 503 ")


def test_who_says_on_after_the_request_still_gets_the_answer(server: MetricsServer) -> None:
    said = b"GET /readyz HTTP/1.1\r\n\r\n" + b"x" * LARGE
    assert exchanged(server, said).endswith(b"not yet\n")


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\xff\x01garbage\r\n\r\n",
        b"\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics SPDY/3\r\n",
        b"GET /m\xc3\xa9trics HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 600,
        b"x" * 9000,
    ],
)
def test_garbage_is_refused(server: MetricsServer, said: bytes) -> None:
    assert exchanged(server, said).split(b"\r\n")[0] in (
        b"HTTP/1.1 400 Bad Request",
        b"HTTP/1.1 431 Request Header Fields Too Large",
    )
    assert ask(server, "/metrics")[0] == 200


def test_a_request_without_end_is_refused(server: MetricsServer) -> None:
    said = b"GET /metrics HTTP/1.1\r\n" + b"X-Long: " + b"x" * 9000
    assert exchanged(server, said).startswith(b"HTTP/1.1 431 ")


def test_who_says_nothing_is_let_go(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE_S", 0.2)
    with connected(server) as silent, connected(server) as slow:
        slow.sendall(b"GET /metr")
        started = time.monotonic()
        assert closed(silent)
        assert closed(slow)
        assert time.monotonic() - started < PATIENCE_S / 2


def test_who_does_not_take_the_answer_is_let_go(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE_S", 0.3)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        eventually(lambda: bool(server._connections))
        assert server_took(server)
        eventually(lambda: not server._connections)
        received = 0
        try:
            while part := client.recv(1 << 20):
                received += len(part)
        except ConnectionResetError:
            pass
        assert received < LARGE


def server_took(server: MetricsServer) -> bool:
    """Whether it still answers others."""
    return ask(server, "/metrics")[0] == 200


def test_many_silent_connections_do_not_keep_others_out(server: MetricsServer) -> None:
    silent = [connected(server) for _ in range(3 * MAX_CONNECTIONS)]
    try:
        for _ in range(5):
            assert ask(server, "/metrics")[0] == 200
        assert len(server._connections) <= MAX_CONNECTIONS
        assert sum(thread.name == "metrics" for thread in threading.enumerate()) == 1
    finally:
        for client in silent:
            client.close()


def test_a_taken_port_is_tried_again_until_it_is_free(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BIND_AGAIN_S", 0.02)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = MetricsServer(("127.0.0.1", other.getsockname()[1]), respond, LOG)
        server.start()
        assert not listens(server, 0.2)
    assert listens(server, PATIENCE_S)
    assert ask(server, "/metrics")[0] == 200
    server.close()
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == ["metrics and health cannot be served yet, trying again"], "once, not each time"


def test_it_ends_at_once_while_it_waits_for_a_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = MetricsServer(("127.0.0.1", other.getsockname()[1]), respond, LOG)
        server.start()
        server.close()


def test_an_address_that_is_not_ours_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    server = MetricsServer(("192.0.2.1", 1), respond, LOG)
    server.start()
    eventually(lambda: "cannot be served yet" in caplog.text)
    server.close()


def test_closing_drops_who_is_connected() -> None:
    server = MetricsServer(("127.0.0.1", 0), respond, LOG)
    server.start()
    assert listens(server, PATIENCE_S)
    with connected(server) as client:
        client.sendall(b"GET ")
        eventually(lambda: bool(server._connections))
        server.close()
        assert closed(client)
