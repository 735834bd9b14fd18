"""An engine with functions, and what tests call and look at in it."""

from __future__ import annotations

import numpy as np

from tallybus.common.record import RECORD_DTYPE, Kind
from tallybus.common.snapshot.balances import sum_of_balances
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions.runtime import FunctionStatistics
from tallybus.services.transactor.outcome import Outcome
from tests.support.function_modules import module
from tests.support.oracle import Operation, to_batch

ACCOUNTS = 10


RETURN = module("(i32.wrap_i64 (local.get $a))")


MOVE = module(
    "(call $credit (local.get $a) (local.get $c)) (call $debit (local.get $b) (local.get $c))"
    "(i32.wrap_i64 (local.get $d))"
)


def run(engine: Engine, *operations: Operation) -> Outcome:
    batch = to_batch(operations)
    return engine.execute(batch.records, engine.next_id, batch.names, batch.params)


def statuses(engine: Engine, *operations: Operation) -> list[int]:
    executed = run(engine, *operations)
    found: list[int] = executed.batch.records["status"].tolist()
    assert sum_of_balances(engine.balances) == 0
    return found


def statistics(engine: Engine, name: str) -> FunctionStatistics:
    [found] = [each for each in engine.functions.statistics() if each.name == name]
    return found


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
