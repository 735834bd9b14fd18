"""`tallybus.try_function`: a call without a ledger ends as it would in one with the same limits."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tallybus
from tallybus import Direction, Entry, InvalidFunction, InvalidRequest, Reason, Status, Trial
from tallybus.common.settings.sections import SETTINGS, FunctionSettings, LedgerSettings, load
from tallybus.services.transactor.functions.limits import limits_from
from tallybus.services.transactor.functions.trial import TrialSandbox, balances_of
from tallybus.trials import LIMIT_SETTINGS, TriedModule, trial_limits
from tests.support.folders import PROJECT
from tests.support.function_modules import ENDLESS, FEE_TRANSFER, TRAPS, module, to_binary

FEE = to_binary(FEE_TRANSFER.text)
RETURN = to_binary(module("(i32.wrap_i64 (local.get $a))"))


def test_a_call_tells_all_that_it_did() -> None:
    done = tallybus.try_function(FEE, (1, 2, 3, 10_000, 50), {1: 20_000, 7: -3})
    assert done == Trial(
        status=Status.NONE,
        reason=Reason.NONE,
        entries=(
            Entry(1, Direction.CREDIT, 10_050),
            Entry(2, Direction.DEBIT, 10_000),
            Entry(3, Direction.DEBIT, 50),
        ),
        balances={1: 9_950, 2: 10_000, 3: 50, 7: -3},
        fuel_used=done.fuel_used,
        fuel_limit=1_000_000,
        trap="",
        returned=0,
    )
    assert done.ok
    assert 10 < done.fuel_used < 100
    assert done.cause == ""


def test_a_call_that_fails_moves_nothing_and_says_why() -> None:
    poor = tallybus.try_function(FEE, (1, 2, 3, 10_000, 50), {1: 10_049})
    assert (poor.status, poor.entries, poor.ok) == (Status.INSUFFICIENT_FUNDS, (), False)
    assert poor.balances == {1: 10_049}
    assert (poor.reason, poor.returned, poor.trap) == (Reason.NONE, 1, "")
    trapped = tallybus.try_function(to_binary(TRAPS["division by zero"].text), (), {1: 5})
    assert (trapped.status, trapped.reason) == (Status.INVALID_OPERATION, Reason.TRAP)
    assert (trapped.returned, trapped.balances) == (None, {1: 5})
    assert trapped.cause == "wasm trap: integer divide by zero"
    spent = tallybus.try_function(to_binary(ENDLESS.text), fuel=123)
    assert (spent.status, spent.reason) == (Status.QUOTA_EXCEEDED, Reason.NONE)
    assert (spent.fuel_used, spent.fuel_limit) == (123, 123)


@pytest.mark.parametrize(
    ("returned", "status", "reason"),
    [
        (0, Status.NONE, Reason.NONE),
        *((code, Status(code), Reason.NONE) for code in (1, 2, 3, 4, 5, 6, 8, 9)),
        *(
            (code, Status.INVALID_OPERATION, Reason.BAD_RETURN)
            for code in (7, 10, 11, 12, 42, 126, 127, 256, 300, 2**31 - 1, -1, -(2**31))
        ),
        (128, 128, Reason.NONE),
        (255, 255, Reason.NONE),
    ],
)
def test_only_what_a_function_may_return_is_its_status(
    returned: int, status: int, reason: Reason
) -> None:
    done = tallybus.try_function(RETURN, (returned,))
    assert (done.status, done.reason, done.returned) == (status, reason, returned)


def test_the_defaults_are_those_of_a_ledger() -> None:
    limits = trial_limits()
    assert limits.functions == limits_from(FunctionSettings())
    assert limits.max_accounts == LedgerSettings().max_accounts
    sandbox = TrialSandbox(RETURN)
    assert sandbox.limits == limits.functions
    sandbox.close()


def test_settings_and_own_limits_are_taken() -> None:
    settings = load(
        environ={},
        overrides={
            "ledger.max_accounts": 50,
            "functions.fuel": 40,
            "functions.fuel_by_name": "rates=70",
            "functions.memory_mib": 3,
            "functions.table_elements": 4,
            "functions.stack_kib": 100,
        },
    )
    limits = trial_limits(settings)
    assert limits.max_accounts == 50
    assert limits.functions.fuel == 40
    assert limits.functions.memory_bytes == 3 << 20
    assert limits.functions.table_elements == 4
    assert limits.functions.stack_bytes == 100 << 10
    assert trial_limits(settings, "rates").functions.fuel == 70
    assert trial_limits(settings, "others").functions.fuel == 40
    assert trial_limits(settings, "rates", fuel=5).functions.fuel == 5
    own = trial_limits(settings, fuel=1, max_accounts=2, memory_mib=1, table_elements=1)
    assert (own.functions.fuel, own.max_accounts) == (1, 2)
    assert (own.functions.memory_bytes, own.functions.stack_bytes) == (1 << 20, 100 << 10)
    far = tallybus.try_function(FEE, (50, 2, 3, 1), settings=settings)
    assert far.status == Status.ACCOUNT_LIMIT_EXCEEDED
    assert tallybus.try_function(FEE, (50, 2, 3, 1)).status == Status.INSUFFICIENT_FUNDS
    assert tallybus.try_function(RETURN, settings=settings, name="rates").fuel_limit == 70


@pytest.mark.parametrize("limit", LIMIT_SETTINGS)
def test_no_limit_is_taken_that_a_ledger_could_not_have(limit: str) -> None:
    row = SETTINGS[LIMIT_SETTINGS[limit]]
    for value in (row.minimum, row.maximum):
        arguments: dict[str, Any] = {limit: value}
        assert tallybus.try_function(RETURN, **arguments) is not None
    wrong: list[Any] = [row.minimum - 1, 0, -1, row.maximum + 1, 2**63, 2**64 - 1, 2**64]
    for value in (*wrong, True, 1.0, "1"):
        arguments = {limit: value}
        with pytest.raises(InvalidRequest) as caught:
            tallybus.try_function(RETURN, **arguments)
        assert (caught.value.field, caught.value.value) == (limit, value)


@pytest.mark.parametrize(
    ("params", "balances", "field"),
    [
        ((0,) * 9, {}, "params"),
        ((2**63,), {}, "params"),
        ((-(2**63) - 1,), {}, "params"),
        ((True,), {}, "params"),
        (("1",), {}, "params"),
        ((1.0,), {}, "params"),
        ((), {-1: 5}, "account"),
        ((), {10_000_000: 5}, "account"),
        ((), {2**64: 5}, "account"),
        ((), {"1": 5}, "account"),
        ((), {1: 2**63}, "balance"),
        ((), {1: -(2**63) - 1}, "balance"),
        ((), {1: None}, "balance"),
    ],
)
def test_what_cannot_be_is_refused(params: Any, balances: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tallybus.try_function(RETURN, params, balances)
    assert caught.value.field == field


def test_whole_numbers_of_numpy_are_taken() -> None:
    done = tallybus.try_function(
        RETURN,
        np.array([130], np.int64),
        {np.uint64(5): np.int64(-7)},  # type: ignore[dict-item, arg-type]
    )
    assert (done.status, done.balances) == (130, {5: -7})


def test_what_a_ledger_would_not_register_is_refused() -> None:
    with pytest.raises(InvalidFunction, match="no export named execute"):
        tallybus.try_function(to_binary("(module)"))
    wide = to_binary(module("i32.const 0", "(memory 32)"))
    assert tallybus.try_function(wide).ok
    with pytest.raises(InvalidFunction, match="memory"):
        tallybus.try_function(wide, memory_mib=1)
    for binary in (b"", b"\0" * ((4 << 20) + 1), "(module)"):
        with pytest.raises(InvalidRequest):
            tallybus.try_function(binary)  # type: ignore[arg-type]


def test_a_module_may_be_called_many_times() -> None:
    with TriedModule(FEE, trial_limits(max_accounts=10)) as tried:
        for amount in range(1, 20):
            done = tried.call((1, 2, 3, amount, 0), {1: 10})
            assert done.ok == (amount <= 10)
        held = balances_of({1: 10}, 10)
        assert tried.call_on((1, 2, 3, 4, 0), held).balances == {1: 6, 2: 4}
        assert tried.call_on((1, 2, 3, 4, 0), held).balances == {1: 2, 2: 8}
        assert held.tolist() == [0, 2, 8, *[0] * 7]


def test_a_program_that_only_talks_to_a_ledger_loads_no_sandbox() -> None:
    program = """
import sys
import tallybus
from tallybus import Client, FunctionInfo, Reason, Trial
heavy = ("numba", "llvmlite", "wasmtime", "tallybus.services", "tallybus.trials")
print([name for name in heavy if name in sys.modules])
assert "try_function" in dir(tallybus)
assert callable(tallybus.try_function)
print([name in sys.modules for name in ("tallybus.trials", "tallybus.embedded")])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=PROJECT,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n[True, False]\n", "", 0)
