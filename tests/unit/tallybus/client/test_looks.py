"""Who is not refused, but only in front of a gateway that dies or of something else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tallybus import AccessDenied, Deposit, Timeout, Unreachable
from tallybus.common.security.curve import new_key_pair
from tallybus.common.security.keys import ClientKey
from tests.support.fake_door import LET_IN, Door, encrypted_gateway
from tests.support.fake_gateway import FakeGateway, FakeLedger
from tests.unit.tallybus.client.keyed_clients import PATIENCE_S, QuickClient


class Listener:
    """Accepts connections on a free port and does the same with each, in a thread of its own."""

    def __init__(self, greet: Callable[[socket.socket], None]) -> None:
        self._greet = greet
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            with connection:
                connection.settimeout(1)
                try:
                    self._greet(connection)
                except OSError:
                    continue


def nothing(connection: socket.socket) -> None:
    """As a proxy in front of a gateway that is down."""


def after_reading(connection: socket.socket) -> None:
    """As another kind of proxy."""
    connection.recv(64)


def after_greeting(connection: socket.socket) -> None:
    """As a gateway that takes no more connections, or is killed while it greets."""
    connection.sendall(b"\xff" + bytes(7) + b"\x01\x7f")


def soon_after_greeting(connection: socket.socket) -> None:
    """The same, a little slower."""
    after_greeting(connection)
    time.sleep(0.05)


def as_a_web_server(connection: socket.socket) -> None:
    connection.recv(64)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def as_one_with_another_key(connection: socket.socket) -> None:
    """Keeps who says nothing."""
    after_greeting(connection)
    connection.recv(64)


def test_a_client_that_was_refused_leaves_the_gateway_alone() -> None:
    with (
        Listener(as_one_with_another_key) as listener,
        Door() as door,
        QuickClient(listener.endpoint, key=door.key(), timeout=60) as client,
    ):
        with pytest.raises(AccessDenied, match="another public key"):
            client.submit(Deposit(1, 5))
        end = time.monotonic() + PATIENCE_S
        before, quiet_since = 0, time.monotonic()
        # Every 20 to 100 ms it would be tried again otherwise.
        while time.monotonic() < quiet_since + 0.5:
            assert time.monotonic() < end
            if listener.accepted != before:
                before, quiet_since = listener.accepted, time.monotonic()
            time.sleep(0.01)


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize(
    "greet", [nothing, after_reading, after_greeting, soon_after_greeting, as_a_web_server]
)
def test_who_only_hangs_up_has_refused_nobody(
    greet: Callable[[socket.socket], None], keyed: bool
) -> None:
    with Listener(greet) as listener, Door() as door:
        key = door.key() if keyed else None
        # Without a key libzmq takes a greeting for a connection, and the request with it.
        expected = (Unreachable, Timeout) if key is None else Unreachable
        with QuickClient(listener.endpoint, key=key) as client, pytest.raises(expected):
            client.submit(Deposit(1, 5), timeout=1.2)
        assert listener.accepted > 1


def test_a_gateway_that_comes_after_something_else_is_found() -> None:
    with Door() as door:
        with Listener(as_a_web_server) as listener:
            client = QuickClient(listener.endpoint, key=door.key(), timeout=60)
            pending = client.begin_batch([Deposit(1, 5)])
            while listener.accepted < 2:
                assert not pending.done()
                time.sleep(0.01)
        with (
            client,
            FakeGateway(context=door.context, secure=door.secure, endpoint=listener.endpoint),
        ):
            assert pending.result(timeout=PATIENCE_S).first_tx_id == 1


def test_a_gateway_that_dies_again_and_again_is_not_taken_for_a_refusal(
    free_port: Callable[[], int],
) -> None:
    """In the middle of handshakes, too: every request has its result in the end."""
    ledger, pair, stop = FakeLedger(), new_key_pair(), threading.Event()
    endpoint = f"tcp://127.0.0.1:{free_port()}"

    def submit(first: int) -> int:
        done = 0
        while not stop.is_set():
            key = ClientKey("ops", new_key_pair(), pair.public)
            with QuickClient(endpoint, key=key, timeout=60) as client:
                for _ in range(3):
                    done += 1
                    assert client.submit_and_wait(Deposit(1, 5, first + done)).ok
        return done

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(submit, number << 32) for number in range(4)]
        for turn in range(80):
            options = {"ledger": ledger, "endpoint": endpoint, "incarnation": turn + 1}
            with encrypted_gateway(LET_IN, pair, **options):
                stop.wait(0.003 * (turn % 8))
        stop.set()
        with encrypted_gateway(LET_IN, pair, ledger=ledger, endpoint=endpoint, incarnation=100):
            done = [each.result(PATIENCE_S) for each in working]
    assert min(done) > 0
    assert ledger.balances[1] == 5 * sum(done)
