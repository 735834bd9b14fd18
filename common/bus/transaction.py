"""One transaction as it is read: its record, what belongs to it, and how that travels in an answer.

The snapshotter finds it in the log and answers a gateway's query "transaction" with it; the gateway
passes it on. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tallybus.common.buffers import EMPTY, Buffer, size
from tallybus.common.bus.messages import Answer, FrameError
from tallybus.common.functions.registry import FunctionRegistry, shown_name
from tallybus.common.record import (
    ENTRY_DTYPE,
    ENTRY_SIZE,
    MAX_U64,
    PARAM_SIZE,
    RECORD_SIZE,
    SYSTEM_ACCOUNT,
    Kind,
    Status,
)

_BUILT_IN: Final = (Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER)


class LoggedTransaction(NamedTuple):
    """What the log holds of one transaction: `record` one item of RECORD_DTYPE, its `params` int64
    and `entries` ENTRY_DTYPE, the first transaction it is linked to (or 0), and its block's time
    and term."""

    tx_id: int
    record: Any
    duplicate_of: int
    params: npt.NDArray[np.int64]
    entries: npt.NDArray[Any]
    timestamp_ns: int
    term: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """One executed transaction.

    record: its 40 bytes as in the log. params: the i64 words kept with it. entries: 16 bytes each;
    of a built-in operation the two that follow from its record. duplicate_of: the first transaction
    with its user_ref, or 0. function: name and version that ran, None if none ran or it is not
    known. name: of a registration, what it registered or ended, "" of any other.
    """

    tx_id: int
    timestamp_ns: int
    term: int
    record: bytes
    params: tuple[int, ...] = ()
    entries: bytes = b""
    duplicate_of: int = 0
    function: tuple[str, int] | None = None
    name: str = ""


def derived_entries(record: Any) -> npt.NDArray[Any]:
    """ENTRY_DTYPE[2] of a built-in operation that moved something, else ENTRY_DTYPE[0].

    `record` is one RECORD_DTYPE item. The giver's credit comes first, then the taker's debit.
    """
    kind = int(record["kind"])
    moved = int(record["status"]) == Status.NONE and int(record["entry_count"]) == 2
    if kind not in _BUILT_IN or not moved:
        return np.empty(0, ENTRY_DTYPE)
    account = int(record["account"])
    source = SYSTEM_ACCOUNT if kind == Kind.DEPOSIT else account
    target = SYSTEM_ACCOUNT
    if kind == Kind.DEPOSIT:
        target = account
    elif kind == Kind.TRANSFER:
        target = int(record["counterparty"])
    entries = np.empty(2, ENTRY_DTYPE)
    entries["account"] = (source, target)
    amount = record["amount"].astype(np.int64)
    entries["amount"] = (-amount, amount)
    return entries


def transaction_of(logged: LoggedTransaction, functions: FunctionRegistry) -> Transaction:
    """The transaction as it is told; `functions` must know all up to it."""
    record = logged.record
    kind = int(record["kind"])
    ran = None
    if kind == Kind.FUNCTION:
        registration, crc = int(record["account"]), int(record["function"])
        ran = functions.resolve(registration, crc, logged.tx_id)
    entries = logged.entries if kind == Kind.FUNCTION else derived_entries(record)
    return Transaction(
        tx_id=logged.tx_id,
        timestamp_ns=logged.timestamp_ns,
        term=logged.term,
        record=record.tobytes(),
        params=tuple(logged.params.tolist()),
        entries=entries.tobytes(),
        duplicate_of=logged.duplicate_of,
        function=None if ran is None else (ran.name, ran.version),
        name=shown_name(logged.params) if kind == Kind.FUNCTION_REGISTERED else "",
    )


def fill_answer(answer: Answer, transaction: Transaction | None) -> None:
    """Puts a transaction into the answer to a query for it; None: it is not found."""
    if transaction is None:
        return
    params = np.array(transaction.params, "<i8").tobytes()
    answer.values = transaction.record + params + transaction.entries
    details: dict[str, int | str] = {
        "timestamp": transaction.timestamp_ns,
        "term": transaction.term,
        "params": len(transaction.params),
        "duplicate_of": transaction.duplicate_of,
        "name": transaction.name,
    }
    if transaction.function is not None:
        details["function"], details["version"] = transaction.function
    answer.details = details


def transaction_in(answer: Answer, tx_id: int) -> Transaction | None:
    """The transaction in an answer without `error` to the query for `tx_id`; None: not found.

    Raises FrameError.
    """
    if not size(answer.values):
        return None
    details = answer.details
    words = _number(details, "params")
    params_end = RECORD_SIZE + words * PARAM_SIZE
    if size(answer.values) < params_end or (size(answer.values) - params_end) % ENTRY_SIZE:
        raise FrameError(
            f"{size(answer.values)} bytes of a transaction with {words} words of params",
            answer.kind,
        )
    values = bytes(answer.values)
    version = _number(details, "version")
    return Transaction(
        tx_id=tx_id,
        timestamp_ns=_number(details, "timestamp"),
        term=_number(details, "term"),
        record=values[:RECORD_SIZE],
        params=tuple(np.frombuffer(values, "<i8", words, RECORD_SIZE).tolist()),
        entries=values[params_end:],
        duplicate_of=_number(details, "duplicate_of"),
        function=(_text(details, "function"), version) if version else None,
        name=_text(details, "name"),
    )


def reply_fields(tx_id: int, snapshot: int, transaction: Transaction | None) -> dict[str, Any]:
    """What a client is told about a transaction, without the payloads (see `reply_payloads`)."""
    found = transaction or Transaction(tx_id, 0, 0, b"")
    function = found.function
    return {
        "tx_id": tx_id,
        "timestamp": found.timestamp_ns,
        "term": found.term,
        "found": transaction is not None,
        "snapshot": snapshot,
        "function": None if function is None else {"name": function[0], "version": function[1]},
        "duplicate_of": found.duplicate_of,
        "params": list(found.params),
        "name": found.name or None,
    }


def reply_payloads(transaction: Transaction | None) -> tuple[Buffer, Buffer]:
    """The payload frames beside `reply_fields`: the record and its entries; both empty if None."""
    if transaction is None:
        return EMPTY, EMPTY
    return transaction.record, transaction.entries


def _number(details: dict[str, int | str], key: str) -> int:
    value = details.get(key, 0)
    if type(value) is not int or not 0 <= value <= MAX_U64:
        raise FrameError(f"{key} of a transaction is {value!r}", Answer.kind)
    return value


def _text(details: dict[str, int | str], key: str) -> str:
    value = details.get(key, "")
    if not isinstance(value, str):
        raise FrameError(f"{key} of a transaction is {value!r}", Answer.kind)
    return value
