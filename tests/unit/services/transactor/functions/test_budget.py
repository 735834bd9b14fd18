"""Time of calls: budgets of submits, slices, suspension, and calls that escape the metering."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tallybus.common.batch import Batch
from tallybus.common.record import RECORD_DTYPE, Kind, Reason, Status
from tallybus.common.snapshot.balances import sum_of_balances
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions import layout
from tallybus.services.transactor.functions.budget import UNBOUNDED, WorkBudget
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.watcher import FunctionWatcher
from tallybus.services.transactor.outcome import Outcome
from tests.support.function_modules import EMPTY, ENDLESS, MANY, TRAPS, install, module
from tests.support.oracle import Operation, call, deposit, to_batch

# An empty call takes a little more than `layout.CALL_UNITS` virtual nanoseconds.
CALL_NS = layout.CALL_UNITS + 5
STATEFUL = module(
    "(global.set $n (i64.const 1)) i32.const 0", "(global $n (mut i64) (i64.const 0))"
)


def made(**limits: object) -> Engine:
    return Engine(10, 1_000_000, 7, FunctionLimits(virtual_time=True, **limits))  # type: ignore[arg-type]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = made()
    install(engine, "empty", EMPTY.text)
    yield engine
    engine.close()


def run(
    engine: Engine,
    operations: list[Operation],
    budget: WorkBudget = UNBOUNDED,
    counts: tuple[int, ...] = (),
    slice_ns: int = 2**60,
) -> list[Outcome]:
    """The slices of a batch."""
    given = to_batch(operations)
    batch = engine.begin(given.records, engine.next_id, given.names, given.params, counts, budget)
    slices = []
    while not batch.done:
        slices.append(engine.go_on(batch, slice_ns))
    return slices


def outcomes(slices: list[Outcome]) -> list[tuple[int, int]]:
    records = np.concatenate([each.batch.records for each in slices])
    found: list[tuple[int, int]] = list(
        zip(records["status"].tolist(), records["reason"].tolist(), strict=True)
    )
    return found


RAN = (0, 0)
NOT_RUN = (Status.NOT_RUN, Reason.WORK)


def test_calls_behind_the_budget_are_not_run(engine: Engine) -> None:
    budget = WorkBudget(250, 10**6)
    found = outcomes(run(engine, [call("empty") for _ in range(10)], budget))
    assert found == [RAN] * 3 + [NOT_RUN] * 7


def test_built_ins_behind_the_budget_are_executed(engine: Engine) -> None:
    operations = [call("empty"), call("empty"), deposit(1, 5), call("empty"), deposit(1, 6)]
    found = outcomes(run(engine, operations, WorkBudget(1, 10**6)))
    assert found == [RAN, NOT_RUN, RAN, NOT_RUN, RAN]
    assert engine.balances[1] == 11


def test_each_submit_has_a_budget_of_its_own(engine: Engine) -> None:
    operations = [call("empty") for _ in range(9)]
    found = outcomes(run(engine, operations, WorkBudget(1, 10**6), (4, 1, 4)))
    assert found == [RAN, *[NOT_RUN] * 3, RAN, RAN, *[NOT_RUN] * 3]


def test_submits_without_calls_among_others_count_for_nobody(engine: Engine) -> None:
    operations = [call("empty"), deposit(1, 1), deposit(1, 1), call("empty"), call("empty")]
    given = to_batch(operations)
    batch = engine.begin(
        given.records, 1, given.names, given.params, (1, 2, 2), WorkBudget(1, 10**6)
    )
    executed = engine.go_on(batch)
    assert executed.batch.records["status"].tolist() == [0, 0, 0, 0, Status.NOT_RUN]
    first, second, third = batch.times
    assert second == 0
    assert first > 0
    assert third > 0


def test_what_was_not_run_leaves_its_reference_free(engine: Engine) -> None:
    operations = [call("empty", user_ref=1), call("empty", user_ref=2)]
    assert outcomes(run(engine, operations, WorkBudget(1, 10**6))) == [RAN, NOT_RUN]
    assert [status for status, _ in outcomes(run(engine, operations))] == [Status.DUPLICATE, 0]
    assert [status for status, _ in outcomes(run(engine, operations))] == [Status.DUPLICATE] * 2


def test_replay_leaves_the_references_of_the_not_run_free(engine: Engine) -> None:
    operations = [call("empty", user_ref=1), call("empty", user_ref=2)]
    (executed,) = run(engine, operations, WorkBudget(1, 10**6))
    replayed = made()
    install(replayed, "empty", EMPTY.text)
    replayed.apply(Batch(1, executed.batch.records))
    assert [s for s, _ in outcomes(run(replayed, operations))] == [Status.DUPLICATE, 0]
    replayed.close()


@pytest.mark.parametrize("status", [10, 11, 12, 127])
def test_a_reserved_status_in_an_old_log_was_the_functions_own(status: int) -> None:
    records = np.zeros(1, RECORD_DTYPE)
    records["kind"], records["status"], records["user_ref"] = Kind.FUNCTION, status, 9
    engine = made()
    engine.apply(Batch(1, records))
    executed = engine.execute(to_batch([deposit(1, 5, 9)]).records, 2)
    assert executed.failures["duplicate_of"].tolist() == [1]
    assert executed.failures["original_status"].tolist() == [status]


def test_entries_of_a_submit_are_bounded(engine: Engine) -> None:
    install(engine, "many", MANY.text)
    calls = [call("many", 100, 1, 2, 1) for _ in range(6)]
    (executed,) = run(engine, calls, WorkBudget(2**62, 500))
    assert executed.batch.records["status"].tolist() == [0, 0, 0, *[Status.NOT_RUN] * 3]
    assert executed.batch.records["reason"].tolist() == [0, 0, 0, *[Reason.ENTRIES] * 3]
    assert executed.failures["reason"].tolist() == [Reason.ENTRIES] * 3


def test_a_slice_ends_when_its_entries_fill_four_mebibytes(engine: Engine) -> None:
    install(engine, "many", MANY.text)
    slices = run(engine, [call("many", 127, 1, 2, 1) for _ in range(3000)], slice_ns=2**61)
    assert [len(each.batch.entries) <= 1 << 18 for each in slices] == [True] * len(slices)
    assert len(slices) == 3
    assert sum(len(each.batch.entries) for each in slices) == 3000 * 254
    assert sum_of_balances(engine.balances) == 0


@pytest.mark.parametrize("slice_ns", [1, 3 * CALL_NS, 10**9])
def test_slices_change_nothing_that_is_recorded(slice_ns: int) -> None:
    operations = [
        operation
        for i in range(1, 30)
        for operation in (
            deposit(i % 9 + 1, i, i % 7),
            call("empty", i, user_ref=i % 5),
            call("many", i, 1, 2, 1),
            call("nobody", i, i),
        )
    ]
    parts = []
    for slices in (slice_ns, 2**60):
        engine = made()
        install(engine, "empty", EMPTY.text)
        install(engine, "many", MANY.text)
        found = run(engine, operations, slice_ns=slices)
        parts.append(
            [
                np.concatenate([getattr(each.batch, name) for each in found]).tobytes()
                for name in ("records", "links", "params", "entries")
            ]
        )
        assert (len(found) > 1) == (slices < 10**9)
        parts[-1].append(engine.balances.tobytes())
        engine.close()
    assert parts[0] == parts[1]


def test_offsets_of_failures_count_from_the_slice(engine: Engine) -> None:
    slices = run(engine, [call("empty"), call("nobody"), call("empty"), call("nobody")], slice_ns=1)
    at = 0
    failed = []
    for each in slices:
        failed += [at + offset for offset in each.failures["offset"].tolist()]
        at += len(each.batch.records)
    assert failed == [1, 3]


REASONS = {
    "trap": (Status.INVALID_OPERATION, Reason.TRAP),
    "nobody": (Status.INVALID_OPERATION, Reason.UNKNOWN_FUNCTION),
    "ten": (Status.INVALID_OPERATION, Reason.BAD_RETURN),
    "seven": (Status.INVALID_OPERATION, Reason.BAD_RETURN),
    "minus": (Status.INVALID_OPERATION, Reason.BAD_RETURN),
    "endless": (Status.QUOTA_EXCEEDED, Reason.NONE),
    "own": (200, Reason.NONE),
    "funds": (Status.INSUFFICIENT_FUNDS, Reason.NONE),
    "account": (Status.ACCOUNT_LIMIT_EXCEEDED, Reason.NONE),
}


def test_why_a_call_failed_stands_in_record_and_failure(engine: Engine) -> None:
    for name, text in {
        "trap": module("unreachable"),
        "ten": module("i32.const 10"),
        "seven": module("i32.const 7"),
        "minus": module("i32.const -1"),
        "endless": ENDLESS.text,
        "own": module("i32.const 200"),
        "funds": module("i32.const 1"),
        # A host call's failure decides, not the trap behind it.
        "account": module("(call $debit (i64.const 99) (i64.const 1)) unreachable"),
    }.items():
        install(engine, name, text)
    (executed,) = run(engine, [call(name) for name in REASONS])
    assert outcomes([executed]) == list(REASONS.values())
    assert executed.failures["reason"].tolist() == [reason for _, reason in REASONS.values()]
    counted = {each.name: dict(each.reasons) for each in engine.functions.statistics()}
    assert counted["trap"] == {Reason.TRAP: 1}
    assert counted["account"] == {}


def test_suspended_calls_are_recorded_and_not_run(engine: Engine) -> None:
    install(engine, "other", EMPTY.text)
    engine.functions.suspend(frozenset({"empty", "never_registered"}))
    operations = [call("empty", 1, user_ref=5), call("other", user_ref=6)]
    stopped = (Status.SUSPENDED, Reason.STOPPED)
    (executed,) = run(engine, operations)
    assert outcomes([executed]) == [stopped, RAN]
    assert executed.batch.params.tolist() == [1]
    assert executed.batch.records["function"].tolist()[0] == 0
    engine.functions.suspend(frozenset())
    assert [s for s, _ in outcomes(run(engine, operations))] == [0, Status.DUPLICATE]


def test_a_function_that_is_registered_while_suspended_is_suspended(engine: Engine) -> None:
    engine.functions.suspend(frozenset({"late"}))
    install(engine, "late", EMPTY.text)
    install(engine, "late", EMPTY.text)
    assert outcomes(run(engine, [call("late")])) == [(Status.SUSPENDED, Reason.STOPPED)]


@pytest.mark.parametrize(
    "text", [ENDLESS.text, STATEFUL.replace("i32.const 0", "(loop $l (br $l)) i32.const 0")]
)
def test_a_call_that_runs_is_interrupted_when_its_function_is_suspended(text: str) -> None:
    engine = Engine(10, 1_000_000, 7, FunctionLimits(fuel=10**12))
    install(engine, "slow", text)
    install(engine, "empty", EMPTY.text)
    words = engine.functions.calls.words

    def suspend() -> None:
        until = time.monotonic() + 30
        while not words[layout.RUNNING] and time.monotonic() < until:
            time.sleep(0.001)
        engine.functions.suspend(frozenset({"slow"}))

    other = threading.Thread(target=suspend)
    other.start()
    found = outcomes(run(engine, [call("slow"), call("slow"), call("empty")]))
    other.join()
    assert found[:2] == [
        (Status.SUSPENDED, Reason.INTERRUPTED),
        (Status.SUSPENDED, Reason.STOPPED),
    ]
    assert found[2] == RAN
    engine.close()


def test_a_call_that_was_interrupted_by_mistake_is_made_again(engine: Engine) -> None:
    for _ in range(3):
        engine.functions.interrupt()
        executed = run(engine, [call("empty", 7), deposit(1, 1), call("empty", 8)])
        assert outcomes(executed) == [RAN] * 3
        assert executed[0].batch.params.tolist() == [7, 8]


def test_an_interruption_in_the_middle_of_a_batch_changes_nothing() -> None:
    engine = Engine(10, 1_000_000, 7)
    install(engine, "many", MANY.text)
    done = threading.Event()

    def interrupt() -> None:
        while not done.wait(0.001):
            engine.functions.interrupt()

    other = threading.Thread(target=interrupt)
    other.start()
    try:
        for _ in range(50):
            executed = run(engine, [call("many", 50, 1, 2, i + 1) for i in range(200)])
            assert outcomes(executed) == [RAN] * 200
            assert sum(len(each.batch.entries) for each in executed) == 200 * 100
    finally:
        done.set()
        other.join()
    engine.close()


def test_a_call_in_overtime_is_ended() -> None:
    engine = Engine(10, 1_000_000, 7, FunctionLimits(fuel=10**12))
    install(engine, "endless", ENDLESS.text)
    words = engine.functions.calls.words

    def end() -> None:
        until = time.monotonic() + 30
        while not words[layout.RUNNING] and time.monotonic() < until:
            time.sleep(0.001)
        # Of a call that is over, nobody is ended.
        engine.functions.end_overtime(int(words[layout.COUNT]) - 1)
        engine.functions.end_overtime(int(words[layout.COUNT]))

    other = threading.Thread(target=end)
    other.start()
    assert outcomes(run(engine, [call("endless")])) == [(Status.QUOTA_EXCEEDED, Reason.TIME)]
    other.join()
    engine.close()


def test_slow_functions_have_a_mean_time_and_a_p99() -> None:
    engine = Engine(10, 1_000_000, 7, FunctionLimits(fuel=30_000_000))
    install(engine, "endless", ENDLESS.text)
    run(engine, [call("endless") for _ in range(3)])
    (slow,) = engine.functions.statistics()
    assert slow.mean_ns is not None
    assert slow.p99_ns is not None
    assert slow.mean_ns > 1_000_000
    assert 0.7 * slow.mean_ns < slow.p99_ns < 3 * slow.mean_ns
    assert slow.work_ns > 2 * slow.mean_ns
    engine.close()


def test_traps_of_every_kind_have_a_reason(engine: Engine) -> None:
    for name, example in TRAPS.items():
        install(engine, name, example.text)
    found = outcomes(run(engine, [call(name) for name in TRAPS]))
    assert {each for each in found if each[0] == Status.INVALID_OPERATION} == {
        (Status.INVALID_OPERATION, Reason.TRAP)
    }


class _Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, text: str, *args: object, **_: object) -> None:
        self.lines.append(text)

    warning = info = error


def test_the_watcher_ends_only_what_runs_for_too_long(engine: Engine, tmp_path: object) -> None:
    runtime = engine.functions
    log = _Log()
    watcher = FunctionWatcher(runtime, tmp_path, log)  # type: ignore[arg-type]
    words, slot = runtime.calls.words, runtime.calls.slots[0].ctypes.data
    ended: list[int] = []
    runtime.end_overtime = ended.append  # type: ignore[method-assign]
    words[layout.RUNNING], words[layout.COUNT] = slot, 5
    watcher.look_at_call(0)
    watcher.look_at_call(99_000_000)
    assert ended == []
    words[layout.COUNT] = 6
    watcher.look_at_call(200_000_000)
    watcher.look_at_call(299_000_000)
    assert ended == []
    watcher.look_at_call(301_000_000)
    assert ended == [6]
    words[layout.RUNNING] = 0
    watcher.look_at_call(901_000_000)
    assert ended == [6]
