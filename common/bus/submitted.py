"""What the records of a submit may hold: a rule that clients and the gateway share.

There are four kinds of records. A field that means nothing in a record is 0. A call's function is
an index into the names beside the records. A record that breaks one of these rules was probably
meant otherwise. So it is refused before anything is sequenced, and the error names its place and
the field.

Amounts and accounts are not looked at here. The transactor decides whether the ledger takes them,
and answers with a status.

A submit has up to some ten thousand records, and millions may come in a second. So the records are
read as words of 8 bytes (`RECORD_WORDS` a record), and batches of one kind in as few passes as
possible. ADR 0020 says why records are checked whole.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.record import RECORD_DTYPE, RECORD_WORDS, Kind

_KINDS: Final = f"{Kind.DEPOSIT} to {Kind.FUNCTION} (deposit, withdrawal, transfer, function)"
_OUTCOME: Final = ("status", "entry_count", "reason")
_ZERO: Final = {
    Kind.DEPOSIT.value: (*_OUTCOME, "function", "counterparty"),
    Kind.WITHDRAWAL.value: (*_OUTCOME, "function", "counterparty"),
    Kind.TRANSFER.value: (*_OUTCOME, "function"),
    Kind.FUNCTION.value: (*_OUTCOME, "account", "counterparty", "amount"),
}
"""The fields that are 0 in a record, by its kind."""
_ONE: Final = struct.Struct("<Q8xQQQ")
"""Of one record: its first word, account, counterparty and amount."""
_TRANSFER_KIND: Final = Kind.TRANSFER.value
_ONE_SIDED: Final = (Kind.DEPOSIT.value, Kind.WITHDRAWAL.value)
_ACCOUNT, _COUNTERPARTY, _AMOUNT = 2, 3, 4
"""Words of a record. Word 0 has the kind in its lowest byte and the function in its upper half."""
_ROW: Final = 64
"""So many records at a time are put together: enough for numpy's loops to be long."""
_NONE: Final = np.uint64(0)
_LOW: Final = np.uint64(2**32 - 1)
_HALF: Final = np.uint64(32)
_DEPOSIT: Final = np.uint64(Kind.DEPOSIT)
_TRANSFER: Final = np.uint64(Kind.TRANSFER)
_CALL: Final = np.uint64(Kind.FUNCTION)
_BUILT_IN: Final = np.uint64(Kind.TRANSFER - Kind.DEPOSIT)
"""How far the kinds of built-in operations lie apart."""


class RecordFault(Exception):
    """A record that no submit may have. Fields: `index` of the record, `field` and its `value`."""

    def __init__(self, index: int, field: str, value: int, rule: str) -> None:
        super().__init__(f"operation {index}: {field} must be {rule}, not {value}")
        self.index = index
        self.field = field
        self.value = value


def count_calls(records: Any, count: int, names: int) -> int:
    """How many of the `count` records (a buffer of bytes) are calls of functions; `names`: how many
    names they choose from. Raises `RecordFault` for the first one that may not be in a submit."""
    first, account, other, amount = _ONE.unpack_from(records)
    called = first & 0xFFFFFFFF == Kind.FUNCTION and first >> 32 < names
    if count == 1:  # most requests of interactive clients, for which numpy takes long to begin
        if first == _TRANSFER_KIND or (first in _ONE_SIDED and not other):
            return 0
        if called and not (account or other or amount):
            return 1
    line: NDArray[Any] = np.frombuffer(records, "<u8")
    heads = line[::RECORD_WORDS]
    words = line.reshape(count, RECORD_WORDS)
    if called:
        bits = _bits_of(line, count)
        # Nothing in any first word that is not in this one, and none is less: all are the same.
        if bits[0] == first and not any(bits[_ACCOUNT:]) and heads.min() == heads[0]:
            return count
    elif np.count_nonzero(heads == heads[0]) == count:
        if first == _TRANSFER_KIND:
            return 0
        if first in _ONE_SIDED and not words[:, _COUNTERPARTY].any():
            return 0
    kinds = heads - _DEPOSIT
    # A counterparty stands only where a transfer is.
    misplaced = (words[:, _COUNTERPARTY] != _NONE) > (kinds == _BUILT_IN)
    # In no first word is anything but the kind of a built-in operation?
    if kinds.max() <= _BUILT_IN and not np.count_nonzero(misplaced):
        return 0
    calls = heads & _LOW == _CALL
    fine = np.where(
        calls,
        (heads >> _HALF < names)
        & ((words[:, _ACCOUNT] | words[:, _COUNTERPARTY] | words[:, _AMOUNT]) == _NONE),
        (kinds <= _BUILT_IN) > misplaced,
    )
    if not fine.all():
        raise _fault(words, int(np.argmin(fine)), names)
    return int(np.count_nonzero(calls))


def _bits_of(line: NDArray[Any], count: int) -> list[int]:
    """For each word of a record the bits that it has in any of `count` records."""
    rows = count // _ROW
    found = np.zeros(RECORD_WORDS, np.uint64)
    if rows:
        taken = line[: rows * _ROW * RECORD_WORDS].reshape(rows, _ROW * RECORD_WORDS)
        together = np.bitwise_or.reduce(taken, axis=0).reshape(_ROW, RECORD_WORDS)
        found = np.bitwise_or.reduce(together, axis=0)
    rest = line[rows * _ROW * RECORD_WORDS :]
    if len(rest):
        found |= np.bitwise_or.reduce(rest.reshape(-1, RECORD_WORDS), axis=0)
    return found.tolist()


def _fault(words: NDArray[Any], index: int, names: int) -> RecordFault:
    """What is wrong with this record: the first of its fields that is."""
    record = np.frombuffer(words[index].tobytes(), RECORD_DTYPE)[0]
    number = int(record["kind"])
    if number not in _ZERO:
        rule = _KINDS
        if number == Kind.FUNCTION_REGISTERED:
            rule += "; functions are registered by requests of their own"
        return RecordFault(index, "kind", number, rule)
    for field in _ZERO[number]:
        if value := int(record[field]):
            rule = f"0 in a {Kind(number).name.lower()}"
            return RecordFault(index, field, value, rule)
    rule = f"an index into the {names} names of the request"
    return RecordFault(index, "function", int(record["function"]), rule)
