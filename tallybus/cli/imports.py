"""`tallybus import`: send the transactions of a CSV file, each once, in the file's order.

The rules of the file are in `tallybus.csv.importing`, its bytes in `import_source`, the sending in
`import_sender`. This module is the command: its options, its report, and its advice on how to go on
after an interruption.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import click

from tallybus.batch_size import BatchSize
from tallybus.cli import connect
from tallybus.cli.errors import CommandFailed, as_click_exception
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.import_sender import Sender
from tallybus.cli.import_source import FileChanged, Source
from tallybus.cli.options import WholeNumber, client_options, json_option
from tallybus.cli.output import note, print_json, print_values, progress_bar
from tallybus.cli.signals import Ended, Endings
from tallybus.csv.dialect import DELIMITERS
from tallybus.csv.importing import CHUNK_ROWS, ParsedCsv, Tally, parse_csv
from tallybus.csv.text import MalformedCsv

CONNECT_S: Final = 5.0
WINDOW_ROWS: Final = 10_000_000
"""The default of `ledger.transactions_per_segment`, the least that the ledger looks back."""
STDIN: Final = "-"
_KEPT_OPTIONS: Final = ("delimiter", "batch", "endpoint", "key", "timeout", "as_json")


class Delimiter(click.ParamType[str]):
    """What separates fields: one character, or the name of one."""

    name = "delimiter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = DELIMITERS.get(str(value).lower(), str(value)).replace("\\t", "\t")
        if len(text) != 1 or text in '"\r\n' or text.isalnum():
            self.fail(f"{str(value)!r} is neither one of {', '.join(DELIMITERS)} nor one character")
        return text


@click.command("import")
@click.argument("file", type=click.File("rb"), metavar="FILE.csv")
@click.option(
    "--batch",
    type=WholeNumber("batch", 1, CHUNK_ROWS),
    default=CHUNK_ROWS,
    show_default=True,
    help="Rows in one request, at most; fewer where the ledger lets this client send fewer.",
)
@click.option(
    "--from-row",
    type=WholeNumber("row", 1),
    default=1,
    help="Skip the rows before this one (1: the first below the header). All are checked.",
)
@click.option(
    "--again",
    is_flag=True,
    help="Rows of this file were sent before: that there are duplicates is no failure.",
)
@click.option(
    "--delimiter",
    type=Delimiter(),
    metavar="CHARACTER",
    help="What separates the fields: comma, semicolon, tab, pipe, or a character.  "
    "[default: what the header shows]",
)
@client_options(timeout_s=60.0)
@json_option
@click.pass_context
def import_command(
    ctx: click.Context,
    file: BinaryIO,
    batch: int,
    from_row: int,
    again: bool,
    delimiter: str | None,
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

    Exits with 0 when every row was sent, also when the ledger rejected some: see the report. Exits
    with 1 when rows were duplicates, which were not executed, unless --again says that they were
    sent before.
    """
    with Endings() as endings:
        source = Source(file, _path(file))
        parsed = _read(source, _name(file), delimiter)
        if from_row > max(1, parsed.rows):
            raise click.UsageError(f"--from-row {from_row}: the file has {parsed.rows} rows")
        if parsed.rows > WINDOW_ROWS:
            note(
                f"{parsed.rows} rows may be more than the ledger remembers. If the import is "
                "interrupted, go on with --from-row, and not from the first row"
            )
        tally = Tally()
        started = time.monotonic()
        if parsed.rows:
            sender: Sender | None = None
            try:
                with endings.held(), connect.open_client(endpoint, timeout, key) as client:
                    # A ledger that is not there is told at once, not after the time of a batch.
                    info = client.gateway_info(timeout=min(timeout, CONNECT_S))
                    size = BatchSize(min(batch, info.max_batch), getattr(info, "limits", None))
                    # Before that revision a function could return the number of NOT_RUN.
                    runs_later = getattr(info, "revision", 0) >= 1
                    sender = Sender(
                        client,
                        parsed,
                        tally,
                        size,
                        endings,
                        from_row=from_row,
                        runs_later=runs_later,
                    )
                    _send(sender, parsed)
            except (Exception, KeyboardInterrupt, Ended) as error:
                raised = _as_failure(error)
                if raised is None:
                    raise
                text = f"{raised.message}; {_progress(ctx, source, parsed, sender)}"
                raise CommandFailed(text, raised.exit_code) from error
    _report(tally, time.monotonic() - started, as_json)
    if tally.duplicates:
        told = _duplicates(tally, parsed)
        if not again:
            raise CommandFailed(
                f"{told}. If you meant to send it again, add --again", ExitCode.REJECTED
            )
        note(told)


def _path(file: BinaryIO) -> str | None:
    """The file's path; None for standard input and what else has none."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) and not name.startswith("<") and name != STDIN else None


def _name(file: BinaryIO) -> str:
    """How a shell calls the file."""
    path = _path(file)
    return "FILE" if path is None else shlex.quote(path)


def _read(source: Source, name: str, delimiter: str | None) -> ParsedCsv:
    with progress_bar("KiB") as progress:
        size = source.size
        task = progress.add_task("checking", total=None if size is None else size >> 10)

        def blocks() -> Iterator[bytes]:
            for block in source.blocks():
                progress.advance(task, len(block) >> 10)
                yield block

        try:
            try:
                parsed = parse_csv(blocks(), delimiter, name)
            except MalformedCsv:
                # First: what a writer has half done looks like a mistake.
                source.check()
                raise
            source.check()
        except FileChanged as error:
            raise CommandFailed(str(error), ExitCode.USAGE) from error
        except Ended as error:
            raise CommandFailed(f"{error}; nothing was sent", error.exit_code) from error
        return parsed


def _send(sender: Sender, parsed: ParsedCsv) -> None:
    with progress_bar("rows") as progress:
        task = progress.add_task("sending", total=parsed.rows, completed=sender.row - 1)
        sender.send(lambda rows: progress.advance(task, rows))


def _as_failure(error: BaseException) -> click.ClickException | None:
    if isinstance(error, Ended):
        return CommandFailed(str(error), error.exit_code)
    return as_click_exception(error)


def _progress(ctx: click.Context, source: Source, parsed: ParsedCsv, sender: Sender | None) -> str:
    """How far an import came, and the command that goes on with it."""
    from_row: int = ctx.params["from_row"]
    row = from_row if sender is None else sender.row
    if sender is None:
        told = "nothing was sent"
    elif row == from_row:
        told = "no row is known to be in the ledger"
    else:
        done = row - 1
        told = (
            f"rows {from_row} to {done} of {parsed.rows} (line {parsed.line_of(done)}) are in the "
            "ledger"
        )
    if row > parsed.rows:
        return told
    if source.differs():
        return (
            f"{told}. The file has changed since it was read. Restore it before you go on: as it "
            "is now, its rows without a user_ref would count as new ones"
        )
    command = _command(ctx, row, sent=sender is not None)
    piped = "; give it the same standard input" if _path(ctx.params["file"]) is None else ""
    return f"{told}; to go on: {command}{piped}"


def _command(ctx: click.Context, row: int, *, sent: bool) -> str:
    """The command that goes on at this row, with the options of this one."""
    path = _path(ctx.params["file"])
    words = ["tallybus", "import", STDIN if path is None else path]
    if row > 1:
        words += ["--from-row", str(row)]
    if sent or ctx.params["again"]:
        words.append("--again")
    for option in ctx.command.params:
        name = option.name or ""
        given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if name in _KEPT_OPTIONS and given:
            value = ctx.params[name]
            words += [option.opts[0]] if value is True else [option.opts[0], _word(value)]
    return shlex.join(words)


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "tab" if value == "\t" else str(value)


def _duplicates(tally: Tally, parsed: ParsedCsv) -> str:
    """What duplicates mean, in words."""
    if tally.duplicates == tally.rows:
        rows = f"all {tally.rows} rows were duplicates"
        if tally.rows == 1:
            rows = "the one row was a duplicate"
        told = f"nothing was applied: {rows}"
    else:
        were = "was a duplicate and was" if tally.duplicates == 1 else "were duplicates and were"
        told = f"{tally.duplicates} of {tally.rows} rows {were} not applied"
    if parsed.derived_refs == parsed.rows:
        return f"{told}: this very content was sent to this ledger before"
    return (
        f"{told}: transactions with the same user_ref are in the ledger already. Either rows of "
        "this file were sent before, or other transactions have their references. In the second "
        "case these rows were never executed"
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
