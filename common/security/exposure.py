"""Which addresses beyond this machine need keys, unless a setting names them as unprotected.

It judges settings alone: it opens no socket and asks no name server. So an address counts as
loopback only where that is certain. Whoever is about to listen calls `check` before anything is
bound (ADR 0013).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from tallybus.common.errors import EXIT_SETTINGS, ServiceError
from tallybus.common.settings import sections as configuration
from tallybus.common.settings.endpoints import TCP, host_and_port, is_loopback
from tallybus.common.settings.sections import SOCKETS, Settings
from tallybus.common.stages import SERVICES, STAGES

_LOOPBACK_INTERFACE: Final = "lo"
_WITH_KEYS: Final = ("clients", "bus")
_WHAT: Final = {
    "clients": "listen for clients",
    "bus": "listen for other services",
    "metrics": "serve its metrics",
    "page": "serve its page",
}


class ExposedAddress(ServiceError):
    """Something would listen beyond this machine that nothing protects.

    Fields: `service`; `part` (`clients`, `bus`, `metrics` or `page`); `address` as the settings
    say it; `setting` that says it.
    """

    exit_code: ClassVar[int] = EXIT_SETTINGS
    restart: ClassVar[bool] = False

    def __init__(self, service: str, part: str, address: str, setting: str) -> None:
        protected = part in _WITH_KEYS
        keys = (
            "Make keys (`tallybus keys create`, and security.keys), or let" if protected else "Let"
        )
        super().__init__(
            f"the {service} would {_WHAT[part]} on {address} ({setting}). Other machines may reach "
            f"that address, and {'there are no keys' if protected else 'this has no keys'}. "
            f"{keys} it listen on a loopback address such as 127.0.0.1. If something else protects "
            f"the network, name `{part}` in security.unprotected"
        )
        self.service = service
        self.part = part
        self.address = address
        self.setting = setting


@dataclass(frozen=True, slots=True)
class Listener:
    """An address on which a service will listen; `loopback` is what is known of it."""

    service: str
    part: str
    address: str
    setting: str
    loopback: bool


def check(settings: Settings, services: Collection[str] = SERVICES) -> None:
    """Raise ExposedAddress when one of the services would listen where nothing protects it."""
    for listener in listeners(settings, services):
        protected = settings.security.keys is not None and listener.part in _WITH_KEYS
        if not (listener.loopback or protected or listener.part in settings.security.exposed):
            raise ExposedAddress(
                listener.service, listener.part, listener.address, listener.setting
            )


def listeners(settings: Settings, services: Collection[str] = SERVICES) -> Iterator[Listener]:
    """Where the services will listen over the network, each address with what it is for."""
    for service in services:
        if service == "gateway":
            endpoint = settings.gateway.endpoint
            if endpoint.startswith(TCP):
                yield Listener(
                    service, "clients", endpoint, "gateway.endpoint", endpoint_is_loopback(endpoint)
                )
            page = configuration.page_address(settings)
            if page is not None:
                yield Listener(
                    service, "page", settings.gateway.page, "gateway.page", is_loopback(page[0])
                )
        if service in STAGES:
            for socket in SOCKETS:
                endpoint = configuration.endpoint(settings, service, socket, bind=True)
                if endpoint.startswith(TCP):
                    yield Listener(
                        service,
                        "bus",
                        endpoint,
                        _setting_of(settings, service, socket),
                        endpoint_is_loopback(endpoint),
                    )
        metrics = configuration.metrics_address(settings, service)
        if metrics is not None:
            yield Listener(
                service, "metrics", metrics[0], "metrics.address", is_loopback(metrics[0])
            )


def _setting_of(settings: Settings, stage: str, socket: str) -> str:
    if getattr(settings.bus, f"{stage}_{socket}"):
        return f"bus.{stage}_{socket}"
    return "bus.bind_host" if settings.bus.bind_host else "bus.host"


def endpoint_is_loopback(endpoint: str) -> bool:
    """Whether only this machine reaches what listens on this `tcp://host:port`.

    Of a name of an interface, `lo` alone is known to be of this machine.
    """
    host, _ = host_and_port(endpoint)
    return host == _LOOPBACK_INTERFACE or is_loopback(host)
