"""What a socket's monitor tells, from real sockets and from bytes."""

import errno
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
import zmq

from tallybus.common.bus.monitor import Failure, SocketEvent, SocketMonitor, What, parse

PATIENCE_MS = 30_000


def head(number: int, value: int) -> bytes:
    return struct.pack("=HI", number, value)


@pytest.mark.parametrize(
    ("number", "value", "wanted"),
    [
        (zmq.EVENT_ACCEPTED, 17, SocketEvent(What.ACCEPTED, "tcp://a:1", 17)),
        (zmq.EVENT_CONNECTED, 9, SocketEvent(What.CONNECTED, "tcp://a:1", 9)),
        (zmq.EVENT_DISCONNECTED, 17, SocketEvent(What.DISCONNECTED, "tcp://a:1", 17)),
        (zmq.EVENT_HANDSHAKE_SUCCEEDED, 0, SocketEvent(What.HANDSHAKE_SUCCEEDED, "tcp://a:1")),
        (zmq.EVENT_ACCEPT_FAILED, 24, None),
        (
            zmq.EVENT_HANDSHAKE_FAILED_AUTH,
            400,
            SocketEvent(What.HANDSHAKE_FAILED, "tcp://a:1", failure=Failure.REFUSED, code=400),
        ),
        (
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            0x11000001,
            SocketEvent(What.HANDSHAKE_FAILED, "tcp://a:1", failure=Failure.KEY, code=0x11000001),
        ),
        (
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            0x11000002,
            SocketEvent(
                What.HANDSHAKE_FAILED, "tcp://a:1", failure=Failure.MECHANISM, code=0x11000002
            ),
        ),
        (
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            0x10000001,
            SocketEvent(
                What.HANDSHAKE_FAILED, "tcp://a:1", failure=Failure.PROTOCOL, code=0x10000001
            ),
        ),
        (
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
            104,
            SocketEvent(What.HANDSHAKE_FAILED, "tcp://a:1", failure=Failure.BROKEN, code=104),
        ),
        (zmq.EVENT_LISTENING, 3, None),
        (1 << 15, 3, None),
    ],
)
def test_events_are_read(number: int, value: int, wanted: SocketEvent | None) -> None:
    assert parse([head(number, value), b"tcp://a:1"]) == wanted


@pytest.mark.parametrize(
    "frames", [[], [b""], [head(32, 1)], [b"\0" * 5, b""], [head(32, 1), b"", b""]]
)
def test_what_is_no_event_is_passed_over(frames: list[bytes]) -> None:
    assert parse(frames) is None


def test_codes_are_explained() -> None:
    broken = SocketEvent(What.HANDSHAKE_FAILED, "", failure=Failure.BROKEN, code=errno.ECONNRESET)
    assert "reset" in broken.detail
    assert SocketEvent(What.HANDSHAKE_FAILED, "", failure=Failure.REFUSED, code=400).detail == (
        "status 400"
    )
    assert SocketEvent(What.ACCEPTED, "", 5).detail == ""


class Watched:
    """A ROUTER with its monitor."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.router = context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.monitor = SocketMonitor(self.router)
        self.router.bind("tcp://127.0.0.1:*")
        endpoint = self.router.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        self.endpoint = endpoint.rstrip(b"\0").decode()
        self.events: list[SocketEvent] = []

    def until(self, condition: Callable[[SocketEvent], bool]) -> SocketEvent:
        """The first event that this is true of."""
        while True:
            for event in self.events:
                if condition(event):
                    return event
            assert self.monitor.socket.poll(PATIENCE_MS), self.events
            self.events += self.monitor.read()

    def raw(self) -> socket.socket:
        host, _, port = self.endpoint.removeprefix("tcp://").rpartition(":")
        return socket.create_connection((host, int(port)), timeout=30)


@pytest.fixture
def watched() -> Iterator[Watched]:
    with zmq.Context() as context:
        made = Watched(context)
        yield made
        made.monitor.close()
        made.router.close()


def test_a_connections_life_is_told_in_order(watched: Watched) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(watched.endpoint)
        watched.until(lambda event: event.what is What.HANDSHAKE_SUCCEEDED)
    watched.until(lambda event: event.what is What.DISCONNECTED)
    assert [event.what for event in watched.events] == [
        What.ACCEPTED,
        What.HANDSHAKE_SUCCEEDED,
        What.DISCONNECTED,
    ]
    accepted, _, ended = watched.events
    assert accepted.descriptor == ended.descriptor >= 0
    assert accepted.endpoint == watched.endpoint


def test_a_handshake_that_fails_is_told_before_its_connection_ends(watched: Watched) -> None:
    with watched.raw() as raw:
        raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(52, b"\0"))
        watched.until(lambda event: event.what is What.DISCONNECTED)
    assert [(event.what, event.failure) for event in watched.events] == [
        (What.ACCEPTED, None),
        (What.HANDSHAKE_FAILED, Failure.MECHANISM),
        (What.DISCONNECTED, None),
    ]
    assert watched.events[0].descriptor == watched.events[2].descriptor


def test_thousands_of_unread_events_hold_nobody_up(watched: Watched) -> None:
    """A monitor that nobody reads must not stop the thread that serves all connections."""
    for _ in range(1_500):
        watched.raw().close()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(watched.endpoint)
        dealer.send(b"hello")
        assert watched.router.poll(PATIENCE_MS)
    accepted = 0
    while accepted < 1_501:
        assert watched.monitor.socket.poll(PATIENCE_MS)
        accepted += sum(event.what is What.ACCEPTED for event in watched.monitor.read())


def test_a_closed_monitor_may_be_closed_again(watched: Watched) -> None:
    watched.monitor.close()
    watched.monitor.close()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(watched.endpoint)
        dealer.send(b"hello")
        assert watched.router.poll(PATIENCE_MS)


def test_the_descriptor_alone_tells_of_the_first_event() -> None:
    """As an event loop waits, which never asks the monitor itself before it is told."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with context.socket(zmq.DEALER) as dealer:
            monitor = SocketMonitor(dealer)
            descriptor = monitor.socket.getsockopt(zmq.FD)
            assert not select.select([descriptor], [], [], 0)[0]
            dealer.connect(f"tcp://127.0.0.1:{port}")
            assert select.select([descriptor], [], [], PATIENCE_MS / 1000)[0]
            assert monitor.read()
            monitor.close()
