"""`tallybus deposit`, `withdraw`, `transfer` and `call`: one transaction each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tallybus.cli import connect
from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.options import (
    ACCOUNT,
    AMOUNT,
    FUNCTION_NAME,
    PARAMETER,
    USER_REF,
    checked_params,
    client_options,
    json_option,
    wait_option,
)
from tallybus.cli.output import print_json
from tallybus.common.record import Level, Reason, Status, json_name, status_of
from tallybus.operations import Deposit, Function, Operation, Transfer, Withdrawal

if TYPE_CHECKING:
    from tallybus.operations import Result

F = TypeVar("F", bound=Callable[..., Any])

MEANINGS: Final[dict[Status | int, str]] = {
    Status.INSUFFICIENT_FUNDS: "the account holds less than the amount",
    Status.ACCOUNT_NOT_FOUND: "the ledger has no such account",
    Status.INVALID_OPERATION: "the ledger does not take such an operation",
    Status.ACCOUNT_LIMIT_EXCEEDED: "the account's number is beyond the ledger's max_accounts",
    Status.DUPLICATE: "its user_ref was used before; nothing was applied again",
    Status.BALANCE_OVERFLOW: "a balance would leave the range of 64-bit integers",
    Status.ZERO_SUM_VIOLATION: "what the function credited is not what it debited",
    Status.ENTRY_LIMIT_EXCEEDED: "the function made more than 255 entries",
    Status.QUOTA_EXCEEDED: "the function used up its fuel",
}
REASONS: Final[dict[Reason | int, str]] = {
    Reason.TRAP: "the function trapped, or could not be started",
    Reason.UNKNOWN_FUNCTION: "there is no function of this name",
    Reason.BAD_RETURN: "the function returned a value that is no status",
    Reason.WORK: "the calls before it used up what one request may take; send it again",
    Reason.ENTRIES: "the calls before it made as many entries as one request may; send it again",
    Reason.STOPPED: "an operator has suspended the function; its user_ref can be used again",
    Reason.INTERRUPTED: "an operator suspended the function while it ran; it was undone, and its "
    "user_ref can be used again",
    Reason.TIME: "the function ran for longer than its fuel explains",
}
CALL_MEANINGS: Final = MEANINGS | {
    Status.INVALID_OPERATION: "there is no such function, or it trapped, or it returned a "
    "value that is no status",
}


def _options(function: F) -> F:
    for option in (
        json_option,
        client_options(),
        wait_option(),
        click.option(
            "--user-ref",
            type=USER_REF,
            default=0,
            help="Idempotency key, 0 = none: the same key is executed once.",
        ),
    ):
        function = option(function)
    return function


@click.command("deposit")
@click.argument("account", type=ACCOUNT)
@click.argument("amount", type=AMOUNT)
@_options
def deposit_command(account: int, amount: int, user_ref: int, **options: Any) -> None:
    """Add AMOUNT (minor units) to ACCOUNT; the system account 0 gives it."""
    _submit(Deposit(account, amount, user_ref), **options)


@click.command("withdraw")
@click.argument("account", type=ACCOUNT)
@click.argument("amount", type=AMOUNT)
@_options
def withdraw_command(account: int, amount: int, user_ref: int, **options: Any) -> None:
    """Take AMOUNT (minor units) from ACCOUNT; the system account 0 gets it."""
    _submit(Withdrawal(account, amount, user_ref), **options)


@click.command("transfer")
@click.argument("source", type=ACCOUNT, metavar="FROM")
@click.argument("target", type=ACCOUNT, metavar="TO")
@click.argument("amount", type=AMOUNT)
@_options
def transfer_command(source: int, target: int, amount: int, user_ref: int, **options: Any) -> None:
    """Move AMOUNT (minor units) from account FROM to account TO."""
    _submit(Transfer(source, target, amount, user_ref), **options)


@click.command(
    "call",
    # A parameter may be negative: what begins with a minus sign is not always an option.
    context_settings={"ignore_unknown_options": True},
)
@click.argument("name", type=FUNCTION_NAME)
@click.argument("params", type=PARAMETER, nargs=-1, callback=checked_params, metavar="[PARAM...]")
@_options
def call_command(name: str, params: tuple[int, ...], user_ref: int, **options: Any) -> None:
    """Call function NAME with up to 8 whole numbers; missing ones are 0."""
    _submit(Function(name, params, user_ref), **options)


def _submit(
    operation: Operation,
    *,
    level: Level,
    endpoint: str,
    key: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    with connect.open_client(endpoint, timeout, key) as client:
        result = client.submit_and_wait(operation, level)
    known = result.status is not None
    if as_json:
        print_json(
            {
                "tx_id": result.tx_id,
                "ok": result.ok if known else None,
                "status": status_json(result.status),
                "reason": reason_text(result.reason),
                "level": result.level.name,
                "duplicate_of": result.duplicate_of,
                "original_status": status_json(result.original_status),
            }
        )
    elif result.ok:
        again = "" if result.duplicate_of is None else " (an earlier sending of this one)"
        click.echo(f"transaction {result.tx_id}: {result.level.name.lower()}{again}")
    elif not known:
        click.echo(f"transaction {result.tx_id}: sequenced; its outcome was not waited for")
    if known and not result.ok:
        raise CommandFailed(_rejection(result, operation), ExitCode.REJECTED)


def _rejection(result: Result, operation: Operation) -> str:
    status = result.status or Status.OK
    meanings = CALL_MEANINGS if isinstance(operation, Function) else MEANINGS
    meaning = meanings.get(status, "the function's own status")
    text = f"transaction {result.tx_id} rejected: {status_text(status)}"
    if status == Status.DUPLICATE:
        text = f"rejected: {status_text(status)} of transaction {result.duplicate_of}"
        meaning = f"{meaning}; that one ended with {result.original_status}"
    elif result.reason in REASONS:
        meaning = REASONS[Reason(result.reason)]
    return f"{text}: {meaning}"


def status_text(status: Status | int | None) -> str:
    """Name of a status for people: OK for success, a function's own code as FUNCTION_n, and nothing
    where it is not known.
    """
    if status is None:
        return ""
    return status.name if isinstance(status, Status) else status_of(int(status), 0).name


def status_json(status: Status | int | None) -> str | None:
    """The same for programs, which have always read NONE for success."""
    return None if status is None else json_name(status)


def reason_text(reason: Reason | int) -> str | None:
    """Name of a reason; None where there is none."""
    if not reason:
        return None
    return reason.name if isinstance(reason, Reason) else f"REASON_{reason}"
