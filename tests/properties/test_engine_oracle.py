"""The engine equals the oracle: live, and after a restart from its own output."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tallybus.common.record import RECORD_DTYPE, Kind, Status
from tallybus.services.transactor.engine import Engine, window_start
from tests.oracle import Operation, Oracle, Outcome, to_records

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
operations = st.builds(Operation, kinds, accounts, accounts, amounts, refs)
batches = st.lists(st.lists(operations, min_size=1, max_size=30), min_size=1, max_size=8)
segments = st.one_of(st.integers(1, 4), st.integers(5, 50))
seeds = st.integers(0, 2**64 - 1)


def compare(engine: Engine, oracle: Oracle, batch: list[Operation]) -> NDArray[np.void]:
    """Execute the batch in both, compare everything, return the engine's records."""
    first_id = engine.next_id
    records = to_records(batch)
    before = records.tobytes()
    executed = engine.execute(records, first_id)
    expected = oracle.execute(batch)
    assert records.tobytes() == before
    assert [
        Outcome(
            first_id + int(row["offset"]),
            int(row["status"]),
            int(row["duplicate_of"]),
            int(row["original_status"]),
        )
        for row in executed.failures
    ] == [outcome for outcome in expected if outcome.status != Status.NONE]
    assert executed.records["status"].tolist() == [outcome.status for outcome in expected]
    assert executed.links.tolist() == [
        outcome.duplicate_of for outcome in expected if outcome.status == Status.DUPLICATE
    ]
    assert engine.balances.tolist() == [oracle.balance(i) for i in range(MAX_ACCOUNTS)]
    assert oracle.sum_of_balances() == engine.sum_of_balances() == 0
    assert engine.next_id == oracle.next_id
    return executed.records


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
    reader.apply(log[:snapshot_at], 1, window=False)
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
            engine.apply(log[start:stop], start + 1, balances=balances, window=window)

    assert engine.balances.tolist() == live.balances.tolist()
    assert engine.window.ref_count == live.window.ref_count
    replayed = Oracle(MAX_ACCOUNTS, size)
    replayed.apply_log(log)
    for batch in after:
        first_id = live.next_id
        records = compare(engine, oracle, batch)
        assert records.tobytes() == live.execute(to_records(batch), first_id).records.tobytes()
        replayed.execute(batch)
    for account in range(MAX_ACCOUNTS):
        assert replayed.balance(account) == oracle.balance(account)


@given(st.binary(max_size=40 * 60), segments, seeds)
def test_any_bytes_are_executed_as_the_oracle_does(raw: bytes, size: int, seed: int) -> None:
    records = np.frombuffer(raw, RECORD_DTYPE, len(raw) // 40)
    engine, oracle = Engine(MAX_ACCOUNTS, size, seed), Oracle(MAX_ACCOUNTS, size)
    executed = engine.execute(records, 1)
    expected = oracle.execute(records)
    assert executed.records["status"].tolist() == [outcome.status for outcome in expected]
    assert executed.records["kind"].tolist() == records["kind"].tolist()
    assert engine.balances.tolist() == [oracle.balance(i) for i in range(MAX_ACCOUNTS)]
