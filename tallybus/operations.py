"""Operations, results and numpy batches: the values that callers hand in and get back.

Plain immutable values; nothing here does I/O. What an operation's fields may hold is checked when
it is encoded (`encode_operations`), with the field, value and position in the batch in the error.
Amounts are integer minor units from 1 to 2^63-1.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tallybus.checks import check_int, place, u64_array
from tallybus.common.bus.submitted import RecordFault, count_calls
from tallybus.common.record import (
    MAX_AMOUNT,
    MAX_PARAMS,
    MAX_U64,
    RECORD_DTYPE,
    RECORD_SIZE,
    SYSTEM_ACCOUNT,
    FunctionStatus,
    Kind,
    Level,
    Reason,
    reason_of,
)
from tallybus.common.record import Stage as Stage
from tallybus.common.record import Status as Status
from tallybus.common.record import WaitLevel as WaitLevel
from tallybus.common.record import status_of as status_of
from tallybus.errors import InvalidRequest
from tallybus.functions import OperationBatch, checked_name, checked_params

OPERATION_DTYPE: Final = RECORD_DTYPE
"""dtype of one operation in a numpy batch: 40 bytes, see `tallybus.common.record`."""
_RECORD: Final = struct.Struct("<BBHIQQQQ")
_PARAMS: Final = struct.Struct(f"<{MAX_PARAMS}q")
# Of the columns' own types: a plain number would have a whole column converted first.
_ONE: Final = np.uint64(1)
_MAX_AMOUNT: Final = np.uint64(MAX_AMOUNT)
_FUNCTION: Final = np.uint8(Kind.FUNCTION)
Records: TypeAlias = NDArray[Any]
"""A contiguous array of shape (n,) and dtype `OPERATION_DTYPE`."""


@dataclass(frozen=True, slots=True)
class Deposit:
    """Adds `amount` to `account` (a debit) and takes it from the system account 0."""

    account: int
    amount: int
    user_ref: int = 0


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Takes `amount` from `account` (a credit) and adds it to the system account 0."""

    account: int
    amount: int
    user_ref: int = 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """Moves `amount` from account `source` to account `target`."""

    source: int
    target: int
    amount: int
    user_ref: int = 0


@dataclass(frozen=True, slots=True)
class Function:
    """Calls the registered function `name` with up to 8 int64 `params` (missing ones are 0).

    A name has 1 to 32 ASCII letters, digits or underscores and starts with a letter.
    """

    name: str
    params: tuple[int, ...] = ()
    user_ref: int = 0


Operation: TypeAlias = Deposit | Withdrawal | Transfer | Function
Operations: TypeAlias = Sequence[Operation] | Records | OperationBatch


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of one transaction.

    `level` is how far it is known to have come. `status` is a `Status`, or a `FunctionStatus` for a
    function's own; None while `level` is NONE, for then nothing is known but its id. `reason` says
    why a call failed where its status alone does not: a `Reason`, or a bare number of a newer
    ledger's.

    For a DUPLICATE both `tx_id` and `duplicate_of` are the id of the first transaction with that
    `user_ref`, and `original_status` is how that one ended. If the client itself had sent the
    operation again after a lost connection and the first sending turned out to have been executed,
    `status` is that execution's status, and `tx_id` and `duplicate_of` are its id.
    """

    tx_id: int
    status: Status | FunctionStatus | None
    level: Level
    duplicate_of: int | None = None
    original_status: Status | FunctionStatus | None = None
    reason: Reason | int = Reason.NONE

    @property
    def ok(self) -> bool:
        """True if the transaction is known to have been executed with success."""
        return self.status == Status.OK and self.level >= Level.COMPUTED


class BatchResult(Sequence[Result]):
    """Outcomes of a batch of n operations, in the order given; a sequence of `Result`.

    `first_tx_id` is the id given to the first operation; the others follow without gaps. `level` is
    the level reached. As arrays: `statuses` u8[n] (all zero while `level` is NONE: not known),
    `duplicate_of` u64[n] the id of the first transaction with that `user_ref` for a duplicate, else
    0, `original_statuses` u8[n] how that one ended (0 for other operations), `reasons` u8[n].
    """

    __slots__ = (
        "_original_statuses",
        "_reasons",
        "_tx_ids",
        "duplicate_of",
        "first_tx_id",
        "level",
        "statuses",
    )

    def __init__(
        self,
        first_tx_id: int,
        tx_ids: NDArray[np.uint64] | None,
        statuses: NDArray[np.uint8],
        level: Level,
        duplicate_of: NDArray[np.uint64],
        original_statuses: NDArray[np.uint8] | None = None,
        reasons: NDArray[np.uint8] | None = None,
    ) -> None:
        """`tx_ids` None: to be made of the others when somebody asks. The last two: all zero."""
        self.first_tx_id = first_tx_id
        self.level = level
        self.statuses = statuses
        self.duplicate_of = duplicate_of
        self._tx_ids = tx_ids
        self._original_statuses = original_statuses
        self._reasons = reasons

    @property
    def tx_ids(self) -> NDArray[np.uint64]:
        """u64[n]: the id of each operation's transaction, for a duplicate that of the first one."""
        tx_ids = self._tx_ids
        if tx_ids is None:
            # Not before somebody asks: for a large batch it costs as much as all the rest.
            tx_ids = np.arange(len(self), dtype=np.uint64)
            tx_ids += np.uint64(self.first_tx_id)
            np.copyto(tx_ids, self.duplicate_of, where=self.duplicate_of != 0)
            self._tx_ids = tx_ids
        return tx_ids

    @property
    def original_statuses(self) -> NDArray[np.uint8]:
        """u8[n]: of a duplicate, how the first transaction with that `user_ref` ended; else 0."""
        if self._original_statuses is None:
            self._original_statuses = np.zeros(len(self), np.uint8)
        return self._original_statuses

    @property
    def reasons(self) -> NDArray[np.uint8]:
        """u8[n]: `Reason` codes of calls that failed, 0 where the status tells it all."""
        if self._reasons is None:
            self._reasons = np.zeros(len(self), np.uint8)
        return self._reasons

    def __repr__(self) -> str:
        return (
            f"BatchResult(first_tx_id={self.first_tx_id}, count={len(self)}, "
            f"level={self.level.name}, failed_count={self.failed_count})"
        )

    def __len__(self) -> int:
        return len(self.statuses)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._result(
            int(self.tx_ids[index]),
            int(self.statuses[index]),
            int(self.duplicate_of[index]),
            0 if self._original_statuses is None else int(self._original_statuses[index]),
            0 if self._reasons is None else int(self._reasons[index]),
        )

    def __iter__(self) -> Iterator[Result]:
        count = len(self)
        rows = zip(
            self.tx_ids.tolist(),
            self.statuses.tolist(),
            self.duplicate_of.tolist(),
            repeat(0, count)
            if self._original_statuses is None
            else self.original_statuses.tolist(),
            repeat(0, count) if self._reasons is None else self.reasons.tolist(),
            strict=True,
        )
        return (self._result(*row) for row in rows)

    def _result(self, tx_id: int, status: int, first: int, original: int, reason: int) -> Result:
        if self.level < Level.COMPUTED and not status:
            return Result(tx_id, None, self.level)
        return Result(
            tx_id,
            status_of(status, reason),
            self.level,
            first or None,
            status_of(original, 0) if first else None,
            reason_of(reason),
        )

    @property
    def failed_count(self) -> int:
        """How many ended with a status other than OK (duplicates included)."""
        return int(np.count_nonzero(self.statuses))

    @property
    def ok_count(self) -> int:
        """How many are known to have been executed with success; 0 if `level` is NONE."""
        if self.level < Level.COMPUTED:
            return 0
        return len(self) - self.failed_count


@dataclass(frozen=True, slots=True)
class Balance:
    """Balance of one account in minor units, as of the transaction `last_snapshot_tx_id`."""

    account: int
    balance: int
    last_snapshot_tx_id: int


@dataclass(frozen=True, slots=True, eq=False)
class Balances(Sequence[Balance]):
    """Balances of n accounts, all as of the transaction `last_snapshot_tx_id`; a sequence of
    `Balance`.

    `accounts` u64[n] is the accounts as asked for, `balances` i64[n] their balances in minor units.
    """

    accounts: NDArray[np.uint64]
    balances: NDArray[np.int64]
    last_snapshot_tx_id: int

    def __len__(self) -> int:
        return len(self.accounts)

    @overload
    def __getitem__(self, index: int) -> Balance: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Balance]: ...
    def __getitem__(self, index: int | slice) -> Balance | Sequence[Balance]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Balance(
            int(self.accounts[index]), int(self.balances[index]), self.last_snapshot_tx_id
        )


@dataclass(frozen=True, slots=True)
class TransactionStatus:
    """How far a transaction has come, how it ended, and the link of a duplicate (else None).

    `status` is None while that is not known: `stage` is UNKNOWN (no such id yet) or PENDING.
    `reason` as in `Result`.
    """

    tx_id: int
    stage: Stage
    status: Status | FunctionStatus | None
    duplicate_of: int | None
    reason: Reason | int = Reason.NONE


def transaction_status(
    tx_id: int, stage: int, status: int, duplicate_of: int, reason: int
) -> TransactionStatus:
    """From the bytes of a status row."""
    at = Stage(stage)
    known = status_of(status, reason) if at >= Stage.COMPUTED else None
    return TransactionStatus(tx_id, at, known, duplicate_of or None, reason_of(reason))


@dataclass(frozen=True, slots=True, eq=False)
class TransactionStatuses(Sequence[TransactionStatus]):
    """Statuses of n transactions; a sequence of `TransactionStatus`.

    `tx_ids` u64[n] as asked for, `stages` u8[n] (`Stage` codes), `statuses` u8[n] (`Status` codes;
    0 as well where `stages` is below COMPUTED and no status is known), `duplicate_of` u64[n] (0 =
    not a duplicate), `reasons` u8[n] (`Reason` codes).
    """

    tx_ids: NDArray[np.uint64]
    stages: NDArray[np.uint8]
    statuses: NDArray[np.uint8]
    duplicate_of: NDArray[np.uint64]
    reasons: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.tx_ids)

    @overload
    def __getitem__(self, index: int) -> TransactionStatus: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TransactionStatus]: ...
    def __getitem__(self, index: int | slice) -> TransactionStatus | Sequence[TransactionStatus]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return transaction_status(
            int(self.tx_ids[index]),
            int(self.stages[index]),
            int(self.statuses[index]),
            int(self.duplicate_of[index]),
            int(self.reasons[index]),
        )


@dataclass(frozen=True, slots=True)
class EncodedOperations:
    """Operations as they go on the wire.

    `records` (n,) of `OPERATION_DTYPE`; `names` of the functions called, in the order of the
    records' `function` index; `params` 64 bytes (8 little-endian int64) per FUNCTION record, in
    order: bytes, or int64 (c, 8) that may still be the caller's own array.
    """

    records: Records
    names: tuple[str, ...] = ()
    params: bytes | NDArray[np.int64] = b""


def encode_operations(operations: Operations) -> EncodedOperations:
    """Checks and encodes a batch.

    A numpy array must have shape (n,) and dtype `OPERATION_DTYPE`; it is taken as it is when
    contiguous and copied when not. An OperationBatch has function calls beside such an array. A
    sequence of operations is encoded into one preallocated array. Raises InvalidRequest for an
    empty batch, another shape or dtype, a record with an unknown kind or with anything but 0 in a
    field that means nothing in it, names or parameters that do not fit the records, or an operation
    whose fields do not fit the record.
    """
    if isinstance(operations, np.ndarray):
        return EncodedOperations(_checked_records(operations, 0)[0])
    if isinstance(operations, OperationBatch):
        records, calls = _checked_records(operations.records, len(operations.names))
        params = checked_params(operations, calls)
        return EncodedOperations(records, tuple(operations.names), params)
    if isinstance(operations, (str, bytes)) or not isinstance(operations, Sequence):
        raise InvalidRequest(
            "operations must be a sequence of operations, an array of OPERATION_DTYPE or an "
            f"OperationBatch, not {type(operations).__name__}",
            field="operations",
            value=operations,
        )
    if not operations:
        raise _empty(operations)
    records = np.zeros(len(operations), RECORD_DTYPE)
    target = records.view(np.uint8).data
    names: dict[str, int] = {}
    rows: list[bytes] = []
    for index, operation in enumerate(operations):
        _encode_into(target, index * RECORD_SIZE, operation, index, names, rows)
    return EncodedOperations(records, tuple(names), b"".join(rows))


def encode_operation(operation: Operation) -> tuple[bytes, tuple[str, ...], bytes]:
    """Checks and encodes one operation: its record (40 bytes), function names and parameters."""
    target = bytearray(RECORD_SIZE)
    names: dict[str, int] = {}
    params: list[bytes] = []
    _encode_into(target, 0, operation, None, names, params)
    return bytes(target), tuple(names), b"".join(params)


def user_ref_of(text: str | bytes) -> int:
    """A `user_ref` for a key that is a text: an order number, a UUID, an idempotency key.

    The first eight bytes of the SHA-256 of its UTF-8, as a big-endian number; 1 instead of 0. The
    same text gives the same number always, in every process and language. Two texts that differ
    have the same number once in 2^64.
    """
    if isinstance(text, str):
        data = text.encode("utf-8", "surrogatepass")
    elif isinstance(text, bytes):
        data = text
    else:
        raise InvalidRequest(
            f"text must be a str or bytes, not {type(text).__name__}", field="text", value=text
        )
    if not data:
        raise InvalidRequest("text is empty: it names nothing", field="text", value=text)
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") or 1


def deposits(
    accounts: ArrayLike, amounts: ArrayLike, user_refs: ArrayLike | None = None
) -> Records:
    """A batch of deposits as an array of `OPERATION_DTYPE`.

    Arguments are integer arrays, sequences or scalars, broadcast against each other to shape (n,).
    Raises InvalidRequest for values that are no integers or do not fit u64.
    """
    return _records(Kind.DEPOSIT, accounts, SYSTEM_ACCOUNT, amounts, user_refs, "accounts")


def withdrawals(
    accounts: ArrayLike, amounts: ArrayLike, user_refs: ArrayLike | None = None
) -> Records:
    """A batch of withdrawals as an array of `OPERATION_DTYPE`; arguments as for `deposits`."""
    return _records(Kind.WITHDRAWAL, accounts, SYSTEM_ACCOUNT, amounts, user_refs, "accounts")


def transfers(
    sources: ArrayLike,
    targets: ArrayLike,
    amounts: ArrayLike,
    user_refs: ArrayLike | None = None,
) -> Records:
    """A batch of transfers as an array of `OPERATION_DTYPE`; arguments as for `deposits`."""
    return _records(Kind.TRANSFER, sources, targets, amounts, user_refs, "sources")


def _records(
    kind: Kind,
    accounts: ArrayLike,
    counterparties: ArrayLike,
    amounts: ArrayLike,
    user_refs: ArrayLike | None,
    account_field: str,
) -> Records:
    columns = {
        account_field: u64_array(accounts, account_field),
        "targets": u64_array(counterparties, "targets"),
        "amounts": u64_array(amounts, "amounts"),
        "user_refs": u64_array(0 if user_refs is None else user_refs, "user_refs"),
    }
    try:
        shape = np.broadcast_shapes(*(column.shape for column in columns.values()))
    except ValueError as error:
        shapes = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
        raise InvalidRequest(f"the columns' shapes do not fit each other: {shapes}") from error
    if len(shape) > 1:
        raise InvalidRequest(f"the columns must have one dimension, not the shape {shape}")
    records = np.zeros(shape or 1, RECORD_DTYPE)
    records["kind"] = kind
    records["account"], records["counterparty"], records["amount"], records["user_ref"] = (
        columns.values()
    )
    return records


def _encode_into(
    target: bytearray | memoryview,
    offset: int,
    operation: Operation,
    index: int | None,
    names: dict[str, int],
    params: list[bytes],
) -> None:
    function = counterparty = 0
    match operation:
        case Transfer(source, other, amount, user_ref):
            kind, account_field = Kind.TRANSFER, "source"
            account = source
            counterparty = _u64(other, "target", index)
        case Deposit(account, amount, user_ref):
            kind, account_field = Kind.DEPOSIT, "account"
        case Withdrawal(account, amount, user_ref):
            kind, account_field = Kind.WITHDRAWAL, "account"
        case Function(name, values, user_ref):
            kind, account_field, account, amount = Kind.FUNCTION, "account", 0, 0
            params.append(_encode_params(values, index))
            function = names.setdefault(checked_name(name, index), len(names))
        case _:
            raise InvalidRequest(
                f"{place(index)}an operation must be a Deposit, Withdrawal, Transfer or Function, "
                f"not {type(operation).__name__}",
                field="operation",
                value=operation,
                index=index,
            )
    _RECORD.pack_into(
        target,
        offset,
        kind,
        0,
        0,
        function,
        _u64(user_ref, "user_ref", index),
        _u64(account, account_field, index),
        counterparty,
        0 if kind is Kind.FUNCTION else _amount(amount, index),
    )


def _amount(value: object, index: int | None) -> int:
    if type(value) is int and 1 <= value <= MAX_AMOUNT:
        return value
    return check_int(value, "amount", 1, MAX_AMOUNT, index)


def _u64(value: object, field: str, index: int | None) -> int:
    if type(value) is int and 0 <= value <= MAX_U64:
        return value
    return check_int(value, field, index=index)


def _encode_params(values: object, index: int | None) -> bytes:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise InvalidRequest(
            f"{place(index)}params must be a tuple of ints, not {type(values).__name__}",
            field="params",
            value=values,
            index=index,
        )
    if len(values) > MAX_PARAMS:
        raise InvalidRequest(
            f"{place(index)}params has {len(values)} values, a function takes up to {MAX_PARAMS}",
            field="params",
            value=values,
            index=index,
        )
    numbers = [check_int(value, "params", -MAX_AMOUNT - 1, MAX_AMOUNT, index) for value in values]
    return _PARAMS.pack(*numbers, *[0] * (MAX_PARAMS - len(numbers)))


def _checked_records(array: NDArray[Any], names: int) -> tuple[Records, int]:
    """The records, contiguous, and how many of them call one of the `names` functions."""
    if not isinstance(array, np.ndarray):
        raise InvalidRequest(
            f"records must be an array of OPERATION_DTYPE, not {type(array).__name__}",
            field="operations",
            value=array,
        )
    if array.ndim != 1:
        raise InvalidRequest(
            f"operations must have the shape (n,), not {array.shape}",
            field="operations",
            value=array,
        )
    if array.dtype != RECORD_DTYPE:
        raise InvalidRequest(
            f"operations must have the dtype OPERATION_DTYPE, not {array.dtype}; "
            "deposits(), withdrawals() and transfers() make such arrays, function_calls() a batch "
            "of calls",
            field="operations",
            value=array,
        )
    if not len(array):
        raise _empty(array)
    records = np.ascontiguousarray(array)
    try:
        calls = count_calls(records, len(records), names)
    except RecordFault as fault:
        raise InvalidRequest(
            str(fault), field=fault.field, value=fault.value, index=fault.index
        ) from None
    _check_amounts(records)
    return records, calls


def _check_amounts(records: Records) -> None:
    # 0 wraps around to the largest number: one comparison finds it, and what is too large.
    wrong = records["amount"] - _ONE >= _MAX_AMOUNT
    if not wrong.any():
        return
    wrong &= records["kind"] != _FUNCTION
    if wrong.any():
        index = int(wrong.argmax())
        check_int(int(records["amount"][index]), "amount", 1, MAX_AMOUNT, index)


def _empty(value: object) -> InvalidRequest:
    return InvalidRequest(
        "a batch must have at least one operation", field="operations", value=value
    )
