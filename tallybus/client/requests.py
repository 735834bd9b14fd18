"""From the arguments of a client's method to a checked request; both shells use these.

Raises InvalidRequest with the field and the value. No I/O.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tallybus.checks import check_int, u64_array
from tallybus.client.codec import (
    Payload,
    ReadBalance,
    ReadBalances,
    ReadStatus,
    ReadStatuses,
    WaitFor,
)
from tallybus.client.registration import RegisterFunction, UnregisterFunction
from tallybus.client.submit import SubmitBatch, SubmitOne
from tallybus.client.transaction import ReadTransaction
from tallybus.common.record import MAX_U64, Level
from tallybus.errors import InvalidRequest
from tallybus.functions import checked_binary, checked_name
from tallybus.operations import (
    Operation,
    Operations,
    encode_operation,
    encode_operations,
)


def checked_level(value: object, field: str) -> Level:
    """`value` as a Level, from a Level or its code 0..3."""
    if isinstance(value, Level):
        return value
    return Level(check_int(value, field, 0, max(Level)))


def submit_one(operation: Operation, level: Level) -> SubmitOne:
    """A submit of one operation."""
    record, names, params = encode_operation(operation)
    return SubmitOne(record, checked_level(level, "wait"), names, params)


def submit_batch(
    operations: Operations, level: Level, freeze: Callable[[NDArray[Any]], Payload]
) -> SubmitBatch:
    """A submit of a batch. `freeze` makes a payload of an array that no later change can reach."""
    level = checked_level(level, "wait")
    encoded = encode_operations(operations)
    records, params = encoded.records, encoded.params
    frozen = params if isinstance(params, bytes) else freeze(params) if len(params) else b""
    return SubmitBatch(freeze(records), len(records), level, encoded.names, frozen)


def read_balance(account: int, min_tx_id: int | None) -> ReadBalance:
    """A read of one balance."""
    return ReadBalance(check_int(account, "account"), _min_tx_id(min_tx_id))


def read_balances(accounts: ArrayLike, min_tx_id: int | None) -> ReadBalances:
    """A read of many balances."""
    return ReadBalances(_ids(accounts, "accounts"), _min_tx_id(min_tx_id))


def read_status(tx_id: int, min_tx_id: int | None) -> ReadStatus:
    """A read of one transaction's status."""
    return ReadStatus(check_int(tx_id, "tx_id"), _min_tx_id(min_tx_id))


def read_statuses(tx_ids: ArrayLike, min_tx_id: int | None) -> ReadStatuses:
    """A read of many transactions' statuses."""
    return ReadStatuses(_ids(tx_ids, "tx_ids"), _min_tx_id(min_tx_id))


def wait_for(tx_id: int, level: Level) -> WaitFor:
    """A wait for the index of a level."""
    return WaitFor(check_int(tx_id, "tx_id"), checked_level(level, "wait"))


def read_transaction(tx_id: int, min_tx_id: int | None) -> ReadTransaction:
    """A read of one transaction."""
    return ReadTransaction(check_int(tx_id, "tx_id", 1), _min_tx_id(min_tx_id))


def register_function(name: str, binary: object, override: object) -> RegisterFunction:
    """A registration under a reference of its own, so that it applies once."""
    if not isinstance(override, bool):
        raise InvalidRequest(
            f"override must be True or False, not {type(override).__name__}",
            field="override",
            value=override,
        )
    return RegisterFunction(checked_name(name), checked_binary(binary), override, _new_ref())


def unregister_function(name: str) -> UnregisterFunction:
    """An unregistration under a reference of its own, so that it applies once."""
    return UnregisterFunction(checked_name(name), _new_ref())


def _new_ref() -> int:
    return secrets.randbelow(MAX_U64) + 1


def _min_tx_id(value: object) -> int | None:
    return None if value is None else check_int(value, "min_tx_id")


def _ids(values: Any, field: str) -> NDArray[np.uint64]:
    array = u64_array(values, field)
    if array.ndim != 1 or not len(array):
        raise InvalidRequest(
            f"{field} must have the shape (n,) with n of at least 1, not {array.shape}",
            field=field,
            value=values,
        )
    # The result keeps it, so it must be safe from what the caller does with its own array.
    return np.array(array, "<u8") if array is values or array.base is not None else array
