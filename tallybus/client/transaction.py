"""Reading one transaction back: the frames of the request, and what its reply means.

Pure functions over bytes, a part of the codec.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tallybus.client.codec import (
    Header,
    Request,
    bad_field,
    check_frames,
    check_size,
    text_field,
    u64_field,
)
from tallybus.common.record import (
    ENTRY_SIZE,
    MAX_I64,
    MAX_PARAMS,
    MIN_I64,
    RECORD_SIZE,
    Kind,
    reason_of,
    status_of,
)
from tallybus.errors import ProtocolError, TransactionNotFound
from tallybus.transactions import Transaction, entry_of

T = TypeVar("T")
_RECORD: Final = struct.Struct("<BBBBIQQQQ")
_ENTRY: Final = struct.Struct("<Qq")


class TransactionRequest(Request[T]):
    """What requests share that are answered with a transaction."""

    __slots__ = ("min_tx_id", "tx_id")
    op = "transaction"

    def __init__(self, tx_id: int, min_tx_id: int | None = None) -> None:
        self.tx_id = tx_id
        self.min_tx_id = min_tx_id

    def fields(self) -> Header:
        least = {} if self.min_tx_id is None else {"min_tx_id": self.min_tx_id}
        return {"tx_id": self.tx_id, **least}

    def read(self, header: Header, payload: Sequence[bytes]) -> Transaction:
        """The transaction; raises TransactionNotFound and ProtocolError."""
        tx_id, snapshot = u64_field(header, "tx_id"), u64_field(header, "snapshot")
        if tx_id != self.tx_id:
            raise bad_field("tx_id", tx_id, f"{self.tx_id}, as asked for")
        if self.min_tx_id is not None and snapshot < self.min_tx_id:
            raise bad_field("snapshot", snapshot, f"at least {self.min_tx_id}, as asked for")
        found = header.get("found")
        if not isinstance(found, bool):
            raise bad_field("found", found, "true or false")
        check_frames(payload, 2)
        if not found:
            raise TransactionNotFound(
                f"the read side has no transaction {tx_id}; it has come to {snapshot}",
                tx_id=tx_id,
                last_snapshot_tx_id=snapshot,
            )
        check_size(payload[0], 1, RECORD_SIZE)
        return _transaction(tx_id, snapshot, header, payload[0], payload[1])


class ReadTransaction(TransactionRequest[Transaction]):
    """Reads one transaction."""

    __slots__ = ()

    def decode(self, header: Header, payload: Sequence[bytes]) -> Transaction:
        return self.read(header, payload)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a record is about, by its kind; see `Transaction`."""

    account: int | None = None
    source: int | None = None
    target: int | None = None
    amount: int | None = None
    function_name: str | None = None
    function_version: int | None = None
    function_crc32c: int | None = None
    params: tuple[int, ...] = ()


def _transaction(
    tx_id: int, snapshot: int, header: Header, record: bytes, entries: bytes
) -> Transaction:
    kind, status, entry_count, reason, crc32c, user_ref, account, other, amount = _RECORD.unpack(
        record
    )
    # The record counts the entries of a function; those of a built-in follow from it.
    if len(entries) % ENTRY_SIZE or (
        kind == Kind.FUNCTION and status == 0 and len(entries) != entry_count * ENTRY_SIZE
    ):
        raise ProtocolError(f"the gateway sent entries of {len(entries)} bytes, not as recorded")
    known = Kind(kind) if kind in Kind._value2member_map_ else kind
    subject = _subject(known, status, header, account, other, amount, crc32c)
    return Transaction(
        tx_id=tx_id,
        timestamp_ns=u64_field(header, "timestamp"),
        term=u64_field(header, "term"),
        kind=known,
        status=status_of(status, reason),
        reason=reason_of(reason),
        user_ref=user_ref,
        account=subject.account,
        source=subject.source,
        target=subject.target,
        amount=subject.amount,
        function_name=subject.function_name,
        function_version=subject.function_version,
        function_crc32c=subject.function_crc32c,
        params=subject.params,
        entries=tuple(entry_of(*row) for row in _ENTRY.iter_unpack(entries)),
        duplicate_of=u64_field(header, "duplicate_of") or None,
        last_snapshot_tx_id=snapshot,
    )


def _subject(
    kind: Kind | int,
    status: int,
    header: Header,
    account: int,
    other: int,
    amount: int,
    crc32c: int,
) -> _Subject:
    match kind:
        case Kind.TRANSFER:
            return _Subject(source=account, target=other, amount=amount)
        case Kind.DEPOSIT | Kind.WITHDRAWAL:
            return _Subject(account=account, amount=amount)
        case Kind.FUNCTION_REGISTERED:
            made = status == 0
            return _Subject(
                function_name=None if header.get("name") is None else text_field(header, "name"),
                function_version=account if made else None,
                function_crc32c=crc32c if made else None,
            )
        case Kind.FUNCTION:
            name, version = _function(header)
            return _Subject(
                function_name=name,
                function_version=version,
                function_crc32c=crc32c or None,
                params=_params(header),
            )
        case _:
            # Whatever a client sent is in the log; nothing but its reference means anything.
            return _Subject()


def _function(header: Header) -> tuple[str | None, int | None]:
    function: Any = header.get("function")
    if function is None:
        return None, None
    if not isinstance(function, dict):
        raise bad_field("function", function, "a map, or nil")
    return text_field(function, "name"), u64_field(function, "version")


def _params(header: Header) -> tuple[int, ...]:
    params = header.get("params")
    if (
        not isinstance(params, list)
        or len(params) > MAX_PARAMS
        or not all(type(value) is int and MIN_I64 <= value <= MAX_I64 for value in params)
    ):
        raise bad_field("params", params, f"a list of up to {MAX_PARAMS} signed 64-bit integers")
    return tuple(params)
