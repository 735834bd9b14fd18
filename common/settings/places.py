"""Where services keep what they share and where they meet: folders, endpoints, addresses."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final, Protocol

from tallybus.common.settings.endpoints import MAX_IPC_PATH_BYTES, with_brackets, without_brackets
from tallybus.common.settings.operations import MetricsSettings
from tallybus.common.settings.pipeline import BusSettings, GatewaySettings, LedgerSettings
from tallybus.common.stages import PORTS, SERVICES, STAGES

SOCKETS: Final = ("data", "index", "control")
"""Each stage of the pipeline binds one socket of every name."""

_FALLBACK_FOLDER: Final = "/tmp"


class Chosen(Protocol):
    """The settings that say where."""

    @property
    def ledger(self) -> LedgerSettings: ...
    @property
    def bus(self) -> BusSettings: ...
    @property
    def gateway(self) -> GatewaySettings: ...
    @property
    def metrics(self) -> MetricsSettings: ...


def data_folder(settings: Chosen) -> Path:
    """The data folder as an absolute path without symbolic links, the same for every process."""
    return Path(os.path.realpath(settings.ledger.data))


def run_folder(settings: Chosen) -> Path:
    """The folder of the `ipc` sockets and the locks of running services, as an absolute path.

    It is not made here: whoever makes it gives it mode 0700 and checks that it owns it.
    """
    if settings.bus.run_folder is not None:
        return Path(os.path.realpath(settings.bus.run_folder))
    data = data_folder(settings)
    derived = data / "run"
    if len(os.fsencode(longest_socket(str(derived)))) <= MAX_IPC_PATH_BYTES:
        return derived
    return Path(_FALLBACK_FOLDER) / f"tallybus-{os.getuid()}-{_digest(data)}"


def longest_socket(folder: str) -> str:
    """The longest path of a socket in this folder."""
    return os.path.join(folder, f"{max(STAGES, key=len)}.{max(SOCKETS, key=len)}")


def _digest(data: Path) -> str:
    return hashlib.sha256(os.fsencode(data)).hexdigest()[:16]


def endpoint(settings: Chosen, stage: str, socket: str, *, bind: bool = False) -> str:
    """The ZeroMQ endpoint of a stage's socket.

    `stage` is one of STAGES and `socket` one of SOCKETS, else KeyError. With `bind` it is the
    address to listen on, otherwise the one to connect to; they differ with `tcp` and `bind_host`.
    """
    if stage not in STAGES or socket not in SOCKETS:
        raise KeyError(f"{stage}.{socket}")
    bus = settings.bus
    explicit: str = getattr(bus, f"{stage}_{socket}")
    if explicit:
        return explicit
    if bus.transport == "inproc":
        name = bus.inproc_name or _digest(data_folder(settings))
        return f"inproc://tallybus-{name}/{stage}.{socket}"
    if bus.transport == "tcp":
        host = (bus.bind_host if bind and bus.bind_host else bus.host).replace("{stage}", stage)
        port = bus.base_port + len(SOCKETS) * STAGES.index(stage) + SOCKETS.index(socket)
        return f"tcp://{with_brackets(host)}:{port}"
    return f"ipc://{run_folder(settings) / f'{stage}.{socket}'}"


def metrics_address(settings: Chosen, stage: str) -> tuple[str, int] | None:
    """Host and port on which a service (one of SERVICES, else KeyError) serves its metrics.

    None when they are off: by default, and in an embedded ledger, whose services are threads of
    somebody else's process.
    """
    if stage not in SERVICES:
        raise KeyError(stage)
    port = settings.metrics.base_port + PORTS.index(stage)
    if not settings.metrics.address or settings.bus.transport == "inproc":
        return None
    return without_brackets(settings.metrics.address), port


def page_address(settings: Chosen) -> tuple[str, int] | None:
    """Host and port of the gateway's page; None when there is none, as in an embedded ledger."""
    if not settings.gateway.page or settings.bus.transport == "inproc":
        return None
    host, _, port = settings.gateway.page.rpartition(":")
    return without_brackets(host), int(port)
