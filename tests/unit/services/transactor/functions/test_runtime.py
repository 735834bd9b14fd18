"""Functions in the engine: statuses, isolation, limits, memory, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from crc32c import crc32c

from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Reason, Status
from tallybus.common.settings.sections import FunctionSettings
from tallybus.services.transactor.engine import Engine, Executed
from tallybus.services.transactor.functions import selftest, state, wasm_engine
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits, limits_from
from tallybus.services.transactor.functions.runtime import (
    FunctionStatistics,
    FunctionsUnavailable,
    TooManyFunctions,
)
from tallybus.services.transactor.functions.trial import try_function
from tests.support.engine_runs import outcomes
from tests.support.folders import PROJECT
from tests.support.function_modules import (
    EMPTY,
    ENDLESS,
    FEE_TRANSFER,
    MANY,
    SCRIPT,
    START_MOVES,
    STATES,
    TRAPS,
    install,
    module,
    step,
    to_binary,
)
from tests.support.oracle import (
    Operation,
    Oracle,
    Registered,
    call,
    deposit,
    to_batch,
    to_records,
    transfer,
)

ACCOUNTS = 10
RETURN = module("(i32.wrap_i64 (local.get $a))")
MOVE = module(
    "(call $credit (local.get $a) (local.get $c)) (call $debit (local.get $b) (local.get $c))"
    "(i32.wrap_i64 (local.get $d))"
)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(ACCOUNTS, 1_000_000, 7)
    yield made
    made.close()


def run(engine: Engine, *operations: Operation) -> Executed:
    batch = to_batch(operations)
    return engine.execute(batch.records, engine.next_id, batch.names, batch.params)


def statuses(engine: Engine, *operations: Operation) -> list[int]:
    executed = run(engine, *operations)
    found: list[int] = executed.records["status"].tolist()
    assert engine.sum_of_balances() == 0
    return found


def statistics(engine: Engine, name: str) -> FunctionStatistics:
    [found] = [each for each in engine.functions.statistics() if each.name == name]
    return found


def script(*steps: int, returns: int = 0) -> Operation:
    return call("script", *steps, *[0] * (7 - len(steps)), returns)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def repeat(engine: Engine, name: str, params: tuple[int, ...], times: int) -> None:
    """So many calls, in batches of one size."""
    size = 1000
    assert times % size == 0
    records = np.zeros(size, RECORD_DTYPE)
    records["kind"] = Kind.FUNCTION
    rows = np.zeros((size, 8), np.int64)
    rows[:, : len(params)] = params
    for _ in range(times // size):
        engine.execute(records, engine.next_id, [name], rows)


def test_a_call_leaves_its_entries_checksum_and_parameters(engine: Engine) -> None:
    crc = install(engine, "fee", FEE_TRANSFER.text)
    executed = run(
        engine, deposit(1, 20_000), call("fee", 1, 2, 3, 10_000, 50), transfer(2, 1, 10_000)
    )
    assert executed.records["status"].tolist() == [0, 0, 0]
    assert executed.records["entry_count"].tolist() == [2, 3, 2]
    assert executed.records["function"].tolist() == [0, crc, 0]
    assert executed.records["amount"].tolist() == [20_000, 5, 10_000]
    assert executed.params.tolist() == [1, 2, 3, 10_000, 50]
    assert executed.entries.dtype == ENTRY_DTYPE
    assert executed.entries.tolist() == [(1, -10_050), (2, 10_000), (3, 50)]
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
    parts: list[Executed] = []
    total = 0
    for size in (1, 20_000, 77_777, 32, 33, 90_000, 12_157):
        engine = Engine(ACCOUNTS, 30_000, 3)
        for part in parts:
            engine.apply(part.records, engine.next_id, part.entries)
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
        assert parts[-1].entries.tolist() == oracle.kept.entries
        assert parts[-1].params.tolist() == oracle.kept.params
        assert engine.balances.tolist() == [oracle.balance(i) for i in range(ACCOUNTS)]
        total += statistics(engine, "fee").calls
        engine.close()
    calls = np.concatenate([part.records for part in parts])
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
    assert executed.records["amount"].tolist() == [len(kept), 1]
    assert executed.params.tolist() == [*kept, 5]


def test_a_function_that_is_not_live_fails_and_ran_nothing(engine: Engine) -> None:
    assert not engine.has_functions
    executed = run(engine, call("nobody", 4))
    assert executed.records["status"].tolist() == [Status.INVALID_OPERATION]
    assert executed.records["function"].tolist() == [0]
    assert executed.params.tolist() == [4]
    crc = install(engine, "return", RETURN)
    executed = run(engine, call("nobody", 4), call("return", 0))
    assert executed.records["status"].tolist() == [Status.INVALID_OPERATION, 0]
    assert executed.records["function"].tolist() == [0, crc]
    engine.functions.remove("return")
    executed = run(engine, call("return", 0))
    assert executed.records["status"].tolist() == [Status.INVALID_OPERATION]
    assert executed.records["function"].tolist() == [0]


def test_a_name_beyond_the_given_ones_is_not_live(engine: Engine) -> None:
    install(engine, "return", RETURN)
    records = to_batch([call("return", 0)] * 3).records
    records["function"] = [0, 1, 2**32 - 1]
    executed = engine.execute(records, 1, ["return"], np.zeros((3, 8), np.int64))
    assert executed.records["status"].tolist() == [0, *[Status.INVALID_OPERATION] * 2]


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
    assert executed.records["status"].tolist() == [200, 0]
    assert executed.records["entry_count"].tolist() == [0, 2]
    assert executed.entries.tolist() == [(1, -50), (2, 50)]
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


@pytest.mark.parametrize(
    ("pairs", "status"), [(0, 0), (1, 0), (127, 0), (128, Status.ENTRY_LIMIT_EXCEEDED)]
)
def test_a_transaction_has_at_most_255_entries(engine: Engine, pairs: int, status: int) -> None:
    install(engine, "many", MANY.text)
    executed = run(engine, call("many", pairs, 1, 2, 3))
    assert executed.records["status"].tolist() == [status]
    assert len(executed.entries) == (0 if status else 2 * pairs)
    assert engine.balances[2] == (0 if status else 3 * pairs)


def test_255_entries_are_not_one_too_many(engine: Engine) -> None:
    body = "(call $credit (i64.const 1) (i64.const 254))" + (
        "(call $debit (i64.const 2) (i64.const 1))" * 254
    )
    install(engine, "most", module(f"{body}(i32.const 0)"))
    install(engine, "more", module(f"(call $debit (i64.const 2) (i64.const 0)){body}(i32.const 0)"))
    last = "(call $debit (i64.const 2) (i64.const 1))"
    install(engine, "over", module(f"{body}{last}(i32.const 0)"))
    executed = run(engine, call("most"), call("more"), call("over"))
    assert executed.records["status"].tolist() == [0, 0, Status.ENTRY_LIMIT_EXCEEDED]
    assert executed.records["entry_count"].tolist() == [255, 255, 0]
    assert len(executed.entries) == 510


def test_more_entries_than_the_buffer_holds(engine: Engine) -> None:
    install(engine, "many", MANY.text)
    calls = 6_000
    assert calls * 254 > 4 * state._FIRST_ENTRIES
    assert calls * 254 > state._MOST_KEPT_ENTRIES
    operations = [deposit(1, 1_000_000, 9), *[call("many", 127, 1, 2, 1)] * calls]
    operations += [deposit(1, 1, 9), call("many", 127, 1, 2, 1), transfer(2, 3, 127)]
    executed = run(engine, *operations)
    expected = [0] * (calls + 1) + [Status.DUPLICATE, 0, 0]
    assert executed.records["status"].tolist() == expected
    assert executed.links.tolist() == [1]
    assert len(executed.entries) == (calls + 1) * 254
    assert (executed.entries["account"][::2] == 1).all()
    assert (executed.entries["amount"][1::2] == 1).all()
    assert engine.balances[:4].tolist() == [-1_000_000, 1_000_000 - 127 * 6001, 127 * 6000, 127]
    # What this batch needed is not kept for ever.
    assert engine._calls is not None
    assert len(engine._calls._entries) == state._FIRST_ENTRIES
    assert statuses(engine, call("many", 127, 1, 2, 1)) == [0]


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_undoes_the_call_and_nothing_else(engine: Engine, name: str) -> None:
    crc = install(engine, "trap", TRAPS[name].text)
    install(engine, "move", MOVE)
    good, bad = call("move", 1, 2, 5), call("trap")
    executed = run(engine, good, bad, good, bad, bad, good)
    invalid = Status.INVALID_OPERATION
    assert executed.records["status"].tolist() == [0, invalid, 0, invalid, invalid, 0]
    assert executed.records["function"][1] == crc
    assert engine.balances[:3].tolist() == [0, -15, 15]
    assert statistics(engine, "trap").failures == {invalid: 3}


def test_fuel_ends_a_call_that_does_not(engine: Engine) -> None:
    install(engine, "endless", ENDLESS.text)
    install(engine, "move", MOVE)
    found = statuses(engine, call("endless"), call("move", 1, 2, 5), call("endless"))
    assert found == [Status.QUOTA_EXCEEDED, 0, Status.QUOTA_EXCEEDED]
    assert statistics(engine, "endless").fuel_total == 2 * FunctionLimits().fuel


@pytest.mark.parametrize("kept", [True, False])
def test_a_quota_is_the_most_that_a_call_may_use(kept: bool) -> None:
    """Also in code without loops, where fuel is not looked at before the end."""
    text = (
        MOVE if kept else MOVE.replace("(func (e", "(global $g (mut i32) (i32.const 0)) (func (e")
    )
    if not kept:
        text = text.replace("(i32.wrap", "(global.set $g (i32.const 1)) (i32.wrap")
    used = try_function(to_binary(text), (1, 2, 5), {}).fuel_used
    limits = FunctionLimits(fuel=500, fuel_by_name={"exact": used, "less": used - 1})
    engine = Engine(ACCOUNTS, 1000, 1, limits)
    for name in ("exact", "less", "other"):
        install(engine, name, text)
    found = statuses(engine, *(call(name, 1, 2, 5) for name in ("exact", "less", "other")))
    assert found == [0, Status.QUOTA_EXCEEDED, 0]
    assert [
        (each.name, each.fuel_limit, each.fuel_total) for each in engine.functions.statistics()
    ] == [("exact", used, used), ("less", used - 1, used - 1), ("other", 500, used)]
    assert engine.balances[2] == 10
    engine.close()


@pytest.mark.parametrize("name", STATES)
def test_nothing_that_a_call_wrote_is_seen_by_a_later_one(engine: Engine, name: str) -> None:
    install(engine, "state", STATES[name].text)
    install(engine, "move", MOVE)
    operations = [call("state"), call("state"), call("move", 1, 2, 1), call("state")]
    assert statuses(engine, *operations) == [129, 129, 0, 129]
    assert statuses(engine, *operations) == [129, 129, 0, 129]


def test_nothing_of_a_call_that_trapped_is_seen_either(engine: Engine) -> None:
    text = module(
        "(if (global.get $n) (then (return (i32.const 200))))"
        "(global.set $n (i32.const 1)) unreachable",
        "(global $n (mut i32) (i32.const 0))",
    )
    install(engine, "state", text)
    assert statuses(engine, call("state"), call("state")) == [Status.INVALID_OPERATION] * 2


@pytest.mark.parametrize("text", [FEE_TRANSFER.text, EMPTY.text, SCRIPT.text, MANY.text])
def test_a_module_that_cannot_write_state_keeps_its_instance(engine: Engine, text: str) -> None:
    compiled = engine.functions.compile(to_binary(text))
    assert not compiled.fresh_instances


def test_a_start_function_runs_in_each_call_and_only_there(engine: Engine) -> None:
    compiled = engine.functions.compile(to_binary(START_MOVES.text))
    assert compiled.fresh_instances
    assert not engine.balances.any()
    engine.functions.install("start", 1, compiled.crc32c, compiled)
    found = run(engine, call("start", 3), call("start", 4), call("start", 3))
    assert found.records["status"].tolist() == [0, Status.ZERO_SUM_VIOLATION, 0]
    assert found.entries.tolist() == [(1, -3), (2, 3)] * 2


def test_a_start_function_has_the_fuel_of_its_call(engine: Engine) -> None:
    text = module("(i32.const 0)", "(func $s (loop $l (br $l))) (start $s)")
    install(engine, "start", text)
    assert statuses(engine, call("start")) == [Status.QUOTA_EXCEEDED]


def test_memory_and_tables_grow_to_their_limits() -> None:
    limits = FunctionLimits(memory_bytes=1 << 20, table_elements=100)
    engine = Engine(ACCOUNTS, 1000, 1, limits)
    install(
        engine,
        "memory",
        module(
            "(if (i32.eq (memory.grow (i32.const 15)) (i32.const -1)) (then unreachable))"
            "(i32.add (i32.const 129) (memory.grow (i32.const 1)))",
            "(memory 1)",
        ),
    )
    install(
        engine,
        "table",
        module(
            "(if (i32.eq (table.grow 0 (ref.null func) (i32.const 90)) (i32.const -1))"
            "(then unreachable))"
            "(i32.add (i32.const 129) (table.grow 0 (ref.null func) (i32.const 1)))",
            "(table 10 funcref)",
        ),
    )
    assert statuses(engine, call("memory"), call("table")) == [128, 128]
    for declarations in ("(memory 17)", "(table 101 funcref)"):
        with pytest.raises(InvalidFunction):
            engine.functions.compile(to_binary(module("(i32.const 0)", declarations)))
    engine.close()


@pytest.mark.parametrize(
    "text",
    [
        "(module)",
        '(module (func (export "other") (result i32) i32.const 0))',
        '(module (func (export "execute") (result i32) i32.const 0))',
        '(module (func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64)))',
        f'(module (func (export "execute") (param {"i64 " * 8}) (result i64) i64.const 0))',
        f'(module (func (export "execute") (param {"i64 " * 7} i32) (result i32) i32.const 0))',
        '(module (global (export "execute") i32 (i32.const 0)))',
        module("(i32.const 0)", '(import "ledger" "now" (func (result i64)))'),
        module("(i32.const 0)", '(import "ledger" "credit" (func (param i64)))'),
        module("(i32.const 0)", '(import "env" "memory" (memory 1))'),
        module("(i32.const 0)", "(memory 1 1 shared)"),
        module("(i32.const 0)", '(memory 1) (data (i32.const 65536) "x")'),
    ],
)
def test_other_modules_are_refused(engine: Engine, text: str) -> None:
    with pytest.raises(InvalidFunction):
        engine.functions.compile(to_binary(text))


@pytest.mark.parametrize(
    "binary", [b"", b"\0asm", b"MZ" * 100, b"\0asm\1\0\0\0", b"\0asm\1\0\0\0\1"]
)
def test_what_is_no_module_is_refused(engine: Engine, binary: bytes) -> None:
    with pytest.raises(InvalidFunction):
        engine.functions.compile(binary)


def test_the_compiler_itself_checks_types(engine: Engine) -> None:
    """Calls are not checked, so the checks before them do not rely on one reader of binaries."""
    sandbox = engine.functions._sandbox
    for text in (
        "(module)",
        '(module (func (export "execute") (param i64) (result i32) i32.const 0))',
        '(module (memory (export "execute") 1))',
        module("(i32.const 0)", '(import "ledger" "credit" (func (param i64)))'),
        module("(i32.const 0)", '(import "env" "now" (func))'),
    ):
        with pytest.raises(InvalidFunction):
            sandbox.compile(to_binary(text))


def with_checksum_zero(binary: bytes) -> bytes:
    """The module with a custom section whose four bytes make its CRC-32C 0."""
    head = binary + b"\0\x06\x01x"
    base = crc32c(head + bytes(4))
    rows = [(crc32c(head + (1 << bit).to_bytes(4, "little")) ^ base, 1 << bit) for bit in range(32)]
    wanted, found = base, 0
    for bit in range(32):
        pivot = next(i for i, (value, _) in enumerate(rows) if value >> bit & 1)
        value, choice = rows.pop(pivot)
        rows = [(v ^ value, c ^ choice) if v >> bit & 1 else (v, c) for v, c in rows]
        if wanted >> bit & 1:
            wanted, found = wanted ^ value, found ^ choice
    return head + found.to_bytes(4, "little")


def test_a_module_whose_checksum_would_mean_no_function_is_refused(engine: Engine) -> None:
    binary = with_checksum_zero(to_binary(EMPTY.text))
    assert crc32c(binary) == 0
    with pytest.raises(InvalidFunction, match="CRC-32C"):
        engine.functions.compile(binary)


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
    assert executed.records["status"].tolist() == [0, Status.DUPLICATE, 0]
    assert executed.records["amount"].tolist() == [3, 0, 3]
    assert executed.params.tolist() == [1, 2, 5, 1, 2, 6]
    assert executed.links.tolist() == [1]
    assert engine.balances[2] == 11
    assert statistics(engine, "move").calls == 2


def test_calls_without_parameters_at_all_fail(engine: Engine) -> None:
    install(engine, "return", RETURN)
    executed = engine.execute(to_batch([call("return", 0)]).records, 1, ["return"])
    assert executed.records["status"].tolist() == [Status.INVALID_OPERATION]
    assert executed.records["reason"].tolist() == [Reason.UNKNOWN_FUNCTION]
    assert executed.failures["reason"].tolist() == [Reason.UNKNOWN_FUNCTION]
    assert executed.records["amount"].tolist() == [0]


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
        assert executed.records["status"].tolist() == [0, 0]
        assert executed.params.tolist() == [1, 2, 5, 1, 2, 5]
    assert engine.balances[2] == 30


def test_replacing_and_removing_takes_effect_with_the_next_batch(engine: Engine) -> None:
    first = install(engine, "f", module("(i32.const 201)"), 1)
    assert statuses(engine, call("f")) == [201]
    second = install(engine, "f", STATES["global"].text, 2)
    assert statuses(engine, call("f")) == [129]
    third = install(engine, "f", module("(i32.const 203)"), 3)
    assert statuses(engine, call("f")) == [203]
    assert len({first, second, third}) == 3
    found = statistics(engine, "f")
    assert (found.version, found.crc32c, found.calls, found.failures) == (3, third, 1, {203: 1})
    engine.functions.remove("f")
    with pytest.raises(KeyError):
        engine.functions.remove("f")


def test_at_most_so_many_functions_are_live() -> None:
    engine = Engine(ACCOUNTS, 1000, 1, FunctionLimits(max_functions=2))
    install(engine, "one", RETURN)
    install(engine, "two", RETURN)
    assert engine.functions.takes("two")
    assert not engine.functions.takes("three")
    with pytest.raises(TooManyFunctions) as caught:
        install(engine, "three", RETURN)
    assert (caught.value.name, caught.value.limit) == ("three", 2)
    install(engine, "two", EMPTY.text, 2)
    engine.functions.remove("one")
    install(engine, "three", RETURN)
    assert statuses(engine, call("one", 200), call("two", 200), call("three", 200)) == [
        Status.INVALID_OPERATION,
        0,
        200,
    ]
    engine.close()


def test_a_registration_is_a_transaction(engine: Engine) -> None:
    compiled = engine.functions.compile(to_binary(RETURN))
    record = to_records([Operation(Kind.FUNCTION_REGISTERED, 1, 0, 0, 33)])
    record["function"] = compiled.crc32c
    assert statuses(engine, deposit(1, 5)) == [0]
    done = engine.register(record, 2, "a_name", 4, compiled=compiled)
    row = done.records[0]
    assert (row["status"], row["account"], row["function"]) == (0, 4, compiled.crc32c)
    assert done.params.tobytes() == b"a_name\0\0"
    assert row["amount"] == 1
    assert statuses(engine, call("a_name", 222)) == [222]

    again = engine.register(record, 4, "a_name", 5, compiled=compiled)
    assert again.records["status"].tolist() == [Status.DUPLICATE]
    assert again.links.tolist() == [2]
    assert (again.records["amount"][0], len(again.params)) == (0, 0)
    assert statistics(engine, "a_name").version == 4

    record["user_ref"] = 34
    failed = engine.register(record, 5, "a_name", 5, Status.INVALID_OPERATION)
    assert failed.records["status"].tolist() == [Status.INVALID_OPERATION]
    assert failed.records["account"].tolist() == [0]
    assert failed.failures["status"].tolist() == [Status.INVALID_OPERATION]
    assert statistics(engine, "a_name").version == 4

    record["user_ref"] = 35
    record["function"] = 0
    gone = engine.register(record, 6, "a_name", 5)
    assert gone.records["account"].tolist() == [5]
    assert statuses(engine, call("a_name", 222)) == [Status.INVALID_OPERATION]
    assert engine.next_id == engine.window.next_id == 8


def test_a_registration_in_a_batch_is_invalid(engine: Engine) -> None:
    found = run(engine, Operation(Kind.FUNCTION_REGISTERED, 1, 0, 9, 33), deposit(1, 5))
    assert found.records["status"].tolist() == [Status.INVALID_OPERATION, 0]
    assert found.records["amount"].tolist() == [0, 5]


def test_a_registration_that_cannot_be_changes_nothing(engine: Engine) -> None:
    record = to_records([Operation(Kind.FUNCTION_REGISTERED, 1)])
    with pytest.raises(ValueError, match="one record"):
        engine.register(to_records([deposit(1, 1)]), 1, "f", 1)
    record["function"] = 5
    with pytest.raises(ValueError, match="needs the compiled function"):
        engine.register(record, 1, "f", 1)
    record["function"] = 0
    with pytest.raises(ValueError, match="no function f"):
        engine.register(record, 1, "f", 1)
    assert engine.next_id == engine.window.next_id == 1


def test_statistics_count_calls_statuses_fuel_and_time(engine: Engine) -> None:
    install(engine, "return", RETURN)
    before = statistics(engine, "return")
    assert (before.calls, before.failures, before.fuel_total, before.mean_ns) == (0, {}, 0, None)
    run(engine, call("return", 0), *[call("return", 1)] * 2, *[call("return", 250)] * 3)
    found = statistics(engine, "return")
    assert found.calls == 6
    assert found.failures == {1: 2, 250: 3}
    assert found.fuel_total == 6 * try_function(to_binary(RETURN), (1,), {}).fuel_used
    repeat(engine, "return", (0,), 1000)
    mean = statistics(engine, "return").mean_ns
    assert mean is not None
    assert 1 < mean < 50_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("text", "params", "calls"),
    [
        pytest.param(FEE_TRANSFER.text, (1, 2, 3, 100, 50), 2_000_000, id="one instance"),
        pytest.param(STATES["global"].text, (), 1_000_000, id="fresh instances"),
        pytest.param(STATES["memory with data"].text, (), 60_000, id="fresh memories"),
        pytest.param(STATES["table.grow"].text, (), 200_000, id="fresh tables"),
        pytest.param(TRAPS["unreachable"].text, (), 1_000_000, id="traps"),
        pytest.param(TRAPS["start function that traps"].text, (), 100_000, id="start traps"),
        pytest.param(TRAPS["endless recursion"].text, (), 20_000, id="stack overflows"),
    ],
)
def test_calls_leave_no_memory_behind(
    engine: Engine, text: str, params: tuple[int, ...], calls: int
) -> None:
    install(engine, "f", text)
    engine.balances[:4] = 2**40, 2**50, 0, -(2**50) - 2**40
    repeat(engine, "f", params, 3000)
    before = resident_bytes()
    repeat(engine, "f", params, calls)
    # A store of wasmtime has more than a thousand bytes, a trap more than a hundred.
    assert resident_bytes() - before < 2 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_code_that_was_replaced_is_freed(engine: Engine) -> None:
    def mappings() -> int:
        with open("/proc/self/maps") as file:
            return len(file.readlines())

    def replace(number: int) -> None:
        steps = f"(local.set $a (i64.mul (local.get $a) (i64.const {number + 3})))" * 2000
        install(engine, "f", module(f"{steps}(i32.wrap_i64 (local.get $a))", "(memory 1)"), number)
        assert statuses(engine, call("f", 0)) == [0]

    for number in range(1, 11):
        replace(number)
    resident, mapped = resident_bytes(), mappings()
    for number in range(11, 61):
        replace(number)
    assert mappings() - mapped < 25
    assert resident_bytes() - resident < 4 << 20


def test_modules_are_compiled_while_others_run(engine: Engine) -> None:
    install(engine, "move", MOVE)
    results: list[object] = []

    def compile_some() -> None:
        for number in range(20):
            text = module(f"(i32.const {200 + number})")
            results.append(engine.functions.compile(to_binary(text)))

    threads = [threading.Thread(target=compile_some) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        repeat(engine, "move", (1, 2, 1), 1000)
    for thread in threads:
        thread.join()
    assert len(results) == 60
    assert statistics(engine, "move").failures == {}
    assert engine.balances[1] == -engine.balances[2] != 0


def test_deep_recursion_ends_on_a_small_stack_too(engine: Engine) -> None:
    install(engine, "deep", TRAPS["endless recursion"].text)
    found: list[list[int]] = []
    before = threading.stack_size(512 << 10)
    try:
        thread = threading.Thread(target=lambda: found.append(statuses(engine, call("deep"))))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert found == [[Status.INVALID_OPERATION]]


def test_an_engine_without_functions_loads_no_runtime() -> None:
    program = """
import sys
import numpy as np
from tallybus.common.record import RECORD_DTYPE
from tallybus.services.transactor.engine import Engine
engine = Engine(10, 10, 1)
records = np.zeros(2, RECORD_DTYPE)
records["kind"] = 1, 4
records["amount"] = 1
engine.execute(records[:1], 1)
engine.execute(records[1:], 2, ["nobody"], np.zeros((1, 8), np.int64))
assert not engine.has_functions
engine.close()
print("wasmtime" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False, capture_output=True, text=True, timeout=120, cwd=PROJECT,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_runtime_takes_no_signals() -> None:
    program = """
import faulthandler
from tests.support.function_modules import TRAPS, install
from tests.support.oracle import call, to_batch
from tallybus.services.transactor.engine import Engine
faulthandler.enable()
def caught():
    with open("/proc/self/status") as file:
        return [line for line in file if line.startswith("SigCgt")]
before = caught()
engine = Engine(10, 1000, 1)
for name, example in TRAPS.items():
    install(engine, "f", example.text)
    batch = to_batch([call("f")])
    done = engine.execute(batch.records, engine.next_id, batch.names, batch.params)
    assert done.records["status"].tolist() == [5], name
assert caught() == before
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False, capture_output=True, text=True, timeout=120, cwd=PROJECT,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("alive\n", "")


def test_a_runtime_that_behaves_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        wrong = selftest._CALLS[0]._replace(fuel=(19, 22))
        patch.setattr(selftest, "_CALLS", (wrong,))
        with pytest.raises(FunctionsUnavailable, match="self-test"):
            _ = Engine(ACCOUNTS, 10, 1).functions
    with monkeypatch.context() as patch:
        patch.setattr(wasm_engine, "version", lambda _name: "50.0.2")
        with pytest.raises(FunctionsUnavailable, match=r"50\.0\.2 is installed"):
            _ = Engine(ACCOUNTS, 10, 1).functions


def test_a_closed_engine_may_be_closed_again(engine: Engine) -> None:
    install(engine, "return", RETURN)
    install(engine, "state", STATES["global"].text)
    engine.close()
    engine.close()


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


def test_limits_come_from_the_settings() -> None:
    assert limits_from(FunctionSettings()) == FunctionLimits()
    limits = limits_from(
        FunctionSettings(
            fuel=5, fuel_by_name="a=7, b_2=8", memory_mib=2, table_elements=3, stack_kib=64,
            max_functions=9,
        )
    )  # fmt: skip
    assert (limits.fuel_of("a"), limits.fuel_of("b_2"), limits.fuel_of("c")) == (7, 8, 5)
    assert (limits.memory_bytes, limits.table_elements) == (2 << 20, 3)
    assert (limits.stack_bytes, limits.max_functions) == (64 << 10, 9)
