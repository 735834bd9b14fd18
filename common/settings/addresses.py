"""Whether the addresses for HTTP that the settings name can be listened on here, as things are.

Those servers wait for an address that another process has, for it may be given up; one that is not
of this machine, or not for this user, never comes. Sockets of the bus are judged when they are
bound.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from tallybus.common.errors import SettingsError
from tallybus.common.settings import sections as configuration
from tallybus.common.settings.sections import Settings

_FOR_GOOD = frozenset((errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT))


def check(settings: Settings, service: str) -> None:
    """Raise SettingsError when a service can never serve its metrics or its page."""
    served = {"metrics.address": configuration.metrics_address(settings, service)}
    if service == "gateway":
        served["gateway.page"] = configuration.page_address(settings)
    for key, address in served.items():
        if address is not None and (number := refusal(*address)):
            raise SettingsError(
                key,
                settings.origins.get(key, "default"),
                f"cannot listen on port {address[1]} of {address[0]}: {os.strerror(number)}; give "
                "an address of this machine, and a port that this user may use",
            )


def refusal(host: str, port: int) -> int:
    """Why it can never be listened on there (an errno); 0: it can, or that is not known.

    Names are not looked up: that takes time, and a name server may be away for a while.
    """
    address, _, zone = host.partition("%")
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        scope = socket.if_nametoindex(zone) if zone else 0
    except (ValueError, OSError):
        return 0
    rest = (0, scope) if family == socket.AF_INET6 else ()
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the server does: what the last run left behind is in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port, *rest))
    except OSError as error:
        return error.errno or 0 if error.errno in _FOR_GOOD else 0
    return 0
