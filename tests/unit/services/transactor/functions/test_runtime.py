"""Calls in the engine: entries, statuses, and what a failure undoes."""

from __future__ import annotations

import numpy as np
import pytest

from tallybus.common.record import ENTRY_DTYPE, Kind, Reason, Status
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.outcome import Outcome
from tests.support.engine_runs import outcomes
from tests.support.function_modules import FEE_TRANSFER, SCRIPT, install, module, step, to_binary
from tests.support.oracle import Operation, Oracle, Registered, call, deposit, to_batch, transfer
from tests.unit.services.transactor.functions.engines import (
    ACCOUNTS,
    MOVE,
    RETURN,
    run,
    statistics,
    statuses,
)


def script(*steps: int, returns: int = 0) -> Operation:
    return call("script", *steps, *[0] * (7 - len(steps)), returns)


def test_a_call_leaves_its_entries_checksum_and_parameters(engine: Engine) -> None:
    crc = install(engine, "fee", FEE_TRANSFER.text)
    executed = run(
        engine, deposit(1, 20_000), call("fee", 1, 2, 3, 10_000, 50), transfer(2, 1, 10_000)
    )
    assert executed.batch.records["status"].tolist() == [0, 0, 0]
    assert executed.batch.records["entry_count"].tolist() == [2, 3, 2]
    assert executed.batch.records["function"].tolist() == [0, crc, 0]
    assert executed.batch.records["amount"].tolist() == [20_000, 5, 10_000]
    assert executed.batch.params.tolist() == [1, 2, 3, 10_000, 50]
    assert executed.batch.entries.dtype == ENTRY_DTYPE
    assert executed.batch.entries.tolist() == [(1, -10_050), (2, 10_000), (3, 50)]
    assert engine.balances[:4].tolist() == [-20_000, 19_950, 0, 50]


@pytest.mark.parametrize("name", ["one instance", "fresh instances"])
def test_many_random_calls_agree_with_the_oracle(name: str) -> None:
    """100,000 fee transfers among built-in operations; every part is executed by an engine that
    replayed what the others before it did."""
    text = FEE_TRANSFER.text
    if name == "fresh instances":
        text = text.replace(
            "(i32.const 0)))", "(global.set $n (i32.const 1)) (i32.const 0)))"
        ).replace("(func (export", "(global $n (mut i32) (i32.const 0)) (func (export")
    rng = np.random.default_rng(5)
    oracle = Oracle(ACCOUNTS, 30_000)
    parts: list[Outcome] = []
    total = 0
    for size in (1, 20_000, 77_777, 32, 33, 90_000, 12_157):
        engine = Engine(ACCOUNTS, 30_000, 3)
        for part in parts:
            engine.apply(part.batch)
        crc = install(engine, "fee", text)
        assert engine.functions.compile(to_binary(text)).fresh_instances == (name[0] == "f")
        oracle.functions["fee"] = Registered(FEE_TRANSFER.function, crc, 1, 0)
        kinds = rng.choice([1, 2, 3, 4], size, p=[0.2, 0.1, 0.2, 0.5]).tolist()
        accounts = rng.integers(0, ACCOUNTS + 1, (size, 3)).tolist()
        amounts = rng.integers(0, 100_000, size).tolist()
        refs = rng.integers(0, 500_000, size).tolist()
        operations = [
            Operation(4, 0, 0, 0, ref, "fee", (*among, amount, ref % 3 * 25))
            if kind == Kind.FUNCTION
            else Operation(kind, among[0], among[1], amount, ref)
            for kind, among, amount, ref in zip(kinds, accounts, amounts, refs, strict=True)
        ]
        first_id = engine.next_id
        parts.append(run(engine, *operations))
        assert outcomes(parts[-1], first_id) == oracle.execute(operations)
        assert parts[-1].batch.entries.tolist() == oracle.kept.entries
        assert parts[-1].batch.params.tolist() == oracle.kept.params
        assert engine.balances.tolist() == [oracle.balance(i) for i in range(ACCOUNTS)]
        total += statistics(engine, "fee").calls
        engine.close()
    calls = np.concatenate([part.batch.records for part in parts])
    successes = (calls["kind"] == Kind.FUNCTION) & (calls["status"] == 0)
    assert total > 80_000
    assert int(successes.sum()) > 10_000


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ((), []),
        ((0, 0, 0), []),
        ((0, 7), [0, 7]),
        ((1, 0, -1, 0), [1, 0, -1]),
        ((0,) * 7 + (9,), [0] * 7 + [9]),
    ],
)
@pytest.mark.parametrize("name", ["return", "nobody"])
def test_parameters_are_kept_without_their_last_zeros(
    engine: Engine, params: tuple[int, ...], kept: list[int], name: str
) -> None:
    install(engine, "return", RETURN)
    executed = run(engine, call(name, *params), call(name, 5))
    assert executed.batch.records["amount"].tolist() == [len(kept), 1]
    assert executed.batch.params.tolist() == [*kept, 5]


def test_a_function_that_is_not_live_fails_and_ran_nothing(engine: Engine) -> None:
    assert not engine.has_functions
    executed = run(engine, call("nobody", 4))
    assert executed.batch.records["status"].tolist() == [Status.INVALID_OPERATION]
    assert executed.batch.records["function"].tolist() == [0]
    assert executed.batch.params.tolist() == [4]
    crc = install(engine, "return", RETURN)
    executed = run(engine, call("nobody", 4), call("return", 0))
    assert executed.batch.records["status"].tolist() == [Status.INVALID_OPERATION, 0]
    assert executed.batch.records["function"].tolist() == [0, crc]
    engine.functions.remove("return")
    executed = run(engine, call("return", 0))
    assert executed.batch.records["status"].tolist() == [Status.INVALID_OPERATION]
    assert executed.batch.records["function"].tolist() == [0]


def test_a_name_beyond_the_given_ones_is_not_live(engine: Engine) -> None:
    install(engine, "return", RETURN)
    records = to_batch([call("return", 0)] * 3).records
    records["function"] = [0, 1, 2**32 - 1]
    executed = engine.execute(records, 1, ["return"], np.zeros((3, 8), np.int64))
    assert executed.batch.records["status"].tolist() == [0, *[Status.INVALID_OPERATION] * 2]


def test_every_returned_status_is_kept_or_invalid(engine: Engine) -> None:
    install(engine, "return", RETURN)
    values = [*range(-3, 300), 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 200, 2**63 - 1]
    found = statuses(engine, *(call("return", value) for value in values))
    for value, status in zip(values, found, strict=True):
        low = value % 2**32
        # 7 says that there is a first transaction; only the ledger knows that.
        valid = low <= 255 and low != Status.DUPLICATE and not 10 <= low <= 127
        assert status == (low if valid else Status.INVALID_OPERATION), value


def test_a_returned_failure_undoes_the_entries(engine: Engine) -> None:
    install(engine, "move", MOVE)
    executed = run(engine, call("move", 1, 2, 50, 200), call("move", 1, 2, 50, 0))
    assert executed.batch.records["status"].tolist() == [200, 0]
    assert executed.batch.records["entry_count"].tolist() == [0, 2]
    assert executed.batch.entries.tolist() == [(1, -50), (2, 50)]
    assert engine.balances[:3].tolist() == [0, -50, 50]


def test_entries_that_are_not_zero_in_sum_are_undone(engine: Engine) -> None:
    install(engine, "script", SCRIPT.text)
    quarter, eighth = (1, 62), (1, 61)
    zero_sum = Status.ZERO_SUM_VIOLATION
    assert statuses(
        engine,
        script(step(1, 1, 5)),
        script(step(2, 1, 5)),
        script(step(2, 1, 5), step(1, 2, 4)),
        script(*(step(2, i, *quarter) for i in range(1, 5))),  # 2**64
        script(*(step(1, i, *quarter) for i in range(1, 5))),
        script(*(step(2, i, 2, 62) for i in range(1, 3))),  # 2**63 each is no amount
        script(step(2, 1, *quarter), step(1, 2, *eighth), step(1, 2, *eighth)),
    ) == [zero_sum, zero_sum, zero_sum, zero_sum, zero_sum, Status.BALANCE_OVERFLOW, 0]
    assert engine.balances[:3].tolist() == [0, 2**62, -(2**62)]


def test_the_first_failure_of_a_host_function_decides(engine: Engine) -> None:
    install(engine, "script", SCRIPT.text)
    move = step(1, 1, 1), step(2, 2, 1)
    far, limit = step(2, ACCOUNTS, 1), Status.ACCOUNT_LIMIT_EXCEEDED
    large, overflow = step(2, 1, 1, 63), Status.BALANCE_OVERFLOW
    assert statuses(
        engine,
        script(*move, far),
        script(*move, far, large, returns=200),
        script(*move, large, far),
        script(*move, far, step(6, 0, 0)),  # a trap afterwards
        script(*move, step(6, 0, 0), far),
        script(step(3, ACCOUNTS)),  # get_balance
        script(step(1, 15)),  # the largest account, amount 0
        script(step(1, 1, 0)),  # amount 0
    ) == [limit, limit, overflow, limit, Status.INVALID_OPERATION, limit, limit, 0]
    assert not engine.balances.any()


def test_balances_stay_in_range(engine: Engine) -> None:
    install(engine, "move", MOVE)
    most = 2**63 - 1
    overflow = Status.BALANCE_OVERFLOW
    assert statuses(
        engine,
        call("move", 1, 2, most),
        call("move", 3, 2, 1),
        call("move", 1, 3, 1),
        call("move", 1, 3, 1),
        call("move", 1, 1, most),  # below, and back again
        call("move", 4, 4, most),
        call("move", 5, 6, -1),
    ) == [0, overflow, 0, overflow, overflow, 0, overflow]
    assert engine.balances[:5].tolist() == [0, -(2**63), most, 1, 0]


def test_a_function_may_use_account_0_and_go_below_zero(engine: Engine) -> None:
    install(engine, "move", MOVE)
    assert statuses(engine, call("move", 0, 1, 5), call("move", 3, 0, 9)) == [0, 0]
    assert engine.balances[:4].tolist() == [4, 5, 0, -9]


def test_nan_is_canonical(engine: Engine) -> None:
    """Whatever sign and payload the processor gives a NaN, the function sees one."""
    body = (
        "(if (i64.ne (i64.reinterpret_f64 (f64.div (f64.convert_i64_s (local.get $a)) "
        "(f64.convert_i64_s (local.get $a)))) (i64.const 0x7ff8000000000000))"
        "(then (return (i32.const 200)))) (i32.const 0)"
    )
    install(engine, "nan", module(body))
    assert statuses(engine, call("nan", 0), call("nan", 1)) == [0, 200]


def test_duplicates_of_calls_run_nothing_and_keep_no_parameters(engine: Engine) -> None:
    install(engine, "move", MOVE)
    executed = run(
        engine,
        call("move", 1, 2, 5, user_ref=8),
        call("move", 1, 2, 5, user_ref=8),
        call("move", 1, 2, 6),
    )
    assert executed.batch.records["status"].tolist() == [0, Status.DUPLICATE, 0]
    assert executed.batch.records["amount"].tolist() == [3, 0, 3]
    assert executed.batch.params.tolist() == [1, 2, 5, 1, 2, 6]
    assert executed.batch.links.tolist() == [1]
    assert engine.balances[2] == 11
    assert statistics(engine, "move").calls == 2


def test_calls_without_parameters_at_all_fail(engine: Engine) -> None:
    install(engine, "return", RETURN)
    executed = engine.execute(to_batch([call("return", 0)]).records, 1, ["return"])
    assert executed.batch.records["status"].tolist() == [Status.INVALID_OPERATION]
    assert executed.batch.records["reason"].tolist() == [Reason.UNKNOWN_FUNCTION]
    assert executed.failures["reason"].tolist() == [Reason.UNKNOWN_FUNCTION]
    assert executed.batch.records["amount"].tolist() == [0]


@pytest.mark.parametrize(
    "params",
    [np.zeros((1, 8), np.int64), np.zeros((3, 8), np.int64), np.zeros((2, 7), np.int64),
     np.zeros((2, 8), np.uint64), np.zeros(16, np.int64)],
)  # fmt: skip
def test_parameters_of_another_shape_are_refused(
    engine: Engine, params: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> None:
    records = to_batch([call("return", 0), deposit(1, 5), call("return", 0)]).records
    with pytest.raises(ValueError, match=r"params are .* need int64\[2, 8\]"):
        engine.execute(records, 1, ["return"], params)
    assert engine.next_id == 1
    assert not engine.balances.any()


def test_parameters_may_be_read_only_unaligned_or_strided(engine: Engine) -> None:
    install(engine, "move", MOVE)
    records = to_batch([call("move", 0)] * 2).records
    rows = np.zeros((2, 8), "<i8")
    rows[:, :3] = (1, 2, 5)
    raw = b"123" + rows.tobytes()
    unaligned = np.frombuffer(raw, "<i8", 16, 3).reshape(2, 8)
    assert not unaligned.flags.aligned
    assert not unaligned.flags.writeable
    strided = np.repeat(rows, 2, axis=0)[::2]
    for params in (unaligned, strided, np.asfortranarray(rows)):
        executed = engine.execute(records, engine.next_id, ["move"], params)
        assert executed.batch.records["status"].tolist() == [0, 0]
        assert executed.batch.params.tolist() == [1, 2, 5, 1, 2, 5]
    assert engine.balances[2] == 30
