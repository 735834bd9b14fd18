"""`tallybus function`: register, unregister and list functions, and try one without a ledger."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

from tallybus.cli import connect
from tallybus.cli.errors import CommandFailed, ExitCode
from tallybus.cli.module import read_module
from tallybus.cli.options import (
    FUNCTION_NAME,
    MAX_U64,
    PARAMETER,
    WholeNumber,
    checked_params,
    client_options,
    json_option,
)
from tallybus.cli.output import print_json, print_table, print_values
from tallybus.cli.transact import CALL_MEANINGS, status_json, status_text
from tallybus.cli.transaction import crc_text, entries_as_json, print_entries
from tallybus.common.record import Status

if TYPE_CHECKING:
    from tallybus.functions import FunctionInfo, FunctionVersion, Trial


class GivenBalance(click.ParamType[tuple[int, int]]):
    """`ACCOUNT=AMOUNT`; the amount may be negative."""

    name = "balance"
    _form: Final = re.compile(r"(\d{1,20})=(-?\d{1,20})", re.ASCII)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = self._form.fullmatch(str(value))
        if match is None:
            self.fail(f"{str(value)[:60]!r} is not ACCOUNT=AMOUNT", param, ctx)
        return int(match[1]), PARAMETER.convert(match[2], param, ctx)


_FILE = click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE"
)


@click.group("function")
def function_command() -> None:
    """Register, unregister, list and try functions."""


@function_command.command("register")
@click.argument("name", type=FUNCTION_NAME)
@_FILE
@click.option(
    "--override", is_flag=True, help="Replace the function of that name, if there is one."
)
@client_options(30.0)
@json_option
def register_command(
    name: str,
    file: str,
    override: bool,
    endpoint: str,
    key: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Register the WebAssembly module in FILE as function NAME.

    FILE holds a binary or its text format (WAT); - is standard input. Returns when the function is
    on disk and every later call sees it.
    """
    binary = read_module(file)
    with connect.open_client(endpoint, timeout, key) as client:
        made = client.register_function(name, binary, override)
    _print_version(made, as_json)


@function_command.command("unregister")
@click.argument("name", type=FUNCTION_NAME)
@client_options(30.0)
@json_option
def unregister_command(
    name: str, endpoint: str, key: str | None, timeout: float, as_json: bool
) -> None:
    """Unregister function NAME; from then on calls of it are rejected."""
    with connect.open_client(endpoint, timeout, key) as client:
        made = client.unregister_function(name)
    _print_version(made, as_json)


@function_command.command("list")
@client_options()
@json_option
def list_command(endpoint: str, key: str | None, timeout: float, as_json: bool) -> None:
    """List the registered functions with what they did since the transactor started."""
    with connect.open_client(endpoint, timeout, key) as client:
        functions = client.list_functions()
    if as_json:
        print_json({"functions": [_as_json(each) for each in functions]})
        return
    print_table(
        (
            *("name", "version", "crc32c", "calls", "failures"),
            *("fuel", "mean fuel", "fuel limit", "mean time"),
        ),
        [
            (
                each.name,
                each.version,
                crc_text(each.crc32c),
                each.calls,
                ", ".join(f"{count} {name}" for name, count in _failures(each).items()),
                each.fuel_total,
                "" if each.fuel_mean is None else f"{each.fuel_mean:.1f}",
                each.fuel_limit,
                "" if each.mean_ns is None else f"{each.mean_ns:.0f} ns",
            )
            for each in functions
        ],
    )


@function_command.command("test")
@_FILE
@click.option(
    "--param",
    "params",
    type=PARAMETER,
    multiple=True,
    callback=checked_params,
    metavar="N",
    help="A parameter; given up to 8 times, in order. Missing ones are 0.",
)
@click.option(
    "--balance",
    "balances",
    type=GivenBalance(),
    multiple=True,
    metavar="ACCOUNT=AMOUNT",
    help="What an account holds before the call; others hold 0. May be given many times.",
)
@click.option(
    "--fuel",
    type=WholeNumber("fuel", 1, MAX_U64),
    help="What the call may use.  [default: as in a ledger]",
)
@json_option
def test_command(
    file: str,
    params: tuple[int, ...],
    balances: tuple[tuple[int, int], ...],
    fuel: int | None,
    as_json: bool,
) -> None:
    """Call the module in FILE once, in a ledger's sandbox, but without a ledger.

    Shows how the call would end, what it would move, and the fuel that it took.
    """
    before = dict(balances)
    if len(before) < len(balances):
        raise click.UsageError("--balance gives the same account twice")
    binary = read_module(file)
    from tallybus.embedded import try_function

    trial = try_function(binary, params, before, fuel=fuel)
    after = _balances_after(before, trial)
    if as_json:
        print_json(
            {
                "status": status_json(trial.status),
                "fuel_used": trial.fuel_used,
                "fuel_limit": trial.fuel_limit,
                "trap": trial.trap or None,
                "entries": entries_as_json(trial.entries),
                "balances": [{"account": a, "balance": b} for a, b in sorted(after.items())],
            }
        )
    else:
        print_values(
            {
                "status": status_text(trial.status),
                "fuel": f"{trial.fuel_used} of {trial.fuel_limit}",
            }
        )
        if trial.entries:
            click.echo()
            print_entries(trial.entries)
        if after:
            click.echo()
            print_table(("account", "balance"), sorted(after.items()))
    if trial.status:
        raise CommandFailed(_failure(trial), ExitCode.REJECTED)


def _balances_after(before: dict[int, int], trial: Trial) -> dict[int, int]:
    after = dict(before)
    for entry in trial.entries:
        added = entry.amount if entry.direction.value == "DEBIT" else -entry.amount
        after[entry.account] = after.get(entry.account, 0) + added
    return after


def _failure(trial: Trial) -> str:
    # The sandbox tells where as well, but a line is for what.
    trap = trial.trap[max(0, trial.trap.find("wasm trap:")) :]
    meaning = trap or CALL_MEANINGS.get(trial.status, "the function's own status")
    if trial.status == Status.INVALID_OPERATION and not trial.trap:
        meaning = "it returned what is no status"
    return f"the call would be rejected: {status_text(trial.status)}: {meaning}"


def _print_version(made: FunctionVersion, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "name": made.name,
                "version": made.version,
                "crc32c": crc_text(made.crc32c),
                "tx_id": made.tx_id,
            }
        )
        return
    what = f"crc32c {crc_text(made.crc32c)}" if made.crc32c else "unregistered"
    click.echo(f"{made.name} version {made.version}: {what}, transaction {made.tx_id}")


def _failures(info: FunctionInfo) -> dict[str, int]:
    return {status_text(status): count for status, count in info.failures.items()}


def _as_json(info: FunctionInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "version": info.version,
        "crc32c": crc_text(info.crc32c),
        "tx_id": info.tx_id,
        "calls": info.calls,
        "failures": _failures(info),
        "fuel_total": info.fuel_total,
        "fuel_mean": info.fuel_mean,
        "fuel_limit": info.fuel_limit,
        "mean_ns": info.mean_ns,
    }
