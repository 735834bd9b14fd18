"""Transactions in a CSV file: checked in full, turned into batches, and counted when answered.

Sans-IO: bytes go in, batches to submit come out; the command line owns the file and the client.
Nothing is handed out before the whole file has passed, so a malformed file sends nothing.

The file is UTF-8 with a header line, which also shows what separates the fields: commas, or
semicolons, tabs or `|`. Rows of nothing but those and blanks are blank lines. Columns `kind`,
`account`, `amount` are needed; `counterparty`, `user_ref`, `function`, `params` may be there; every
other column is ignored. A column holds:

| column         | holds                                                                   |
|----------------|-------------------------------------------------------------------------|
| `kind`         | `deposit`, `withdrawal`, `transfer` or `function`                       |
| `account`      | ASCII digits, 0..2^64-1; the source of a transfer                       |
| `amount`       | ASCII digits, 1..2^63-1, in minor units                                 |
| `counterparty` | of a transfer its target, ASCII digits, 1..2^64-1; otherwise empty or 0 |
| `user_ref`     | ASCII digits, 0..2^64-1, each value once; empty or 0: one is derived    |
| `function`     | of a call the function's name; otherwise empty                          |
| `params`       | of a call up to 8 int64, separated by spaces; otherwise empty           |

In a call (kind `function`), `account`, `amount` and `counterparty` are empty. What its own columns
mean is in `tallybus.csv.functions`.

Every row leaves with a `user_ref`, so that importing the same file again applies nothing twice. A
derived one follows from the whole content of the file and the number of the row.

Memory: 40 bytes per row while the file is held (68 more for a call), and briefly 24 more to find
repeated refs. No Python object of a row outlives the chunk of rows it belongs to.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress, islice, repeat
from operator import itemgetter
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tallybus.common.record import MAX_AMOUNT, MAX_U64, RECORD_DTYPE, Kind, Status
from tallybus.csv.dialect import declared_delimiter, delimiter_name, find_delimiter
from tallybus.csv.functions import Calls, WrongCell, read_calls, read_name, read_params
from tallybus.csv.text import Lines, MalformedCsv, csv_fault, shown
from tallybus.functions import OperationBatch

KINDS: Final = {
    "deposit": int(Kind.DEPOSIT),
    "withdrawal": int(Kind.WITHDRAWAL),
    "transfer": int(Kind.TRANSFER),
}
"""Of the built-in operations."""
FUNCTION: Final = "function"
NEEDED_COLUMNS: Final = ("kind", "account", "amount")
CALL_COLUMNS: Final = ("function", "params")
COLUMNS: Final = (*NEEDED_COLUMNS, "counterparty", "user_ref", *CALL_COLUMNS)
_MOVEMENT_COLUMNS: Final = ("account", "amount", "counterparty")

CHUNK_ROWS: Final = 16_384
_U64_DIGITS: Final = 20

Rows = list[list[str]]
RowBatch: TypeAlias = NDArray[np.void] | OperationBatch


@dataclass(slots=True)
class _Chunk:
    """Rows that were parsed together, and where they stand.

    `records` is RECORD_DTYPE[n]. Row i stands in line `first_line + i`, or in line `lines[i]` where
    blank lines or line ends inside quotes make that untrue (`lines` is int64[n] or None). `calls`
    has what the records of calls do not hold, or is None where there are no calls.
    """

    records: NDArray[np.void]
    first_row: int
    first_line: int
    lines: NDArray[np.int64] | None
    calls: Calls | None = None

    def line_of(self, index: int) -> int:
        return self.first_line + index if self.lines is None else int(self.lines[index])

    def batches(self, start: int, stop: int) -> Iterator[RowBatch]:
        if self.calls is None:
            yield self.records[start:stop]
        else:
            yield from self.calls.batches(self.records, start, min(stop, len(self.records)))


@dataclass(frozen=True, slots=True)
class ParsedCsv:
    """A file that passed: its records in file order.

    `rows` is their number; `derived_refs` how many had no `user_ref` of their own. Rows
    count from 1.
    """

    rows: int
    derived_refs: int
    _chunks: list[_Chunk] = field(repr=False)

    def batches(self, batch_rows: int, from_row: int = 1) -> Iterator[RowBatch]:
        """Yield batches of n rows in file order from row `from_row` on, 1 <= n <= `batch_rows`.

        RECORD_DTYPE[n], or an OperationBatch of n records where calls are around.
        """
        for chunk in self._chunks:
            skipped = max(0, from_row - chunk.first_row)
            for start in range(skipped, len(chunk.records), batch_rows):
                yield from chunk.batches(start, start + batch_rows)

    def line_of(self, row: int) -> int:
        """Line of the file in which row `row` (from 1) ends."""
        for chunk in self._chunks:
            if row < chunk.first_row + len(chunk.records):
                return chunk.line_of(row - chunk.first_row)
        raise IndexError(f"row {row} of a file with {self.rows} rows")


def parse_csv(
    blocks: Iterable[bytes], delimiter: str | None = None, name: str = "FILE"
) -> ParsedCsv:
    """Check a whole file and turn it into records.

    `blocks` yields the file's bytes in order, cut anywhere. `delimiter` separates the fields; None:
    what the header shows. `name` is how messages call the file. Raises MalformedCsv.
    """
    source = Lines(blocks, name)
    begin = source.begin()
    source.delimiter = delimiter or find_delimiter(begin, NEEDED_COLUMNS)
    reader = csv.reader(source, strict=True, delimiter=source.delimiter)
    layout = _read_header(reader, source)
    chunks: list[_Chunk] = []
    row = 1
    while True:
        chunk = _next_chunk(reader, source, layout, row)
        if chunk is None:
            break
        if len(chunk.records):
            chunks.append(chunk)
            row += len(chunk.records)
    rows = row - 1
    derived = _derive_refs(chunks, source.digest())
    if derived < rows:
        _refuse_repeated_refs(chunks, rows, layout)
    return ParsedCsv(rows, derived, chunks)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the columns stand: position of each by name (from 0), and how many fields a row has."""

    positions: dict[str, int]
    width: int
    names: list[str]
    delimiter: str

    def fault(self, reason: str, line: int, name: str) -> MalformedCsv:
        return MalformedCsv(reason, line=line, column=self.positions[name] + 1, name=name)


def _read_header(reader: Any, source: Lines) -> _Layout:
    header: list[str] = []
    while _is_blank(header):
        line = reader.line_num + 1
        try:
            found = next(reader, None)
        except csv.Error as error:
            raise csv_fault(error, source, line) from None
        if found is None:
            raise MalformedCsv(
                f"the file is empty; its first line names the columns {', '.join(NEEDED_COLUMNS)}",
                line=1,
            )
        header = found
        if line == 1 and declared_delimiter(source.delimiter.join(header)) is not None:
            header = []
    positions: dict[str, int] = {}
    for position, name in enumerate(header):
        if name not in COLUMNS:
            continue
        if name in positions:
            raise MalformedCsv(
                f"column {name} is there twice, first as column {positions[name] + 1}",
                line=line,
                column=position + 1,
                name=name,
            )
        positions[name] = position
    for name in NEEDED_COLUMNS:
        if name not in positions:
            listed = ", ".join(shown(each) for each in header[:12])
            raise MalformedCsv(
                f"no column {name}; the header has {listed}{_hint(name, header, source)}", line=line
            )
    return _Layout(positions, len(header), header, source.delimiter)


def _hint(name: str, header: list[str], source: Lines) -> str:
    """Why a needed column may seem to be missing."""
    alike = next((each for each in header if each.strip().lower() == name), None)
    if alike is not None:
        return f"; {shown(alike)} has to be written {name}"
    if len(header) == 1:
        return (
            f"; fields are separated by {delimiter_name(source.delimiter)} here, which "
            "--delimiter changes"
        )
    return ""


def _is_blank(row: list[str]) -> bool:
    """Whether the row has nothing but delimiters and blanks."""
    return not any(cell.strip() for cell in row)


def _next_chunk(reader: Any, source: Lines, layout: _Layout, first_row: int) -> _Chunk | None:
    """Parse the next rows; None at the end of the file."""
    first_line = reader.line_num + 1
    rows: Rows = []
    fault: csv.Error | None = None
    try:
        rows.extend(islice(reader, CHUNK_ROWS))
    except csv.Error as error:
        fault = error
    if fault is None and not rows:
        return None
    lines: NDArray[np.int64] | None = None
    consumed = reader.line_num - first_line + 1
    if fault is not None or consumed != len(rows) or [] in rows:
        heights = np.fromiter(map(_height, rows), np.int64, len(rows))
        lines = first_line - 1 + np.cumsum(heights)
        if fault is None and len(rows) and lines[-1] != reader.line_num:
            raise AssertionError(f"rows end in line {lines[-1]}, read up to {reader.line_num}")
        fault_line = int(lines[-1]) + 1 if len(rows) else first_line
        filled = np.fromiter(map(bool, rows), np.bool_, len(rows))
        lines = lines[filled]
        rows = [row for row in rows if row]
    chunk = _Chunk(np.zeros(len(rows), RECORD_DTYPE), first_row, first_line, lines)
    if rows and not _fill_columns(chunk, rows, layout):
        chunk, rows = _without_blank_rows(chunk, rows)
        if rows:
            _fill(chunk, rows, layout)
    if fault is not None:
        # Only now: a wrong row before it comes first.
        raise csv_fault(fault, source, fault_line)
    return chunk


def _without_blank_rows(chunk: _Chunk, rows: Rows) -> tuple[_Chunk, Rows]:
    """A chunk without those of its rows that are nothing but delimiters and blanks."""
    filled = np.fromiter((not _is_blank(row) for row in rows), np.bool_, len(rows))
    if filled.all():
        return chunk, rows
    lines = chunk.lines
    if lines is None:
        lines = chunk.first_line + np.arange(len(rows), dtype=np.int64)
    rows = list(compress(rows, filled))
    records = np.zeros(len(rows), RECORD_DTYPE)
    return _Chunk(records, chunk.first_row, chunk.first_line, lines[filled]), rows


def _height(row: list[str]) -> int:
    return 1 + sum(cell.count("\n") for cell in row)


def _fill(chunk: _Chunk, rows: Rows, layout: _Layout) -> None:
    """Check the rows and write them into `chunk`.

    Whole columns are checked at once. Only when one does not pass are its rows looked at one by
    one: to find the first at fault and say why, or to write overlong numbers (leading zeros)
    shorter.
    """
    if _fill_columns(chunk, rows, layout):
        return
    for index, row in enumerate(rows):
        _check_row(row, chunk.line_of(index), layout)
    if not _fill_columns(chunk, rows, layout):
        raise AssertionError(
            f"rows from line {chunk.first_line} on were refused together, but none by itself"
        )


def _fill_columns(chunk: _Chunk, rows: Rows, layout: _Layout) -> bool:
    """Fill `chunk` from `rows`; False when some row is wrong or needs a closer look."""
    if set(map(len, rows)) != {layout.width}:
        return False
    if FUNCTION not in layout.positions:
        return _fill_built_ins(chunk.records, rows, layout)
    kinds = map(itemgetter(layout.positions["kind"]), rows)
    is_call = np.fromiter((kind == FUNCTION for kind in kinds), np.bool_, len(rows))
    if not is_call.any():
        return _fill_built_ins(chunk.records, rows, layout)
    built_ins = np.zeros(len(rows) - np.count_nonzero(is_call), RECORD_DTYPE)
    if len(built_ins):
        if not _fill_built_ins(built_ins, list(compress(rows, ~is_call)), layout):
            return False
        chunk.records[~is_call] = built_ins
    calls = np.zeros(len(rows) - len(built_ins), RECORD_DTYPE)
    chunk.calls = _fill_calls(calls, list(compress(rows, is_call)), layout)
    chunk.records[is_call] = calls
    return chunk.calls is not None


def _fill_built_ins(records: NDArray[np.void], rows: Rows, layout: _Layout) -> bool:
    """Fill `records` from rows of built-in operations; False as in `_fill_columns`."""
    kinds = records["kind"]
    cells = map(itemgetter(layout.positions["kind"]), rows)
    kinds[:] = np.fromiter(map(KINDS.get, cells, repeat(0)), np.uint8, len(rows))
    if not kinds.all() or _any_filled(rows, CALL_COLUMNS, layout):
        return False
    for name in (*_MOVEMENT_COLUMNS, "user_ref"):
        if not _fill_numbers(records, rows, name, layout):
            return False
    amounts = records["amount"]
    if amounts.min() < 1 or amounts.max() > MAX_AMOUNT:
        return False
    # A transfer has a counterparty, nothing else has one.
    return bool(np.array_equal(kinds == Kind.TRANSFER, records["counterparty"] != 0))


def _fill_calls(records: NDArray[np.void], rows: Rows, layout: _Layout) -> Calls | None:
    """Fill `records` from rows of calls; None where `_fill_columns` gives False."""
    if _any_filled(rows, _MOVEMENT_COLUMNS, layout):
        return None
    if not _fill_numbers(records, rows, "user_ref", layout):
        return None
    names = [row[layout.positions["function"]] for row in rows]
    position = layout.positions.get("params")
    try:
        calls = read_calls(names, () if position is None else map(itemgetter(position), rows))
    except WrongCell:
        return None
    records["kind"] = Kind.FUNCTION
    return calls


def _any_filled(rows: Rows, columns: Iterable[str], layout: _Layout) -> bool:
    positions = [layout.positions[name] for name in columns if name in layout.positions]
    return any(any(map(itemgetter(position), rows)) for position in positions)


def _fill_numbers(records: NDArray[np.void], rows: Rows, name: str, layout: _Layout) -> bool:
    """Fill one column of `records`, if the file has it; False as in `_fill_columns`."""
    position = layout.positions.get(name)
    if position is None:
        return True
    values = list(map(itemgetter(position), rows))
    if name in ("counterparty", "user_ref") and not all(values):
        values = [value or "0" for value in values]
    joined = "".join(values)
    if not (joined.isascii() and joined.isdigit() and all(values)):
        return False
    try:
        records[name] = np.fromiter(map(int, values), np.uint64, len(rows))
    except (OverflowError, ValueError):  # over 2^64-1, or over the digits that `int` takes
        return False
    return True


def _check_row(row: list[str], line: int, layout: _Layout) -> None:
    """Raise MalformedCsv when the row is wrong, naming the first field at fault.

    Leading zeros are taken off the row's numbers in place.
    """
    if len(row) < layout.width:
        missing = layout.names[len(row)]
        raise MalformedCsv(
            f"the row ends after {len(row)} of {layout.width} fields",
            line=line,
            column=len(row) + 1,
            name=missing if missing in COLUMNS else None,
        )
    if len(row) > layout.width:
        raise MalformedCsv(
            f"the row has {len(row)} fields, the header {layout.width}; "
            f"a field that holds a {delimiter_name(layout.delimiter)} must be quoted",
            line=line,
            column=layout.width + 1,
        )
    kind = row[layout.positions["kind"]]
    if kind == FUNCTION:
        _check_call(row, line, layout)
    elif kind in KINDS:
        _check_built_in(row, kind, line, layout)
    else:
        known = ", ".join((*KINDS, FUNCTION))
        raise layout.fault(f"{shown(kind)} is none of {known}", line, "kind")


def _check_built_in(row: list[str], kind: str, line: int, layout: _Layout) -> None:
    values = {
        name: _check_number(row, name, line, layout) for name in (*_MOVEMENT_COLUMNS, "user_ref")
    }
    if values["amount"] == 0:
        raise layout.fault("an amount is at least 1 minor unit", line, "amount")
    if kind == "transfer" and values["counterparty"] == 0:
        if "counterparty" not in layout.positions:
            raise MalformedCsv(
                "a transfer, but the file has no column counterparty for its target", line=line
            )
        raise layout.fault("a transfer needs the account it goes to", line, "counterparty")
    if kind != "transfer" and values["counterparty"] != 0:
        raise layout.fault(
            f"a {kind} has no counterparty; leave it empty or make the row a transfer",
            line,
            "counterparty",
        )
    _check_empty(row, CALL_COLUMNS, f"a {kind}", line, layout)


def _check_call(row: list[str], line: int, layout: _Layout) -> None:
    if FUNCTION not in layout.positions:
        raise MalformedCsv(
            "a call, but the file has no column function for the function's name", line=line
        )
    _check_empty(row, _MOVEMENT_COLUMNS, "a call", line, layout)
    for name, read in (("function", read_name), ("params", read_params)):
        if name in layout.positions:
            try:
                read(row[layout.positions[name]])
            except WrongCell as error:
                raise layout.fault(str(error), line, name) from None
    _check_number(row, "user_ref", line, layout)


def _check_empty(
    row: list[str], columns: Iterable[str], what: str, line: int, layout: _Layout
) -> None:
    for name in columns:
        if name in layout.positions and row[layout.positions[name]]:
            raise layout.fault(f"{what} has no {name}; leave it empty", line, name)


def _check_number(row: list[str], name: str, line: int, layout: _Layout) -> int:
    """The number in column `name`; 0 where it may be empty and is, or the file does not have it."""
    position = layout.positions.get(name)
    if position is None:
        return 0
    cell = row[position]
    if cell == "" and name in ("counterparty", "user_ref"):
        cell = "0"
    problem = _number_problem(cell, MAX_AMOUNT if name == "amount" else MAX_U64)
    if problem:
        raise layout.fault(problem, line, name)
    row[position] = cell.lstrip("0") or "0"
    return int(row[position])


_DECIMAL: Final = re.compile(r"[0-9][0-9.,' ]*[.,][0-9]+")


def _number_problem(cell: str, limit: int) -> str | None:
    """Why `cell` is not a whole number in 0..limit, or None."""
    if cell == "":
        return "empty, where a whole number is needed"
    if not (cell.isascii() and cell.isdigit()):
        if cell.isascii() and cell.startswith("-") and cell[1:].isdigit():
            return f"{shown(cell)} is negative"
        problem = f"{shown(cell)} is not a whole number written in the digits 0 to 9 alone"
        if _DECIMAL.fullmatch(cell):
            problem += "; amounts are whole minor units: 12.50, and 12,50, is written 1250"
        return problem
    digits = cell.lstrip("0") or "0"
    if len(digits) > _U64_DIGITS or int(digits) > limit:
        return f"{shown(cell)} is more than {limit}"
    return None


# The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit numbers, and so is a
# walk with an odd stride; therefore the derived refs of one file are all different.
_STRIDE: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_PAST_ALL_ROWS: Final = 2**63


def derived_refs(digest: int, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The `user_ref` of rows (uint64[n], from 1) of a file with this digest: uint64[n], none 0."""
    states = np.uint64(digest) + rows * _STRIDE
    # The one state that would mix to 0 gives way to one that no row has.
    states[states == 0] = (digest + _PAST_ALL_ROWS * int(_STRIDE)) % 2**64
    states ^= states >> np.uint64(30)
    states *= _MIX_1
    states ^= states >> np.uint64(27)
    states *= _MIX_2
    states ^= states >> np.uint64(31)
    return states


def _derive_refs(chunks: list[_Chunk], digest: int) -> int:
    """Give every record without a `user_ref` its derived one; returns how many those were."""
    derived = 0
    for chunk in chunks:
        refs = chunk.records["user_ref"]
        missing = np.flatnonzero(refs == 0)
        if len(missing):
            refs[missing] = derived_refs(
                digest, missing.astype(np.uint64) + np.uint64(chunk.first_row)
            )
            derived += len(missing)
    return derived


def _refuse_repeated_refs(chunks: list[_Chunk], rows: int, layout: _Layout) -> None:
    refs = np.empty(rows, np.uint64)
    for chunk in chunks:
        start = chunk.first_row - 1
        refs[start : start + len(chunk.records)] = chunk.records["user_ref"]
    ordered = np.sort(refs)
    if not (ordered[1:] == ordered[:-1]).any():
        return
    order = np.argsort(refs, kind="stable")
    ordered = refs[order]
    second = int(order[1:][ordered[1:] == ordered[:-1]].min())
    first = int(np.flatnonzero(refs == refs[second])[0])
    parsed = ParsedCsv(rows, 0, chunks)
    first_line, line = parsed.line_of(first + 1), parsed.line_of(second + 1)
    raise MalformedCsv(
        f"user_ref {refs[second]} is already that of line {first_line}; "
        "every row needs its own, or none",
        line=line,
        column=layout.positions["user_ref"] + 1,
        name="user_ref",
        first_line=first_line,
    )


def status_name(code: int) -> str:
    """Name of a result's status: that of `Status`, or `FUNCTION_n` for a function's own."""
    try:
        return Status(code).name
    except ValueError:
        return f"FUNCTION_{code}"


@dataclass(slots=True)
class Tally:
    """What the ledger said to the rows sent so far.

    `rows` = `applied` + `duplicates` + the sum of `rejected` (number by status name).
    `last_tx_id` is the highest transaction id that an answer ended with, 0 before the first.
    """

    rows: int = 0
    applied: int = 0
    duplicates: int = 0
    last_tx_id: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    def add(self, first_tx_id: int, statuses: NDArray[np.uint8]) -> None:
        """Count a batch's answer: `statuses` is uint8[n], ids run from `first_tx_id`."""
        counts = np.bincount(statuses, minlength=256)
        self.rows += len(statuses)
        self.applied += int(counts[Status.NONE])
        self.duplicates += int(counts[Status.DUPLICATE])
        for code in np.flatnonzero(counts):
            if code not in (Status.NONE, Status.DUPLICATE):
                name = status_name(int(code))
                self.rejected[name] = self.rejected.get(name, 0) + int(counts[code])
        self.last_tx_id = max(self.last_tx_id, first_tx_id + len(statuses) - 1)

    def rejected_total(self) -> int:
        return sum(self.rejected.values())
