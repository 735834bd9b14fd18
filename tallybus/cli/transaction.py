"""`tallybus tx`: one transaction as the log has it, with its entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tallybus.cli import connect
from tallybus.cli.options import TX_ID, client_options, json_option, min_tx_id_option
from tallybus.cli.output import print_json, print_table, print_values
from tallybus.cli.transact import reason_text, status_json, status_text
from tallybus.common.record import Kind
from tallybus.common.times import utc_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallybus.transactions import Entry, Transaction


@click.command("tx")
@click.argument("tx_id", type=TX_ID, metavar="TX_ID")
@min_tx_id_option
@client_options()
@json_option
def tx_command(
    tx_id: int,
    min_tx_id: int | None,
    endpoint: str,
    key: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Show one transaction: what was asked for, how it ended, what it moved."""
    with connect.open_client(endpoint, timeout, key) as client:
        found = client.get_transaction(tx_id, min_tx_id)
    if as_json:
        print_json(_as_json(found))
        return
    print_values(_as_values(found))
    if found.entries:
        click.echo()
        print_entries(found.entries)


def print_entries(entries: Sequence[Entry]) -> None:
    """Draw entries as a table, a column for each direction."""
    print_table(
        ("account", "credit", "debit"),
        [
            (each.account, *((each.amount, "") if _is_credit(each) else ("", each.amount)))
            for each in entries
        ],
    )


def entries_as_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Entries as they are printed with --json."""
    return [
        {"account": each.account, "direction": each.direction.value, "amount": each.amount}
        for each in entries
    ]


def crc_text(crc32c: int) -> str:
    """A CRC-32C as it is shown everywhere: eight hexadecimal digits."""
    return f"{crc32c:08x}"


def _is_credit(entry: Entry) -> bool:
    return entry.direction.value == "CREDIT"


def _kind_text(kind: Kind | int) -> str:
    return kind.name if isinstance(kind, Kind) else str(kind)


def _as_json(found: Transaction) -> dict[str, Any]:
    crc32c = found.function_crc32c
    return {
        "tx_id": found.tx_id,
        "timestamp_ns": found.timestamp_ns,
        "term": found.term,
        "kind": _kind_text(found.kind),
        "status": status_json(found.status),
        "reason": reason_text(found.reason),
        "user_ref": found.user_ref,
        "account": found.account,
        "source": found.source,
        "target": found.target,
        "amount": found.amount,
        "function": found.function_name,
        "version": found.function_version,
        "crc32c": None if crc32c is None else crc_text(crc32c),
        "params": list(found.params),
        "entries": entries_as_json(found.entries),
        "duplicate_of": found.duplicate_of,
        "last_snapshot_tx_id": found.last_snapshot_tx_id,
    }


def _as_values(found: Transaction) -> dict[str, object]:
    values: dict[str, object] = {
        "transaction": found.tx_id,
        "time": utc_text(found.timestamp_ns),
        "term": found.term,
        "kind": _kind_text(found.kind),
        "status": status_text(found.status),
        "user_ref": found.user_ref or "none",
    }
    if found.reason:
        values["reason"] = reason_text(found.reason)
    for name in ("account", "source", "target", "amount"):
        value = getattr(found, name)
        if value is not None:
            values[name] = value
    if found.kind in (Kind.FUNCTION, Kind.FUNCTION_REGISTERED):
        values["function"] = _function_text(found)
    if found.kind is Kind.FUNCTION:
        values["params"] = " ".join(map(str, found.params)) or "none"
    if found.duplicate_of is not None:
        values["duplicate of"] = found.duplicate_of
    return values


def _function_text(found: Transaction) -> str:
    if found.function_crc32c is None:
        # A registration that failed has a name all the same.
        return found.function_name or "none ran"
    known = found.function_name or "not known"
    version = "" if found.function_version is None else f" version {found.function_version}"
    if found.function_crc32c == 0:
        return f"{known}{version}, unregistered"
    return f"{known}{version}, crc32c {crc_text(found.function_crc32c)}"
