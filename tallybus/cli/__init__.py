"""The command `tallybus`. One module per group of commands, imported when its command is called.

Nothing here but click is imported up front, so that a short command is not slowed down by what the
long ones need. Exit codes are in `tallybus.cli.exit_codes`, and in `docs/cli.md`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

COMMANDS: Final = {
    "up": ("operate", "Run all services, and restart what dies."),
    "serve": ("operate", "Run one service."),
    "health": ("health", "Ask a service of this machine how it is."),
    "deposit": ("transact", "Add an amount to an account."),
    "withdraw": ("transact", "Take an amount from an account."),
    "transfer": ("transact", "Move an amount from one account to another."),
    "call": ("transact", "Call a function as one transaction."),
    "function": ("function", "Register, unregister, list and try functions."),
    "balance": ("read", "Show the balances of accounts."),
    "index": ("read", "Show how far each stage of the pipeline has come."),
    "status": ("read", "Show how far transactions have come and how they ended."),
    "tx": ("transaction", "Show one transaction with its entries."),
    "clock": ("clock", "Show the ledger's time, or accept a clock that has jumped ahead."),
    "top": ("top", "Watch the pipeline live in the terminal."),
    "import": ("imports", "Send the transactions of a CSV file."),
    "load": ("measure.load", "Measure how many transactions per second a ledger takes."),
    "latency": ("measure.latency", "Measure how long one transaction takes."),
    "keys": ("keys", "Make, list and revoke the keys of clients."),
    "config": ("config", "Show the settings."),
}
"""Every command: the module of this package that has it (under the name NAME_command), and its
one line of help."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; `--help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"tallybus.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(
        self,
        ctx: click.Context,
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command, whatever becomes of those who read what it prints."""
        from tallybus.cli.pipes import guarded

        with guarded():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises on purpose becomes one line and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            from tallybus.cli.errors import as_click_exception

            raised = as_click_exception(error)
            if raised is None:
                raise
            raise raised from error


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from tallybus import __version__

        click.echo(f"tallybus {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """A financial ledger: five services on a bus, and the tools to use and measure it.

    Amounts are whole numbers of minor units. Exit codes: 0 done, 1 rejected by the ledger, 2 wrong
    use or malformed file, 3 ledger unreachable, overloaded or too slow, 4 outcome unknown, 5 failed
    otherwise, 6 access refused, 69 packages are missing, 141 nobody reads the output.
    """
