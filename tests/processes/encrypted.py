"""Folders of keys and encrypted pipelines for tests, and what strangers try at their sockets."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import zmq

from tallybus.client import Client
from tallybus.common.security.curve import secure_client
from tallybus.common.security.keys import ClientKey, KeyPair, Role, read_client_key, read_pair
from tallybus.common.settings.sections import SOCKETS, Settings
from tallybus.common.stages import STAGES
from tallybus.keyring import Keyring, write_new
from tests.processes.pipeline import make_settings

PORTS: Final = len(STAGES) * len(SOCKETS)


class Keys:
    """A folder of keys and the files of its clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "keys"
        self._files = folder
        self.keyring = Keyring(self.folder)

    def create(self, name: str, role: Role = Role.SUBMIT, **limits: int) -> Path:
        """The file of a new client."""
        path = self._files / f"{name}.key"
        self.keyring.create(name, role, limits, lambda text: write_new(path, text))
        return path

    def client(self, name: str) -> ClientKey:
        return read_client_key(self._files / f"{name}.key")

    @property
    def gateway(self) -> KeyPair:
        return read_pair(self.folder / "gateway.key")

    @property
    def bus(self) -> KeyPair:
        return read_pair(self.folder / "bus.key")

    def secrets(self) -> list[bytes]:
        """Every secret there is: in the folder, and in the files of clients."""
        files = [*self.folder.glob("*.key"), *self._files.glob("*.key")]
        lines = [line for file in files for line in file.read_text().splitlines()]
        found = [line.split('"')[1] for line in lines if line.startswith("secret")]
        assert len(found) == len(files) > 2
        return [secret.encode() for secret in found]


def free_ports() -> int:
    """The first of as many free loopback ports in a row as the stages need, none of which the
    system gives to outgoing connections."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        first = random.SystemRandom().randrange(10_000, max(lowest, 20_000) - PORTS)
        try:
            for port in range(first, first + PORTS):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def encrypted_settings(data: Path, keys: Keys, **overrides: object) -> Settings:
    """Settings of a pipeline whose services and clients talk over tcp with keys."""
    return make_settings(
        data,
        bus__transport="tcp",
        bus__base_port=free_ports(),
        security__keys=keys.folder,
        **overrides,
    )


@contextmanager
def stranger(
    endpoint: str, kind: int, *, own: KeyPair | None = None, server: bytes = b""
) -> Iterator[zmq.Socket[bytes]]:
    """A socket that is none of ours, plain or with these keys."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = context.socket(kind)
    made.setsockopt(zmq.LINGER, 0)
    if kind == zmq.SUB:
        made.setsockopt(zmq.SUBSCRIBE, b"")
    if own is not None:
        secure_client(made, own, server)
    made.connect(endpoint)
    try:
        yield made
    finally:
        made.close()
        context.term()


Connect = Callable[..., Client]
