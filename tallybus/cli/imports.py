"""`tallybus import`: send the transactions of a CSV file, each once, in the file's order.

The rules of the file are in `tallybus.csv_import`; this module owns the file, the client and the
progress bar. One batch is under way at a time: the next is sent when the one before is on disk, so
that the ledger executes the rows in their order whatever happens in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from tallybus.cli import connect
from tallybus.cli.errors import CommandFailed, as_click_exception
from tallybus.cli.options import WholeNumber, client_options, json_option
from tallybus.cli.output import note, print_json, print_values, progress_bar
from tallybus.csv_import import CHUNK_ROWS, ParsedCsv, Tally, parse_csv
from tallybus.operations import WaitLevel

if TYPE_CHECKING:
    from tallybus.client import Client

BLOCK_BYTES: Final = 1 << 20
CONNECT_S: Final = 5.0
WINDOW_ROWS: Final = 10_000_000
"""The default of `ledger.transactions_per_segment`, the least that the ledger looks back."""


@click.command("import")
@click.argument("file", type=click.File("rb"), metavar="FILE.csv")
@click.option(
    "--batch",
    type=WholeNumber("batch", 1, CHUNK_ROWS),
    default=CHUNK_ROWS,
    show_default=True,
    help="Rows in one request.",
)
@click.option(
    "--from-row",
    type=WholeNumber("row", 1),
    default=1,
    help="Skip the rows before this one (1: the first below the header). All are checked.",
)
@client_options(timeout_s=60.0)
@json_option
def import_command(
    file: BinaryIO,
    batch: int,
    from_row: int,
    endpoint: str,
    key: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Send the transactions of FILE.csv ("-" is standard input) in its order.

    The first line names the columns: kind (deposit, withdrawal, transfer or function), account and
    amount (minor units) are needed, counterparty (of a transfer), user_ref, function and params (of
    a call: its name, and up to 8 numbers separated by spaces) may be there, others are ignored. A
    file with a mistake is refused with its line and column before anything is sent.

    Every row is executed once, however often the same file is imported: rows without a user_ref get
    one that follows from the content of the file and the row's number.

    Exits with 0 when every row was sent, also when the ledger rejected some: see the report.
    """
    parsed = _read(file)
    if from_row > max(1, parsed.rows):
        raise click.UsageError(f"--from-row {from_row}: the file has {parsed.rows} rows")
    if parsed.rows > WINDOW_ROWS:
        note(
            f"{parsed.rows} rows are more than the ledger's window for repeated rows may hold; "
            "should the import be interrupted, go on with --from-row instead of from the start"
        )
    tally = Tally()
    started = time.monotonic()
    if parsed.rows:
        with connect.open_client(endpoint, timeout, key) as client:
            # A ledger that is not there is told at once, not after the time that a batch may take.
            limits = client.gateway_info(timeout=min(timeout, CONNECT_S))
            batch = min(batch, limits.max_batch)
            try:
                _send(client, parsed, tally, batch=batch, from_row=from_row)
            except (Exception, KeyboardInterrupt) as error:
                raised = as_click_exception(error)
                if raised is None:
                    raise
                text = f"{raised.message}; {_progress(parsed, tally, from_row)}"
                raise CommandFailed(text, raised.exit_code) from error
    _report(tally, time.monotonic() - started, as_json)


def _read(file: BinaryIO) -> ParsedCsv:
    with progress_bar("KiB") as progress:
        size = _size(file)
        task = progress.add_task("checking", total=None if size is None else size >> 10)

        def blocks() -> Iterator[bytes]:
            while block := file.read(BLOCK_BYTES):
                progress.advance(task, len(block) >> 10)
                yield block

        return parse_csv(blocks())


def _size(file: BinaryIO) -> int | None:
    if not file.seekable():
        return None
    size = file.seek(0, 2)
    file.seek(0)
    return size


def _send(client: Client, parsed: ParsedCsv, tally: Tally, *, batch: int, from_row: int) -> None:
    with progress_bar("rows") as progress:
        task = progress.add_task("sending", total=parsed.rows, completed=from_row - 1)
        for operations in parsed.batches(batch, from_row):
            # The client sends again by itself what was refused or lost: every row has a user_ref.
            result = client.submit_batch(operations, WaitLevel.COMMITTED)
            tally.add(result.first_tx_id, result.statuses)
            progress.advance(task, len(operations))


def _progress(parsed: ParsedCsv, tally: Tally, from_row: int) -> str:
    done = from_row - 1 + tally.rows
    if not tally.rows:
        return "no row is known to be applied; the import may be started again as it is"
    return (
        f"rows {from_row} to {done} of {parsed.rows} (line {parsed.line_of(done)}) are in the "
        f"ledger; start again as it is, or with --from-row {done + 1}"
    )


def _report(tally: Tally, seconds: float, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "rows": tally.rows,
                "applied": tally.applied,
                "rejected": tally.rejected,
                "duplicates": tally.duplicates,
                "last_tx_id": tally.last_tx_id,
                "seconds": round(seconds, 6),
            }
        )
        return
    values: dict[str, Any] = {"rows": tally.rows, "applied": tally.applied}
    values["rejected"] = tally.rejected_total()
    values |= {f"  {name}": count for name, count in sorted(tally.rejected.items())}
    values["duplicates"] = tally.duplicates
    values["last transaction"] = tally.last_tx_id
    values["seconds"] = f"{seconds:.3f}"
    print_values(values)
    if tally.rejected:
        note("every row was sent; the ledger rejected some of them (see above)")
