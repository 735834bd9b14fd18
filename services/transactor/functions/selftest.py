"""Proves, before any function runs, that the WebAssembly runtime here does what is relied on.

Calls go around wasmtime's public interface, so a wrong version or a wrong structure would not be
noticed by it: a tiny module must give the expected entries, statuses and fuel, with one instance
for all calls and with a fresh one for each. Takes some milliseconds.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from tallybus.common.record import Reason, Status
from tallybus.services.transactor.functions.binding import Sandbox
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.handler import compile_function
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.once import Call, call_once
from tallybus.services.transactor.functions.state import CallState
from tallybus.services.transactor.functions.wasm_engine import FunctionsUnavailable

# (global $n (mut i64) (i64.const 0))
# (func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32)
#   (if (i64.eq (local.get 0) (i64.const 1)) (then unreachable))
#   (if (i64.eq (local.get 0) (i64.const 2)) (then (loop $l (br $l))))
#   (call $credit (local.get 1) (local.get 7))
#   (call $debit (local.get 2) (i64.add (call $get_balance (local.get 1)) (i64.const 14)))
#   (global.set $n (i64.const 1))  ;; only in the second module
#   (i32.wrap_i64 (local.get 0)))
_HEAD: Final = (
    "0061736d0100000001170360027e7e0060017e017e60087e7e7e7e7e7e7e7e017f023503066c6564676572"
    "066372656469740000066c65646765720564656269740000066c65646765720b6765745f62616c616e636500"
    "01030201020606017e0142000b070b01076578656375746500030a"
)
_BODY: Final = "0020004201510440000b2000420251044003400c000b0b200120071000200220011002420e7c1001"
_MODULES: Final = (
    bytes.fromhex(f"{_HEAD}2e012c{_BODY}2000a70b"),
    bytes.fromhex(f"{_HEAD}320130{_BODY}420124002000a70b"),
)
_FUEL: Final = 1_000
_MOVED: Final = [(1, -7), (2, 7)]


class _Expected(NamedTuple):
    first_param: int
    status: int
    entries: list[tuple[int, int]]
    fuel: tuple[int, int]
    """Used with one instance for all calls, and with a fresh one."""
    trap: str


_CALLS: Final = (
    _Expected(0, Status.NONE, _MOVED, (47, 157), ""),
    _Expected(200, 200, [], (47, 157), ""),
    _Expected(1, Status.INVALID_OPERATION, [], (5, 113), "unreachable"),
    _Expected(2, Status.QUOTA_EXCEEDED, [], (_FUEL, _FUEL), "fuel"),
    _Expected(0, Status.NONE, _MOVED, (47, 157), ""),
)


def self_test(limits: FunctionLimits) -> None:
    """Raises FunctionsUnavailable when a call does not do what it should."""
    calls = CallState(1)
    sandbox = Sandbox(calls.words, limits)
    try:
        for kind, binary in enumerate(_MODULES):
            function = compile_function(sandbox, binary, limits)
            if function.fresh_instances != bool(kind):
                raise FunctionsUnavailable(f"module {kind} of the self-test is misjudged")
            for number, wanted in enumerate(_CALLS):
                balances = np.zeros(3, np.int64)
                params = (wanted.first_param, 1, 2, 0, 0, 0, 0, 7)
                got = call_once(sandbox, calls, function, params, balances, _FUEL)
                expected = Call(
                    wanted.status,
                    wanted.entries,
                    wanted.fuel[kind],
                    got.trap,
                    Reason.TRAP if wanted.status == Status.INVALID_OPERATION else Reason.NONE,
                    None if wanted.trap else wanted.first_param,
                )
                moved = dict(wanted.entries)
                if (
                    got != expected
                    or bool(got.trap) != bool(wanted.trap)
                    or wanted.trap not in got.trap
                    or balances.tolist() != [moved.get(account, 0) for account in range(3)]
                ):
                    raise FunctionsUnavailable(
                        f"call {number} of the self-test with module {kind} gave {got} and "
                        f"balances {balances.tolist()}, expected {wanted}"
                    )
            function.close()
    except InvalidFunction as error:
        raise FunctionsUnavailable(f"the self-test's module is refused: {error}") from error
    finally:
        sandbox.close()
