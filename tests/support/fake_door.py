"""An encrypted gateway for tests of the clients, whose door opens on cue.

`Door` answers what libzmq asks about each connection (ZAP), with the status that a test chooses.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from tallybus.common.security.curve import new_key_pair, secure_server
from tallybus.common.security.keys import ClientKey, KeyPair
from tests.support.fake_gateway import FakeGateway

LET_IN = b"200"
REFUSED = b"400"
FAILED = b"500"


class Door:
    """Who is let in through sockets of its `context`: everybody, unless `status` says otherwise.

    A status of None answers nothing. `asked` counts the questions. `gateway` is the pair that is
    met behind it.
    """

    def __init__(self, status: bytes | None = LET_IN, gateway: KeyPair | None = None) -> None:
        self.status = status
        self.asked = 0
        self.gateway = gateway or new_key_pair()
        self.context: zmq.Context[Any] = zmq.Context()
        self._socket = self.context.socket(zmq.ROUTER)
        self._socket.bind("inproc://zeromq.zap.01")
        self._control, self._controlled = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="fake door", daemon=True)
        self._thread.start()

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.leave()
        self.context.term()

    def leave(self) -> None:
        """Nobody answers any more."""
        if self._thread.is_alive():
            self._control.send(b"q")
            self._thread.join(10)
            self._control.close()
            self._controlled.close()
            self._socket.close(linger=0)

    def secure(self, socket: zmq.Socket[Any]) -> None:
        """Makes a socket of the context one that only this door opens."""
        secure_server(socket, self.gateway, "clients")

    def key(self, name: str = "ops", gateway: KeyPair | None = None) -> ClientKey:
        """A new key for this gateway, or for another one."""
        return ClientKey(name, new_key_pair(), (gateway or self.gateway).public)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._controlled, zmq.POLLIN)
        while self._controlled.fileno() not in dict(poller.poll()):
            frames = self._socket.recv_multipart()
            self.asked += 1
            if self.status is not None:
                reply = [b"1.0", frames[3], self.status, b"", b"", b""]
                self._socket.send_multipart([*frames[:2], *reply])


@contextmanager
def encrypted_gateway(
    status: bytes | None = LET_IN, pair: KeyPair | None = None, **options: Any
) -> Iterator[tuple[FakeGateway, Door]]:
    """A gateway that encrypts, and its door. At the end its port is free."""
    with (
        Door(status, pair) as door,
        FakeGateway(context=door.context, secure=door.secure, **options) as gateway,
    ):
        yield gateway, door
