"""Encryption and authentication of sockets: CURVE, as libzmq has it. Sets options, decides nothing.

A server proves that it has its secret, and lets in only whom the ZAP handler of its context (see
`common/security/doorkeeper.py`) allows. It fails closed: with a domain that is enforced, no handler
means no connection.
"""

from __future__ import annotations

from typing import Any, Final

import zmq

from tallybus.common.security.keys import KeyPair

OPEN: Final = "open"
"""The domain of sockets without keys."""


def new_key_pair() -> KeyPair:
    """A new pair, from the system's source of randomness."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public, secret)


def matches(pair: KeyPair) -> bool:
    """Whether the public key belongs to the secret; no text that is no key does."""
    try:
        return bool(zmq.curve_public(pair.secret) == pair.public)
    except (zmq.ZMQError, ValueError):
        return False


def secure_server(socket: zmq.Socket[Any], pair: KeyPair, domain: str) -> None:
    """Take only encrypted connections that the ZAP handler allows for `domain`. Before `bind`."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode("ascii"))
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def open_server(socket: zmq.Socket[Any]) -> None:
    """Take connections without keys, of this version of the protocol alone. Before `bind`.

    Without this, libzmq takes a peer that does not greet as ZMTP 3 does for one of an older
    version, and keeps it: HTTP, TLS, one byte and then nothing. libzmq refuses older versions on
    sockets with a ZAP domain, because it could not ask whether to let them in. No ZAP handler is
    needed for that.
    """
    socket.setsockopt(zmq.ZAP_DOMAIN, OPEN.encode("ascii"))


def secure_client(socket: zmq.Socket[Any], pair: KeyPair, server: bytes) -> None:
    """Connect as the holder of `pair` to the one with the secret of `server`. Before `connect`."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, server)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
