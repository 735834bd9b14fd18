"""One compose project of the test: how to bring it up, look into it and take it away."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from tallybus.common.stages import PORTS
from tests.compose.engine import Docker
from tests.support.folders import PROJECT

DEPLOYED_ORDER = ("snapshotter", "wal", "transactor", "sequencer", "gateway")
"""The order in which the deployment files start the services: each waits for the one before it."""
METRICS_PORTS = {service: 9464 + place for place, service in enumerate(PORTS)}
WAIT_SECONDS = 180


class Failed(Exception):
    """Something is not as it must be."""


def check(good: bool, what: str) -> None:
    """Raises Failed where it is not so."""
    if not good:
        raise Failed(what)


def until(what: str, condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> float:
    """Seconds until it holds; raises Failed when it does not in time."""
    began = time.monotonic()
    while not condition():
        check(time.monotonic() - began < seconds, f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - began


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Stack:
    """The services of some compose files under a name of their own, on a free port of loopback."""

    count = 0

    def __init__(self, docker: Docker, image: str, files: tuple[str, ...]) -> None:
        Stack.count += 1
        self.name = f"tallybus-test-{os.getpid()}-{Stack.count}"
        self.port, self.page_port = _free_port(), _free_port()
        own = {
            "LEDGER_IMAGE": image,
            "LEDGER_PORT": str(self.port),
            "LEDGER_PAGE_PORT": str(self.page_port),
        }
        self.docker = Docker(docker.command, {**docker.environment, **own}, docker.own)
        self.files = files
        self.key = ""
        """The file of the key with which `tallybus` and `importing` connect; empty: none."""
        self._client = f"{self.name}-client"
        self._options = ["--project-name", self.name, "--project-directory", str(PROJECT)]
        for file in files:
            self._options += ["--file", str(PROJECT / file)]

    def compose(self, *arguments: str, check: bool = True, text: str | None = None) -> str:
        """Standard output of `docker compose ARGUMENTS…`."""
        return self.docker("compose", *self._options, *arguments, check=check, text=text)

    def up(self, *arguments: str) -> float:
        """Seconds until all are healthy."""
        began = time.monotonic()
        self.compose("up", "--detach", "--no-build", *arguments)
        return time.monotonic() - began

    def remove(self) -> None:
        """Containers, networks and volumes."""
        self.docker("rm", "--force", self._client, check=False)
        self.compose("down", "--volumes", "--timeout", "30", check=False)

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """Standard output of a command in a service's container."""
        return self.compose("exec", "-T", service, *command, check=check)

    def keys(self, *arguments: str) -> str:
        """Standard output of `tallybus keys ARGUMENTS…` on the folder of keys."""
        return self.compose("run", "--rm", "-T", "keys", *arguments)

    def tallybus(self, *arguments: str, text: str | None = None) -> Any:
        """The answer of `tallybus ARGUMENTS… --json`, called in the gateway's container."""
        environment = ["--env", f"KEY={self.key}"] if self.key else []
        command = self._command(*arguments, "--json")
        return json.loads(self.compose("exec", "-T", *environment, "gateway", *command, text=text))

    def _command(self, *arguments: str) -> list[str]:
        """`tallybus` in a container, with the key in a file where there is one."""
        if not self.key:
            return ["tallybus", *arguments]
        connect = (
            'umask 077; printf %s "$KEY" > /tmp/own.key; unset KEY; '
            'TALLYBUS_KEY=/tmp/own.key exec tallybus "$@"'
        )
        return ["sh", "-c", connect, "tallybus", *arguments]

    def exit_code(self, *arguments: str) -> int:
        """How `tallybus ARGUMENTS…` ends in the gateway's container."""
        command = shlex.join(self._command(*arguments))
        environment = ["--env", f"KEY={self.key}"] if self.key else []
        script = f"({command}) > /tmp/told 2>&1; echo $?"
        return int(self.compose("exec", "-T", *environment, "gateway", "sh", "-c", script))

    def importing(self, csv: str, batch: int) -> subprocess.Popen[str]:
        """An import by a container of its own, which outlives every service."""
        command = self._command(
            *("import", csv, "--batch", str(batch), "--timeout", "120", "--again", "--json")
        )
        return subprocess.Popen(
            [
                *(self.docker.command, "run", "--rm", "--interactive", "--read-only"),
                *("--name", self._client, "--network", f"{self.name}_ledger", "--tmpfs", "/tmp"),
                *("--env", "TALLYBUS_ENDPOINT=tcp://gateway:5550", "--env", f"KEY={self.key}"),
                *("--entrypoint", command[0], self.docker.environment["LEDGER_IMAGE"]),
                *command[1:],
            ],
            env=dict(self.docker.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def state(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container; {} without one."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        if not container:
            return {}
        found: dict[str, Any] = json.loads(self.docker("inspect", container))[0]
        return found

    def is_ready(self, service: str) -> bool:
        """Whether a service says that it is ready."""
        answer = self.inside(service, "tallybus", "health", service, check=False)
        return '"ready": true' in answer

    def metrics(self, service: str) -> dict[str, float]:
        """What a service serves: values by name with labels."""
        fetch = (
            "import urllib.request as r;"
            f"print(r.urlopen('http://127.0.0.1:{METRICS_PORTS[service]}/metrics').read().decode())"
        )
        lines = self.inside(service, "python3", "-c", fetch).splitlines()
        rows = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in rows}
