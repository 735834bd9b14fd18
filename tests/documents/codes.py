"""Quoted codes: how commands and services end, and names and numbers of statuses and the like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from tallybus.cli.exit_codes import ExitCode
from tallybus.common import errors
from tallybus.common.record import Kind, Reason, Stage, Status, WaitLevel
from tests.documents.commands import Complaint
from tests.documents.names import STANDS_FOR, is_outside, known_names
from tests.documents.texts import Piece

OF_SERVICES: Final = {
    value: name for name, value in vars(errors).items() if name.startswith("EXIT_")
}
OF_COMMANDS: Final = {int(code): code.name for code in ExitCode}
OF_SIGNALS: Final = {128 + number: f"signal {number}" for number in (1, 2, 9, 15)}
EXIT_CODES: Final = {0: "done", 1: "REJECTED", **OF_SERVICES, **OF_COMMANDS, **OF_SIGNALS}
ENUMERATIONS: Final[tuple[type[IntEnum], ...]] = (Status, Reason, Stage, Kind, WaitLevel)

_EXIT: Final = re.compile(
    r"\b(?:exit(?:s|ed)?(?: codes?)?|ends?|ended)(?: with)?(?: code)? "
    r"(\d+)(?!\.?\d| ?[%a-z\"°])((?:(?:, | and | or |/)\d+)*)"
)
_NUMBERED: Final = re.compile(
    r"(?:^\| *(\d+) *\| *|\b(\d+) )`?([A-Z][A-Z_]+)`?(?![\w.])", re.MULTILINE
)
_STANDS_BESIDE: Final = re.compile(r"^\| *\w+ *\| *beside ", re.MULTILINE)
"""Head of a table whose second column is not what the number in the first one is called."""
_CAPITALS: Final = re.compile(r"(?<![\w$./{<-])[A-Z]+(?:_[A-Z]+)+(?![\w}>(-])")


def exit_complaints(piece: Piece) -> Iterator[Complaint]:
    """ "Ends with 75": something of ours ends so."""
    for match in _EXIT.finditer(piece.text):
        for number in re.findall(r"\d+", match[1] + match[2]):
            if int(number) not in EXIT_CODES:
                yield Complaint(piece.place(match.start()), f"nothing ends with {number}")


def number_complaints(piece: Piece) -> Iterator[Complaint]:
    """`6 ACCOUNT_LIMIT_EXCEEDED`: in one of the enumerations that is its number."""
    for match in _NUMBERED.finditer(piece.text):
        name = match[3]
        known = [kind[name] for kind in ENUMERATIONS if name in kind.__members__]
        if match[1] and _STANDS_BESIDE.search(table_above(piece.text, match.start())):
            continue
        if known and int(match[1] or match[2]) not in known:
            yield Complaint(piece.place(match.start()), f"{name} is not {match[1] or match[2]}")


def table_above(text: str, offset: int) -> str:
    """The rows of a table that stand above one of them."""
    return text[:offset].rpartition("\n\n")[2]


def capital_complaints(piece: Piece) -> Iterator[Complaint]:
    """Names in capitals, wherever they stand: of a status, a constant, a variable."""
    if piece.kind == "file":
        return
    for match in _CAPITALS.finditer(piece.text):
        name = match[0]
        if name in known_names() or is_outside(name) or STANDS_FOR.search(name):
            continue
        yield Complaint(piece.place(match.start()), f"nothing is called {name}")
