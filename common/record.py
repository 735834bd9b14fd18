"""The operation record: 40 bytes, the same on the wire, in memory and in the log.

This module fixes codes and layouts that clients, services and files share. Codes are never reused
and never change meaning. Everything is little-endian and naturally aligned.

A record's fields (`RECORD_DTYPE`):

| at | field        | type | on the wire from a client       | in the log                          |
|----|--------------|------|---------------------------------|-------------------------------------|
| 0  | kind         | u8   | `Kind`                          | the same                            |
| 1  | status       | u8   | 0                               | `Status` of the execution           |
| 2  | entry_count  | u8   | 0                               | entries the transaction produced    |
| 3  | reason       | u8   | 0                               | `Reason` of a call that failed      |
| 4  | function     | u32  | index into the header's names   | CRC-32C of its binary, else 0       |
| 8  | user_ref     | u64  | idempotency key, 0 = none       | the same                            |
| 16 | account      | u64  | account, or a transfer's source | the same                            |
| 24 | counterparty | u64  | a transfer's target, else 0     | the same                            |
| 32 | amount       | u64  | minor units                     | the same; in calls: parameters kept |
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np


class Named(IntEnum):
    """A code that prints its name: `str`, f-strings and `%s`. It is still its number."""

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(int(self) if spec[-1:] in _OF_NUMBERS else self.name, spec)


_OF_NUMBERS: Final = frozenset("bcdeEfFgGnoxX%")


class Kind(Named):
    """What a record asks for."""

    DEPOSIT = 1
    WITHDRAWAL = 2
    TRANSFER = 3
    FUNCTION = 4
    FUNCTION_REGISTERED = 5


class Status(Named):
    """Outcome of a transaction. 12..127 are reserved, 128..255 belong to functions.

    NOT_RUN and SUSPENDED say that a call was recorded and not executed: nothing moved, and its
    `user_ref` is free for another try. They come with a `Reason`. Without one, a status of 10..127
    is an older record's whose function returned it: it was the function's own then.

    Success is OK. It was called NONE at first, and NONE is still the same member; `json_name` says
    it so wherever programs read names.
    """

    OK = 0
    NONE = 0
    INSUFFICIENT_FUNDS = 1
    ACCOUNT_NOT_FOUND = 2
    ZERO_SUM_VIOLATION = 3
    ENTRY_LIMIT_EXCEEDED = 4
    INVALID_OPERATION = 5
    ACCOUNT_LIMIT_EXCEEDED = 6
    DUPLICATE = 7
    BALANCE_OVERFLOW = 8
    QUOTA_EXCEEDED = 9
    NOT_RUN = 10
    SUSPENDED = 11

    @property
    def ok(self) -> bool:
        """Whether it is success."""
        return self.value == 0


class FunctionStatus(int):
    """A status that is a function's own: a number from 128 to 255, which prints as FUNCTION_n.

    (In older records also 10 to 127.)
    """

    @property
    def name(self) -> str:
        return f"FUNCTION_{int(self)}"

    @property
    def ok(self) -> bool:
        return False

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"FunctionStatus({int(self)})"

    def __format__(self, spec: str) -> str:
        return format(int(self) if spec[-1:] in _OF_NUMBERS else self.name, spec)


def status_of(code: int, reason: int | None = None) -> Status | FunctionStatus:
    """The status of a code 0..255.

    `reason` is the byte beside it in a record or row: without a `Reason` a code of 10..127 is an
    older function's own. None: nothing stands beside it, as where a running ledger counts.
    """
    if reason is not None and 10 <= code < FIRST_USER_STATUS and not reason & REASON_MASK:
        return FunctionStatus(code)
    return _STATUSES[code]


def reason_of(byte: int) -> Reason | int:
    """The `Reason` in a row's or record's byte; a bare number for one of a newer ledger."""
    code = byte & REASON_MASK
    return Reason(code) if code in Reason._value2member_map_ else code


def json_name(status: int) -> str:
    """The name of a status for programs: success is NONE, as it always was."""
    if status == 0:
        return "NONE"
    return status.name if isinstance(status, (Status, FunctionStatus)) else status_of(status).name


class Reason(Named):
    """Why a function call failed, beside its status. 0..31; 0 where the status tells it all."""

    NONE = 0
    TRAP = 1
    """INVALID_OPERATION: the code trapped, or could not be started."""
    UNKNOWN_FUNCTION = 2
    """INVALID_OPERATION: no function of this name is registered."""
    BAD_RETURN = 3
    """INVALID_OPERATION: it returned what no function may: DUPLICATE, 10..127, or beyond a byte."""
    WORK = 4
    """NOT_RUN: the calls before it used the submit's budget of work up."""
    ENTRIES = 5
    """NOT_RUN: the calls before it used the submit's budget of entries up."""
    STOPPED = 6
    """SUSPENDED: an operator had suspended the function before the call began."""
    INTERRUPTED = 7
    """SUSPENDED: an operator suspended the function while the call ran; it was undone."""
    TIME = 8
    """QUOTA_EXCEEDED: the call ran for longer than its fuel explains, or than a submit may."""


class WaitLevel(Named):
    """What a caller waits for; each level implies those before it.

    NONE: sequenced, it has an id. COMPUTED: executed, its status is known. COMMITTED: durable.
    SNAPSHOT: readable.
    """

    NONE = 0
    COMPUTED = 1
    COMMITTED = 2
    SNAPSHOT = 3


Level = WaitLevel


class Stage(Named):
    """How far a transaction has come, as told by a status query."""

    UNKNOWN = 0
    PENDING = 1
    COMPUTED = 2
    COMMITTED = 3
    ON_SNAPSHOT = 4
    ERROR = 5


MAX_U64: Final = 2**64 - 1
MAX_I64: Final = 2**63 - 1
MIN_I64: Final = -(2**63)

SYSTEM_ACCOUNT: Final = 0
MAX_AMOUNT: Final = MAX_I64
MAX_BALANCE: Final = MAX_I64
MIN_BALANCE: Final = MIN_I64
MAX_ENTRIES: Final = 255
FIRST_USER_STATUS: Final = 128

RECORD_DTYPE: Final = np.dtype(
    [
        ("kind", "u1"),
        ("status", "u1"),
        ("entry_count", "u1"),
        ("reason", "u1"),
        ("function", "<u4"),
        ("user_ref", "<u8"),
        ("account", "<u8"),
        ("counterparty", "<u8"),
        ("amount", "<u8"),
    ]
)
RECORD_SIZE: Final = 40

MAX_PARAMS: Final = 8
"""Parameters of a function's call, each an int64; those that are not given are 0."""
PARAM_SIZE: Final = 8
PARAMS_SIZE: Final = MAX_PARAMS * PARAM_SIZE
"""Bytes of all parameters of a call. The log keeps them without the zeros at the end."""
RECORD_WORDS: Final = 5
"""A batch of n records is viewed by the kernels as uint64[n, 5]; word 0 packs kind, status,
entry_count, reason and function from the lowest byte up."""

ENTRY_DTYPE: Final = np.dtype([("account", "<u8"), ("amount", "<i8")])
"""One entry of a function's transaction. Positive amounts are debits (add), negative ones
credits."""
ENTRY_SIZE: Final = 16

FAILURE_DTYPE: Final = np.dtype(
    [
        ("offset", "<u4"),
        ("status", "u1"),
        ("original_status", "u1"),
        ("reason", "u1"),
        ("leg", "u1"),
        ("duplicate_of", "<u8"),
    ]
)
"""Outcome of one transaction that did not succeed, in a sparse list: `offset` counts from the first
transaction of the list's range. For DUPLICATE, `duplicate_of` is the id of the first transaction
with that user_ref and `original_status` is how that one ended (ADR 0005); otherwise both are 0.
`reason` has a `Reason` in its five low bits; the three high ones are flags, none of which is given
yet. `leg` is kept for transactions of several legs, and 0."""
REASON_MASK: Final = 0x1F
"""Bits of a row's `reason` that hold the `Reason`."""
FAILURE_SIZE: Final = 16
_STATUSES: Final = tuple(
    Status(code) if code in Status._value2member_map_ else FunctionStatus(code)
    for code in range(256)
)

STATUS_DTYPE: Final = np.dtype(
    [
        ("stage", "u1"),
        ("status", "u1"),
        ("reserved", "u1", (4,)),
        ("reason", "u1"),
        ("leg", "u1"),
        ("duplicate_of", "<u8"),
    ]
)
"""Answer of a status query for one transaction id: `Stage`, `Status`, `reason` and `leg` as in a
failure row, link of a duplicate."""
STATUS_SIZE: Final = 16


def _check_layout() -> None:
    sizes = {
        "RECORD_DTYPE": (RECORD_DTYPE, RECORD_SIZE),
        "ENTRY_DTYPE": (ENTRY_DTYPE, ENTRY_SIZE),
        "FAILURE_DTYPE": (FAILURE_DTYPE, FAILURE_SIZE),
        "STATUS_DTYPE": (STATUS_DTYPE, STATUS_SIZE),
    }
    for name, (dtype, size) in sizes.items():
        if dtype.itemsize != size:
            raise AssertionError(f"{name} has {dtype.itemsize} bytes, the format says {size}")
    fields = RECORD_DTYPE.fields
    if fields is None:
        raise AssertionError("RECORD_DTYPE has no fields")
    offsets = {name: entry[1] for name, entry in fields.items()}
    expected = {
        "kind": 0,
        "status": 1,
        "entry_count": 2,
        "reason": 3,
        "function": 4,
        "user_ref": 8,
        "account": 16,
        "counterparty": 24,
        "amount": 32,
    }
    if offsets != expected:
        raise AssertionError(f"RECORD_DTYPE has offsets {offsets}, the format says {expected}")


_check_layout()
