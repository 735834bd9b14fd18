"""What the records of a submit may hold: a rule that clients and the gateway share.

A field that means nothing in a record is 0, a call's function is an index into the names beside the
records, and there are four kinds. What differs from that was built wrongly, and says perhaps
something else than its author meant: it is refused before anything is sequenced, with the place of
the record and the field. Amounts and accounts are not looked at here: whether the ledger has them
decides the transactor, and tells by a status.

A submit has up to some ten thousand records, and millions may come in a second: so the records are
read as words of 8 bytes (`RECORD_WORDS` a record), and batches of one kind in as few passes as
possible.
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
_ONE: Final = struct.Struct("<Q16xQ8x")
"""Of one record: its first word and its counterparty."""
_TRANSFER_KIND: Final = Kind.TRANSFER.value
_ONE_SIDED: Final = (Kind.DEPOSIT.value, Kind.WITHDRAWAL.value)
_ACCOUNT, _COUNTERPARTY, _AMOUNT = 2, 3, 4
"""Words of a record. Word 0 has the kind in its lowest byte and the function in its upper half."""
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
    first, other = _ONE.unpack_from(records)
    if count == 1 and (first == _TRANSFER_KIND or (first in _ONE_SIDED and not other)):
        return 0  # most requests of interactive clients, for which numpy takes long to begin
    line: NDArray[Any] = np.frombuffer(records, "<u8")
    heads = line[::RECORD_WORDS]
    words = line.reshape(count, RECORD_WORDS)
    head = heads[0]
    if np.count_nonzero(heads == head) == count:
        if first == _TRANSFER_KIND:
            return 0
        if first in _ONE_SIDED and not words[:, _COUNTERPARTY].any():
            return 0
        if (
            first & 0xFFFFFFFF == Kind.FUNCTION
            and first >> 32 < names
            and not words[:, _ACCOUNT].any()
            and not words[:, _COUNTERPARTY].any()
            and not words[:, _AMOUNT].any()
        ):
            return count
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
