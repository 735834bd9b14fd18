"""`tallybus balance`, `index` and `status`: what the ledger holds and how far it is."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from tallybus.cli import connect
from tallybus.cli.options import (
    TX_ID,
    client_options,
    json_option,
    min_tx_id_option,
)
from tallybus.cli.output import note, print_json, print_table, print_values
from tallybus.cli.transact import reason_text, status_json, status_text
from tallybus.common.record import MAX_U64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tallybus.client import Client

ACCOUNTS_PER_READ: Final = 65_536
MAX_ACCOUNTS: Final = 100_000_000


class Accounts(click.ParamType[range]):
    """One account (`7`) or several in a row (`1-100`, both ends included)."""

    name = "accounts"
    _form: Final = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        if isinstance(value, range):
            return value
        match = self._form.fullmatch(str(value))
        if match is None:
            self.fail(f"{str(value)[:40]!r} is neither an account nor FIRST-LAST", param, ctx)
        first, last = int(match[1]), int(match[2] or match[1])
        if last > MAX_U64 or first > last:
            self.fail(f"{value} is not in 0..{MAX_U64} in rising order", param, ctx)
        if last - first >= MAX_ACCOUNTS:
            self.fail(f"{value} is more than {MAX_ACCOUNTS} accounts", param, ctx)
        return range(first, last + 1)


@click.command("balance")
@click.argument("accounts", type=Accounts(), nargs=-1, required=True, metavar="ACCOUNT...")
@click.option("--sum", "only_sum", is_flag=True, help="Print the sum of the balances alone.")
@min_tx_id_option
@client_options()
@json_option
def balance_command(
    accounts: tuple[range, ...],
    only_sum: bool,
    min_tx_id: int | None,
    endpoint: str,
    key: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Show balances, in minor units. An ACCOUNT may be a range, such as 1-100.

    The sum over all accounts, account 0 included, is always 0. Up to 65,536 balances are read as of
    one transaction; more take several reads, between which the ledger may move on.
    """
    wanted = np.concatenate([_numbers(each) for each in accounts])
    with connect.open_client(endpoint, timeout, key) as client:
        balances, as_of = _read_balances(client, wanted, min_tx_id)
    # As Python integers: the sum of many balances may leave 64 bits.
    values = balances.tolist()
    total = sum(values)
    pairs = list(zip(wanted.tolist(), values, strict=True))
    if as_json:
        report: dict[str, Any] = {}
        if not only_sum:
            report["balances"] = [{"account": a, "balance": b} for a, b in pairs]
        report |= {"accounts": len(pairs), "sum": total, "last_snapshot_tx_id": as_of}
        print_json(report)
    elif only_sum:
        click.echo(str(total))
    else:
        footer = ("sum", total) if len(pairs) > 1 else None
        print_table(("account", "balance"), pairs, footer)


def _numbers(accounts: range) -> NDArray[np.uint64]:
    count = np.arange(len(accounts), dtype=np.uint64)
    return count + np.uint64(accounts.start)


def _read_balances(
    client: Client, accounts: NDArray[np.uint64], min_tx_id: int | None
) -> tuple[NDArray[np.int64], int]:
    parts = [
        client.get_balances(accounts[start : start + ACCOUNTS_PER_READ], min_tx_id=min_tx_id)
        for start in range(0, len(accounts), ACCOUNTS_PER_READ)
    ]
    first, last = parts[0].last_snapshot_tx_id, parts[-1].last_snapshot_tx_id
    if first != last:
        note(f"the ledger moved on between the reads, from transaction {first} to {last}")
    return np.concatenate([part.balances for part in parts]), last


@click.command("index")
@click.option("--services", is_flag=True, help="Show every service, its process and its links.")
@client_options()
@json_option
def index_command(
    services: bool, endpoint: str, key: str | None, timeout: float, as_json: bool
) -> None:
    """Show the last transaction that each stage has passed, and the term."""
    if services:
        _show_services(endpoint, key, timeout, as_json)
        return
    with connect.open_client(endpoint, timeout, key) as client:
        index = client.pipeline_index()
    values: dict[str, int] = {
        "sequenced": index.sequenced,
        "computed": index.computed,
        "committed": index.committed,
        "snapshot": index.snapshot,
        "term": index.term,
    }
    if as_json:
        print_json(values)
    else:
        print_values(values)


def _show_services(endpoint: str, key: str | None, timeout: float, as_json: bool) -> None:
    with connect.open_client(endpoint, timeout, key) as client:
        services = client.services()
    now_ns = time.time_ns()
    rows: list[dict[str, Any]] = []
    for each in services:
        row = dataclasses.asdict(each)
        del row["started_ns"]
        row["incarnation"] = f"{each.incarnation:016x}"
        row["uptime_s"] = (
            round((now_ns - each.started_ns) / 1e9, 1) if 0 < each.started_ns <= now_ns else 0.0
        )
        rows.append(row)
    if as_json:
        print_json({"services": rows})
    else:
        columns = tuple(rows[0]) if rows else ()
        print_table(columns, [tuple(row.values()) for row in rows])


@click.command("status")
@click.argument("tx_ids", type=TX_ID, nargs=-1, required=True, metavar="TX_ID...")
@min_tx_id_option
@client_options()
@json_option
def status_command(
    tx_ids: tuple[int, ...],
    min_tx_id: int | None,
    endpoint: str,
    key: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Show how far transactions have come, and how they ended."""
    with connect.open_client(endpoint, timeout, key) as client:
        statuses = client.get_statuses(np.array(tx_ids, np.uint64), min_tx_id=min_tx_id)
    rows = [
        (each.tx_id, each.stage.name, status_text(each.status), each.duplicate_of)
        for each in statuses
    ]
    if as_json:
        print_json(
            {
                "transactions": [
                    {
                        "tx_id": each.tx_id,
                        "stage": each.stage.name,
                        "status": status_json(each.status),
                        "reason": reason_text(each.reason),
                        "duplicate_of": each.duplicate_of,
                    }
                    for each in statuses
                ]
            }
        )
    else:
        print_table(
            ("transaction", "stage", "status", "duplicate of"),
            [(*row[:3], "" if row[3] is None else row[3]) for row in rows],
        )
