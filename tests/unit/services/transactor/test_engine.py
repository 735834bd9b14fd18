"""The engine's rules one by one, and its bounds."""

import sys
from typing import Any

import numpy as np
import pytest

from tallybus.common.record import FAILURE_DTYPE, RECORD_DTYPE, Kind, Status
from tallybus.common.snapshot.balances import sum_of_balances
from tallybus.common.wal.replay import (
    apply_entries,
    record_words,
)
from tallybus.services.transactor import kernel
from tallybus.services.transactor.engine import Engine, EngineOrderError
from tallybus.services.transactor.window import DuplicateWindow, table_slots
from tests.support.engine_runs import outcomes, parts, reference_count, run
from tests.support.oracle import (
    Operation,
    Oracle,
    Outcome,
    deposit,
    to_records,
    transfer,
    withdrawal,
)

LARGEST = 2**63 - 1
ANY = 2**64 - 1


def statuses(engine: Engine, *operations: Operation) -> list[int]:
    executed = run(engine, *operations)
    result = [int(status) for status in executed.batch.records["status"]]
    sparse = {int(row["offset"]): int(row["status"]) for row in executed.failures}
    assert sparse == {i: status for i, status in enumerate(result) if status}
    assert sum_of_balances(engine.balances) == 0
    return result


@pytest.fixture
def engine() -> Engine:
    return Engine(max_accounts=10, transactions_per_segment=1000, seed=7)


def test_deposit_debits_the_account_and_credits_the_system(engine: Engine) -> None:
    executed = run(engine, deposit(3, 100))
    assert executed.batch.records[0]["status"] == Status.NONE
    assert executed.batch.records[0]["entry_count"] == 2
    assert len(executed.failures) == len(executed.batch.links) == 0
    assert engine.balances[3] == 100
    assert engine.balances[0] == -100
    assert engine.next_id == 2


def test_withdrawal_and_transfer_move_the_amount(engine: Engine) -> None:
    assert statuses(engine, deposit(1, 100), transfer(1, 2, 60), withdrawal(2, 50)) == [0, 0, 0]
    assert engine.balances[:3].tolist() == [-50, 40, 10]


def test_a_failure_moves_nothing_and_has_no_entries(engine: Engine) -> None:
    executed = run(engine, transfer(1, 2, 1))
    assert executed.batch.records[0]["status"] == Status.INSUFFICIENT_FUNDS
    assert executed.batch.records[0]["entry_count"] == 0
    assert not engine.balances.any()


def test_withdrawal_of_everything_is_the_most(engine: Engine) -> None:
    assert statuses(engine, deposit(1, 5), withdrawal(1, 6), withdrawal(1, 5)) == [
        0,
        Status.INSUFFICIENT_FUNDS,
        0,
    ]


@pytest.mark.parametrize("kind", [0, 4, 5, 6, 127, 128, 255])
def test_other_kinds_are_invalid(engine: Engine, kind: int) -> None:
    assert statuses(engine, Operation(kind, 1, 2, 3)) == [Status.INVALID_OPERATION]
    assert statuses(engine, Operation(kind, ANY, ANY, ANY)) == [Status.INVALID_OPERATION]


@pytest.mark.parametrize("amount", [0, 2**63, 2**63 + 1, ANY])
@pytest.mark.parametrize("make", [deposit, withdrawal, lambda a, n: transfer(a, 2, n)])
def test_amounts_out_of_range_are_invalid(engine: Engine, make: object, amount: int) -> None:
    assert callable(make)
    assert statuses(engine, make(1, amount)) == [Status.INVALID_OPERATION]
    assert statuses(engine, make(ANY, amount)) == [Status.INVALID_OPERATION]


@pytest.mark.parametrize("account", [10, 11, 2**31, 2**32, 2**61, 2**63 - 1, 2**63, ANY])
def test_accounts_from_the_limit_on_are_refused(engine: Engine, account: int) -> None:
    limit = Status.ACCOUNT_LIMIT_EXCEEDED
    assert statuses(
        engine,
        deposit(account, 1),
        withdrawal(account, 1),
        transfer(account, 1, 1),
        transfer(1, account, 1),
        transfer(account, account, 1),
        deposit(9, 1),
        transfer(9, 8, 1),
    ) == [limit, limit, limit, limit, limit, 0, 0]


def test_a_deposit_does_not_look_at_the_counterparty(engine: Engine) -> None:
    assert statuses(
        engine, Operation(Kind.DEPOSIT, 1, ANY, 5), Operation(Kind.WITHDRAWAL, 1, ANY, 5)
    ) == [0, 0]


def test_self_transfer_succeeds_and_moves_nothing(engine: Engine) -> None:
    executed = run(engine, transfer(4, 4, 10), deposit(0, 10), withdrawal(0, LARGEST))
    assert executed.batch.records["status"].tolist() == [0, 0, 0]
    assert executed.batch.records["entry_count"].tolist() == [0, 0, 0]
    assert not engine.balances.any()


def test_transfer_from_and_to_the_system_account(engine: Engine) -> None:
    assert statuses(engine, transfer(0, 1, 70), transfer(1, 0, 30)) == [0, 0]
    assert engine.balances[:2].tolist() == [-40, 40]


def test_balances_stay_in_range_at_both_ends(engine: Engine) -> None:
    overflow = Status.BALANCE_OVERFLOW
    assert statuses(
        engine,
        deposit(1, LARGEST),
        deposit(1, 1),  # the account is full
        deposit(2, 2),  # the system account would leave the range
        deposit(2, 1),  # exactly -2^63
        deposit(2, 1),
        transfer(2, 1, 1),  # funds there, no room
        transfer(1, 2, LARGEST),
        transfer(1, 2, LARGEST - 1),
        withdrawal(2, LARGEST),
    ) == [0, overflow, overflow, 0, overflow, overflow, overflow, 0, 0]
    assert engine.balances[:3].tolist() == [-1, 1, 0]


def test_lack_of_funds_comes_before_overflow(engine: Engine) -> None:
    assert statuses(engine, deposit(1, LARGEST), transfer(2, 1, 1)) == [
        0,
        Status.INSUFFICIENT_FUNDS,
    ]


def test_the_output_is_the_input_with_its_outcome(engine: Engine) -> None:
    records = to_records([deposit(1, 5, 77), deposit(1, 5, 77), Operation(200, 1, 2, 3, 4)])
    records["status"] = 99
    records["entry_count"] = 0xAB
    records["reason"] = 0xCD
    records["function"] = 0xDEADBEEF
    before = records.tobytes()
    executed = engine.execute(records, 1)
    assert records.tobytes() == before
    assert executed.batch.records["status"].tolist() == [
        0,
        Status.DUPLICATE,
        Status.INVALID_OPERATION,
    ]
    assert executed.batch.records["entry_count"].tolist() == [2, 0, 0]
    assert executed.batch.records["reason"].tolist() == [0, 0, 0]
    assert executed.batch.records["function"].tolist() == [0, 0, 0]
    for name in ("kind", "user_ref", "account", "counterparty", "amount"):
        assert (executed.batch.records[name] == records[name]).all()


def test_read_only_and_unaligned_input_is_taken(engine: Engine) -> None:
    raw = b"123" + to_records([deposit(1, 5), transfer(1, 2, 2)]).tobytes()
    executed = engine.execute(np.frombuffer(raw, RECORD_DTYPE, 2, 3), 1)
    assert executed.batch.records["status"].tolist() == [0, 0]
    assert executed.batch.records.flags.writeable
    assert engine.balances[1:3].tolist() == [3, 2]


def test_results_of_a_batch_outlive_the_next_one(engine: Engine) -> None:
    one = run(engine, withdrawal(1, 1), deposit(1, 1, 5), deposit(1, 1, 5))
    copies = (one.batch.records.copy(), one.failures.copy(), one.batch.links.copy())
    run(engine, deposit(1, 9, 6), deposit(1, 9, 6), deposit(1, 9, 6))
    assert (one.batch.records == copies[0]).all()
    assert (one.failures == copies[1]).all()
    assert (one.batch.links == copies[2]).all()
    assert one.failures.dtype == FAILURE_DTYPE


def test_a_duplicate_is_linked_to_the_first(engine: Engine) -> None:
    executed = run(
        engine, deposit(1, 5, 9), transfer(1, 2, 5, 9), Operation(0, 0, 0, 0, 9), deposit(1, 5, 8)
    )
    assert outcomes(executed, 1) == [
        Outcome(1, 0),
        Outcome(2, Status.DUPLICATE, 1, 0),
        Outcome(3, Status.DUPLICATE, 1, 0),
        Outcome(4, 0),
    ]
    assert executed.batch.links.tolist() == [1, 1]
    assert engine.balances[:3].tolist() == [-10, 10, 0]


def test_failed_transactions_use_their_reference_up(engine: Engine) -> None:
    failed = run(
        engine,
        withdrawal(1, 5, 1),
        Operation(77, 1, 0, 5, 2),
        deposit(10, 5, 3),
        deposit(1, 0, ANY),
    )
    assert len(failed.failures) == 4
    again = run(engine, deposit(1, 5, 1), deposit(1, 5, 2), deposit(1, 5, 3), deposit(1, 5, ANY))
    assert [(row.duplicate_of, row.original_status) for row in outcomes(again, 5)] == [
        (1, Status.INSUFFICIENT_FUNDS),
        (2, Status.INVALID_OPERATION),
        (3, Status.ACCOUNT_LIMIT_EXCEEDED),
        (4, Status.INVALID_OPERATION),
    ]
    assert again.batch.links.tolist() == [1, 2, 3, 4]
    assert not engine.balances.any()


def test_no_reference_is_never_a_duplicate(engine: Engine) -> None:
    assert statuses(engine, *[deposit(1, 5)] * 4) == [0, 0, 0, 0]
    assert reference_count(engine) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("whole", [True, False])
def test_a_reference_lives_to_the_end_of_the_next_segment(size: int, whole: bool) -> None:
    """First used by transaction 1 (and by N): known up to 2N, new again at 2N + 1."""
    engine = Engine(10, size, 1)
    plain = deposit(2, 1)
    operations = [deposit(1, 1, 42)] + [plain] * (2 * size - 2) + [deposit(1, 1, 42)]
    operations += [deposit(1, 1, 42), deposit(1, 1, 42)]
    if whole:
        found = outcomes(run(engine, *operations), 1)
    else:
        found = [outcomes(run(engine, row), i + 1)[0] for i, row in enumerate(operations)]
    assert found[2 * size - 1].duplicate_of == 1
    assert found[2 * size].status == Status.NONE
    assert found[2 * size + 1].duplicate_of == 2 * size + 1

    engine = Engine(10, size, 1)
    operations = [plain] * (size - 1) + [deposit(1, 1, 42)] + [plain] * (size - 1)
    operations += [deposit(1, 1, 42), deposit(1, 1, 42)]
    found = outcomes(run(engine, *operations), 1)
    assert found[2 * size - 1].duplicate_of == size
    assert found[2 * size].status == Status.NONE


def test_a_duplicate_does_not_prolong_a_reference() -> None:
    engine = Engine(10, 3, 1)
    found = outcomes(run(engine, *[deposit(1, 1, 42)] * 14), 1)
    assert [row.duplicate_of for row in found] == [0, 1, 1, 1, 1, 1, 0, 7, 7, 7, 7, 7, 0, 13]


def test_tables_serve_many_generations() -> None:
    """More than the 255 stamps of each of the two tables."""
    engine, oracle = Engine(10, 2, 3), Oracle(10, 2)
    operations = [deposit(1, 1, i * i % 7 + 1) for i in range(1500)]
    assert outcomes(run(engine, *operations), 1) == oracle.execute(operations)
    operations = [deposit(1, 1)] * 1029 + operations
    assert outcomes(run(engine, *operations), 1501) == oracle.execute(operations)


@pytest.mark.parametrize(
    ("transactions", "slots"), [(1, 8), (4, 8), (5, 16), (10_000_000, 20_000_000), (2**31, 2**32)]
)
def test_tables_are_at_most_half_full(transactions: int, slots: int) -> None:
    assert table_slots(transactions) == slots


def colliding_refs(window: DuplicateWindow, count: int, home: int, tag: int) -> list[int]:
    """References of one tag that belong into one bucket: the hash run backwards."""
    word = 2**64
    seed, first, second = (int(word) for word in window.control[kernel.SEED : kernel.SEED + 3])
    refs = []
    for i in range(count):
        x = tag << 40 | home << 20 | i
        x ^= (x >> 29) ^ (x >> 58)
        x = x * pow(second, -1, word) % word
        x ^= x >> 32
        x = x * pow(first, -1, word) % word
        refs.append(x ^ seed)
    return refs


@pytest.mark.parametrize(("home", "tag"), [(0, 0), (2**12 - 1, 2**24 - 1), (0x555, 1)])
def test_colliding_references_are_told_apart(home: int, tag: int) -> None:
    engine, oracle = Engine(10, 100, 5), Oracle(10, 100)
    refs = colliding_refs(engine.window, 60, home, tag)
    assert 0 not in refs
    rng = np.random.default_rng(1)
    for _ in range(8):
        operations = [deposit(1, 1, refs[i]) for i in rng.integers(0, 60, 90)]
        first_id = engine.next_id
        assert outcomes(run(engine, *operations), first_id) == oracle.execute(operations)


def test_results_do_not_depend_on_the_seed() -> None:
    rng = np.random.default_rng(2)
    records = to_records(
        [
            transfer(*row)
            for row in zip(
                rng.integers(0, 12, 5000).tolist(),
                rng.integers(0, 12, 5000).tolist(),
                rng.integers(0, 50, 5000).tolist(),
                rng.integers(0, 2000, 5000).tolist(),
                strict=True,
            )
        ]
    )
    results = set()
    for seed in (0, 1, 2**64 - 1, 0x0123456789ABCDEF):
        executed = Engine(10, 700, seed).execute(records, 1)
        results.add((*parts(executed.batch), executed.failures.tobytes()))
    assert len(results) == 1


def test_many_random_operations_agree_with_the_oracle() -> None:
    rng = np.random.default_rng(3)
    engine, oracle = Engine(40, 5000, 11), Oracle(40, 5000)
    records = np.zeros(30_000, RECORD_DTYPE)
    records["kind"] = rng.integers(1, 4, len(records))
    records["account"] = rng.integers(0, 41, len(records))
    records["counterparty"] = rng.integers(0, 41, len(records))
    records["amount"] = rng.integers(0, 2000, len(records))
    records["user_ref"] = rng.integers(0, 2**63, 20_000)[rng.integers(0, 20_000, len(records))]
    start = 0
    for size in (1, 2, 31, 32, 33, 64, 65, 4836, 7, 10_000, 14_929):
        batch = records[start : start + size]
        assert outcomes(engine.execute(batch, start + 1), start + 1) == oracle.execute(batch)
        start += size
    assert start == len(records)
    assert engine.balances.tolist() == [oracle.balance(account) for account in range(40)]


def test_an_empty_batch_changes_nothing(engine: Engine) -> None:
    executed = engine.execute(np.zeros(0, RECORD_DTYPE), 1)
    assert parts(executed.batch) == (b"", b"", b"", b"")
    assert len(executed.failures) == 0
    assert engine.next_id == 1


def test_a_batch_larger_than_any_before(engine: Engine) -> None:
    records = np.zeros(20_000, RECORD_DTYPE)
    assert len(run(engine, deposit(1, 1)).failures) == 0
    assert len(engine.execute(records, 2).failures) == 20_000


@pytest.mark.parametrize("first_id", [0, 2, 3])
def test_a_batch_out_of_turn_is_refused(engine: Engine, first_id: int) -> None:
    with pytest.raises(EngineOrderError) as caught:
        engine.execute(to_records([deposit(1, 1)]), first_id)
    assert (caught.value.got, caught.value.expected) == (first_id, 1)
    assert engine.next_id == engine.window.next_id == 1


def test_other_dtypes_are_refused(engine: Engine) -> None:
    wrong: Any
    for wrong in (np.zeros((3, 5), np.uint64), np.zeros(6, RECORD_DTYPE)[::2]):
        with pytest.raises(TypeError, match="RECORD_DTYPE"):
            engine.execute(wrong, 1)
    with pytest.raises(TypeError):
        kernel.insert_refs(*[np.zeros(8, np.float64)] * 7)
    with pytest.raises(TypeError):
        apply_entries(
            np.zeros((1, 5), np.uint64),
            np.zeros((0, 2), np.int64),
            np.zeros(1, np.uint64),
            np.zeros(1, np.uint8),
        )


@pytest.mark.parametrize(("accounts", "size", "seed"), [(0, 1, 1), (1, 0, 1), (1, 1, 2**64)])
def test_settings_out_of_range_are_refused(accounts: int, size: int, seed: int) -> None:
    with pytest.raises(ValueError, match=r"max_accounts|transactions_per_segment|seed"):
        Engine(accounts, size, seed)


def test_one_account_is_enough_for_nothing() -> None:
    engine = Engine(1, 1, 0)
    assert statuses(engine, deposit(0, 1), deposit(1, 1)) == [0, Status.ACCOUNT_LIMIT_EXCEEDED]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_limit_takes_no_memory_until_used() -> None:
    def resident_bytes() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident_bytes()
    engine = Engine(100_000_000, 10_000_000, 1)
    assert statuses_without_sum(engine, deposit(99_999_999, 1, 5)) == [0]
    assert resident_bytes() - before < 64 * 2**20


def statuses_without_sum(engine: Engine, *operations: Operation) -> list[int]:
    return [int(status) for status in run(engine, *operations).batch.records["status"]]


def test_random_bytes_are_executed_without_harm() -> None:
    rng = np.random.default_rng(6)
    engine, oracle = Engine(5, 64, 9), Oracle(5, 64)
    for _ in range(20):
        records = np.frombuffer(rng.bytes(40 * 50), RECORD_DTYPE).copy()
        records["kind"] %= 6
        first_id = engine.next_id
        assert outcomes(engine.execute(records, first_id), first_id) == oracle.execute(records)
    words = rng.integers(0, 2**63, (2000, 5)).astype(np.uint64)
    balances = np.zeros(5, np.int64)
    for i in range(2000):
        result = apply_entries(
            words[i : i + 1], np.zeros((0, 2), np.int64), balances, np.zeros(1, np.uint8)
        )
        assert result in (-1, 0)
    assert record_words(records).shape == (50, 5)
