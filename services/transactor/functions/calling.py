"""One call of a function, compiled: parameters, instance, fuel, entries, undo, outcome, counts.

`call_function` and the three host functions are C functions that know each other through one array
of words, the state; all addresses they use come from there. `state.py` owns the memory behind it,
`binding.py` fills in the runtime's functions, and the kernel calls `call_function` by its address,
so that no Python runs per transaction. This file imports nothing of the WebAssembly runtime.

The rules of a call, which are the product's: `credit` subtracts, `debit` adds, at once. The first
of these failures of a host function decides the outcome whatever happens later, and no host
function has an effect after it: account beyond the limit, amount beyond 2^63-1, the 256th entry,
balance outside int64 (checked in this order; an amount of zero does nothing once account and amount
are in range). Otherwise a trap, fuel spent or the returned status decide, and a returned zero only
counts when the entries are zero in sum. Whatever fails is undone from the last entry to the first.
ADR 0011 says why calls go by address, and what decides their outcome.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from tallybus.common.kernels.compiled import Intrinsic, c_function, inlined, types
from tallybus.common.record import (
    FIRST_USER_STATUS,
    MAX_AMOUNT,
    MAX_BALANCE,
    MAX_ENTRIES,
    MAX_PARAMS,
    MAX_U64,
    MIN_BALANCE,
    Reason,
    Status,
)
from tallybus.services.transactor.functions import layout

# By name: numba is only loaded where they are compiled.
_NATIVE: Final = "tallybus.services.transactor.functions.native"
load: Final[Any] = Intrinsic("load", _NATIVE)
load_half: Final[Any] = Intrinsic("load_half", _NATIVE)
store: Final[Any] = Intrinsic("store", _NATIVE)
prefetch_address: Final[Any] = Intrinsic("prefetch_address", _NATIVE)
call_1: Final[Any] = Intrinsic("call_1", _NATIVE)
call_2: Final[Any] = Intrinsic("call_2", _NATIVE)
call_3: Final[Any] = Intrinsic("call_3", _NATIVE)
call_4: Final[Any] = Intrinsic("call_4", _NATIVE)
call_5: Final[Any] = Intrinsic("call_5", _NATIVE)
call_6: Final[Any] = Intrinsic("call_6", _NATIVE)

_U: Final = np.uint64
_OUT_OF_FUEL: Final = _U(11)
"""WASMTIME_TRAP_CODE_OUT_OF_FUEL"""
_INTERRUPT: Final = _U(10)
"""WASMTIME_TRAP_CODE_INTERRUPT"""
_CLOCK_ID: Final = _U(time.CLOCK_THREAD_CPUTIME_ID)
"""Pauses of the machine and other programs are no work of a customer's."""
_CALLS_AHEAD: Final = 6
"""Calls between the announcement of a balance and its use."""

_ZERO: Final = _U(0)
_ONE: Final = _U(1)
_BYTE: Final = _U(0xFF)
_WORD_BYTES: Final = _U(8)
_ENTRY_BYTES: Final = _U(16)
_VALUE_BYTES: Final = _U(layout.VALUE_BYTES)
_ROW_BYTES: Final = _U(64)
_PARAMS: Final = _U(MAX_PARAMS)
_MOST_ENTRY_BYTES: Final = _U(MAX_ENTRIES * 16)
_SLOT_BYTES: Final = _U(layout.SLOT_WORDS * 8)
_NO_SLOT: Final = _U(layout.NO_SLOT)
_SAMPLED_MASK: Final = _U(layout.SAMPLED - 1)
_AHEAD: Final = _U(_CALLS_AHEAD)
_SHIFT_8: Final = _U(8)
_SHIFT_16: Final = _U(16)
_SHIFT_24: Final = _U(24)
_SHIFT_32: Final = _U(32)
_SHIFT_3: Final = _U(3)
_SHIFT_4: Final = _U(4)
_SECOND: Final = np.int64(10**9)
_SIGNED_SHIFT: Final = np.int64(32)
_SIGNED_LOW: Final = np.int64(0xFFFF_FFFF)
_SIGNED_ZERO: Final = np.int64(0)
_MIN_BALANCE: Final = np.int64(MIN_BALANCE)
_MAX_BALANCE: Final = np.int64(MAX_BALANCE)
_LARGEST_AMOUNT: Final = _U(MAX_AMOUNT)
_NOT_DONE: Final = _U(MAX_U64)
_SLOW_FUEL: Final = _U(layout.SLOW_FUEL)
_CALL_UNITS: Final = _U(layout.CALL_UNITS)
_FRESH_UNITS: Final = _U(layout.FRESH_UNITS)
_SLICE_OVER: Final = _U(layout.SLICE_OVER)
_INTERRUPTED_CALL: Final = _U(layout.INTERRUPTED)
_DURATION_STEPS: Final = _U(layout.DURATION_STEPS)
_NS_PER_UNIT: Final = np.int64(layout.NS_PER_UNIT)
_DEADLINE: Final = _U(1)
"""Ends a call at the next change of the epoch."""
_TWO: Final = _U(2)
_THREE: Final = _U(3)
_EIGHT: Final = _U(8)
_FIRST_RESERVED: Final = _U(10)
_RESERVED_STATUSES: Final = _U(FIRST_USER_STATUS - 10)
_ONE_INSTANCE: Final = _U(1)

_ZERO_SUM_VIOLATION: Final = _U(Status.ZERO_SUM_VIOLATION)
_ENTRY_LIMIT_EXCEEDED: Final = _U(Status.ENTRY_LIMIT_EXCEEDED)
_INVALID_OPERATION: Final = _U(Status.INVALID_OPERATION)
_ACCOUNT_LIMIT_EXCEEDED: Final = _U(Status.ACCOUNT_LIMIT_EXCEEDED)
_DUPLICATE: Final = _U(Status.DUPLICATE)
_BALANCE_OVERFLOW: Final = _U(Status.BALANCE_OVERFLOW)
_QUOTA_EXCEEDED: Final = _U(Status.QUOTA_EXCEEDED)
_NOT_RUN: Final = _U(Status.NOT_RUN)
_SUSPENDED: Final = _U(Status.SUSPENDED)
_BY_TRAP: Final = _U(Reason.TRAP)
_BY_UNKNOWN_FUNCTION: Final = _U(Reason.UNKNOWN_FUNCTION)
_BY_BAD_RETURN: Final = _U(Reason.BAD_RETURN)
_BY_WORK: Final = _U(Reason.WORK)
_BY_ENTRIES: Final = _U(Reason.ENTRIES)
_BY_STOPPED: Final = _U(Reason.STOPPED)
_BY_INTERRUPTED: Final = _U(Reason.INTERRUPTED)
_BY_TIME: Final = _U(Reason.TIME)


def _at(word: int) -> np.uint64:
    return _U(word * 8)


_NEXT: Final = _at(layout.NEXT)
_USED: Final = _at(layout.USED)
_LAST_KEPT: Final = _at(layout.LAST_KEPT)
_LAST_REGISTERED: Final = _at(layout.LAST_REGISTERED)
_BALANCES: Final = _at(layout.BALANCES)
_LIMIT: Final = _at(layout.LIMIT)
_ENTRIES: Final = _at(layout.ENTRIES)
_PARAMS_AT: Final = _at(layout.PARAMS)
_ROWS: Final = _at(layout.ROWS)
_KEPT: Final = _at(layout.KEPT)
_KEPT_COUNT: Final = _at(layout.KEPT_COUNT)
_PLACES: Final = _at(layout.PLACES)
_NAMES: Final = _at(layout.NAMES)
_SLOTS: Final = _at(layout.SLOTS)
_CURSOR: Final = _at(layout.CURSOR)
_END: Final = _at(layout.END)
_FAILURE: Final = _at(layout.FAILURE)
_KEEP_TRAP: Final = _at(layout.KEEP_TRAP)
_ERROR: Final = _at(layout.ERROR)
_TRAP: Final = _at(layout.TRAP)
_LEFT: Final = _at(layout.LEFT)
_SPENT: Final = _at(layout.SPENT)
_TIME: Final = _at(layout.TIME)
_INSTANCE: Final = _at(layout.INSTANCE)
_EXPORT: Final = _at(layout.EXPORT)
_CLOCK: Final = _at(layout.CLOCK)
_CALL: Final = _at(layout.CALL)
_SET_FUEL: Final = _at(layout.SET_FUEL)
_GET_FUEL: Final = _at(layout.GET_FUEL)
_TRAP_CODE: Final = _at(layout.TRAP_CODE)
_TRAP_DELETE: Final = _at(layout.TRAP_DELETE)
_ERROR_DELETE: Final = _at(layout.ERROR_DELETE)
_STORE_NEW: Final = _at(layout.STORE_NEW)
_STORE_CONTEXT: Final = _at(layout.STORE_CONTEXT)
_STORE_LIMITER: Final = _at(layout.STORE_LIMITER)
_STORE_DELETE: Final = _at(layout.STORE_DELETE)
_INSTANTIATE: Final = _at(layout.INSTANTIATE)
_EXPORT_GET: Final = _at(layout.EXPORT_GET)
_ENGINE: Final = _at(layout.ENGINE)
_MEMORY_BYTES: Final = _at(layout.MEMORY_BYTES)
_TABLE_ELEMENTS: Final = _at(layout.TABLE_ELEMENTS)
_TABLES: Final = _at(layout.TABLES)
_EXPORT_NAME: Final = _at(layout.EXPORT_NAME)
_EXPORT_NAME_BYTES: Final = _at(layout.EXPORT_NAME_BYTES)
_ARGUMENTS: Final = _at(layout.ARGUMENTS)
_CONTEXT: Final = _at(layout.CONTEXT)
_FUNCTION: Final = _at(layout.FUNCTION)
_PRE: Final = _at(layout.PRE)
_CRC: Final = _at(layout.CRC)
_REGISTERED: Final = _at(layout.REGISTERED)
_FUEL: Final = _at(layout.FUEL)
_CALLS: Final = _at(layout.CALLS)
_FUEL_USED: Final = _at(layout.FUEL_USED)
_SAMPLES: Final = _at(layout.SAMPLES)
_SAMPLED_NS: Final = _at(layout.SAMPLED_NS)
_START_FUEL: Final = _at(layout.START_FUEL)
_STATUSES: Final = _at(layout.STATUSES)
_REASONS: Final = _at(layout.REASONS)
_DURATIONS: Final = _at(layout.DURATIONS)
_SUSPENDED_AT: Final = _at(layout.SUSPENDED)
_LAST_USED: Final = _at(layout.LAST_USED)
_WORK_NS: Final = _at(layout.WORK_NS)
_ENDS: Final = _at(layout.ENDS)
_TIMES: Final = _at(layout.TIMES)
_SUBMITS: Final = _at(layout.SUBMITS)
_SUBMIT: Final = _at(layout.SUBMIT)
_END_ROW: Final = _at(layout.END_ROW)
_BUDGET_NS: Final = _at(layout.BUDGET_NS)
_BUDGET_ENTRIES: Final = _at(layout.BUDGET_ENTRIES)
_SUBMIT_ENTRIES: Final = _at(layout.SUBMIT_ENTRIES)
_SPENT_BY: Final = _at(layout.SPENT_BY)
_UNITS: Final = _at(layout.UNITS)
_LOOKED_NS: Final = _at(layout.LOOKED_NS)
_SLICE_LEFT_NS: Final = _at(layout.SLICE_LEFT_NS)
_STOP: Final = _at(layout.STOP)
_RUNNING: Final = _at(layout.RUNNING)
_COUNT: Final = _at(layout.COUNT)
_OVERTIME: Final = _at(layout.OVERTIME)
_VIRTUAL_NS: Final = _at(layout.VIRTUAL_NS)
_SET_DEADLINE: Final = _at(layout.SET_DEADLINE)
_REASON: Final = _at(layout.REASON)
_LAST_SLOT: Final = _at(layout.LAST_SLOT)
_LOOK_AFTER: Final = _at(layout.LOOK_AFTER)


_HOST_FUNCTION: Final = types.uint64(types.uint64, types.uint64, types.uint64, types.uint64)


@inlined
def _fail(state: Any, status: Any) -> None:
    if load(state + _FAILURE) == _ZERO:
        store(state + _FAILURE, status)


@inlined
def _move(state: Any, values: Any, credited: Any) -> None:
    account = load(values)
    amount = load(values + _VALUE_BYTES)
    if load(state + _FAILURE) != _ZERO:
        return
    if account >= load(state + _LIMIT):
        store(state + _FAILURE, _ACCOUNT_LIMIT_EXCEEDED)
        return
    if amount > _LARGEST_AMOUNT:
        store(state + _FAILURE, _BALANCE_OVERFLOW)
        return
    if amount == _ZERO:
        return
    cursor = load(state + _CURSOR)
    if cursor == load(state + _END):
        store(state + _FAILURE, _ENTRY_LIMIT_EXCEEDED)
        return
    place = load(state + _BALANCES) + (account << _SHIFT_3)
    balance = np.int64(load(place))
    value = np.int64(amount)
    if credited:
        if balance < _MIN_BALANCE + value:
            store(state + _FAILURE, _BALANCE_OVERFLOW)
            return
        value = -value
    elif balance > _MAX_BALANCE - value:
        store(state + _FAILURE, _BALANCE_OVERFLOW)
        return
    store(place, _U(balance + value))
    store(cursor, account)
    store(cursor + _WORD_BYTES, _U(value))
    store(state + _CURSOR, cursor + _ENTRY_BYTES)


@c_function(_HOST_FUNCTION)
def credit(state: Any, _caller: Any, values: Any, _count: Any) -> Any:
    """`ledger.credit(account, amount)`: subtract."""
    _move(state, values, True)
    return _ZERO


@c_function(_HOST_FUNCTION)
def debit(state: Any, _caller: Any, values: Any, _count: Any) -> Any:
    """`ledger.debit(account, amount)`: add."""
    _move(state, values, False)
    return _ZERO


@c_function(_HOST_FUNCTION)
def get_balance(state: Any, _caller: Any, values: Any, _count: Any) -> Any:
    """`ledger.get_balance(account)`: what it has now, this call's entries included; 0 after a
    failure."""
    account = load(values)
    if load(state + _FAILURE) != _ZERO:
        store(values, _ZERO)
    elif account >= load(state + _LIMIT):
        store(state + _FAILURE, _ACCOUNT_LIMIT_EXCEEDED)
        store(values, _ZERO)
    else:
        store(values, load(load(state + _BALANCES) + (account << _SHIFT_3)))
    return _ZERO


@inlined
def _keep_params(state: Any, row: Any) -> None:
    """Copy a row of parameters without its last zeros to what the log keeps."""
    source = load(state + _PARAMS_AT) + row * _ROW_BYTES
    count = _PARAMS
    while count != _ZERO and load(source + ((count - _ONE) << _SHIFT_3)) == _ZERO:
        count -= _ONE
    kept = load(state + _KEPT_COUNT)
    target = load(state + _KEPT) + (kept << _SHIFT_3)
    for i in range(np.int64(count)):
        offset = _U(i) << _SHIFT_3
        store(target + offset, load(source + offset))
    store(state + _KEPT_COUNT, kept + count)
    store(state + _LAST_KEPT, count)


@inlined
def _announce(state: Any, row: Any) -> None:
    """Prefetch the balances that a later call will probably use: the first parameters are accounts
    in most functions."""
    if row >= load(state + _ROWS):
        return
    source = load(state + _PARAMS_AT) + row * _ROW_BYTES
    balances = load(state + _BALANCES)
    limit = load(state + _LIMIT)
    for i in range(3):
        account = load(source + (_U(i) << _SHIFT_3))
        if account < limit:
            prefetch_address(balances + (account << _SHIFT_3))


@inlined
def _now(state: Any) -> Any:
    """Nanoseconds that this thread has run."""
    clock = load(state + _CLOCK)
    if clock == _ZERO:
        return np.int64(load(state + _VIRTUAL_NS))
    call_2(clock, _CLOCK_ID, state + _TIME)
    seconds = np.int64(load(state + _TIME))
    return seconds * _SECOND + np.int64(load(state + _TIME + _WORD_BYTES))


@inlined
def _look(state: Any, slot: Any, units: Any) -> None:
    """Look at the clock: what has passed since the last look was the submit's, as far as so many
    units of work explain it, and the slot's if it is not 0. Budget and slice may be over."""
    now = _now(state)
    took = now - np.int64(load(state + _LOOKED_NS))
    store(state + _LOOKED_NS, _U(now))
    store(state + _UNITS, _ZERO)
    if slot != _ZERO:
        store(slot + _WORK_NS, load(slot + _WORK_NS) + _U(took))
    place = load(state + _TIMES) + (load(state + _SUBMIT) << _SHIFT_3)
    explained = np.int64(units) * _NS_PER_UNIT
    spent = load(place) + _U(min(explained, took))
    store(place, spent)
    if spent >= load(state + _BUDGET_NS) and load(state + _SPENT_BY) == _ZERO:
        store(state + _SPENT_BY, _BY_WORK)
    left = np.int64(load(state + _SLICE_LEFT_NS)) - took
    store(state + _SLICE_LEFT_NS, _U(left))
    if left <= _SIGNED_ZERO:
        store(state + _STOP, _SLICE_OVER)


@inlined
def _next_submit(state: Any, row: Any) -> None:
    """Go on to the submit that this row of parameters belongs to."""
    _look(state, load(state + _LAST_SLOT), load(state + _UNITS))
    submit = load(state + _SUBMIT)
    last = load(state + _SUBMITS) - _ONE
    while submit < last and row >= load(load(state + _ENDS) + (submit << _SHIFT_3)):
        submit += _ONE
    store(state + _SUBMIT, submit)
    end = load(load(state + _ENDS) + (submit << _SHIFT_3))
    store(state + _END_ROW, end if submit < last else _NOT_DONE)
    store(state + _SUBMIT_ENTRIES, _ZERO)
    store(state + _SPENT_BY, _ZERO)


@inlined
def _count_duration(slot: Any, took: Any) -> None:
    power = _ZERO
    rest = _U(took) | _U(4)
    while rest >= _EIGHT:
        rest >>= _ONE
        power += _ONE
    step = (power << _TWO) + (rest & _THREE)
    if step >= _DURATION_STEPS:
        step = _DURATION_STEPS - _ONE
    counter = slot + _DURATIONS + (step << _SHIFT_3)
    store(counter, load(counter) + _ONE)
    store(slot + _SAMPLES, load(slot + _SAMPLES) + _ONE)
    store(slot + _SAMPLED_NS, load(slot + _SAMPLED_NS) + _U(took))


@inlined
def _refused(slot: Any, status: Any, reason: Any) -> Any:
    """What a call that is not run ends with."""
    counter = slot + _STATUSES + (status << _SHIFT_3)
    store(counter, load(counter) + _ONE)
    counter = slot + _REASONS + (reason << _SHIFT_3)
    store(counter, load(counter) + _ONE)
    return (status << _SHIFT_8) | (reason << _SHIFT_24)


@inlined
def _run(state: Any, context: Any, function: Any) -> None:
    """Call a function of an instance; ERROR and TRAP tell how it went, the first value has the
    result."""
    error = call_5(
        load(state + _CALL), context, function, state + _ARGUMENTS, _PARAMS, state + _TRAP
    )
    store(state + _ERROR, error)


@inlined
def _run_fresh(state: Any, slot: Any, fuel: Any) -> None:
    """The same in a new store and instance, which are gone afterwards. Instantiating takes of the
    same fuel, so that a start function cannot run for longer."""
    owner = call_3(load(state + _STORE_NEW), load(state + _ENGINE), _ZERO, _ZERO)
    call_6(
        load(state + _STORE_LIMITER), owner, load(state + _MEMORY_BYTES),
        load(state + _TABLE_ELEMENTS), _ONE_INSTANCE, load(state + _TABLES), _ONE,
    )  # fmt: skip
    context = call_1(load(state + _STORE_CONTEXT), owner)
    call_2(load(state + _SET_FUEL), context, fuel)
    call_2(load(state + _SET_DEADLINE), context, _DEADLINE)
    error = call_4(
        load(state + _INSTANTIATE), load(slot + _PRE), context, state + _INSTANCE, state + _TRAP
    )
    store(state + _ERROR, error)
    if error == _ZERO and load(state + _TRAP) == _ZERO:
        call_5(
            load(state + _EXPORT_GET), context, state + _INSTANCE, load(state + _EXPORT_NAME),
            load(state + _EXPORT_NAME_BYTES), state + _EXPORT,
        )  # fmt: skip
        _run(state, context, state + _EXPORT + _WORD_BYTES)
    call_2(load(state + _GET_FUEL), context, state + _LEFT)
    call_1(load(state + _STORE_DELETE), owner)


@inlined
def _stopped(state: Any, slot: Any) -> Any:
    """Status that a trap or an error calls for, 0 if there is none; both are freed. REASON has why,
    if it is not the status alone. _NOT_DONE: the call was ended by mistake."""
    error = load(state + _ERROR)
    trap = load(state + _TRAP)
    if error == _ZERO and trap == _ZERO:
        return _ZERO
    status = _INVALID_OPERATION
    reason = _BY_TRAP
    if trap != _ZERO:
        # A trap code is one byte.
        store(state + _TIME, _ZERO)
        known = call_2(load(state + _TRAP_CODE), trap, state + _TIME) & _BYTE
        code = load(state + _TIME) & _BYTE if known != _ZERO else _ZERO
        if code == _OUT_OF_FUEL:
            status = _QUOTA_EXCEEDED
            reason = _ZERO
        elif code == _INTERRUPT:
            if load(slot + _SUSPENDED_AT) != _ZERO:
                status = _SUSPENDED
                reason = _BY_INTERRUPTED
            elif load(state + _OVERTIME) == load(state + _COUNT):
                status = _QUOTA_EXCEEDED
                reason = _BY_TIME
            else:
                status = _NOT_DONE
                reason = _ZERO
        if load(state + _KEEP_TRAP) == _ZERO:
            call_1(load(state + _TRAP_DELETE), trap)
    if error != _ZERO and load(state + _KEEP_TRAP) == _ZERO:
        call_1(load(state + _ERROR_DELETE), error)
    store(state + _REASON, reason)
    return status


@inlined
def _sum_is_zero(first: Any, end: Any) -> Any:
    """Whether the amounts of entries cancel out exactly: sums of their high and low halves, so that
    nothing wraps around."""
    high = _SIGNED_ZERO
    low = _SIGNED_ZERO
    at = first
    while at != end:
        amount = np.int64(load(at + _WORD_BYTES))
        high += amount >> _SIGNED_SHIFT
        low += amount & _SIGNED_LOW
        at += _ENTRY_BYTES
    return low & _SIGNED_LOW == _SIGNED_ZERO and high + (low >> _SIGNED_SHIFT) == _SIGNED_ZERO


@inlined
def _undo(state: Any, first: Any, end: Any) -> None:
    balances = load(state + _BALANCES)
    at = end
    while at != first:
        at -= _ENTRY_BYTES
        place = balances + (load(at) << _SHIFT_3)
        store(place, load(place) - load(at + _WORD_BYTES))


@c_function(types.uint64(types.uint64, types.uint64))
def call_function(state: Any, name: Any) -> Any:
    """Call the function that the batch's `name`th name stands for with the next row of parameters.

    Returns status << 8 | entries << 16 | reason << 24 | checksum of the binary << 32, as a record's
    first word has them; without a checksum when no binary ran. The parameters without their last
    zeros are kept in any case. 2**64 - 1: nothing happened, the call is to be made again once its
    instance has a new deadline.
    """
    row = load(state + _NEXT)
    store(state + _NEXT, row + _ONE)
    store(state + _LAST_REGISTERED, _ZERO)
    store(state + _REASON, _ZERO)
    unknown = (_INVALID_OPERATION << _SHIFT_8) | (_BY_UNKNOWN_FUNCTION << _SHIFT_24)
    if row >= load(state + _ROWS):
        store(state + _LAST_KEPT, _ZERO)
        return unknown
    if row >= load(state + _END_ROW):
        _next_submit(state, row)
    kept_before = load(state + _KEPT_COUNT)
    _keep_params(state, row)
    if name >= load(state + _NAMES):
        return unknown
    place = load(load(state + _PLACES) + (name << _SHIFT_3))
    if place == _NO_SLOT:
        return unknown
    slot = load(state + _SLOTS) + place * _SLOT_BYTES
    if load(slot + _SUSPENDED_AT) != _ZERO or (
        # It is registered, and could not be loaded.
        load(slot + _CONTEXT) == _ZERO and load(slot + _PRE) == _ZERO
    ):
        return _refused(slot, _SUSPENDED, _BY_STOPPED)
    if load(state + _SPENT_BY) != _ZERO:
        return _refused(slot, _NOT_RUN, load(state + _SPENT_BY))
    store(state + _LAST_REGISTERED, load(slot + _REGISTERED))
    _announce(state, row + _AHEAD)

    source = load(state + _PARAMS_AT) + row * _ROW_BYTES
    for i in range(8):
        value = load(source + (_U(i) << _SHIFT_3))
        store(state + _ARGUMENTS + (_U(i) << _SHIFT_4), value)
    first = load(state + _ENTRIES) + (load(state + _USED) << _SHIFT_4)
    store(state + _CURSOR, first)
    store(state + _END, first + _MOST_ENTRY_BYTES)
    store(state + _FAILURE, _ZERO)
    store(state + _ERROR, _ZERO)
    store(state + _TRAP, _ZERO)

    calls = load(slot + _CALLS)
    # One more than the quota: a call that ends with none left used more than that.
    quota = load(slot + _FUEL) + _ONE
    begins = load(slot + _START_FUEL)
    fuel = quota - begins if begins < quota else _ZERO
    # The second call is timed too: the first one is slow, and some functions are seldom called.
    sampled = calls & _SAMPLED_MASK == _ONE or load(slot + _LAST_USED) > _SLOW_FUEL
    began = _now(state) if sampled else _SIGNED_ZERO
    units = _CALL_UNITS
    store(state + _COUNT, load(state + _COUNT) + _ONE)
    store(state + _RUNNING, slot)
    store(state + _LAST_SLOT, slot)
    if load(slot + _PRE) == _ZERO:
        context = load(slot + _CONTEXT)
        call_2(load(state + _SET_FUEL), context, fuel)
        _run(state, context, slot + _FUNCTION)
        call_2(load(state + _GET_FUEL), context, state + _LEFT)
    elif fuel == _ZERO:
        # Not even its beginning is paid for.
        store(state + _LEFT, _ZERO)
    else:
        _run_fresh(state, slot, fuel)
        units = _FRESH_UNITS
    store(state + _RUNNING, _ZERO)
    left = load(state + _LEFT)
    used = quota - (left if left != _ZERO else _ONE)
    store(state + _SPENT, used)
    store(slot + _LAST_USED, used)
    store(state + _VIRTUAL_NS, load(state + _VIRTUAL_NS) + used + units)
    if sampled:
        _count_duration(slot, _now(state) - began)
    units += used + load(state + _UNITS)
    if units >= load(state + _LOOK_AFTER):
        _look(state, slot, units)
    else:
        store(state + _UNITS, units)

    end = load(state + _CURSOR)
    stopped = _stopped(state, slot)
    if stopped == _NOT_DONE:
        _undo(state, first, end)
        store(state + _NEXT, row)
        store(state + _KEPT_COUNT, kept_before)
        store(state + _STOP, _INTERRUPTED_CALL)
        return _NOT_DONE
    status = load(state + _FAILURE)
    if stopped == _SUSPENDED:
        status = stopped
    elif status != _ZERO:
        store(state + _REASON, _ZERO)
    else:
        status = stopped
        if status == _ZERO:
            status = load_half(state + _ARGUMENTS)
            if left == _ZERO:
                # Fuel is looked at in loops and calls only; what runs straight on ends with none.
                status = _QUOTA_EXCEEDED
            elif status == _ZERO:
                if not _sum_is_zero(first, end):
                    status = _ZERO_SUM_VIOLATION
            elif (
                status > _BYTE
                or status == _DUPLICATE
                or status - _FIRST_RESERVED < _RESERVED_STATUSES
            ):
                # The ledger's own: of a DUPLICATE it tells the first transaction, for example.
                status = _INVALID_OPERATION
                store(state + _REASON, _BY_BAD_RETURN)
    entries = _ZERO
    if status == _ZERO:
        entries = (end - first) >> _SHIFT_4
        store(state + _USED, load(state + _USED) + entries)
        made = load(state + _SUBMIT_ENTRIES) + entries
        store(state + _SUBMIT_ENTRIES, made)
        if made >= load(state + _BUDGET_ENTRIES) and load(state + _SPENT_BY) == _ZERO:
            store(state + _SPENT_BY, _BY_ENTRIES)
    else:
        _undo(state, first, end)
    store(slot + _CALLS, calls + _ONE)
    store(slot + _FUEL_USED, load(slot + _FUEL_USED) + used)
    counter = slot + _STATUSES + (status << _SHIFT_3)
    store(counter, load(counter) + _ONE)
    reason = load(state + _REASON)
    if reason != _ZERO:
        counter = slot + _REASONS + (reason << _SHIFT_3)
        store(counter, load(counter) + _ONE)
    return (
        (status << _SHIFT_8)
        | (entries << _SHIFT_16)
        | (reason << _SHIFT_24)
        | (load(slot + _CRC) << _SHIFT_32)
    )
