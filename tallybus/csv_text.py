"""The text of a CSV file, and where in it something is wrong.

Sans-IO: takes the file's bytes and gives its lines, to be split into fields by `csv.reader`. It
knows nothing of what the fields mean; that is `tallybus.csv_import`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from io import StringIO
from itertools import chain
from typing import Final

MAX_LINE_BYTES: Final = 1 << 20
_SHOWN_CHARACTERS: Final = 40
_BOM: Final = b"\xef\xbb\xbf"
_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")


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

    Iterating raises MalformedCsv for what is not text.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._hash = blake2b(digest_size=8)
        self._pieces = self._decode(blocks)
        self._held: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(StringIO(piece, newline="\n") for piece in self._pieces)

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

    def _decode(self, blocks: Iterable[bytes]) -> Iterator[str]:
        """Yield pieces of text that end where a line ends."""
        line = 1
        for piece in self._whole_lines(blocks):
            if line == 1:
                if piece.startswith(_UTF16_BOMS):
                    raise MalformedCsv(
                        "the file is UTF-16 text; save it as UTF-8", line=1, column=1
                    )
                piece = piece.removeprefix(_BOM)
            text = _decode_piece(piece, line)
            self._held = [*self._held[-1:], (line, text)]
            line += text.count("\n")
            yield text

    def _whole_lines(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        carry = b""
        line = 1
        for block in blocks:
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
                _decode_piece(carry[: carry.rfind(b",") + 1].removeprefix(_BOM), line)
                raise MalformedCsv(f"the line is longer than {MAX_LINE_BYTES} bytes", line=line)
        if carry:
            yield carry


def _decode_piece(piece: bytes, line: int) -> str:
    try:
        text = piece.decode("utf-8")
        wrong = text.find("\0")
        if wrong < 0:
            return text
        before = text[:wrong]
        reason = "a zero byte: this is not text"
    except UnicodeDecodeError as error:
        before = piece[: error.start].decode("utf-8", "replace")
        reason = f"byte 0x{piece[error.start]:02x} is not UTF-8 text"
    start = before.rfind("\n") + 1
    raise MalformedCsv(
        reason, line=line + before.count("\n"), column=_field_number(before[start:])
    ) from None


def _field_number(text: str) -> int:
    """Number of the field in which `text`, the start of a row, ends."""
    number, quoted = 1, False
    for character in text:
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            number += 1
    return number


def csv_fault(error: csv.Error, source: Lines, line: int) -> MalformedCsv:
    """Say in plain words why the row that starts in line `line` is not CSV."""
    text = str(error)
    if "unexpected end" in text:
        reason = "a quoted field is not closed before the end of the file"
    elif "expected after" in text:
        reason = "text behind the closing quote of a field; a quote inside quotes is written twice"
    elif "field limit" in text:
        reason = (
            f"a field is longer than {csv.field_size_limit()} characters; is a quote not closed?"
        )
    elif "new-line" in text:
        reason = "a carriage return inside the line; lines end with LF or CR LF"
    else:
        reason = text
    start = source.text_from(line)
    return MalformedCsv(reason, line=line, column=None if start is None else _locate(start, text))


def _locate(text: str, error: str) -> int | None:
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
        elif character == ",":
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
