"""The text of a CSV file, and where in it something is wrong.

Sans-IO: takes the file's bytes and gives its lines, to be split into fields by `csv.reader`. It
knows nothing of what the fields mean; that is `tallybus.csv.importing`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from io import StringIO
from itertools import chain
from typing import Final

from tallybus.csv.dialect import COMMA, NAMES, delimiter_name
from tallybus.csv.magic import HEAD_BYTES, foreign, not_utf8

MAX_LINE_BYTES: Final = 1 << 20
_SHOWN_CHARACTERS: Final = 40
_BOM: Final = b"\xef\xbb\xbf"


class MalformedCsv(ValueError):
    """The file cannot be imported; nothing of it was handed out.

    Fields: `line` counts lines of the file from 1; `column` counts the fields of that line from 1,
    or is None where the line as a whole is at fault; `name` is the column's name where it is one
    that is read; `reason` is what is wrong and what would be right; `first_line` is the line of the
    first row with the same `user_ref` when that is the reason, else None.
    """

    def __init__(
        self,
        reason: str,
        *,
        line: int,
        column: int | None = None,
        name: str | None = None,
        first_line: int | None = None,
    ) -> None:
        place = f"line {line}"
        if column is not None:
            place += f", column {column}"
        if name is not None:
            place += f" ({name})"
        super().__init__(f"{place}: {reason}")
        self.line = line
        self.column = column
        self.name = name
        self.reason = reason
        self.first_line = first_line


class Lines:
    """The file's lines as text with their ends, and what is needed to say where one is wrong.

    `name` is how a command line calls the file; `delimiter` is what separates its fields. Iterating
    raises MalformedCsv for what is not text.
    """

    def __init__(self, blocks: Iterable[bytes], name: str = "FILE") -> None:
        self.delimiter = COMMA
        self._name = name
        self._hash = blake2b(digest_size=8)
        self._whole: Iterator[bytes] = self._whole_lines(blocks)
        self._held: list[tuple[int, str]] = []

    def begin(self) -> str:
        """Text of the file's first lines, before any of it was iterated over; it is kept."""
        first = next(self._whole, b"")
        self._whole = chain([first] if first else [], self._whole)
        return first.removeprefix(_BOM).decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(StringIO(piece, newline="\n") for piece in self._decode())

    def digest(self) -> int:
        """64-bit hash of the whole content. Only meaningful at the end."""
        return int.from_bytes(self._hash.digest(), "little")

    def text_from(self, line: int) -> str | None:
        """Text from the start of line `line` on, as far as it was read and is still held."""
        if not self._held or line < self._held[0][0]:
            return None
        text = "".join(piece for _, piece in self._held)
        for _ in range(line - self._held[0][0]):
            end = text.find("\n")
            if end < 0:
                return None
            text = text[end + 1 :]
        return text

    def _decode(self) -> Iterator[str]:
        """Yield pieces of text that end where a line ends."""
        line = 1
        for piece in self._whole:
            if line == 1:
                piece = piece.removeprefix(_BOM)
            text = self._decode_piece(piece, line)
            self._held = [*self._held[-1:], (line, text)]
            line += text.count("\n")
            yield text

    def _whole_lines(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        carry = b""
        line = 1
        for block in self._looked_at(blocks):
            self._hash.update(block)
            end = block.rfind(b"\n") + 1
            if not end:
                carry += block
            else:
                piece = carry + block[:end]
                carry = block[end:]
                yield piece
                line += piece.count(b"\n")
            if len(carry) > MAX_LINE_BYTES:
                # A binary file is more often the cause than a long line: say so where it shows.
                self._decode_piece(carry[: carry.rfind(b",") + 1].removeprefix(_BOM), line)
                raise MalformedCsv(f"the line is longer than {MAX_LINE_BYTES} bytes", line=line)
        if carry:
            yield carry

    def _looked_at(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks, of which the first is long enough to see what the file is."""
        rest = iter(blocks)
        head = b""
        for block in rest:
            head += block
            if len(head) >= HEAD_BYTES:
                break
        reason = foreign(head[:HEAD_BYTES], self._name)
        if reason is not None:
            raise MalformedCsv(reason, line=1, column=1)
        if head:
            yield head
        yield from rest

    def _decode_piece(self, piece: bytes, line: int) -> str:
        try:
            text = piece.decode("utf-8")
            wrong = text.find("\0")
            if wrong < 0:
                return text
            before = text[:wrong]
            reason = "a zero byte: this is not text"
        except UnicodeDecodeError as error:
            before = piece[: error.start].decode("utf-8", "replace")
            reason = f"byte 0x{piece[error.start]:02x} is not UTF-8 text; {not_utf8(self._name)}"
        start = before.rfind("\n") + 1
        raise MalformedCsv(
            reason,
            line=line + before.count("\n"),
            column=_field_number(before[start:], self.delimiter),
        ) from None


def _field_number(text: str, delimiter: str) -> int:
    """Number of the field in which `text`, the start of a row, ends."""
    number, quoted = 1, False
    for character in text:
        if character == '"':
            quoted = not quoted
        elif character == delimiter and not quoted:
            number += 1
    return number


def csv_fault(error: csv.Error, source: Lines, line: int) -> MalformedCsv:
    """Say in plain words why the row that starts in line `line` is not CSV."""
    text = str(error)
    if "unexpected end" in text:
        reason = "a quoted field is not closed before the end of the file"
    elif "expected after" in text:
        reason = _behind_a_quote(source.text_from(line) or "", source.delimiter)
    elif "field limit" in text:
        reason = (
            f"a field is longer than {csv.field_size_limit()} characters; is a quote not closed?"
        )
    elif "new-line" in text:
        reason = "a carriage return inside the line; lines end with LF or CR LF"
    else:
        reason = text
    start = source.text_from(line)
    return MalformedCsv(
        reason, line=line, column=None if start is None else _locate(start, text, source.delimiter)
    )


def _behind_a_quote(row: str, delimiter: str) -> str:
    """Why a closing quote in this row has text behind it."""
    for other in NAMES:
        if other != delimiter and f'"{other}"' in row.partition("\n")[0]:
            return (
                f"the fields of this row are separated by {delimiter_name(other)}, those of the "
                f"header by {delimiter_name(delimiter)}; use one in the whole file"
            )
    return "text behind the closing quote of a field; a quote inside quotes is written twice"


def _locate(text: str, error: str, delimiter: str) -> int | None:
    """Number of the field that the csv module stopped at, in a row that starts with `text`."""
    number, size, index = 1, 0, 0
    quoted = closed = False
    limit = csv.field_size_limit()
    while index < len(text):
        character = text[index]
        if quoted:
            if character == '"':
                quoted, closed = False, True
        elif character == '"' and (size == 0 or closed):
            quoted, closed = True, False
        elif character == delimiter:
            number, size, closed = number + 1, -1, False
        elif character == "\n":
            break
        elif (closed and character != "\r") or (
            character == "\r" and text[index + 1 : index + 2] not in ("", "\n")
        ):
            return number
        size += 1
        index += 1
        if size > limit:
            return number
    return number if quoted or "unexpected end" in error else None


def shown(cell: str) -> str:
    """The cell in quotes, safe for one line of a terminal, shortened."""
    short = cell if len(cell) <= _SHOWN_CHARACTERS else cell[: _SHOWN_CHARACTERS - 1] + "…"
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)
    return f'"{"".join(printable)}"'
