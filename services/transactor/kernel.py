"""The transactor's kernels: duplicate check and execution of a batch in one pass.

Free functions over arrays, compiled by numba with fixed signatures (another dtype is a TypeError)
and kept as files of machine code. They hold no state, allocate nothing, release the GIL, and are
safe for any bytes in the input records. `window.py` owns the layout of the arrays, `engine.py`
calls the kernels.

Functions are called through one address in the array `functions` (`functions/layout.py`), so that a
kernel neither knows what runs there nor pays for it in a batch without them.

Slot of a table (u64): tag (24 high bits of the reference's hash) | stamp (8 bits) | offset of the
transaction in its generation (32 bits). A slot is in use when its stamp is the table's; every other
slot is free, whatever it holds, so a table starts its next generation by counting its stamp up and
is never cleared. Slots are searched in buckets of eight, one cache line: those in use come first,
so the number of them is also the place of the next. A full bucket goes on in the next one.
ADR 0007 says why the tables are so, ADR 0005 why a duplicate has a link.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tallybus.common.kernels.compiled import (
    INPUT_WORDS,
    Intrinsic,
    inlined,
    kernel,
    matches,
    prefetch,
    trailing_zeros,
    types,
)
from tallybus.common.record import (
    MAX_AMOUNT,
    MAX_BALANCE,
    MAX_ENTRIES,
    MAX_U64,
    MIN_BALANCE,
    Kind,
    Reason,
    Status,
)
from tallybus.services.transactor.functions.layout import (
    CALL_FUNCTION,
    CAPACITY,
    LAST_KEPT,
    LAST_REGISTERED,
    NEXT,
    STATE,
    STOP,
    USED,
)

# By name: numba is not loaded for it when the kernel is compiled already.
call_2: Final[Any] = Intrinsic("call_2", "tallybus.services.transactor.functions.native")

# Words of the control array: what the engine tells the kernels and they tell it.
SEED: Final = 0
"""Three words: secret constants of the hash; the second and third odd."""
CURRENT_STAMP: Final = 3
PREVIOUS_STAMP: Final = 4
"""Stamps of both generations' tables, 1..255."""
FIRST_OFFSET: Final = 5
"""Offset in the current generation of the batch's record at `start`."""
CURRENT_BASE: Final = 6
PREVIOUS_BASE: Final = 7
"""Transaction id of offset 0 of both generations."""
CURRENT_COUNT: Final = 8
PREVIOUS_COUNT: Final = 9
"""References in both generations. The kernels count the current one up."""
FAILURES: Final = 10
LINKS: Final = 11
"""Rows used in the failures and links arrays. The kernel counts them up."""
REGISTRATION: Final = 12
"""Status that a record of kind FUNCTION_REGISTERED gets, unless it is a duplicate."""
HASHES: Final = 13
"""First word of the ring of hashes computed ahead."""
AHEAD: Final = 32
"""Operations between the announcement of a cache line and its use. Four lines an operation must
stay in the 32 KiB of a first level cache; 32 were enough to hide main memory and more brought
nothing."""
RING: Final = AHEAD
CONTROL_WORDS: Final = HASHES + RING

BUCKET: Final = 8
"""Slots of a bucket: 64 bytes."""

_U: Final = np.uint64
_ZERO: Final = _U(0)
_ONE: Final = _U(1)
_THREE: Final = _U(3)
_BYTE: Final = _U(0xFF)
_SHIFT_8: Final = _U(8)
_SHIFT_32: Final = _U(32)
_SHIFT_40: Final = _U(40)
_SHIFT_29: Final = _U(29)
_BUCKET: Final = _U(BUCKET)
_LOW: Final = _U(0xFFFF_FFFF)
_STAMP_MASK: Final = _U(0xFF << 32)
_TAG_MASK: Final = _U(0xFFFFFF << 40)
_NOWHERE: Final = _U(MAX_U64)
_LAST_AMOUNT: Final = _U(MAX_AMOUNT - 1)
_MIN_BALANCE: Final = np.int64(MIN_BALANCE)
_MAX_BALANCE: Final = np.int64(MAX_BALANCE)

_DEPOSIT: Final = _U(Kind.DEPOSIT)
_TRANSFER: Final = _U(Kind.TRANSFER)
_FUNCTION: Final = _U(Kind.FUNCTION)
_FUNCTION_REGISTERED: Final = _U(Kind.FUNCTION_REGISTERED)
_OTHER_KIND: Final = _U(Kind.TRANSFER - Kind.DEPOSIT)
_INSUFFICIENT_FUNDS: Final = _U(Status.INSUFFICIENT_FUNDS)
_INVALID_OPERATION: Final = _U(Status.INVALID_OPERATION)
_ACCOUNT_LIMIT_EXCEEDED: Final = _U(Status.ACCOUNT_LIMIT_EXCEEDED)
_DUPLICATE: Final = _U(Status.DUPLICATE)
_BALANCE_OVERFLOW: Final = _U(Status.BALANCE_OVERFLOW)
_TWO_ENTRIES: Final = _U(2 << 16)
_ENTRIES_REASON_AND_FUNCTION: Final = _U(2**64 - 2**16)
_NO_FUNCTION: Final = _U(Reason.UNKNOWN_FUNCTION << 24)
_NOT_RUN: Final = _U(Status.NOT_RUN)
_REASON_OF_ROW: Final = _U(0xFF << 48)
_SHIFT_24: Final = _U(24)
_MOST_ENTRIES: Final = _U(MAX_ENTRIES)

_WORDS: Final = types.uint64[:, ::1]
_TABLE: Final = types.uint64[::1]
_BYTES: Final = types.uint8[::1]
_BALANCES: Final = types.int64[::1]


@inlined
def _mix(ref: Any, seed: Any, first: Any, second: Any) -> Any:
    """64-bit hash; without the three secrets nobody can choose references that collide."""
    x = (ref ^ seed) * first
    x ^= x >> _SHIFT_32
    x *= second
    return x ^ (x >> _SHIFT_29)


@inlined
def _home(hashed: Any, buckets: Any) -> Any:
    """First slot of the bucket where a hash belongs: its low half scaled to the number of buckets
    (Lemire 2019), so that a table needs no power of two."""
    return (((hashed & _LOW) * buckets) >> _SHIFT_32) << _THREE


@inlined
def _find(table: Any, refs: Any, buckets: Any, stamp: Any, hashed: Any, ref: Any) -> Any:
    """(offset of `ref` in its generation or _NOWHERE, free slot where it belongs otherwise)."""
    pattern = (hashed & _TAG_MASK) | stamp
    base = _home(hashed, buckets)
    while True:
        alike = matches(table, base, pattern, _TAG_MASK | _STAMP_MASK)
        while alike != _ZERO:
            offset = table[base + trailing_zeros(alike)] & _LOW
            if refs[offset] == ref:
                return offset, _ZERO
            alike &= alike - _ONE
        free = trailing_zeros(~matches(table, base, stamp, _STAMP_MASK))
        if free < _BUCKET:
            return _NOWHERE, base + free
        base += _BUCKET
        if base == buckets << _THREE:
            base = _ZERO


@inlined
def _announce(
    words: Any, row: Any, control: Any, balances: Any, limit: Any, current: Any, previous: Any,
    buckets: Any, any_previous: Any, seed: Any, first: Any, second: Any,
) -> None:  # fmt: skip
    """Hash the row's reference into the ring and prefetch what its execution will read."""
    ref = words[row, 1]
    if ref != _ZERO:
        hashed = _mix(ref, seed, first, second)
        control[HASHES + (row & (RING - 1))] = hashed
        home = _home(hashed, buckets)
        prefetch(current, home)
        if any_previous:
            prefetch(previous, home)
    account = words[row, 2]
    counterparty = words[row, 3]
    prefetch(balances, account if account < limit else _ZERO)
    prefetch(balances, counterparty if counterparty < limit else _ZERO)


@kernel(
    types.int64(
        INPUT_WORDS, types.int64, types.int64, _WORDS, _WORDS, _TABLE, _TABLE, _BALANCES,
        _TABLE, _TABLE, _BYTES, _TABLE, _TABLE, _BYTES, _TABLE,
    )
)  # fmt: skip
def execute(
    words: Any, start: Any, stop: Any, out: Any, failures: Any, links: Any, control: Any,
    balances: Any, current_table: Any, current_refs: Any, current_statuses: Any,
    previous_table: Any, previous_refs: Any, previous_statuses: Any, functions: Any,
) -> Any:  # fmt: skip
    """Execute rows start..stop of a batch; all of them belong to the current generation.

    Returns `stop`, or the row of a function call at which the engine has to do something first:
    the buffer for entries may not suffice, or the calls' STOP is set. This row and those behind it
    are not executed.

    words: u64[n, 5], records as they came, never written. out: u64[n, 5], receives the rows with
    status, entry_count and function set. failures: u64[n, 2] in the layout of FAILURE_DTYPE, links:
    u64[n]. control: u64[CONTROL_WORDS]. balances: i64[max_accounts]. Tables: u64[multiple of 8],
    both of one size; refs u64[N], statuses u8[N]. functions: the state of calls (layout.py).
    """
    seed, first, second = control[SEED], control[SEED + 1], control[SEED + 2]
    current_stamp = control[CURRENT_STAMP] << _SHIFT_32
    previous_stamp = control[PREVIOUS_STAMP] << _SHIFT_32
    current_base = control[CURRENT_BASE]
    previous_base = control[PREVIOUS_BASE]
    any_previous = control[PREVIOUS_COUNT] != _ZERO
    count = control[CURRENT_COUNT]
    failed = control[FAILURES]
    linked = control[LINKS]
    shift = control[FIRST_OFFSET] - _U(start)
    buckets = _U(current_table.size) >> _THREE
    limit = _U(balances.size)
    reached = stop

    for row in range(start, min(start + AHEAD, stop)):
        _announce(words, row, control, balances, limit, current_table, previous_table,
                  buckets, any_previous, seed, first, second)  # fmt: skip
    for row in range(start, stop):
        hashed = control[HASHES + (row & (RING - 1))]
        if row + AHEAD < stop:
            _announce(words, row + AHEAD, control, balances, limit, current_table, previous_table,
                      buckets, any_previous, seed, first, second)  # fmt: skip
        kind = words[row, 0] & _BYTE
        ref = words[row, 1]
        account = words[row, 2]
        counterparty = words[row, 3]
        amount = words[row, 4]
        out[row, 1] = ref
        out[row, 2] = account
        out[row, 3] = counterparty
        out[row, 4] = amount

        free = _ZERO
        if ref != _ZERO:
            original = _ZERO
            original_status = _ZERO
            if any_previous:
                offset, free = _find(
                    previous_table, previous_refs, buckets, previous_stamp, hashed, ref
                )
                if offset != _NOWHERE:
                    original = previous_base + offset
                    original_status = _U(previous_statuses[offset])
            if original == _ZERO:
                offset, free = _find(
                    current_table, current_refs, buckets, current_stamp, hashed, ref
                )
                if offset != _NOWHERE:
                    original = current_base + offset
                    original_status = _U(current_statuses[offset])
            if original != _ZERO:
                out[row, 0] = kind | (_DUPLICATE << _SHIFT_8)
                if kind - _FUNCTION <= _ONE:
                    # There the amount counts the parameters kept behind the record: none.
                    out[row, 4] = _ZERO
                    if kind == _FUNCTION:
                        functions[NEXT] += _ONE
                failures[failed, 0] = (
                    _U(row) | (_DUPLICATE << _SHIFT_32) | (original_status << _SHIFT_40)
                )
                failures[failed, 1] = original
                failed += _ONE
                links[linked] = original
                linked += _ONE
                continue

        source = account if kind != _DEPOSIT else _ZERO
        target = account if kind == _DEPOSIT else (counterparty if kind == _TRANSFER else _ZERO)
        status = _ZERO
        entries = _ZERO
        # Both ranges are checked by wrap-around: 0 - 1 is the largest u64.
        if kind - _DEPOSIT > _OTHER_KIND or amount - _ONE > _LAST_AMOUNT:
            status = _INVALID_OPERATION
            if kind == _FUNCTION:
                out[row, 2] = _ZERO
                out[row, 3] = _ZERO
                if functions[CALL_FUNCTION] == _ZERO:
                    out[row, 4] = _ZERO
                    entries = _NO_FUNCTION
                else:
                    if (
                        functions[USED] + _MOST_ENTRIES > functions[CAPACITY]
                        or functions[STOP] != _ZERO
                    ):
                        reached = row
                        break
                    done = call_2(
                        functions[CALL_FUNCTION], functions[STATE], words[row, 0] >> _SHIFT_32
                    )
                    if done == _NOWHERE:
                        reached = row
                        break
                    status = (done >> _SHIFT_8) & _BYTE
                    entries = done & _ENTRIES_REASON_AND_FUNCTION
                    out[row, 2] = functions[LAST_REGISTERED]
                    out[row, 4] = functions[LAST_KEPT]
            elif kind == _FUNCTION_REGISTERED:
                status = control[REGISTRATION]
                out[row, 4] = _ZERO
        elif source >= limit or target >= limit:
            status = _ACCOUNT_LIMIT_EXCEEDED
        elif source != target:
            value = np.int64(amount)
            from_balance = balances[source]
            to_balance = balances[target]
            if source != _ZERO and from_balance < value:
                status = _INSUFFICIENT_FUNDS
            elif from_balance < _MIN_BALANCE + value or to_balance > _MAX_BALANCE - value:
                status = _BALANCE_OVERFLOW
            else:
                balances[source] = from_balance - value
                balances[target] = to_balance + value
                entries = _TWO_ENTRIES
        out[row, 0] = kind | (status << _SHIFT_8) | entries
        # What was not run leaves its reference free: two statuses, one behind the other.
        if ref != _ZERO and status - _NOT_RUN > _ONE:
            offset = shift + _U(row)
            current_table[free] = (hashed & _TAG_MASK) | current_stamp | offset
            current_refs[offset] = ref
            current_statuses[offset] = np.uint8(status)
            count += _ONE
        if status != _ZERO:
            failures[failed, 0] = (
                _U(row) | (status << _SHIFT_32) | ((entries << _SHIFT_24) & _REASON_OF_ROW)
            )
            failures[failed, 1] = _ZERO
            failed += _ONE

    control[CURRENT_COUNT] = count
    control[FAILURES] = failed
    control[LINKS] = linked
    return reached


@kernel(types.int64(INPUT_WORDS, types.int64, types.int64, _TABLE, _TABLE, _TABLE, _BYTES))
def insert_refs(
    words: Any, start: Any, stop: Any, control: Any, table: Any, refs: Any, statuses: Any
) -> Any:
    """Put the references of executed rows start..stop into the current generation.

    Returns -1, or the first row whose reference is there already although the row is no DUPLICATE:
    such a row no execution has written, and the rows from it on are not inserted.
    """
    seed, first, second = control[SEED], control[SEED + 1], control[SEED + 2]
    stamp = control[CURRENT_STAMP] << _SHIFT_32
    shift = control[FIRST_OFFSET] - _U(start)
    buckets = _U(table.size) >> _THREE
    count = control[CURRENT_COUNT]
    offending = -1
    for row in range(start - AHEAD, stop):
        ahead = row + AHEAD
        hashed = control[HASHES + (ahead & (RING - 1))]
        if ahead < stop:
            coming = _mix(words[ahead, 1], seed, first, second)
            control[HASHES + (ahead & (RING - 1))] = coming
            prefetch(table, _home(coming, buckets))
        if row < start:
            continue
        ref = words[row, 1]
        status = (words[row, 0] >> _SHIFT_8) & _BYTE
        if ref == _ZERO or status == _DUPLICATE:
            continue
        if status - _NOT_RUN <= _ONE and (words[row, 0] >> _SHIFT_24) & _BYTE != _ZERO:
            # It was not run. Without a reason it is an old record: its function returned that.
            continue
        found, free = _find(table, refs, buckets, stamp, hashed, ref)
        if found != _NOWHERE:
            offending = row
            break
        offset = shift + _U(row)
        table[free] = (hashed & _TAG_MASK) | stamp | offset
        refs[offset] = ref
        statuses[offset] = np.uint8(status)
        count += _ONE
    control[CURRENT_COUNT] = count
    return offending
