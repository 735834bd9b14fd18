"""Reading single transactions of a running ledger, and what damage to the log does to it."""

from pathlib import Path

import pytest
import wasmtime

from tallybus import Deposit, Function, Ledger, Status, Transfer, WaitLevel, Withdrawal
from tallybus.errors import ServerError, TransactionNotFound
from tests.processes.pipeline import blocks

SEGMENT = 50


def opened(folder: Path) -> Ledger:
    return Ledger.open(folder, max_accounts=1_000, transactions_per_segment=SEGMENT)


def operation(tx_id: int) -> Deposit | Transfer | Withdrawal:
    """What transaction `tx_id` asks for: deposits, duplicates of their own, and rejected ones."""
    if tx_id % 7 == 0:
        return Withdrawal(tx_id, 10**15)
    if tx_id % 5 == 0:
        return Deposit(tx_id - 3, tx_id, user_ref=tx_id - 3)
    if tx_id % 3 == 0:
        return Transfer(0, tx_id, tx_id, user_ref=tx_id)
    return Deposit(tx_id, tx_id, user_ref=tx_id)


def fill(ledger: Ledger, last: int) -> None:
    first = 1
    for size in (1, 1, 1, 40, 1, 70, 1, 1, 9):
        count = min(size, last - first + 1)
        if count:
            ledger.submit_batch(
                [operation(tx_id) for tx_id in range(first, first + count)], WaitLevel.SNAPSHOT
            )
        first += count


def check(ledger: Ledger, tx_id: int) -> None:
    found = ledger.get_transaction(tx_id)
    assert found.tx_id == tx_id
    wanted = operation(tx_id)
    assert (found.amount, found.user_ref) == (wanted.amount, wanted.user_ref)
    entries = [(entry.account, entry.direction.value, entry.amount) for entry in found.entries]
    if tx_id % 7 == 0:
        assert (found.status, entries) == (Status.INSUFFICIENT_FUNDS, [])
    elif tx_id % 5 == 0 and wanted.user_ref % 7 and wanted.user_ref % 5:
        assert (found.status, found.duplicate_of, entries) == (Status.DUPLICATE, tx_id - 3, [])
    else:
        assert found.status == Status.NONE
        account = wanted.target if isinstance(wanted, Transfer) else wanted.account
        assert entries == [(0, "CREDIT", tx_id), (account, "DEBIT", tx_id)]


def test_every_transaction_is_read_back_also_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as ledger:
        fill(ledger, 120)
        times = [ledger.get_transaction(tx_id).timestamp_ns for tx_id in range(1, 121)]
        assert times == sorted(times)
        for tx_id in range(1, 121):
            check(ledger, tx_id)
        for tx_id in (121, 2**64 - 1):
            with pytest.raises(TransactionNotFound):
                ledger.get_transaction(tx_id)
    with opened(tmp_path / "data") as ledger:
        for tx_id in range(1, 121):
            check(ledger, tx_id)
        assert ledger.get_transaction(77).timestamp_ns == times[76]


def test_damage_is_told_to_who_asks_and_everything_else_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with opened(folder) as ledger:
        fill(ledger, 120)
        path = folder / "wal_000001.bin"
        block = next(each for each in blocks(path) if each.record_count > 30)
        with path.open("r+b") as file:
            file.seek(block.end - 1)
            last = file.read(1)[0]
            file.seek(block.end - 1)
            file.write(bytes([last ^ 1]))
        for tx_id in (block.first_id, block.last_id):
            with pytest.raises(ServerError, match=f"wal_000001.bin, offset {block.offset}"):
                ledger.get_transaction(tx_id)
        check(ledger, block.first_id - 1)
        check(ledger, 100)
        assert ledger.get_balance(1).balance == 1
        assert ledger.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT).tx_id == 121
        assert ledger.get_balance(1).balance == 6


CALL = """(module
  (import "ledger" "credit" (func $credit (param i64 i64)))
  (import "ledger" "debit" (func $debit (param i64 i64)))
  (func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32)
    (call $credit (local.get 0) (local.get 2))
    (call $debit (local.get 1) (local.get 2))
    (i32.const {status})))"""


def test_calls_are_told_with_the_version_that_ran_also_after_a_restart(tmp_path: Path) -> None:
    good, bad = (bytes(wasmtime.wat2wasm(CALL.format(status=status))) for status in (0, 200))
    expected: dict[int, tuple[str, int] | None] = {}
    with opened(tmp_path / "data") as ledger:

        def call(ran: tuple[str, int] | None) -> None:
            for _ in range(SEGMENT // 2):
                result = ledger.submit_and_wait(Function("pay", [1, 2, 5]), WaitLevel.SNAPSHOT)
                expected[result.tx_id] = ran

        call(None)
        first = ledger.register_function("pay", good)
        call(("pay", 1))
        ledger.register_function("pay", bad, override=True)
        call(("pay", 2))
        ended = ledger.unregister_function("pay")
        call(None)
        ledger.register_function("pay", good)
        ledger.register_function("same_binary", good)
        call(("pay", 4))
        tell_all(ledger, expected)
        assert ledger.get_balance(2).balance == 5 * SEGMENT
        registered = ledger.get_transaction(first.tx_id, min_tx_id=first.tx_id)
        assert (registered.function_name, registered.function_version) == ("pay", 1)
        assert ledger.get_transaction(ended.tx_id).function_version == 3
    # Both from a snapshot with functions and from the log alone.
    for remove in (False, True):
        if remove:
            for path in (tmp_path / "data").glob("*snapshot_*"):
                path.unlink()
        with opened(tmp_path / "data") as ledger:
            tell_all(ledger, expected)


def tell_all(ledger: Ledger, expected: dict[int, tuple[str, int] | None]) -> None:
    for tx_id, ran in expected.items():
        found = ledger.get_transaction(tx_id, min_tx_id=tx_id)
        told = found.function_name, found.function_version
        assert told == (ran or (None, None)), tx_id
        assert found.params == (1, 2, 5)
        moved = [(entry.account, entry.direction.value, entry.amount) for entry in found.entries]
        assert moved == ([(1, "CREDIT", 5), (2, "DEBIT", 5)] if found.status == 0 else [])
