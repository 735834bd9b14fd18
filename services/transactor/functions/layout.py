"""The words through which engine, kernel and calls of functions know each other's data.

Arrays of u64, made by `state.py`: the state of all calls of an engine, and a slot for each live
function.
"""

from __future__ import annotations

from typing import Final

from tallybus.common.record import MAX_U64

# Words of the state. What the kernel reads or sets:
CALL_FUNCTION: Final = 0
"""Address of `call_function`; 0 for batches without parameters, which call no functions."""
NEXT: Final = 1
"""Row of the parameters that the next FUNCTION record has. `call_function` counts it up."""
USED: Final = 2
CAPACITY: Final = 3
"""Entries of the batch in the buffer, and how many fit. A call needs room for MAX_ENTRIES."""
LAST_KEPT: Final = 4
"""Words that the last call kept of its parameters."""
LAST_REGISTERED: Final = 23
"""The transaction that registered what the last call ran, 0 if none ran."""
# What the engine sets for each batch:
BALANCES: Final = 5
LIMIT: Final = 6
"""Address of int64[LIMIT]."""
ENTRIES: Final = 7
"""Address of the buffer: ENTRY_DTYPE[CAPACITY]."""
PARAMS: Final = 8
ROWS: Final = 9
"""Address of int64[ROWS, 8]."""
KEPT: Final = 10
KEPT_COUNT: Final = 11
"""Address of the words kept of all parameters, room for 8 a row, and how many there are."""
PLACES: Final = 12
NAMES: Final = 13
"""Address of the slot of each of the batch's NAMES, u64[NAMES]; NO_SLOT where none is live."""
SLOTS: Final = 14
"""Address of u64[n, SLOT_WORDS]."""
# One call's own:
CURSOR: Final = 15
END: Final = 16
"""Addresses of the next entry, and past the last one that the call may have."""
STATE: Final = 17
"""Address of the state itself."""
FAILURE: Final = 18
"""Status of the first host function that failed, 0 if none did."""
KEEP_TRAP: Final = 19
"""Not zero: ERROR and TRAP are left to the caller, who reads and frees them."""
ERROR: Final = 20
TRAP: Final = 21
LEFT: Final = 22
SPENT: Final = 51
"""Fuel that the last call left, and how much of its quota it spent."""
TIME: Final = 24
"""struct timespec."""
INSTANCE: Final = 26
EXPORT: Final = 28
"""wasmtime_instance_t (2 words); wasmtime_extern_t (up to 4 words), its union in the second."""
# The C functions and what they are given; `binding.py` fills them in.
CLOCK: Final = 32
CALL: Final = 33
SET_FUEL: Final = 34
GET_FUEL: Final = 35
TRAP_CODE: Final = 36
TRAP_DELETE: Final = 37
ERROR_DELETE: Final = 38
STORE_NEW: Final = 39
STORE_CONTEXT: Final = 40
STORE_LIMITER: Final = 41
STORE_DELETE: Final = 42
INSTANTIATE: Final = 43
EXPORT_GET: Final = 44
ENGINE: Final = 45
MEMORY_BYTES: Final = 46
TABLE_ELEMENTS: Final = 47
TABLES: Final = 48
EXPORT_NAME: Final = 49
EXPORT_NAME_BYTES: Final = 50
ARGUMENTS: Final = 52
"""Eight values of 16 bytes: the parameters of a call, then its result in the first."""
# Time, which belongs to everybody: how long calls may run, and how long they ran.
ENDS: Final = 68
TIMES: Final = 69
SUBMITS: Final = 70
"""Addresses of u64[SUBMITS]: the row past each submit's last call, and the nanoseconds that its
calls took."""
SUBMIT: Final = 71
END_ROW: Final = 72
"""The submit whose calls run, and the row past its last one."""
BUDGET_NS: Final = 73
BUDGET_ENTRIES: Final = 74
"""What the calls of one submit may use together."""
SUBMIT_ENTRIES: Final = 75
"""Entries that the submit's calls made so far."""
SPENT_BY: Final = 76
"""`Reason` for which the submit's other calls are not run; 0: they are."""
UNITS: Final = 77
LOOKED_NS: Final = 78
"""Work since the last look at the clock, in about a unit of fuel, and what the clock said then."""
SLICE_NS: Final = 79
SLICE_LEFT_NS: Final = 80
"""How long a slice may take, and what is left of this one (i64)."""
STOP: Final = 81
"""Not zero: the kernel returns before the next call, for one of these reasons."""
SLICE_OVER: Final = 1
INTERRUPTED: Final = 2
"""A call was ended that nobody wanted to end: with new deadlines, it is to be called again."""
RUNNING: Final = 82
COUNT: Final = 83
"""Address of the slot of the call that runs, 0 between calls; and how many calls were begun."""
OVERTIME: Final = 84
"""COUNT of a call that has run for too long. Set from another thread."""
VIRTUAL_NS: Final = 85
"""The clock where CLOCK is 0: a unit of fuel is a nanosecond there."""
SET_DEADLINE: Final = 86
"""wasmtime_context_set_epoch_deadline."""
REASON: Final = 87
"""Of the last call: `Reason`."""
LAST_SLOT: Final = 88
"""Address of the slot that ran last in the batch, 0 if none did."""
LOOK_AFTER: Final = 89
"""UNITS after which the clock is looked at."""
STATE_WORDS: Final = 90

# Words of a slot: one live function.
CONTEXT: Final = 0
"""Of its store, whose one instance is called; unused with PRE."""
FUNCTION: Final = 1
"""wasmtime_func_t: two words."""
PRE: Final = 3
"""wasmtime_instance_pre_t of a module that can write state: every call makes a new store and
instance of it. 0: the one instance serves all calls."""
CRC: Final = 4
FUEL: Final = 5
CALLS: Final = 6
FUEL_USED: Final = 7
SAMPLES: Final = 8
SAMPLED_NS: Final = 9
REGISTERED: Final = 10
"""The transaction that registered it."""
SUSPENDED: Final = 11
"""Not zero: an operator has suspended it. Set from another thread."""
LAST_USED: Final = 12
"""Fuel that its last call used."""
WORK_NS: Final = 13
"""Time that its calls took, by samples: whoever runs when the clock is looked at gets all of the
time since the last look."""
START_FUEL: Final = 15
"""What a call takes of its quota before its code runs: 0 where one instance serves all calls."""
STATUSES: Final = 16
"""Calls that ended with each of the 256 statuses."""
REASONS: Final = STATUSES + 256
"""Calls that ended with each of the 32 reasons."""
DURATIONS: Final = REASONS + 32
"""Timed calls by their duration: four steps for each power of two nanoseconds, from 4 up."""
DURATION_STEPS: Final = 160
SLOT_WORDS: Final = DURATIONS + DURATION_STEPS

NO_SLOT: Final = MAX_U64
SAMPLED: Final = 256
"""One call of so many is timed: two readings of the thread's clock, about 500 ns, are then
nothing."""
SLOW_FUEL: Final = 65_536
"""A call is timed, too, when the one before used more: beside it the clock costs nothing."""
LOOK_UNITS: Final = 65_536
"""Work after which the clock is looked at."""
NS_PER_UNIT: Final = 10
"""A unit of work never takes longer. Whatever does was no work of a call: memory of the duplicate
window or of balances that is used for the first time, for example."""
CALL_UNITS: Final = 100
FRESH_UNITS: Final = 10_000
"""Work of a call beside its fuel: with one instance for all calls, and with a fresh one."""
VALUE_BYTES: Final = 16
"""Size of wasmtime_val_raw_t."""
