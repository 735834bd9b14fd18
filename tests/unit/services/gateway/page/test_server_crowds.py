"""Nobody who connects to the page's server can hold it up: streams, garbage, floods."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from contextlib import suppress

import pytest

from tallybus.services.gateway.page import server as page_server
from tallybus.services.gateway.page.server import MAX_CONNECTIONS, MAX_HEAD_BYTES, MAX_STREAMS
from tests.support.waiting import eventually
from tests.unit.services.gateway.page.serving import PATIENCE_S, Serving, threads, until

LARGE = 30_000_000
"""More than the system takes for a connection."""


def closed(client: socket.socket) -> bool:
    """Waits until the other side has closed the connection; passes over what it still says."""
    try:
        while client.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return True


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
