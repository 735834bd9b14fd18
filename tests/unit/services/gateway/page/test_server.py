"""The page's HTTP server: what it answers, to whom, and that nobody who connects can hold it up."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tallybus.services.gateway.page import server as page_server
from tallybus.services.gateway.page.server import (
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    MAX_STREAMS,
    MAX_U64,
    PageServer,
    Reply,
    host_is_ours,
    static_files,
)

LOG = logging.getLogger("tallybus.test")
PATIENCE_S = 20.0
LARGE = 30_000_000
"""More than the system takes for a connection."""


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


@pytest.fixture
def page() -> Iterator[Serving]:
    serving = Serving()
    assert serving.server.wait_bound(PATIENCE_S)
    serving.reports.tell(tx_per_s=5)
    yield serving
    serving.reports.close()
    serving.server.close()
    eventually(lambda: threads() == 0)


def threads() -> int:
    """Of servers and their connections."""
    return sum(
        thread.name == "page-http" or "process_request_thread" in thread.name
        for thread in threading.enumerate()
    )


def eventually(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def until(client: socket.socket, wanted: bytes) -> bytes:
    """What is received up to and with `wanted`."""
    said = bytearray()
    while wanted not in said[-len(wanted) - (1 << 20) :]:
        part = client.recv(1 << 20)
        assert part, f"it ended after {bytes(said[:200])!r}"
        said += part
    return bytes(said)


def closed(client: socket.socket) -> bool:
    """Waits until the other side has closed the connection; passes over what it still says."""
    try:
        while client.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return True


# -- what it answers -------------------------------------------------------------------------------


def test_the_files_of_the_page_are_served_with_their_types(page: Serving) -> None:
    assert {"/", "/index.html", "/page.css", "/page.js", "/icon.svg"} <= set(static_files())
    for path, file in static_files().items():
        status, headers, body = page.ask(path)
        assert (status, body) == (200, file.body)
        assert headers["Content-Type"] == file.content_type
        assert headers["Content-Length"] == str(len(body))
    assert page.ask("/")[1]["Content-Type"] == "text/html; charset=utf-8"
    assert page.ask("/page.js?x=1")[1]["Content-Type"] == "text/javascript; charset=utf-8"


def test_every_answer_keeps_the_browser_strict(page: Serving) -> None:
    for path in ("/", "/page.js", "/api/report", "/api/balance?account=1", "/nothing"):
        headers = page.ask(path)[1]
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Connection"] == "close"
        assert "Set-Cookie" not in headers
        assert "Access-Control-Allow-Origin" not in headers


def test_the_report_is_the_newest(page: Serving) -> None:
    page.reports.tell(tx_per_s=6)
    status, headers, body = page.ask("/api/report")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {"tx_per_s": 6}


def test_without_a_report_it_says_so(page: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "REQUEST_S", 0.1)
    page.reports.number = 0
    status, _, body = page.ask("/api/report")
    assert (status, json.loads(body)) == (503, {"error": "there is no report yet"})


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/api/balance?account=7", ("balance", 7)),
        ("/api/balance?account=0", ("balance", 0)),
        ("/api/transaction?x=1&id=0012", ("transaction", 12)),
        (f"/api/transaction?id={MAX_U64}", ("transaction", MAX_U64)),
    ],
)
def test_look_ups_are_asked_by_number(page: Serving, path: str, asked: tuple[str, int]) -> None:
    status, headers, body = page.ask(path)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {"number": str(asked[1])}
    assert page.look_up.asked == [asked]


@pytest.mark.parametrize(
    "path",
    [
        "/api/balance",
        "/api/balance?",
        "/api/balance?account=",
        "/api/balance?account=-1",
        "/api/balance?account=1.5",
        "/api/balance?account=1e3",
        "/api/balance?account=%20%2B1",
        "/api/balance?account=%D9%A1",
        "/api/balance?account=1&account=2",
        "/api/balance?id=1",
        f"/api/transaction?id={MAX_U64 + 1}",
        "/api/transaction?id=" + "9" * 5000,
        "/api/transaction?" + "a&" * 100 + "id=1",
    ],
)
def test_what_is_no_number_is_refused(page: Serving, path: str) -> None:
    status, _, body = page.ask(path)
    assert (status, page.look_up.asked) == (400, [])
    assert str(MAX_U64) in json.loads(body)["error"]


def test_a_look_up_s_own_status_is_passed_on(page: Serving) -> None:
    status, _, body = page.ask("/api/transaction?id=404")
    assert (status, json.loads(body)) == (404, {"error": "no such"})


@pytest.mark.parametrize(
    "path", ["/nothing", "/../server.py", "/static/page.js", "/page.js/", "//etc/passwd", "/%2e%2e"]
)
def test_there_is_nothing_else(page: Serving, path: str) -> None:
    status, _, body = page.ask(path)
    assert (status, json.loads(body)) == (404, {"error": "there is nothing here"})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_nothing_can_be_changed(page: Serving, method: str) -> None:
    status, headers, body = page.ask("/api/balance?account=1", method)
    assert (status, headers["Allow"], page.look_up.asked) == (405, "GET, HEAD", [])
    assert "GET" in json.loads(body)["error"]


def test_head_has_the_headers_alone(page: Serving) -> None:
    for path in ("/", "/api/report", "/api/balance?account=1", "/nothing"):
        status, headers, body = page.ask(path)
        assert page.ask(path, "HEAD") == (status, headers, b"")
        assert int(headers["Content-Length"]) == len(body) > 0
    assert page.exchanged(b"HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n").endswith(b"\r\n\r\n")


def test_an_error_is_told_and_the_server_goes_on(
    page: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    status, _, body = page.ask("/api/balance?account=13")
    assert (status, "log" in json.loads(body)["error"]) == (500, True)
    assert "a request of the page failed" in caplog.text
    assert page.ask("/")[0] == 200


# -- whom it answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "host", "ours"),
    [
        ("127.0.0.1", "127.0.0.1:5580", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "localhost:1", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "127.9.9.9:80", True),
        ("127.0.0.1", "[::1]:5580", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "evil.example:5580", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "evil@localhost", False),
        ("127.0.0.1", "localhost/../x", False),
        ("127.0.0.1", "10.0.0.5:5580", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", None, False),
        ("localhost", "10.0.0.5", False),
        ("::1", "[::1]", True),
        ("0.0.0.0", "10.0.0.5:5580", True),
        ("0.0.0.0", "[fd00::5]:5580", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "gateway:5580", False),
        ("10.0.0.5", "10.0.0.5", True),
        ("gateway", "gateway:5580", True),
        ("Gateway", "gateway", True),
        ("gateway", "other", False),
    ],
)
def test_the_host_must_be_ours(own: str, host: str | None, ours: bool) -> None:
    assert host_is_ours(host, own) is ours


def test_a_name_that_was_made_to_lead_here_gets_nothing(page: Serving) -> None:
    for path in ("/", "/events", "/api/report", "/api/balance?account=1", "/nothing"):
        status, headers, body = page.ask(path, Host="evil.example:5580")
        assert status == 403
        assert "gateway.page" in json.loads(body)["error"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert page.look_up.asked == []
    assert b" 403 " in page.exchanged(b"GET /api/report HTTP/1.0\r\n\r\n")


# -- streams ---------------------------------------------------------------------------------------


def test_a_stream_tells_the_newest_report_at_once_and_then_each_one(page: Serving) -> None:
    with page.stream() as client:
        head, _, said = until(client, b"\n\n").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"Content-Type: text/event-stream" in head
        assert b"Cache-Control: no-store" in head
        assert b"Content-Length" not in head
        said += until(client, b"}\n\n") if b"}\n\n" not in said else b""
        assert said == b'retry: 1000\n\nid: 1\nevent: report\ndata: {"tx_per_s": 5}\n\n'
        for number in (2, 3):
            page.reports.tell(tx_per_s=number)
            said = until(client, b"}\n\n")
            assert said == b'id: %d\nevent: report\ndata: {"tx_per_s": %d}\n\n' % (number, number)


def test_a_stream_without_news_says_that_it_lives(
    page: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "BEAT_S", 0.05)
    with page.stream() as client:
        until(client, b"}\n\n")
        assert until(client, b": no report\n\n: no report\n\n")


def test_a_stream_ends_at_the_stop(page: Serving) -> None:
    with page.stream() as client:
        until(client, b"}\n\n")
        started = time.monotonic()
        page.reports.close()
        page.server.close()
        assert closed(client)
        assert time.monotonic() - started < PATIENCE_S / 2


def test_a_stream_that_the_browser_left_is_let_go(
    page: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "BEAT_S", 0.02)
    with page.stream() as client:
        until(client, b"}\n\n")
        assert threads() == 2
    eventually(lambda: threads() == 1)


def test_a_stream_that_is_not_read_is_let_go(
    page: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "ANSWER_S", 2.0)
    monkeypatch.setattr(page_server, "LINGER_S", 0.2)
    with page.stream() as slow, page.stream() as reader:
        until(reader, b"}\n\n")
        page.reports.tell(text="x" * LARGE)
        until(reader, b'"}\n\n')
        eventually(lambda: threads() == 2)
        page.reports.tell(tx_per_s=3)
        until(reader, b"3}\n\n")
        assert closed(slow)


def test_streams_are_bounded_and_one_that_ends_makes_room(
    page: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "BEAT_S", 0.02)
    streams = [page.stream() for _ in range(MAX_STREAMS)]
    try:
        for client in streams:
            until(client, b"}\n\n")
        status, headers, body = page.ask("/events")
        assert (status, headers["Content-Type"]) == (503, "application/json")
        assert "pages are open" in json.loads(body)["error"]
        assert page.ask("/api/report")[0] == 200, "everything else goes on"
        streams.pop().close()
        eventually(
            lambda: page.exchanged(b"HEAD /events HTTP/1.1\r\nHost: [::1]\r\n\r\n")[9:12] == b"200"
        )
    finally:
        for client in streams:
            client.close()


# -- who wants to hold it up -----------------------------------------------------------------------


def test_a_request_may_come_in_pieces(page: Serving) -> None:
    with page.connected() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /nothing HTTP/1.0\r\nHost: localhost\r\n\r\n":
            client.sendall(bytes([byte]))
        assert until(client, b"}").startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\xff\x01garbage\r\n\r\n",
        b"GET /metrics SPDY/3\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.x\r\n\r\n",
        b"GET a b c HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"x" * (MAX_HEAD_BYTES + 100),
        b"GET / HTTP/1.1\r\nX-Long: " + b"x" * MAX_HEAD_BYTES,
    ],
)
def test_garbage_is_refused(page: Serving, said: bytes) -> None:
    answer = page.exchanged(said)
    assert re.match(rb"HTTP/1.1 (400|414|431|505) ", answer), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert page.ask("/")[0] == 200


def test_an_empty_request_is_no_request(page: Serving) -> None:
    assert page.exchanged(b"\r\n\r\n") == b""


def test_who_says_on_after_the_request_still_gets_the_answer(page: Serving) -> None:
    said = (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000
    )
    assert b" 405 " in page.exchanged(said)


def test_who_says_nothing_is_let_go(page: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "REQUEST_S", 0.2)
    with page.connected() as silent, page.connected() as slow:
        slow.sendall(b"GET /api")
        started = time.monotonic()
        assert closed(silent)
        assert closed(slow)
        assert time.monotonic() - started < PATIENCE_S / 2


def test_who_says_it_drop_by_drop_is_let_go(page: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "REQUEST_S", 0.3)
    started = time.monotonic()
    with page.connected() as client, suppress(OSError):
        while time.monotonic() - started < PATIENCE_S:
            client.sendall(b"x")
            time.sleep(0.02)
    assert time.monotonic() - started < PATIENCE_S / 2


def test_many_silent_connections_do_not_keep_others_out(page: Serving) -> None:
    silent = [page.connected() for _ in range(3 * MAX_CONNECTIONS)]
    try:
        for _ in range(5):
            assert page.ask("/")[0] == 200
        eventually(lambda: threads() <= MAX_CONNECTIONS + 1)
    finally:
        for client in silent:
            client.close()


def test_a_flood_of_connections_is_taken_slowly_and_all_are_answered(
    page: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "MAX_ACCEPTED_PER_S", 5)
    monkeypatch.setattr(page_server, "ACCEPT_PAUSE_S", 0.05)
    started = time.monotonic()
    assert {page.ask("/")[0] for _ in range(25)} == {200}
    assert time.monotonic() - started > 0.5


def test_a_hundred_idle_streams_do_not_keep_others_out(page: Serving) -> None:
    idle = [page.stream() for _ in range(100)]
    try:
        for _ in range(5):
            assert page.ask("/api/report")[0] == 200
            assert page.ask("/api/balance?account=1")[0] == 200
        eventually(lambda: threads() <= MAX_CONNECTIONS + 1)
        started = time.monotonic()
        page.server.close()
        assert time.monotonic() - started < PATIENCE_S / 2
    finally:
        for client in idle:
            client.close()


def test_a_look_up_is_forgotten_when_the_browser_leaves(page: Serving) -> None:
    page.look_up.hold = True
    with page.connected() as client:
        client.sendall(b"GET /api/balance?account=5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: page.look_up.asked)
    assert page.look_up.left.wait(PATIENCE_S)


def test_a_look_up_does_not_hold_the_stop_up(page: Serving) -> None:
    page.look_up.hold = True
    with page.connected() as client:
        client.sendall(b"GET /api/balance?account=5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: page.look_up.asked)
        page.server.close()
        assert closed(client)
        assert page.look_up.left.wait(PATIENCE_S)


def test_connections_that_are_reset_are_no_errors(
    page: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    for said in (b"", b"GET /", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        client = page.connected()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(said)
        client.close()
    assert page.ask("/")[0] == 200
    eventually(lambda: threads() == 1)
    assert caplog.text == ""


# -- its address -----------------------------------------------------------------------------------


def test_a_taken_port_is_tried_again_until_it_is_free(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(page_server, "BIND_AGAIN_S", 0.02)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        serving = Serving(port=other.getsockname()[1])
        assert not serving.server.wait_bound(0.2)
    try:
        assert serving.server.wait_bound(PATIENCE_S)
        assert serving.ask("/")[0] == 200
    finally:
        serving.server.close()
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == ["the page cannot be served yet, trying again"], "once, not each time"


def test_it_ends_at_once_while_it_waits_for_a_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        serving = Serving(port=other.getsockname()[1])
        started = time.monotonic()
        serving.server.close()
        assert time.monotonic() - started < PATIENCE_S / 2


def test_it_may_be_closed_at_any_moment() -> None:
    for _ in range(30):
        serving = Serving()
        serving.server.close()
        serving.server.close()
    eventually(lambda: threads() == 0)


def test_it_listens_on_ipv6_too() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    serving = Serving("::1")
    try:
        if not serving.server.wait_bound(1):
            pytest.skip("no IPv6 here")
        with socket.create_connection(("::1", serving.server.port), PATIENCE_S) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            assert until(client, b"\r\n").startswith(b"HTTP/1.1 200 ")
    finally:
        serving.server.close()


def test_a_request_with_two_hosts_is_refused(page: Serving) -> None:
    hosts = b"Host: localhost\r\nHost: evil.example\r\n"
    assert page.exchanged(b"GET / HTTP/1.1\r\n" + hosts + b"\r\n")[9:12] == b"400"
