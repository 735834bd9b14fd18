"""Endpoints as text: which file one is, and which addresses its host stands for. Opens nothing.

libzmq takes one address of a name, of one family, as its option `ZMQ_IPV6` says. A host may have
addresses of both, and what listens may do so on either. So an endpoint is turned here into places,
which a socket listens on together, or tries to connect to in turn.
ADR 0022 says why there are places.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, cast

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    Address: TypeAlias = IPv4Address | IPv6Address

TCP: Final = "tcp://"
IPC: Final = "ipc://"
MAX_IPC_PATH_BYTES: Final = 100
"""A little under what every kernel takes (104 on some, 108 on Linux, with the closing zero)."""

LOCALHOST: Final = "localhost"
_ANY: Final = "*"
_REACHED: Final = {_ANY: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "lo": "127.0.0.1"}
"""What listens there cannot be reached by that name, or not on every machine."""
_MAPPED: Final = 0xFFFF
"""What stands before the IPv4 address in an IPv6 one that only wraps it, `::ffff:127.0.0.1`."""


class Place(NamedTuple):
    """An endpoint for one socket, and the value of its option `ZMQ_IPV6`."""

    endpoint: str
    ipv6: bool


def absolute(endpoint: str) -> str:
    """The same `ipc://` endpoint for every process, whatever its working directory; another as it
    is. Raises ValueError where the working directory is gone."""
    path = endpoint.removeprefix(IPC)
    if not endpoint.startswith(IPC) or not path or path[0] in "/@*":
        return endpoint
    try:
        # The folder as the system finds it: `..` behind a link is not the folder of the link.
        folder = os.path.realpath(os.path.join(os.getcwd(), os.path.dirname(path)))
    except OSError as error:
        raise ValueError(f"{endpoint!r} starts at the working directory, which is gone") from error
    return IPC + os.path.join(folder, os.path.basename(path))


def as_given(endpoint: str) -> str:
    """What to hand over to libzmq: its path has the bytes that the file system has for it, which
    need not be the UTF-8 that text becomes otherwise."""
    raw = os.fsencode(endpoint)
    try:
        if raw == endpoint.encode("utf-8"):
            return endpoint
    except UnicodeEncodeError:
        pass
    # The interface takes bytes as well, though its types do not say so.
    return cast(str, raw)


def fixed(endpoint: str) -> str:
    """For a peer that connects: as `absolute` where a socket can have that path; else as it is."""
    try:
        found = absolute(endpoint)
    except ValueError:
        return endpoint
    return found if len(os.fsencode(found.removeprefix(IPC))) <= MAX_IPC_PATH_BYTES else endpoint


def socket_path(endpoint: str) -> Path | None:
    """The file of an `ipc://` endpoint; None where there is none."""
    path = endpoint.removeprefix(IPC)
    return Path(path) if endpoint.startswith(IPC) and path[:1] not in ("", "@", "*") else None


def host_and_port(endpoint: str) -> tuple[str, str]:
    """Of `tcp://host:port`; an IPv6 address comes without brackets."""
    host, _, port = endpoint.removeprefix(TCP).rpartition(":")
    return without_brackets(host), port


def without_brackets(host: str) -> str:
    """A host as programs take it: `::1` of `[::1]`."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def with_brackets(host: str) -> str:
    """A host as it stands before a port: `[::1]` of `::1`."""
    bare = without_brackets(host)
    return f"[{bare}]" if ":" in bare else bare


def shown(address: tuple[str, int]) -> str:
    """A host and a port as people write them."""
    return f"{with_brackets(address[0])}:{address[1]}"


def plain_host(host: str) -> str:
    """An address as people know it: `127.0.0.1` of `::ffff:127.0.0.1`, as IPv6 sockets tell it."""
    found = address_of(host)
    return host if found is None or found.version == 6 else str(found)


def address_of(host: str) -> Address | None:
    """The address that a host without brackets is, an IPv4 one also where IPv6 wraps it; None of a
    name."""
    import ipaddress  # seldom needed where settings are, and slow to load

    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    # By its number: what Python says of mapped addresses differs between its versions.
    if found.version == 6 and int(found) >> 32 == _MAPPED:
        return ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
    return found


def is_loopback(host: str) -> bool:
    """Whether a host, a name or an address without brackets, is surely this machine alone."""
    if host.lower() == LOCALHOST:
        return True
    found = address_of(host)
    if found is None or found.version == 4:
        return found is not None and found.is_loopback
    return int(found) == 1


def reached_at(endpoint: str) -> str:
    """Where this machine reaches what listens on `endpoint`."""
    host, port = host_and_port(endpoint)
    if not endpoint.startswith(TCP) or host not in _REACHED:
        return endpoint
    return f"{TCP}{with_brackets(_REACHED[host])}:{port}"


def reached_host(host: str) -> str:
    """As `reached_at`, of a host without brackets."""
    return _REACHED.get(host, host)


def to_connect(endpoint: str) -> tuple[Place, ...]:
    """Where to connect for `endpoint`, to be tried in turn until one answers. Asks no name server:
    libzmq does, at each attempt, for addresses of the family that it was told."""
    if not endpoint.startswith(TCP):
        return (Place(endpoint, ipv6=False),)
    host, port = host_and_port(endpoint)
    if host.lower() == LOCALHOST:
        # Not every machine has both in its table of names.
        return (Place(f"{TCP}127.0.0.1:{port}", ipv6=False), Place(f"{TCP}[::1]:{port}", ipv6=True))
    address = address_of(host)
    if address is not None:
        return (_literal(address, port),)
    if ":" in host or host == _ANY:
        return (Place(endpoint, ipv6=True),)
    return Place(endpoint, ipv6=False), Place(endpoint, ipv6=True)


def to_listen(endpoint: str) -> tuple[Place, ...]:
    """Where to listen for `endpoint`, on all of it. Of a name: on each of its addresses, for which
    it asks the system's resolver."""
    if not endpoint.startswith(TCP):
        return (Place(endpoint, ipv6=False),)
    host, port = host_and_port(endpoint)
    if host.lower() == LOCALHOST:
        # Never elsewhere, whatever a table of names says: it passes for loopback.
        return (Place(f"{TCP}[::1]:{port}", ipv6=True), Place(f"{TCP}127.0.0.1:{port}", ipv6=False))
    address = address_of(host)
    if address is not None:
        return (_literal(address, port),)
    if ":" in host or host == _ANY:
        return (Place(endpoint, ipv6=True),)
    found = [] if _is_interface(host) else _addresses(host)
    # Of an interface, and of what has no address, libzmq says what is wrong.
    return tuple(_literal(each, port) for each in found) or (Place(endpoint, ipv6=False),)


def _literal(address: Address, port: str) -> Place:
    return Place(f"{TCP}{with_brackets(str(address))}:{port}", ipv6=address.version == 6)


def _is_interface(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _addresses(name: str) -> list[Address]:
    """The IPv6 addresses first, so that the last one, which is told, is an IPv4 one if any is."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    addresses = dict.fromkeys(address_of(str(target[0])) for *_, target in found)
    known = [each for each in addresses if each is not None]
    return sorted(known, key=lambda each: -each.version)
