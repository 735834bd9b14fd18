"""Replay: from executed records back to balances and window, and what it refuses."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tallybus.common.batch import Batch
from tallybus.common.memory import CHUNK_ACCOUNTS
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Status
from tallybus.common.snapshot.balances import sum_of_balances
from tallybus.common.wal.replay import ReplayError, replay_balances
from tallybus.services.transactor.engine import Engine, EngineOrderError, window_start
from tests.support.engine_runs import outcomes, reference_count, run
from tests.support.oracle import Operation, Outcome, deposit, to_records, transfer, withdrawal

LARGEST = 2**63 - 1
ANY = 2**64 - 1


def executed_log() -> NDArray[np.void]:
    rng = np.random.default_rng(4)
    records = np.zeros(3000, RECORD_DTYPE)
    records["kind"] = rng.integers(1, 4, 3000)
    records["account"] = rng.integers(0, 11, 3000)
    records["counterparty"] = rng.integers(0, 11, 3000)
    records["amount"] = rng.integers(0, 500, 3000)
    records["user_ref"] = rng.integers(0, 2500, 3000)
    return Engine(10, 400, 1).execute(records, 1).batch.records


def test_a_snapshot_and_the_end_of_the_log_give_the_same_engine() -> None:
    log = executed_log()
    whole = Engine(10, 400, 2)
    whole.apply(Batch(1, log))
    assert sum_of_balances(whole.balances) == 0

    snapshot = Engine(10, 400, 3)
    snapshot.apply(Batch(1, log[:800]), window=False)
    fresh = Engine(10, 400, 4)
    fresh.restore_balances(snapshot.balances, snapshot.touched, 800)
    start = window_start(3001, 400)
    assert start == 2401
    fresh.apply(Batch(801, log[800 : start - 1]), window=False)
    fresh.apply(Batch(start, log[start - 1 :]))
    assert fresh.balances.tolist() == whole.balances.tolist()
    assert reference_count(fresh) == reference_count(whole)

    rng = np.random.default_rng(5)
    more = np.zeros(2000, RECORD_DTYPE)
    more["kind"] = 1
    more["amount"] = 1
    more["user_ref"] = rng.integers(1, 2500, 2000)
    results = [engine.execute(more, 3001) for engine in (whole, fresh)]
    assert results[0].batch.records.tobytes() == results[1].batch.records.tobytes()
    assert results[0].failures.tobytes() == results[1].failures.tobytes()


def test_an_engine_with_too_little_window_does_not_execute() -> None:
    log = executed_log()
    engine = Engine(10, 400, 1)
    engine.apply(Batch(1, log), window=False)
    one = to_records([deposit(1, 1)])
    with pytest.raises(EngineOrderError):
        engine.execute(one, 3001)
    engine.apply(Batch(2801, log[2800:]), balances=False)
    with pytest.raises(EngineOrderError, match="2401"):
        engine.execute(one, 3001)


def test_a_window_starts_at_a_segment_and_goes_on_without_gaps() -> None:
    log = executed_log()
    engine = Engine(10, 400, 1)
    with pytest.raises(EngineOrderError):
        engine.apply(Batch(6, log[5:]), balances=False)
    engine.apply(Batch(401, log[400:500]), balances=False)
    with pytest.raises(EngineOrderError):
        engine.apply(Batch(502, log[501:]), balances=False)
    with pytest.raises(EngineOrderError):
        engine.apply(Batch(501, log[500:]))
    engine.apply(Batch(501, log[500:]), balances=False)
    assert engine.next_id == 1


def test_a_window_tells_how_a_first_one_ended() -> None:
    engine = Engine(10, 3, 1)
    run(engine, deposit(1, 1, 5), withdrawal(2, 9, 6), deposit(1, 1), deposit(1, 0, 7))
    assert [engine.window.status_of(tx_id) for tx_id in (1, 2, 4)] == [0, 1, 5]
    for unknown in (0, 5, 6):
        with pytest.raises(LookupError):
            engine.window.status_of(unknown)
    run(engine, *[deposit(1, 1)] * 3)
    assert engine.window.status_of(4) == Status.INVALID_OPERATION
    with pytest.raises(LookupError, match="begins with 4"):
        engine.window.status_of(2)


def test_a_snapshot_of_another_size_is_refused() -> None:
    engine = Engine(10, 400, 1)
    with pytest.raises(ValueError, match="max_accounts"):
        engine.restore_balances(np.zeros(9, np.int64), np.zeros(1, np.uint8), 0)
    engine.execute(to_records([deposit(1, 1)]), 1)
    with pytest.raises(EngineOrderError):
        engine.restore_balances(np.zeros(10, np.int64), np.zeros(1, np.uint8), 0)


def test_a_reference_twice_in_the_log_is_refused() -> None:
    log = to_records([deposit(1, 1, 5), deposit(1, 1), deposit(1, 1, 5)])
    log["entry_count"] = 2
    engine = Engine(10, 2, 1)
    engine.apply(Batch(1, log))  # two segments: what the older one holds is not looked at
    with pytest.raises(ReplayError, match="user_ref 5") as caught:
        Engine(10, 3, 1).apply(Batch(1, log))
    assert caught.value.transaction_id == 3


def entries(*rows: tuple[int, int]) -> NDArray[np.void]:
    return np.array(list(rows), ENTRY_DTYPE)


def test_functions_are_replayed_from_their_entries() -> None:
    records = to_records([deposit(1, 10), Operation(Kind.FUNCTION, 0, 0, 3), deposit(1, 1)])
    records["entry_count"] = [2, 3, 2]
    failed = to_records([Operation(Kind.FUNCTION, 0, 0, 3)])
    failed["status"] = 200
    balances = np.zeros(10 * CHUNK_ACCOUNTS, np.int64)
    touched = np.zeros(10, np.uint8)
    far = 7 * CHUNK_ACCOUNTS + 5
    rows = entries((1, -30), (far, 25), (5 * CHUNK_ACCOUNTS - 1, 5))
    replay_balances(Batch(1, np.concatenate([records, failed]), entries=rows), balances, touched)
    assert balances[1] == -19  # functions may go below zero
    assert balances[far] == 25
    assert touched.tolist() == [1, 0, 0, 0, 1, 0, 0, 1, 0, 0]
    assert sum_of_balances(balances) == 0


def test_replay_reads_no_entries_beyond_its_own() -> None:
    records = to_records([Operation(Kind.FUNCTION, 0)])
    records["entry_count"] = 2
    with pytest.raises(ReplayError):
        Engine(10, 100, 1).apply(Batch(1, records, entries=entries((1, 1), (2, -1))[:1]))


def test_replay_reaches_both_ends_of_the_range() -> None:
    records = to_records([Operation(Kind.FUNCTION, 0)] * 2)
    records["entry_count"] = [3, 2]
    engine = Engine(10, 100, 1)
    rows = entries((0, -(2**63)), (1, LARGEST), (2, 1), (2, -2), (3, 2))
    engine.apply(Batch(1, records, entries=rows))
    assert engine.balances[:4].tolist() == [-(2**63), LARGEST, -1, 2]


def test_replay_marks_the_chunks_of_both_sides() -> None:
    far = 2 * CHUNK_ACCOUNTS
    records = to_records(
        [deposit(far, 5), transfer(far, 4 * CHUNK_ACCOUNTS, 5), deposit(CHUNK_ACCOUNTS, 0)]
    )
    records["entry_count"] = [2, 2, 0]
    records["status"] = [0, 0, Status.INVALID_OPERATION]
    engine = Engine(far * 3, 100, 1)
    engine.apply(Batch(1, records))
    assert engine.touched.tolist() == [1, 0, 1, 0, 1, 0]


def test_a_restarted_engine_knows_how_first_ones_ended() -> None:
    live = Engine(10, 100, 1)
    log = run(live, withdrawal(1, 5, 7), deposit(1, 5, 8), deposit(10, 1, 9), deposit(1, 5, 7))
    engine = Engine(10, 100, 2)
    engine.apply(log.batch)
    again = run(engine, deposit(1, 1, 7), deposit(1, 1, 8), deposit(1, 1, 9))
    assert outcomes(again, 5) == [
        Outcome(5, Status.DUPLICATE, 1, Status.INSUFFICIENT_FUNDS),
        Outcome(6, Status.DUPLICATE, 2, 0),
        Outcome(7, Status.DUPLICATE, 3, Status.ACCOUNT_LIMIT_EXCEEDED),
    ]


FUNCTION = Operation(Kind.FUNCTION, 0)


@pytest.mark.parametrize(
    ("operation", "entry_count", "rows"),
    [
        (deposit(10, 1), 2, []),
        (deposit(ANY, 1), 2, []),
        (transfer(0, 2**63, 1), 2, []),
        (withdrawal(1, 6), 2, []),
        (deposit(2, LARGEST), 2, []),
        (deposit(2, 0), 2, []),
        (deposit(2, ANY), 2, []),
        (transfer(1, 1, 1), 2, []),
        (deposit(1, 1), 1, []),
        (deposit(1, 1), 3, []),
        (Operation(0, 1, 0, 1), 2, []),
        (Operation(Kind.FUNCTION_REGISTERED, 1, 0, 1), 2, []),
        (FUNCTION, 2, []),
        (FUNCTION, 2, [(1, 1)]),
        (FUNCTION, 2, [(1, 1), (2, 1)]),
        (FUNCTION, 2, [(1, 1), (10, -1)]),
        (FUNCTION, 2, [(1, 1), (ANY, -1)]),
        (FUNCTION, 2, [(1, LARGEST), (2, -LARGEST)]),
        (FUNCTION, 3, [(0, -(2**63)), (2, LARGEST), (2, 1)]),
    ],
)
def test_records_that_cannot_be_are_found(
    operation: Operation, entry_count: int, rows: list[tuple[int, int]]
) -> None:
    records = to_records([deposit(1, 5), operation, deposit(1, 5)])
    records["entry_count"] = [2, entry_count, 2]
    engine = Engine(10, 100, 1)
    with pytest.raises(ReplayError) as caught:
        engine.apply(Batch(1, records, entries=entries(*rows)))
    assert caught.value.transaction_id == 2


def test_entries_left_over_are_found() -> None:
    engine = Engine(10, 100, 1)
    with pytest.raises(ReplayError, match="more entries") as caught:
        engine.apply(Batch(1, executed_log()[:0], entries=entries((1, 1))))
    assert caught.value.transaction_id == 1


@pytest.mark.parametrize(
    ("amounts", "adds_up"),
    [
        ([2**62] * 4, False),  # 2**64, which a word shows as 0
        ([-(2**62)] * 4, False),
        ([2**63 - 1, 1, 2**62, 2**62], False),
        ([2**62, -(2**62), 1, -1], True),
        ([2**63 - 1, -(2**62), -(2**62), 1], True),
        ([-(2**63) + 1, 2**62, 2**62, -1], True),
        ([2**32, -1, -(2**32), 0], False),
    ],
)
def test_the_entries_of_a_function_add_up_exactly(amounts: list[int], adds_up: bool) -> None:
    record = np.zeros(1, RECORD_DTYPE)
    record["kind"], record["entry_count"] = Kind.FUNCTION, len(amounts)
    entries = np.array(list(zip(range(1, 5), amounts, strict=True)), ENTRY_DTYPE)
    balances, touched = np.zeros(5, np.int64), np.zeros(1, np.uint8)
    if adds_up:
        replay_balances(Batch(1, record, entries=entries), balances, touched)
        assert balances.tolist() == [0, *amounts]
    else:
        with pytest.raises(ReplayError):
            replay_balances(Batch(1, record, entries=entries), balances, touched)
