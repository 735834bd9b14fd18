"""Calls of a module in the transactor's sandbox, without a ledger: to try a function out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.memory import lazy_zeros
from tallybus.common.record import MAX_I64, MAX_PARAMS, MIN_I64
from tallybus.common.settings.table import MAX_FUEL
from tallybus.services.transactor.functions.binding import Sandbox
from tallybus.services.transactor.functions.compiler import Compiler
from tallybus.services.transactor.functions.handler import (
    CompiledFunction,
    compile_function,
    load_function,
)
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.once import Call, call_once
from tallybus.services.transactor.functions.selftest import self_test
from tallybus.services.transactor.functions.state import CallState

_SMALL_BYTES: Final = 16 << 10
"""Compiled here and now: it takes less than a second. A larger module gets a bounded process."""


class TrialSandbox:
    """One module, compiled as for a ledger; it may be called many times. To be closed."""

    def __init__(self, binary: bytes, limits: FunctionLimits | None = None) -> None:
        """Raises InvalidFunction for a module that could not be registered, FunctionsUnavailable
        where wasmtime cannot be used, ValueError for a quota of fuel that no setting allows."""
        self.limits = FunctionLimits() if limits is None else limits
        if not 1 <= self.limits.fuel <= MAX_FUEL:
            raise ValueError(f"fuel is {self.limits.fuel}, not 1..{MAX_FUEL}")
        self_test(self.limits)
        self._calls = CallState(1)
        self._sandbox = Sandbox(self._calls.words, self.limits)
        try:
            self._function = _compiled(self._sandbox, binary, self.limits)
        except BaseException:
            self._sandbox.close()
            raise

    @property
    def crc32c(self) -> int:
        """The CRC-32C of the module."""
        return self._function.crc32c

    def call(self, params: Sequence[int], balances: NDArray[np.int64]) -> Call:
        """Run `execute` once with up to eight parameters (int64) on these balances, int64[accounts]
        by number, which the call's entries change.

        Raises ValueError for parameters out of range.
        """
        if len(params) > MAX_PARAMS:
            raise ValueError(f"{len(params)} parameters; a function takes at most {MAX_PARAMS}")
        for value in params:
            _check_i64(value)
        return call_once(
            self._sandbox, self._calls, self._function, params, balances, self.limits.fuel
        )

    def close(self) -> None:
        """Free the code. Nothing can be called any more."""
        self._function.close()
        self._sandbox.close()


def balances_of(balances: Mapping[int, int], max_accounts: int) -> NDArray[np.int64]:
    """int64[max_accounts] with these balances by account; the others are 0, and take no memory.

    Raises ValueError for accounts or balances out of range.
    """
    for account, amount in balances.items():
        if not 0 <= account < max_accounts:
            raise ValueError(f"account {account} is not one of 0..{max_accounts - 1}")
        _check_i64(amount)
    held = lazy_zeros(max_accounts, np.int64)
    for account, amount in balances.items():
        held[account] = amount
    return held


def _check_i64(value: int) -> None:
    if not MIN_I64 <= value <= MAX_I64:
        raise ValueError(f"{value} does not fit 64 bits with a sign")


def _compiled(sandbox: Sandbox, binary: bytes, limits: FunctionLimits) -> CompiledFunction:
    if len(binary) <= _SMALL_BYTES:
        return compile_function(sandbox, binary, limits)
    compiler = Compiler(limits, 0)
    try:
        code = compiler.compile(binary, limits.compile_seconds)
    finally:
        compiler.stop()
    return load_function(sandbox, binary, code.facts, code.machine_code, code.seconds)
