"""The page's HTTP server: what it answers, to whom, and where it listens."""

from __future__ import annotations

import json
import logging
import socket
import time

import pytest

from tallybus.common.record import MAX_U64
from tallybus.services.gateway.page import server as page_server
from tallybus.services.gateway.page.server import host_is_ours, static_files
from tests.support.listening import listens
from tests.support.waiting import eventually
from tests.unit.services.gateway.page.serving import PATIENCE_S, Serving, threads, until

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


# -- its address -----------------------------------------------------------------------------------


def test_a_taken_port_is_tried_again_until_it_is_free(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(page_server, "BIND_AGAIN_S", 0.02)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        serving = Serving(port=other.getsockname()[1])
        assert not listens(serving.server, 0.2)
    try:
        assert listens(serving.server, PATIENCE_S)
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
        if not listens(serving.server, 1):
            pytest.skip("no IPv6 here")
        with socket.create_connection(("::1", serving.server.port), PATIENCE_S) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            assert until(client, b"\r\n").startswith(b"HTTP/1.1 200 ")
    finally:
        serving.server.close()


def test_a_request_with_two_hosts_is_refused(page: Serving) -> None:
    hosts = b"Host: localhost\r\nHost: evil.example\r\n"
    assert page.exchanged(b"GET / HTTP/1.1\r\n" + hosts + b"\r\n")[9:12] == b"400"
