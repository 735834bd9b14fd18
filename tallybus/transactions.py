"""A transaction as it is read back: what was asked for, how it ended, what it moved.

Plain immutable values; nothing here does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tallybus.common.record import FunctionStatus, Reason, Status
from tallybus.common.record import Kind as Kind


class Direction(StrEnum):
    """What an entry does to its account: a debit adds, a credit subtracts."""

    CREDIT = "CREDIT"
    DEBIT = "DEBIT"


@dataclass(frozen=True, slots=True)
class Entry:
    """One movement: `amount` (minor units, more than 0) to or from `account`."""

    account: int
    direction: Direction
    amount: int


def entry_of(account: int, amount: int) -> Entry:
    """An entry from what was added to an account: negative for a credit."""
    return Entry(account, Direction.DEBIT if amount > 0 else Direction.CREDIT, abs(amount))


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction of the log. A field that its `kind` does not have is None, or empty.

    DEPOSIT and WITHDRAWAL have `account` and `amount`; TRANSFER has `source`, `target` and
    `amount`. FUNCTION has `params`, as called but without zeros at the end; `function_crc32c` is
    the CRC-32C of the binary that ran and `function_name` and `function_version` what that binary
    was registered as, all None where none ran. FUNCTION_REGISTERED has `function_name`; where it
    succeeded also the `function_version` that it made and the `function_crc32c` of its binary, 0
    for an unregistration. A client may have sent a kind that does not exist: then `kind` is its
    number, and the transaction failed.

    `reason` says why a call failed where `status` alone does not, else it is `Reason.NONE`.

    `timestamp_ns` is Unix time in nanoseconds, given by the sequencer in its `term`. `user_ref` is
    0 where there was none. `entries` are in the order in which they were applied, none if the
    transaction failed; they net to zero. `duplicate_of` is the id of the first transaction with
    that `user_ref` for a DUPLICATE, else None. `last_snapshot_tx_id` is how far the read side was.
    """

    tx_id: int
    timestamp_ns: int
    term: int
    kind: Kind | int
    status: Status | FunctionStatus
    reason: Reason | int
    user_ref: int
    account: int | None
    source: int | None
    target: int | None
    amount: int | None
    function_name: str | None
    function_version: int | None
    function_crc32c: int | None
    params: tuple[int, ...]
    entries: tuple[Entry, ...]
    duplicate_of: int | None
    last_snapshot_tx_id: int
