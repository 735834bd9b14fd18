"""`tallybus keys create|list|revoke`: who may reach the ledger over the network.

It works on the folder of keys alone. Services that run see by themselves what changes there. It
never prints a secret, except the client's own file with `--out -`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import click

from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.options import WholeNumber, json_option
from tallybus.cli.output import note, print_json, print_table
from tallybus.cli.owner import as_ourselves, as_owner
from tallybus.cli.pipes import print_or_fail
from tallybus.cli.setting_options import parse_assignments, settings_options
from tallybus.common.files import Storage, StorageError
from tallybus.common.functions.names import PATTERN_RULE, is_function_pattern
from tallybus.common.security.keys import LIMITS, MAX_LIMIT, Grant, Role
from tallybus.keyring import Keyring, KeyringError, write_new

STDOUT: Final = "-"
STORAGE = Storage()
"""Where everything is written; tests put one there that fails."""

READ: Final = Role.READ.name.lower()
ALL_FUNCTIONS: Final = ("all",)
NO_FUNCTIONS: Final = "none"


class FunctionPatterns(click.ParamType[tuple[str, ...]]):
    """Names of functions, perhaps with * and ?, separated by commas; or `all`, or `none`."""

    name = "functions"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        if value == NO_FUNCTIONS:
            return ()
        names = tuple(each.strip() for each in str(value).split(","))
        for each in names:
            if not is_function_pattern(each):
                self.fail(f"{each[:40]!r} names no functions; give {PATTERN_RULE}", param, ctx)
        return names


_LIMIT: Final = WholeNumber("number", 1, MAX_LIMIT)
_FOLDER: Final = click.option(
    "--folder",
    type=click.Path(file_okay=False),
    help="The folder of keys.  [default: the setting security.keys]",
)


@click.group("keys")
def keys_command() -> None:
    """Make, list and revoke the keys of clients."""


@keys_command.command("create")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([role.name.lower() for role in Role]),
    required=True,
    help="What the client may do: read; submit, too; and register functions, too.",
)
@click.option(
    "--out",
    metavar="FILE",
    help="Where the client's own file goes; - is standard output.  [default: NAME.key]",
)
@click.option(
    "--max-in-flight",
    type=_LIMIT,
    metavar="N",
    help="Operations and reads that may wait for an answer.  [default: gateway.client_in_flight]",
)
@click.option(
    "--max-rate",
    type=_LIMIT,
    metavar="N",
    help="Operations and reads in a second.  [default: gateway.client_rate]",
)
@click.option(
    "--max-message-bytes",
    type=_LIMIT,
    metavar="N",
    help="Bytes of one request.  [default: gateway.client_message_bytes]",
)
@click.option(
    "--max-work-ms",
    type=WholeNumber("number", 1, 1_000),
    metavar="N",
    help="Milliseconds of the ledger's time that its calls of functions may take in a second.  "
    "[default: gateway.client_work_ms]",
)
@click.option(
    "--functions",
    type=FunctionPatterns(),
    metavar="NAME,…",
    help="Functions that it may call, with * and ? for any characters; none: no function.  "
    "[default: all]",
)
@click.option(
    "--no-builtins",
    is_flag=True,
    help="It may call functions, and submit nothing else: no deposits, withdrawals, transfers.",
)
@_FOLDER
@settings_options
def create_command(
    name: str,
    role: str,
    out: str | None,
    functions: tuple[str, ...] | None,
    no_builtins: bool,
    folder: str | None,
    config: str | None,
    assignments: tuple[str, ...],
    **limits: int | None,
) -> None:
    """Make a key for the client NAME, and a file with it that the client connects with.

    The first call makes the folder, and in it the key pairs of the gateway and of the services.
    Hand the file over on a way that you trust, and keep no copy: it is all that its holder needs.
    """
    granted = None if functions == ALL_FUNCTIONS else functions
    if role == READ and (granted is not None or no_builtins):
        raise click.UsageError("--functions and --no-builtins are of no use to the role read")
    if granted == () and no_builtins:
        raise click.UsageError("nothing would be left to submit; take --role read")
    keyring = _keyring(folder, config, assignments)
    given = {limit: value for limit, value in limits.items() if value is not None}
    target = None if out == STDOUT else Path(out if out is not None else f"{name}.key")
    if target is not None and os.path.lexists(target):
        raise CommandFailed(f"{target} is there already; choose another --out", ExitCode.USAGE)
    written = False

    def hand_over(text: str) -> None:
        nonlocal written
        if target is None:
            try:
                print_or_fail(text)
            except OSError as error:
                raise CommandFailed(
                    f"the key cannot be written to standard output ({error.strerror}); "
                    "nothing was made",
                    ExitCode.FAILED,
                ) from error
            return
        with as_ourselves():
            write_new(target, text, STORAGE)
        written = True

    with _told(), as_owner(keyring.folder):
        try:
            made = keyring.create(
                name, Role[role.upper()], given, hand_over, granted, builtins=not no_builtins
            )
        except BaseException:
            if written and target is not None:
                # Nobody would let it in.
                with suppress(StorageError), as_ourselves():
                    STORAGE.remove(target)
            raise
    for path in made.pairs:
        note(f"made {path}")
    where = "" if target is None else f", key in {target}"
    click.echo(
        f"{name}: {role}{where}, public key {made.key.pair.public.decode()}", err=target is None
    )


@keys_command.command("list")
@_FOLDER
@settings_options
@json_option
def list_command(
    folder: str | None, config: str | None, assignments: tuple[str, ...], as_json: bool
) -> None:
    """List the keys of clients, those that were revoked too. Shows no secrets."""
    with _told():
        grants = _keyring(folder, config, assignments).grants()
    if as_json:
        print_json({"keys": [_as_json(grant) for grant in grants]})
        return
    print_table(
        (
            *("name", "role", "created", "revoked", "in flight", "rate", "message bytes"),
            "work ms",
            *("public key", "may submit"),
        ),
        [
            (
                grant.name,
                grant.role.name.lower(),
                grant.created,
                grant.revoked,
                *(getattr(grant, limit) or "" for limit in LIMITS),
                grant.public.decode(),
                _may_submit(grant),
            )
            for grant in grants
        ],
    )


@keys_command.command("revoke")
@click.argument("name")
@_FOLDER
@settings_options
def revoke_command(
    name: str, folder: str | None, config: str | None, assignments: tuple[str, ...]
) -> None:
    """Refuse the client NAME from now on, on connections that are there, too.

    Holds within two seconds. Its name stays taken, so that the log tells one client by it.
    """
    with _told():
        keyring = _keyring(folder, config, assignments)
        with as_owner(keyring.folder):
            grant, changed = keyring.revoke(name)
    if changed:
        click.echo(f"{name}: revoked at {grant.revoked}")
    else:
        click.echo(f"{name}: was revoked already, at {grant.revoked}")


def _keyring(folder: str | None, config: str | None, assignments: tuple[str, ...]) -> Keyring:
    if folder is None:
        from tallybus.common.settings.sections import load

        keys = load(config, overrides=parse_assignments(assignments)).security.keys
        if keys is None:
            raise click.UsageError("say which folder of keys: --folder, or set security.keys")
        return Keyring(keys, STORAGE)
    return Keyring(Path(folder), STORAGE)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except KeyringError as error:
        raise CommandFailed(str(error), ExitCode.USAGE) from error
    except StorageError as error:
        raise CommandFailed(str(error), ExitCode.FAILED) from error


def _may_submit(grant: Grant) -> str:
    if grant.role < Role.SUBMIT:
        return "nothing"
    if grant.functions is None:
        return "everything" if grant.builtins else "calls of all functions"
    calls = f"calls of {', '.join(grant.functions)}" if grant.functions else ""
    builtins = "built-in operations" if grant.builtins else ""
    return ", ".join(filter(None, (builtins, calls))) or "nothing"


def _as_json(grant: Grant) -> dict[str, Any]:
    return {
        "name": grant.name,
        "role": grant.role.name.lower(),
        "created": grant.created,
        "revoked": grant.revoked or None,
        **{limit: getattr(grant, limit) or None for limit in LIMITS},
        "functions": None if grant.functions is None else list(grant.functions),
        "builtins": grant.builtins,
        "public": grant.public.decode(),
    }
