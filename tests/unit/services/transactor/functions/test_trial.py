"""Trials: what a call would do, without an engine that keeps it."""

from __future__ import annotations

import pytest

from tallybus.common.record import Status
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits
from tests.support.function_modules import ENDLESS, FEE_TRANSFER, TRAPS, to_binary
from tests.support.trials import try_function
from tests.unit.services.transactor.functions.engines import RETURN


def test_a_trial_shows_what_a_call_would_do() -> None:
    binary = to_binary(FEE_TRANSFER.text)
    done = try_function(binary, (1, 2, 3, 10_000, 50), {1: 20_000})
    assert (done.status, done.trap) == (0, "")
    assert done.entries == [(1, -10_050), (2, 10_000), (3, 50)]
    poor = try_function(binary, (1, 2, 3, 10_000, 50), {1: 10_049})
    assert (poor.status, poor.entries) == (1, [])
    trapped = try_function(to_binary(TRAPS["division by zero"].text), (), {})
    assert (trapped.status, trapped.entries) == (Status.INVALID_OPERATION, [])
    assert "divide by zero" in trapped.trap
    spent = try_function(to_binary(ENDLESS.text), (), {}, FunctionLimits(fuel=123))
    assert (spent.status, spent.fuel_used) == (Status.QUOTA_EXCEEDED, 123)
    assert "fuel" in spent.trap
    far = try_function(binary, (7, 2, 3, 1, 0), {}, max_accounts=7)
    assert far.status == Status.ACCOUNT_LIMIT_EXCEEDED


def test_a_trial_refuses_what_cannot_be() -> None:
    binary = to_binary(RETURN)
    for params, balances, what in (
        ((0,) * 9, {}, "at most 8"),
        ((2**63,), {}, "64 bits"),
        ((), {1: -(2**63) - 1}, "64 bits"),
        ((), {-1: 5}, "account"),
        ((), {10_000_000: 5}, "account"),
    ):
        with pytest.raises(ValueError, match=what):
            try_function(binary, params, balances)
    for fuel in (0, -1, 10**12 + 1, 2**64 - 1, 2**64):
        with pytest.raises(ValueError, match="fuel"):
            try_function(binary, (), {}, FunctionLimits(fuel=fuel))
    with pytest.raises(InvalidFunction):
        try_function(b"\0asm", (), {})
