"""`tallybus function`: register, unregister and list functions, and try one without a ledger."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import click

from tallybus.cli import connect
from tallybus.cli.functiontest import test_command
from tallybus.cli.module import read_module
from tallybus.cli.options import FUNCTION_NAME, client_options, json_option
from tallybus.cli.output import print_json, print_table
from tallybus.cli.suspend import resume_command, suspend_command, suspended_command
from tallybus.cli.transact import status_text
from tallybus.cli.transaction import crc_text

if TYPE_CHECKING:
    from tallybus.functions import FunctionInfo, FunctionVersion

_MIB: Final = 1 << 20


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
        usage = client.function_usage()
    if as_json:
        found = [_as_json(each) for each in functions]
        print_json({"functions": found, "usage": dataclasses.asdict(usage)})
        return
    print_table(
        (
            *("name", "version", "crc32c", "calls", "failures"),
            *("fuel", "mean fuel", "fuel limit", "mean time", "p99", "work", ""),
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
                "" if each.p99_ns is None else f"{each.p99_ns:.0f} ns",
                f"{each.work_ns / 1e9:.3f} s",
                "suspended" if each.suspended else "",
            )
            for each in functions
        ],
    )
    for each in functions:
        if each.unusable:
            click.echo(f"\n{each.name} cannot run: its calls end SUSPENDED. {each.unusable}")
    if functions or usage.waiting:
        click.echo(
            f"\nbinaries of all versions on disk: {usage.binaries_bytes / _MIB:.1f} of"
            f" {usage.binaries_limit / _MIB:.0f} MiB\n"
            f"machine code: {usage.code_bytes / _MIB:.1f} of {usage.code_limit / _MIB:.0f} MiB, "
            f"compiled in {usage.compile_seconds:.1f} of {usage.compile_limit:.0f} s\n"
            f"waiting to be compiled: {usage.waiting}"
        )


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
        "p99_ns": info.p99_ns,
        "work_ns": info.work_ns,
        "reasons": {reason.name: count for reason, count in info.reasons.items()},
        "suspended": info.suspended,
        "compile_seconds": info.compile_seconds,
        "code_bytes": info.code_bytes,
        "start_fuel": info.start_fuel,
        "unusable": info.unusable,
    }


for _command in (test_command, suspend_command, resume_command, suspended_command):
    function_command.add_command(_command)
