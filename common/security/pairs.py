"""The key pairs that one service needs on the network, read and checked once, at its start.

Reads the key files that `security.keys` leads to, and no other. A service is given no more than it
needs: `gateway.key` is for the gateway that clients reach over tcp, `bus.key` for services that
talk over tcp.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tallybus.common.security.curve import matches
from tallybus.common.security.keys import BUS_KEY, GATEWAY_KEY, KeyFileError, KeyPair, read_pair
from tallybus.common.settings import sections as configuration
from tallybus.common.settings.endpoints import TCP
from tallybus.common.settings.sections import SOCKETS, Settings
from tallybus.common.stages import STAGES

CLIENTS: Final = "clients"
BUS: Final = "bus"
"""Domains: whom a socket is for, clients or other services. Who is let in differs."""


@dataclass(frozen=True, slots=True)
class Security:
    """Key pairs by domain; None where this service has no socket that needs one."""

    clients: KeyPair | None = None
    bus: KeyPair | None = None

    def pair(self, domain: str) -> KeyPair:
        """The pair for sockets of this domain. There is no plain socket instead of a missing one:
        LookupError."""
        pair = self.clients if domain == CLIENTS else self.bus if domain == BUS else None
        if pair is None:
            raise LookupError(f"there is no key pair for sockets of the domain {domain!r}")
        return pair


def load(settings: Settings, service: str) -> Security | None:
    """What `service` needs to know; None without `security.keys`. Raises KeyFileError."""
    folder = settings.security.keys
    if folder is None:
        return None
    clients = service == "gateway" and clients_use_tcp(settings)
    return Security(
        clients=_checked(folder / GATEWAY_KEY) if clients else None,
        bus=_checked(folder / BUS_KEY) if bus_uses_tcp(settings) else None,
    )


def clients_use_tcp(settings: Settings) -> bool:
    """Whether the gateway listens for clients over tcp."""
    return settings.gateway.endpoint.startswith(TCP)


def bus_uses_tcp(settings: Settings) -> bool:
    """Whether any two services talk over tcp."""
    return any(
        configuration.endpoint(settings, stage, socket, bind=bind).startswith(TCP)
        for stage in STAGES
        for socket in SOCKETS
        for bind in (False, True)
    )


def _checked(path: Path) -> KeyPair:
    pair = read_pair(path)
    if not matches(pair):
        raise KeyFileError(path, "has a public key that does not belong to its secret")
    return pair
