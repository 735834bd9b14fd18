"""One call outside of a ledger's batches: for the self-test and for trials."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tallybus.common.record import MAX_PARAMS, Reason, Status
from tallybus.services.transactor.functions import layout
from tallybus.services.transactor.functions.binding import Sandbox
from tallybus.services.transactor.functions.calling import call_function
from tallybus.services.transactor.functions.handler import CompiledFunction
from tallybus.services.transactor.functions.state import CallState

_CALL: Final = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)(
    call_function.address
)


class Call(NamedTuple):
    """How a call ended: `status`; `entries` as (account, amount), none unless the status is NONE;
    the fuel it used; `trap`: why it was stopped, empty if it returned; `reason`: a `Reason`;
    `returned`: what it returned (int32), None if it was stopped."""

    status: int
    entries: list[tuple[int, int]]
    fuel_used: int
    trap: str
    reason: int = Reason.NONE
    returned: int | None = None


def call_once(
    sandbox: Sandbox,
    calls: CallState,
    function: CompiledFunction,
    params: Sequence[int],
    balances: NDArray[np.int64],
    fuel: int,
) -> Call:
    """Call with up to eight parameters. `sandbox` is bound to `calls`, whose first slot is used.

    `balances` int64[n] are changed as the call's entries say.
    """
    row = np.zeros((1, MAX_PARAMS), np.int64)
    row[0, : len(params)] = params
    function.fill(calls.slots[0], function.crc32c, fuel)
    words = calls.words
    words[layout.KEEP_TRAP] = 1
    calls.begin(balances, np.zeros(1, np.uint64), row)
    word = int(_CALL(words.ctypes.data, 0))
    _, entries = calls.end_slice()
    calls.finish()
    trap = ""
    if words[layout.TRAP]:
        trap = sandbox.trap_text(int(words[layout.TRAP]))
    if words[layout.ERROR]:
        trap = sandbox.error_text(int(words[layout.ERROR]))
    status = word >> 8 & 0xFF
    returned = None
    if not trap:
        returned = int(words[layout.ARGUMENTS : layout.ARGUMENTS + 1].view(np.int32)[0])
    calls.slots[0] = 0
    moved = [(int(account), int(amount)) for account, amount in entries]
    spent = int(words[layout.SPENT])
    reason = word >> 24 & 0xFF
    return Call(status, moved if status == Status.NONE else [], spent, trap, reason, returned)
