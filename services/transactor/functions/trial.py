"""One call of a module in the transactor's sandbox, without a ledger: to try a function out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from tallybus.common.lazyarray import lazy_zeros
from tallybus.services.transactor.functions.binding import Sandbox
from tallybus.services.transactor.functions.handler import compile_function
from tallybus.services.transactor.functions.layout import PARAMS_PER_CALL
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.once import Call, call_once
from tallybus.services.transactor.functions.selftest import self_test
from tallybus.services.transactor.functions.state import CallState

MAX_ACCOUNTS: Final = 10_000_000


def try_function(
    binary: bytes,
    params: Sequence[int],
    balances: Mapping[int, int],
    limits: FunctionLimits | None = None,
    max_accounts: int = MAX_ACCOUNTS,
) -> Call:
    """Run `execute` once with up to eight parameters (int64) on these balances (by account; the
    others are 0).

    Raises InvalidFunction for a module that could not be registered, FunctionsUnavailable where
    wasmtime cannot be used, ValueError for parameters or balances out of range.
    """
    limits = FunctionLimits() if limits is None else limits
    if len(params) > PARAMS_PER_CALL:
        raise ValueError(f"{len(params)} parameters; a function takes at most {PARAMS_PER_CALL}")
    for value in (*params, *balances.values()):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{value} does not fit 64 bits with a sign")
    for account in balances:
        if not 0 <= account < max_accounts:
            raise ValueError(f"account {account} is not one of 0..{max_accounts - 1}")
    self_test(limits)
    held = lazy_zeros(max_accounts, np.int64)
    for account, amount in balances.items():
        held[account] = amount
    calls = CallState(1)
    sandbox = Sandbox(calls.words, limits)
    try:
        function = compile_function(sandbox, binary, limits)
        call = call_once(sandbox, calls, function, params, held, limits.fuel)
        function.close()
    finally:
        sandbox.close()
    return call
