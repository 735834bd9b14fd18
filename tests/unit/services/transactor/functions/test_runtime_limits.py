"""What a call may use: entries, fuel, memory, tables, the stack."""

from __future__ import annotations

import threading

import pytest

from tallybus.common.record import Status
from tallybus.common.settings.sections import FunctionSettings
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions import state
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits, limits_from
from tests.support.function_modules import ENDLESS, MANY, TRAPS, install, module, to_binary
from tests.support.oracle import call, deposit, transfer
from tests.support.trials import try_function
from tests.unit.services.transactor.functions.engines import (
    ACCOUNTS,
    MOVE,
    run,
    statistics,
    statuses,
)


@pytest.mark.parametrize(
    ("pairs", "status"), [(0, 0), (1, 0), (127, 0), (128, Status.ENTRY_LIMIT_EXCEEDED)]
)
def test_a_transaction_has_at_most_255_entries(engine: Engine, pairs: int, status: int) -> None:
    install(engine, "many", MANY.text)
    executed = run(engine, call("many", pairs, 1, 2, 3))
    assert executed.batch.records["status"].tolist() == [status]
    assert len(executed.batch.entries) == (0 if status else 2 * pairs)
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
    assert executed.batch.records["status"].tolist() == [0, 0, Status.ENTRY_LIMIT_EXCEEDED]
    assert executed.batch.records["entry_count"].tolist() == [255, 255, 0]
    assert len(executed.batch.entries) == 510


def test_more_entries_than_the_buffer_holds(engine: Engine) -> None:
    install(engine, "many", MANY.text)
    calls = 6_000
    assert calls * 254 > 4 * state._FIRST_ENTRIES
    assert calls * 254 > state._MOST_KEPT_ENTRIES
    operations = [deposit(1, 1_000_000, 9), *[call("many", 127, 1, 2, 1)] * calls]
    operations += [deposit(1, 1, 9), call("many", 127, 1, 2, 1), transfer(2, 3, 127)]
    executed = run(engine, *operations)
    expected = [0] * (calls + 1) + [Status.DUPLICATE, 0, 0]
    assert executed.batch.records["status"].tolist() == expected
    assert executed.batch.links.tolist() == [1]
    assert len(executed.batch.entries) == (calls + 1) * 254
    assert (executed.batch.entries["account"][::2] == 1).all()
    assert (executed.batch.entries["amount"][1::2] == 1).all()
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
    assert executed.batch.records["status"].tolist() == [0, invalid, 0, invalid, invalid, 0]
    assert executed.batch.records["function"][1] == crc
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
