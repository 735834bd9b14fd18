"""Replay of executed records: from the log back to balances.

A built-in transaction's entries follow from its record, a function's are stored behind the records;
so balances need neither the rules of execution nor functions. The transactor replays with this at
its start and the snapshotter all the time. Touches only the arrays it is given.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.batch import Batch
from tallybus.common.errors import ReplayError as ReplayError
from tallybus.common.kernels.compiled import INPUT_INTEGERS, INPUT_WORDS, kernel, prefetch, types
from tallybus.common.memory import CHUNK_ACCOUNTS
from tallybus.common.record import (
    ENTRY_DTYPE,
    MAX_AMOUNT,
    MAX_BALANCE,
    MIN_BALANCE,
    RECORD_DTYPE,
    RECORD_WORDS,
    Kind,
)

_U: Final = np.uint64
_ZERO: Final = _U(0)
_ONE: Final = _U(1)
_TWO: Final = _U(2)
_BYTE: Final = _U(0xFF)
_STATUS_SHIFT: Final = _U(8)
_COUNT_SHIFT: Final = _U(16)
_COUNT_MASK: Final = _U(0xFFFF)
_CHUNK_SHIFT: Final = _U(CHUNK_ACCOUNTS.bit_length() - 1)
_DEPOSIT: Final = _U(Kind.DEPOSIT)
_TRANSFER: Final = _U(Kind.TRANSFER)
_FUNCTION: Final = _U(Kind.FUNCTION)
_OTHER_KIND: Final = _U(Kind.TRANSFER - Kind.DEPOSIT)
_LAST_AMOUNT: Final = _U(MAX_AMOUNT - 1)
_MIN_BALANCE: Final = np.int64(MIN_BALANCE)
_MAX_BALANCE: Final = np.int64(MAX_BALANCE)
_HALF: Final = np.int64(32)
_LOW_HALF: Final = np.int64(0xFFFF_FFFF)
_AHEAD: Final = 32
"""Records between the prefetch of a balance and its use."""

if CHUNK_ACCOUNTS & (CHUNK_ACCOUNTS - 1):
    raise AssertionError(f"CHUNK_ACCOUNTS is {CHUNK_ACCOUNTS}; the replay needs a power of two")


def record_words(records: NDArray[np.void]) -> NDArray[np.uint64]:
    """RECORD_DTYPE[n] as u64[n, 5] over the same memory, aligned or not.

    Raises TypeError for another dtype or shape, or when the records are not contiguous.
    """
    if records.dtype != RECORD_DTYPE or records.ndim != 1 or not records.flags.c_contiguous:
        raise TypeError(
            f"records must be contiguous RECORD_DTYPE[n], not {records.dtype}{list(records.shape)}"
        )
    return records.view(np.uint64).reshape(len(records), RECORD_WORDS)


def entry_words(entries: NDArray[np.void]) -> NDArray[np.int64]:
    """ENTRY_DTYPE[k] as i64[k, 2] over the same memory. Raises TypeError as `record_words`."""
    if entries.dtype != ENTRY_DTYPE or entries.ndim != 1 or not entries.flags.c_contiguous:
        raise TypeError(
            f"entries must be contiguous ENTRY_DTYPE[k], not {entries.dtype}{list(entries.shape)}"
        )
    return entries.view(np.int64).reshape(len(entries), 2)


def replay_balances(batch: Batch, balances: NDArray[np.int64], touched: NDArray[np.uint8]) -> None:
    """Apply executed transactions to balances.

    balances: int64[max_accounts]; touched: uint8[one per chunk of CHUNK_ACCOUNTS], set to 1 where a
    balance moved. Raises ReplayError when the transactions cannot be; what came before the
    offending one is then applied, and perhaps a part of it.
    """
    if len(touched) * CHUNK_ACCOUNTS < len(balances):
        raise ValueError(
            f"touched has {len(touched)} items, too few for the chunks of {len(balances)} balances"
        )
    words = record_words(batch.records)
    offending = int(apply_entries(words, entry_words(batch.entries), balances, touched))
    if offending < 0:
        return
    tx_id = batch.first_id + offending
    if offending == batch.count:
        raise ReplayError(tx_id, "more entries are stored than its records have")
    raise ReplayError(tx_id, f"its record cannot be: {batch.records[offending]}")


@kernel(types.int64(INPUT_WORDS, INPUT_INTEGERS, types.int64[::1], types.uint8[::1]))
def apply_entries(words: Any, entries: Any, balances: Any, touched: Any) -> Any:
    """The kernel of `replay_balances`: words u64[n, 5], entries i64[k, 2] (account, amount).

    Returns -1, or the index of the first record that cannot be: account beyond the limit, balance
    outside int64, built-in without cover, entries missing or not zero in sum; n if entries are left
    over.
    """
    limit = _U(balances.size)
    count = words.shape[0]
    entry_count = entries.shape[0]
    used = 0
    for row in range(min(_AHEAD, count)):
        account, counterparty = words[row, 2], words[row, 3]
        prefetch(balances, account if account < limit else _ZERO)
        prefetch(balances, counterparty if counterparty < limit else _ZERO)
    for row in range(count):
        ahead = row + _AHEAD
        if ahead < count:
            account, counterparty = words[ahead, 2], words[ahead, 3]
            prefetch(balances, account if account < limit else _ZERO)
            prefetch(balances, counterparty if counterparty < limit else _ZERO)
        head = words[row, 0]
        moved = (head >> _COUNT_SHIFT) & _COUNT_MASK
        if (head >> _STATUS_SHIFT) & _BYTE != _ZERO or moved == _ZERO:
            continue
        kind = head & _BYTE
        if kind == _FUNCTION:
            last = used + np.int64(moved)
            if last > entry_count:
                return row
            # Sums of the amounts' high and low halves: no amounts make them wrap around to zero.
            high = np.int64(0)
            low = np.int64(0)
            while used < last:
                if used + _AHEAD < entry_count:
                    account = _U(entries[used + _AHEAD, 0])
                    prefetch(balances, account if account < limit else _ZERO)
                account = _U(entries[used, 0])
                value = entries[used, 1]
                if account >= limit:
                    return row
                balance = balances[account]
                if (value > 0 and balance > _MAX_BALANCE - value) or (
                    value < 0 and balance < _MIN_BALANCE - value
                ):
                    return row
                balances[account] = balance + value
                touched[account >> _CHUNK_SHIFT] = 1
                high += value >> _HALF
                low += value & _LOW_HALF
                used += 1
            if low & _LOW_HALF != 0 or high + (low >> _HALF) != 0:
                return row
            continue
        amount = words[row, 4]
        if kind - _DEPOSIT > _OTHER_KIND or amount - _ONE > _LAST_AMOUNT or moved != _TWO:
            return row
        account, counterparty = words[row, 2], words[row, 3]
        source = account if kind != _DEPOSIT else _ZERO
        target = account if kind == _DEPOSIT else (counterparty if kind == _TRANSFER else _ZERO)
        if source >= limit or target >= limit or source == target:
            return row
        value = np.int64(amount)
        from_balance = balances[source]
        to_balance = balances[target]
        if source != _ZERO and from_balance < value:
            return row
        if from_balance < _MIN_BALANCE + value or to_balance > _MAX_BALANCE - value:
            return row
        balances[source] = from_balance - value
        balances[target] = to_balance + value
        touched[source >> _CHUNK_SHIFT] = 1
        touched[target >> _CHUNK_SHIFT] = 1
    return -1 if used == entry_count else count
