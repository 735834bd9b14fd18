"""Function rows of a CSV file: names and parameters out of their cells, batches out of records.

Sans-IO, and without lines and columns: `tallybus.csv.importing` knows where a cell stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.functions.names import NAME_RULE, is_function_name
from tallybus.common.record import MAX_I64, MAX_PARAMS, MIN_I64, Kind
from tallybus.csv.text import shown
from tallybus.functions import OperationBatch

BATCH_NAMES: Final = 2_048
"""Different names in one batch. A gateway takes 65,536 bytes of them, a name has up to 32."""
_I64_DIGITS: Final = 19


class WrongCell(ValueError):
    """A cell that cannot be read; the message says what is wrong and what would be right."""


@dataclass(frozen=True, slots=True, eq=False)
class Calls:
    """What c calls have beside their records.

    `names` are the functions called, each once; `function` uint32[c] is the index of each call's
    own; `params` int64[c, 8] has its parameters, missing ones are 0.
    """

    names: tuple[str, ...]
    function: NDArray[np.uint32]
    params: NDArray[np.int64]

    def batches(self, records: NDArray[np.void], start: int, stop: int) -> Iterator[OperationBatch]:
        """Rows `start` to `stop` of `records` (RECORD_DTYPE[n], with all c calls), in order.

        That is one batch, or several where it would have more than `BATCH_NAMES` names. Each has
        the names that its own calls use and no others: they travel in its header.
        """
        is_call = records["kind"] == np.uint8(Kind.FUNCTION)
        first = int(np.count_nonzero(is_call[:start]))
        is_call = is_call[start:stop]
        last = first + int(np.count_nonzero(is_call))
        used, index = np.unique(self.function[first:last], return_inverse=True)
        if len(used) > BATCH_NAMES:
            middle = (start + stop) // 2
            yield from self.batches(records, start, middle)
            yield from self.batches(records, middle, stop)
            return
        part = records[start:stop].copy()
        part["function"][is_call] = index
        names = tuple(self.names[each] for each in used.tolist())
        yield OperationBatch(part, names, self.params[first:last])


def read_calls(names: Sequence[str], params: Iterable[str]) -> Calls:
    """The calls of c rows, of which `names` and `params` are the cells. Raises WrongCell."""
    known: dict[str, int] = {}
    for name in names:
        if name not in known:
            known[read_name(name)] = len(known)
    function = np.fromiter(map(known.__getitem__, names), np.uint32, len(names))
    values = np.zeros((len(names), MAX_PARAMS), np.int64)
    for row, cell in enumerate(params):
        numbers = read_params(cell)
        values[row, : len(numbers)] = numbers
    return Calls(tuple(known), function, values)


def read_name(cell: str) -> str:
    """The name in a cell of the column `function`. Raises WrongCell."""
    if cell == "":
        raise WrongCell("empty, where a call needs the name of its function")
    if not is_function_name(cell):
        raise WrongCell(f"{shown(cell)} is no name of a function: {NAME_RULE}")
    return cell


def read_params(cell: str) -> list[int]:
    """The numbers in a cell of the column `params`, up to 8 of int64. Raises WrongCell."""
    words = [word for word in cell.split(" ") if word]
    if len(words) > MAX_PARAMS:
        raise WrongCell(f"{len(words)} parameters; a function takes up to {MAX_PARAMS}")
    return [_param(word) for word in words]


def _param(word: str) -> int:
    digits = word.removeprefix("-")
    # `int` alone would take 1_000, +5 and digits of other scripts too.
    if not (digits.isascii() and digits.isdigit()):
        raise WrongCell(
            f"{shown(word)} is not a whole number written in the digits 0 to 9, "
            "with - before it if negative; parameters are separated by spaces"
        )
    digits = digits.lstrip("0") or "0"
    # Longer ones are never taken to `int`, which refuses thousands of digits in its own way.
    fits = len(digits) <= _I64_DIGITS
    number = int(digits) if fits else 0
    if word.startswith("-"):
        number = -number
    if not (fits and MIN_I64 <= number <= MAX_I64):
        raise WrongCell(f"{shown(word)} is not in {MIN_I64}..{MAX_I64}")
    return number
