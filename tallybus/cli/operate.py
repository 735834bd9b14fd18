"""`tallybus up` and `tallybus serve`: run the services."""

from __future__ import annotations

import sys
from typing import Final

import click

from tallybus.cli import streams
from tallybus.cli.setting_options import parse_assignments, settings_options
from tallybus.common.settings.sections import Settings, load
from tallybus.common.stages import SERVICES
from tallybus.extras import need_server

DATA_HELP: Final = "Folder of the log and the snapshots: ledger.data."
ENDPOINT_HELP: Final = "Where the ledger listens for clients: gateway.endpoint."


@click.command("up")
@click.option("--data", type=click.Path(file_okay=False), help=DATA_HELP)
@click.option("--endpoint", help=ENDPOINT_HELP)
@settings_options
def up_command(
    data: str | None, endpoint: str | None, config: str | None, assignments: tuple[str, ...]
) -> None:
    """Run all services as processes, and restart what dies, until stopped.

    Prints the endpoint on standard output when the ledger is up.
    """
    need_server("`tallybus up`")
    from tallybus.supervisor import Supervisor

    settings = _settings(data, endpoint, config, assignments)

    def tell() -> None:
        try:
            click.echo(settings.gateway.endpoint)
        except OSError:
            streams.abandon()
            raise

    sys.exit(Supervisor(settings).run(on_ready=tell))


@click.command("serve")
@click.argument("stage", type=click.Choice(SERVICES))
@click.option("--data", type=click.Path(file_okay=False), help=DATA_HELP)
@click.option("--endpoint", help=ENDPOINT_HELP)
@settings_options
def serve_command(
    stage: str,
    data: str | None,
    endpoint: str | None,
    config: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Run one service in this process until stopped; the others run elsewhere."""
    need_server("`tallybus serve`")
    from tallybus.supervisor import serve

    sys.exit(serve(stage, _settings(data, endpoint, config, assignments)))


def _settings(
    data: str | None, endpoint: str | None, config: str | None, assignments: tuple[str, ...]
) -> Settings:
    overrides = parse_assignments(assignments)
    for key, value in (("ledger.data", data), ("gateway.endpoint", endpoint)):
        if value is not None:
            overrides[key] = value
    return load(config, overrides=overrides)
