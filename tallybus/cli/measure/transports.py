"""How the parts of a ledger reach one another that is started for a measurement."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

IPC: Final = "ipc"
TCP: Final = "tcp"
CURVE: Final = "curve"
TRANSPORTS: Final = (IPC, TCP, CURVE)

BUS_PORTS: Final = 12
"""Ports of the stages' sockets, from `bus.base_port` on."""
_LOOPBACK: Final = "127.0.0.1"
_PORTS: Final = range(10_000, 30_000)
"""Below those that systems give to outgoing connections, one of which could take a port first."""
_KEY_NAME: Final = "measuring"


class NoFreePorts(OSError):
    """There is no run of so many free ports."""


@dataclass(frozen=True, slots=True)
class Transport:
    """Settings that a ledger is started with, by dotted name, and its client's key file."""

    settings: dict[str, object]
    key: Path | None = None


def make(transport: str, folder: Path) -> Transport:
    """One of TRANSPORTS for the ledger of a run: services among one another, and its clients.

    `folder` is the run's own; keys are made in it. Ports were free a moment ago. Raises NoFreePorts
    and what writing the keys raises.
    """
    if transport == IPC:
        return Transport(
            {
                "bus.transport": "ipc",
                "gateway.endpoint": _ipc_endpoint(folder),
                "security.keys": "",
            }
        )
    first = free_ports(BUS_PORTS + 1)
    settings: dict[str, object] = {
        "bus.transport": "tcp",
        "bus.host": _LOOPBACK,
        "bus.bind_host": "",
        "bus.base_port": first,
        "gateway.endpoint": f"tcp://{_LOOPBACK}:{first + BUS_PORTS}",
        # What the environment says is for another ledger.
        "security.keys": "",
    }
    if transport == TCP:
        return Transport(settings)
    keys, key = folder / "keys", folder / f"{_KEY_NAME}.key"
    _make_keys(keys, key)
    return Transport(settings | {"security.keys": keys}, key)


def name_of(endpoint: str, key: str | None) -> str:
    """Which of TRANSPORTS a client of `endpoint` with or without a key uses."""
    if not endpoint.startswith("tcp:"):
        return IPC
    return TCP if key is None else CURVE


def free_ports(count: int) -> int:
    """The first of `count` loopback ports in a row that nobody listens on."""
    ports = random.SystemRandom()
    for _ in range(1_000):
        first = ports.randrange(_PORTS.start, _PORTS.stop - count)
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server((_LOOPBACK, port)))
            except OSError:
                continue
        return first
    raise NoFreePorts(f"no {count} ports in a row are free on {_LOOPBACK}")


def _ipc_endpoint(folder: Path) -> str:
    """In the folder of the run where the path is short enough for a socket, else a free port."""
    from tallybus.common.settings.endpoints import MAX_IPC_PATH_BYTES

    path = folder / "clients"
    if len(os.fsencode(path)) <= MAX_IPC_PATH_BYTES:
        return f"ipc://{path}"
    return f"tcp://{_LOOPBACK}:{free_ports(1)}"


def _make_keys(folder: Path, client: Path) -> None:
    from tallybus.common.security.keys import Role
    from tallybus.keyring import Keyring, write_new

    Keyring(folder).create(_KEY_NAME, Role.ADMIN, {}, lambda text: write_new(client, text))
