"""`tallybus health STAGE`: whether a service of this machine lives, has recovered, is ready.

For container health checks, so it loads next to nothing: it asks the service's own HTTP server over
one socket. Reads settings; changes nothing.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from typing import Any, Final

import click

from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.setting_options import parse_assignments, settings_options
from tallybus.common.settings.endpoints import LOCALHOST, reached_host, shown
from tallybus.common.settings.sections import load, metrics_address
from tallybus.common.stages import SERVICES

WANTS: Final = ("alive", "recovered", "ready")
_MAX_BYTES: Final = 65_536


@click.command("health")
@click.argument("stage", type=click.Choice(SERVICES))
@click.option(
    "--want",
    type=click.Choice(WANTS),
    default="ready",
    show_default=True,
    help="What the service must be.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0.01), default=2.0, show_default=True, help="Seconds."
)
@settings_options
def health_command(
    stage: str, want: str, timeout: float, config: str | None, assignments: tuple[str, ...]
) -> None:
    """Ask a service of this machine how it is; needs `metrics.address`.

    Prints its answer, one JSON object. Exit code 0 when it is what is wanted, else 3.
    """
    address = metrics_address(load(config, overrides=parse_assignments(assignments)), stage)
    if address is None:
        raise click.UsageError(
            "metrics.address is not set, and without it no service can be asked; "
            "set it as the running service has it"
        )
    host, port = reached_host(address[0]), address[1]
    path = "/readyz" if want == "ready" else "/healthz"
    try:
        status, body = _get(host, port, path, timeout)
        facts: dict[str, Any] = json.loads(body)
    except (OSError, ValueError) as error:
        raise CommandFailed(
            f"no answer of the {stage} at {shown((host, port))}: {error}", ExitCode.UNREACHABLE
        ) from error
    click.echo(json.dumps(facts))
    good = status == 200 and (want != "recovered" or facts.get("state") == "running")
    if facts.get("stage") != stage or not good:
        raise click.exceptions.Exit(ExitCode.UNREACHABLE)


def _connected(host: str, port: int, timeout: float) -> socket.socket:
    """A connection to the service, which may listen on either loopback address of this machine.

    Not create_connection: looking names up loads 5 ms of tables.
    """
    if host.lower() == LOCALHOST:
        with suppress(OSError):
            return _connected("127.0.0.1", port, timeout)
        host = "::1"
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        connection.settimeout(timeout)
        connection.connect((host, port))
    except BaseException:
        connection.close()
        raise
    return connection


def _get(host: str, port: int, path: str, timeout: float) -> tuple[int, bytes]:
    """Status and body. Raises OSError, and ValueError for what is no answer over HTTP."""
    limit = time.monotonic() + timeout
    answer = b""
    with _connected(host, port, timeout) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {shown((host, port))}\r\n\r\n".encode())
        while len(answer) < _MAX_BYTES:
            connection.settimeout(max(0.001, limit - time.monotonic()))
            part = connection.recv(_MAX_BYTES)
            if not part:
                break
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError("it is no answer over HTTP")
    return int(words[1]), body
