"""What the guard asks the system, and does to it: with real sockets."""

import logging
import mmap
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tallybus.services.gateway.connections import guard
from tallybus.services.gateway.connections.guard import (
    RESERVED_FILES,
    Memory,
    allow_files,
    peer_of,
    shut_down,
    traffic,
)

LOG = logging.getLogger("tallybus.test")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection, the accepted one first."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as listener:
        try:
            listener.bind((request.param, 0))
        except OSError:
            pytest.skip("there is no such loopback here")
        listener.listen()
        client = socket.create_connection(listener.getsockname()[:2], timeout=30)
        accepted, _ = listener.accept()
        accepted.settimeout(30)
        with client, accepted:
            yield accepted, client


def address(connection: socket.socket) -> str:
    host, port = connection.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_from(connection: socket.socket) -> int:
    seen = traffic(connection.fileno())
    assert seen is not None
    return seen.read


def test_what_a_peer_does_not_read_waits_and_is_not_acknowledged(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    accepted, client = pair
    seen = traffic(accepted.fileno())
    assert seen is not None
    assert not seen.waits
    accepted.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += accepted.send(bytes(1 << 20))
    deadline = time.monotonic() + 30
    before, seen = seen, traffic(accepted.fileno())
    while seen is not None and seen != before and time.monotonic() < deadline:
        # Until the system has moved all that the peer's side has room for.
        time.sleep(0.05)
        before, seen = seen, traffic(accepted.fileno())
    assert seen is not None
    assert seen.waits
    assert seen.acknowledged < sent
    while client.recv(1 << 20, socket.MSG_DONTWAIT if seen.waits else 0):
        seen = traffic(accepted.fileno())
        assert seen is not None
        if not seen.waits:
            break
        select.select([client], [], [], 30)
    assert not seen.waits


def test_a_peer_is_told_with_its_port(pair: tuple[socket.socket, socket.socket]) -> None:
    accepted, client = pair
    assert peer_of(accepted.fileno()) == address(client)


def test_bytes_count_once_they_were_read(pair: tuple[socket.socket, socket.socket]) -> None:
    accepted, client = pair
    client.sendall(b"x" * 1_000)
    while len(accepted.recv(1_000, socket.MSG_PEEK)) < 1_000:
        pass
    assert read_from(accepted) == 0
    assert len(accepted.recv(400)) == 400
    assert read_from(accepted) == 400
    assert len(accepted.recv(600)) == 600
    assert read_from(accepted) == 1_000


def test_asking_closes_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    accepted, client = pair
    peer_of(accepted.fileno())
    traffic(accepted.fileno())
    client.sendall(b"still here")
    assert accepted.recv(100) == b"still here"


def test_what_is_no_connection_has_no_peer_and_no_bytes() -> None:
    with open(os.devnull, "rb") as file:
        assert peer_of(file.fileno()) == ""
        assert traffic(file.fileno()) is None
        assert not shut_down(file.fileno(), "")
        assert file.read() == b""
        number = file.fileno()
    assert peer_of(number) == ""
    assert traffic(number) is None
    assert not shut_down(number, "")


def test_the_peer_is_told_that_it_was_cut(pair: tuple[socket.socket, socket.socket]) -> None:
    accepted, client = pair
    assert shut_down(accepted.fileno(), address(client))
    assert accepted.recv(10) == b""
    accepted.close()
    with pytest.raises(OSError, match=r"reset|pipe"):
        client.sendall(b"x" * (256 << 20))


def test_a_connection_of_another_peer_is_left_alone(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    accepted, client = pair
    assert not shut_down(accepted.fileno(), "127.0.0.1:1")
    assert not shut_down(accepted.fileno(), "")
    client.sendall(b"still here")
    assert accepted.recv(100) == b"still here"


def test_memory_grows_with_what_is_held() -> None:
    memory = Memory()
    before = memory.bytes_held()
    # Pages of its own: what the process has freed before may hold an object of any size.
    held = mmap.mmap(-1, 64 << 20)
    for _ in range(64):
        held.write(b"x" * (1 << 20))
    assert memory.bytes_held() - before > 60 << 20
    assert len(held) == 64 << 20
    memory.close()


class Files:
    """The process's limit of open files, played."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.soft, self.hard = soft, hard
        monkeypatch.setattr(guard.resource, "getrlimit", lambda _: (self.soft, self.hard))
        monkeypatch.setattr(guard.resource, "setrlimit", self._set)

    def _set(self, _: int, limits: tuple[int, int]) -> None:
        if limits[0] > limits[1] != resource.RLIM_INFINITY:
            raise ValueError("not allowed")
        self.soft, self.hard = limits


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "raised", "possible"),
    [
        (1_024, 1_048_576, 4_096, 4_096 + RESERVED_FILES, 4_096),
        (1_024, resource.RLIM_INFINITY, 4_096, 4_096 + RESERVED_FILES, 4_096),
        (1_048_576, 1_048_576, 4_096, 1_048_576, 4_096),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4_096, resource.RLIM_INFINITY, 4_096),
        (1_024, 2_048, 4_096, 2_048, 2_048 - RESERVED_FILES),
        (256, 256, 4_096, 256, 128),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_needed_and_allowed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    soft: int,
    hard: int,
    wanted: int,
    raised: int,
    possible: int,
) -> None:
    files = Files(monkeypatch, soft, hard)
    with caplog.at_level(logging.WARNING, "tallybus.test"):
        assert allow_files(wanted, LOG) == possible
    assert files.soft == raised
    assert files.hard == hard
    assert bool(caplog.records) == (possible < wanted)
