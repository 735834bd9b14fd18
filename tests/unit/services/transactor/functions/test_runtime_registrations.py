"""Functions that come and go: each registration is a transaction, and calls are counted."""

from __future__ import annotations

import pytest

from tallybus.common.record import Kind, Status
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.runtime import TooManyFunctions
from tests.support.function_modules import EMPTY, STATES, install, module, to_binary
from tests.support.oracle import Operation, call, deposit, to_records
from tests.support.trials import try_function
from tests.unit.services.transactor.functions.engines import (
    ACCOUNTS,
    RETURN,
    repeat,
    run,
    statistics,
    statuses,
)


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
    row = done.batch.records[0]
    assert (row["status"], row["account"], row["function"]) == (0, 4, compiled.crc32c)
    assert done.batch.params.tobytes() == b"a_name\0\0"
    assert row["amount"] == 1
    assert statuses(engine, call("a_name", 222)) == [222]

    again = engine.register(record, 4, "a_name", 5, compiled=compiled)
    assert again.batch.records["status"].tolist() == [Status.DUPLICATE]
    assert again.batch.links.tolist() == [2]
    assert (again.batch.records["amount"][0], len(again.batch.params)) == (0, 0)
    assert statistics(engine, "a_name").version == 4

    record["user_ref"] = 34
    failed = engine.register(record, 5, "a_name", 5, Status.INVALID_OPERATION)
    assert failed.batch.records["status"].tolist() == [Status.INVALID_OPERATION]
    assert failed.batch.records["account"].tolist() == [0]
    assert failed.failures["status"].tolist() == [Status.INVALID_OPERATION]
    assert statistics(engine, "a_name").version == 4

    record["user_ref"] = 35
    record["function"] = 0
    gone = engine.register(record, 6, "a_name", 5)
    assert gone.batch.records["account"].tolist() == [5]
    assert statuses(engine, call("a_name", 222)) == [Status.INVALID_OPERATION]
    assert engine.next_id == engine.window.next_id == 8


def test_a_registration_in_a_batch_is_invalid(engine: Engine) -> None:
    found = run(engine, Operation(Kind.FUNCTION_REGISTERED, 1, 0, 9, 33), deposit(1, 5))
    assert found.batch.records["status"].tolist() == [Status.INVALID_OPERATION, 0]
    assert found.batch.records["amount"].tolist() == [0, 5]


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
