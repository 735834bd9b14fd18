"""The engine equals the oracle: live, and after a restart from its own output."""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tallybus.common.batch import Batch
from tallybus.common.functions.registry import name_words
from tallybus.common.record import RECORD_DTYPE, Kind, Status
from tallybus.common.snapshot.balances import sum_of_balances
from tallybus.services.transactor.engine import Engine, window_start
from tallybus.services.transactor.outcome import Outcome as EngineOutcome
from tests.support.engine_runs import parts, reference_count
from tests.support.function_modules import (
    EMPTY,
    FEE_TRANSFER,
    MANY,
    SCRIPT,
    STATES,
    Example,
    crc_of,
    step,
    to_binary,
)
from tests.support.oracle import Operation, Oracle, Outcome, call, to_batch, to_records

MAX_ACCOUNTS = 6
accounts = st.one_of(
    st.integers(0, MAX_ACCOUNTS), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
)
amounts = st.one_of(
    st.integers(1, 100),
    st.sampled_from([0, 1, 2**62, 2**63 - 2, 2**63 - 1, 2**63, 2**64 - 1]),
)
refs = st.one_of(st.integers(0, 12), st.sampled_from([2**32, 2**63, 2**64 - 1]))
kinds = st.one_of(
    st.sampled_from([Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER]), st.integers(0, 255)
)
operations = st.tuples(kinds, accounts, accounts, amounts, refs).map(lambda row: Operation(*row))
batches = st.lists(st.lists(operations, min_size=1, max_size=30), min_size=1, max_size=8)
segments = st.one_of(st.integers(1, 4), st.integers(5, 50))
seeds = st.integers(0, 2**64 - 1)


def compare(engine: Engine, oracle: Oracle, batch: list[Operation]) -> NDArray[np.void]:
    """Execute the batch in both, compare everything, return the engine's records."""
    return compare_all(engine, oracle, batch).batch.records


def compare_all(engine: Engine, oracle: Oracle, batch: list[Operation]) -> EngineOutcome:
    """The same, for batches with function calls; returns all the engine gave."""
    first_id = engine.next_id
    records, names, params = to_batch(batch)
    before = records.tobytes(), params.tobytes()
    executed = engine.execute(records, first_id, names, params)
    expected = oracle.execute(batch)
    assert (records.tobytes(), params.tobytes()) == before
    kept = oracle.kept
    assert executed.batch.records["entry_count"].tolist() == kept.entry_counts
    assert executed.batch.records["function"].tolist() == kept.functions
    assert executed.batch.params.tolist() == kept.params
    assert executed.batch.entries.tolist() == kept.entries
    calls = executed.batch.records["kind"] == Kind.FUNCTION
    first = executed.batch.records["status"] != Status.DUPLICATE
    ran = np.where(calls & first, executed.batch.records["account"], 0)
    assert ran.tolist() == kept.registrations
    assert int(executed.batch.records["amount"][calls].sum()) == len(kept.params)
    assert [
        Outcome(
            first_id + int(row["offset"]),
            int(row["status"]),
            int(row["duplicate_of"]),
            int(row["original_status"]),
        )
        for row in executed.failures
    ] == [outcome for outcome in expected if outcome.status != Status.NONE]
    assert executed.batch.records["status"].tolist() == [outcome.status for outcome in expected]
    assert executed.batch.links.tolist() == [
        outcome.duplicate_of for outcome in expected if outcome.status == Status.DUPLICATE
    ]
    assert engine.balances.tolist() == [oracle.balance(i) for i in range(MAX_ACCOUNTS)]
    assert oracle.sum_of_balances() == sum_of_balances(engine.balances) == 0
    assert engine.next_id == oracle.next_id
    return executed


function_names = st.sampled_from(
    ["script", "script", "script", "fee", "many", "spend", "state", ""]
)
script_steps = st.one_of(
    st.just(0),
    st.builds(
        step,
        st.integers(0, 7),
        st.integers(0, MAX_ACCOUNTS) | st.just(15),
        st.integers(0, 3) | st.just(255),
        st.sampled_from([0, 0, 0, 1, 60, 61, 62, 63]),
    ),
)
returned = st.one_of(st.just(0), st.integers(-2, 300), st.sampled_from([2**31, 2**32, 2**63 - 1]))
balanced = st.builds(
    lambda source, target, factor, shift, again: (
        *[step(1, source, factor, shift), step(2, target, factor, shift)] * again,
    ),
    st.integers(0, MAX_ACCOUNTS - 1),
    st.integers(0, MAX_ACCOUNTS - 1),
    st.integers(1, 3),
    st.sampled_from([0, 5, 60, 61]),
    st.integers(1, 3),
)
# Credits and debits that differ by 2**64: four of 2**62 or eight of 2**61.
wrapping = st.builds(
    lambda kind, first: (*(step(kind, (first + i) % MAX_ACCOUNTS, 1, 62) for i in range(4)),),
    st.sampled_from([1, 2]),
    st.integers(0, MAX_ACCOUNTS - 1),
)
scripts = st.one_of(
    st.tuples(*[script_steps] * 7, returned),
    balanced.map(lambda steps: (*steps, *[0] * (7 - len(steps)), 0)),
    wrapping.map(lambda steps: (*steps, 0, 0, 0, 0)),
)
entry_counts = st.tuples(
    st.sampled_from([0, 1, 63, 127, 128, 300]),
    st.integers(0, MAX_ACCOUNTS - 1),
    st.integers(0, MAX_ACCOUNTS),
    st.sampled_from([1, 2**56, 2**63 - 1]),
    st.sampled_from([0, 0, 1, -1]),
)
any_params = st.lists(
    st.one_of(st.integers(0, MAX_ACCOUNTS), st.integers(-(2**63), 2**63 - 1)), max_size=8
).map(tuple)


def calls_of(name: str) -> st.SearchStrategy[Operation]:
    params = {"script": scripts, "many": entry_counts}.get(name, any_params)
    return st.builds(lambda params, user_ref: call(name, *params, user_ref=user_ref), params, refs)


function_calls = function_names.flatmap(calls_of)


@given(batches, segments, seeds)
def test_the_engine_equals_the_oracle(
    given_batches: list[list[Operation]], size: int, seed: int
) -> None:
    engine, oracle = Engine(MAX_ACCOUNTS, size, seed), Oracle(MAX_ACCOUNTS, size)
    for batch in given_batches:
        compare(engine, oracle, batch)


@given(batches, batches, segments, seeds, st.integers(0, 20), st.data())
def test_a_restarted_engine_goes_on_as_if_it_had_not_stopped(
    before: list[list[Operation]],
    after: list[list[Operation]],
    size: int,
    seed: int,
    snapshot_segments: int,
    data: st.DataObject,
) -> None:
    live, oracle = Engine(MAX_ACCOUNTS, size, seed), Oracle(MAX_ACCOUNTS, size)
    log = np.concatenate([compare(live, oracle, batch) for batch in before])
    assert len(log) == live.next_id - 1

    snapshot_at = min(snapshot_segments * size, len(log) // size * size)
    reader = Engine(MAX_ACCOUNTS, size, 0)
    reader.apply(Batch(1, log[:snapshot_at]), window=False)
    engine = Engine(MAX_ACCOUNTS, size, seed ^ 1)
    engine.restore_balances(reader.balances, reader.touched, snapshot_at)
    window_first = window_start(live.next_id, size)
    # Runs as a reader of the log makes them, cut where either of the two replays begins.
    cuts = data.draw(st.sets(st.integers(1, len(log)), max_size=5)) | {
        snapshot_at,
        window_first - 1,
    }
    edges = sorted({0, len(log), *cuts})
    for start, stop in pairwise(edges):
        balances, window = start >= snapshot_at, start + 1 >= window_first
        if balances or window:
            engine.apply(Batch(start + 1, log[start:stop]), balances=balances, window=window)

    assert engine.balances.tolist() == live.balances.tolist()
    assert reference_count(engine) == reference_count(live)
    replayed = Oracle(MAX_ACCOUNTS, size)
    replayed.apply_log(log)
    for batch in after:
        first_id = live.next_id
        records = compare(engine, oracle, batch)
        executed = live.execute(to_records(batch), first_id)
        assert records.tobytes() == executed.batch.records.tobytes()
        replayed.execute(batch)
    for account in range(MAX_ACCOUNTS):
        assert replayed.balance(account) == oracle.balance(account)


@given(st.binary(max_size=40 * 60), segments, seeds)
def test_any_bytes_are_executed_as_the_oracle_does(raw: bytes, size: int, seed: int) -> None:
    records = np.frombuffer(raw, RECORD_DTYPE, len(raw) // 40)
    engine, oracle = Engine(MAX_ACCOUNTS, size, seed), Oracle(MAX_ACCOUNTS, size)
    executed = engine.execute(records, 1)
    expected = oracle.execute(records)
    assert executed.batch.records["status"].tolist() == [outcome.status for outcome in expected]
    assert executed.batch.records["kind"].tolist() == records["kind"].tolist()
    assert engine.balances.tolist() == [oracle.balance(i) for i in range(MAX_ACCOUNTS)]


class Registration(NamedTuple):
    """What is to be live under a name from here on; nothing where there is no example."""

    name: str
    example: Example | None
    override: bool
    user_ref: int


MODULES = {
    "script": SCRIPT,
    "fee": FEE_TRANSFER,
    "many": MANY,
    "state": STATES["global"],
    "empty": EMPTY,
}
registrations = st.builds(
    Registration,
    st.sampled_from(["script", "fee", "many", "state", "other"]),
    st.none() | st.sampled_from(list(MODULES.values())),
    st.booleans(),
    refs,
)
mixed = st.lists(st.one_of(operations, function_calls), min_size=1, max_size=20)
actions = st.lists(st.one_of(mixed, mixed, mixed, registrations), min_size=1, max_size=8)


@cache
def binary_of(example: Example) -> bytes:
    return to_binary(example.text)


def install(engine: Engine, oracle: Oracle) -> None:
    """Put what is live in the oracle into the engine, as recovery does."""
    for name, live in oracle.functions.items():
        [example] = {each for each in MODULES.values() if each.function is live.function}
        compiled = engine.functions.compile(binary_of(example))
        engine.functions.install(name, live.version, live.crc32c, compiled, live.tx_id)


def begin(size: int, seed: int) -> tuple[Engine, Oracle]:
    """Both with some functions live."""
    engine, oracle = Engine(MAX_ACCOUNTS, size, seed), Oracle(MAX_ACCOUNTS, size)
    for name in ("script", "fee", "many", "state"):
        act(engine, oracle, Registration(name, MODULES[name], False, 0))
    return engine, oracle


def act(engine: Engine, oracle: Oracle, action: Registration | list[Operation]) -> EngineOutcome:
    """One batch or registration in both."""
    if not isinstance(action, Registration):
        return compare_all(engine, oracle, action)
    first_id = engine.next_id
    name, example = action.name, action.example
    crc = 0 if example is None else crc_of(binary_of(example))
    record = to_records([Operation(Kind.FUNCTION_REGISTERED, 7, 0, 9, action.user_ref)])
    record["function"] = crc
    expected = oracle.register(
        name, None if example is None else example.function, crc, action.override, action.user_ref
    )
    status = outcome = expected.status
    if status == Status.DUPLICATE:  # what the registry said does not matter then
        outcome = Status.NONE if example or name in oracle.functions else Status.INVALID_OPERATION
    live = oracle.functions.get(name)
    version = live.version if live else 99
    executed = engine.register(
        record,
        first_id,
        name,
        version,
        outcome,
        None if example is None else engine.functions.compile(binary_of(example)),
    )
    [row] = executed.batch.records
    assert row["status"] == status
    if status == Status.DUPLICATE:
        assert (row["account"], row["amount"], len(executed.batch.params)) == (0, 0, 0)
        assert executed.batch.links.tolist() == [expected.duplicate_of]
    else:
        assert executed.batch.params.tolist() == name_words(name).tolist()
        assert row["amount"] == len(executed.batch.params)
        assert row["account"] == (0 if status else version)
        assert row["function"] == (0 if status else crc)
    assert {each.name: each.crc32c for each in engine.functions.statistics()} == {
        each: found.crc32c for each, found in oracle.functions.items()
    }
    return executed


@given(actions, segments, seeds)
def test_functions_do_what_the_oracle_says(
    given_actions: list[Registration | list[Operation]], size: int, seed: int
) -> None:
    engine, oracle = begin(size, seed)
    try:
        for action in given_actions:
            act(engine, oracle, action)
        calls = sum(each.calls for each in engine.functions.statistics())
        assert calls <= sum(len(each) for each in given_actions if isinstance(each, list))
    finally:
        engine.close()


@given(actions, actions, segments, seeds)
def test_a_restart_replays_entries_and_runs_no_function(
    before: list[Registration | list[Operation]],
    after: list[Registration | list[Operation]],
    size: int,
    seed: int,
) -> None:
    live, oracle = begin(size, seed)
    done = [act(live, oracle, action) for action in before]
    first = 5  # the registrations that begin made
    records = np.concatenate([each.batch.records for each in done])
    entries = np.concatenate([each.batch.entries for each in done])

    engine = Engine(MAX_ACCOUNTS, size, seed ^ 1)
    registered = np.zeros(first - 1, RECORD_DTYPE)
    registered["kind"] = Kind.FUNCTION_REGISTERED
    engine.apply(Batch(1, registered))
    engine.apply(Batch(first, records, entries=entries))
    assert not engine.has_functions
    assert engine.balances.tolist() == live.balances.tolist()
    assert reference_count(engine) == reference_count(live)
    replayed = Oracle(MAX_ACCOUNTS, size)
    replayed.apply_log(registered)
    replayed.apply_log(records, entries)
    install(engine, oracle)

    for action in after:
        known = dict(oracle.functions)
        again = act(engine, oracle, action)
        if isinstance(action, list):
            batch = to_batch(action)
            executed = live.execute(batch.records, live.next_id, batch.names, batch.params)
            assert parts(executed.batch) == parts(again.batch)
            assert executed.failures.tobytes() == again.failures.tobytes()
            assert known == oracle.functions
        else:
            break
    for account in range(MAX_ACCOUNTS):
        assert engine.balances[account] == oracle.balance(account)
    live.close()
    engine.close()
