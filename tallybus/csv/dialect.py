"""What separates the fields of a CSV file, found out from its header. Sans-IO."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import Final

COMMA: Final = ","
DELIMITERS: Final = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
"""What is looked for, by name."""
NAMES: Final = {character: name for name, character in DELIMITERS.items()}
_DECLARED: Final = "sep="


def delimiter_name(delimiter: str) -> str:
    """How a message calls it."""
    return NAMES.get(delimiter) or f'"{delimiter}"'


def find_delimiter(text: str, needed: Iterable[str]) -> str:
    """The delimiter of a file that begins with `text`.

    It is the one with which the header has the columns `needed`, or most of them. Where none has,
    it is the comma.
    """
    wanted = set(needed)
    header = next((line for line in text.split("\n") if line.strip(" \t\r,;|")), "")
    header = header.rstrip("\r")
    declared = declared_delimiter(header)
    if declared is not None:
        return declared
    best, most = COMMA, (0, 0)
    for delimiter in DELIMITERS.values():
        names = _names(header, delimiter)
        # Exact ones first: "Kind" is told to be wrong, but shows how the fields are separated.
        found = (len(wanted & set(names)), len(wanted & {each.strip().lower() for each in names}))
        if found > most:
            best, most = delimiter, found
    return best


def declared_delimiter(line: str) -> str | None:
    """Of a first line like `sep=;`, which spreadsheets write and read: the delimiter."""
    rest = line.strip('"\r\n').removeprefix(_DECLARED)
    return rest if line.strip('"').startswith(_DECLARED) and len(rest) == 1 else None


def _names(header: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []
