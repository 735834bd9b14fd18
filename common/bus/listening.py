"""Sockets that listen for HTTP: on an address, or on a name that may have several."""

from __future__ import annotations

import socket
from contextlib import suppress

from tallybus.common.settings.endpoints import LOCALHOST, is_loopback


def listen(address: tuple[str, int], backlog: int) -> socket.socket:
    """A socket that listens on `address`, without brackets; `::` takes IPv4 as well.

    Of a name, on the first of its addresses that can be had. Raises OSError.
    """
    host, port = address
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    if host.lower() == LOCALHOST:
        # Whatever a table of names says: it passes for loopback.
        found = [each for each in found if is_loopback(str(each[4][0]))]
    for place, (family, kind, protocol, _, target) in enumerate(found):
        listener = socket.socket(family, kind, protocol)
        try:
            # A port of connections that have ended may be taken at once; one in use may not.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                with suppress(OSError):
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(target)
            listener.listen(backlog)
        except OSError:
            listener.close()
            if place == len(found) - 1:
                raise
        else:
            return listener
    raise OSError(f"{host!r} has no address")
