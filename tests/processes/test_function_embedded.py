"""Functions in embedded ledgers: several in one process, opened again, closed in the middle."""

import threading
from pathlib import Path

import numpy as np
import pytest

from tallybus import Deposit, Function, Ledger, Status, TallybusError, WaitLevel, function_calls
from tests.processes.pipeline import PATIENCE_S
from tests.processes.registration_kills import binary_of
from tests.support.hostile import making

SETTINGS = {"max_accounts": 1_000, "transactions_per_segment": 300}


def versions(ledger: Ledger) -> list[tuple[str, int, int]]:
    return [(row.name, row.version, row.crc32c) for row in ledger.list_functions()]


def test_two_ledgers_in_one_process_have_functions_of_their_own_over_restarts(
    tmp_path: Path,
) -> None:
    before: dict[str, list[tuple[str, int, int]]] = {"one": [], "two": []}
    rounds, batches, calls = 4, 8, 20
    threads = threading.active_count()
    for turn in range(1, rounds + 1):
        with (
            Ledger.open(tmp_path / "one", **SETTINGS) as one,
            Ledger.open(tmp_path / "two", **SETTINGS) as two,
        ):
            failures: list[BaseException] = []

            def work(name: str, ledger: Ledger, turn: int, failures: list[BaseException]) -> None:
                try:
                    assert versions(ledger) == before[name]
                    ledger.submit_and_wait(Deposit(1, 10_000))
                    # Under the same name one of them moves units; the other has another module.
                    binary = binary_of(turn) if name == "one" else making.of_size(100 + turn)
                    made = ledger.register_function("f", binary, override=turn > 1)
                    assert made.version == turn
                    for _ in range(batches):
                        batch = function_calls("f", np.full((calls, 1), 2))
                        assert not ledger.submit_batch(batch, WaitLevel.COMMITTED).statuses.any()
                except BaseException as error:  # noqa: BLE001 - raised below
                    failures.append(error)

            workers = [
                threading.Thread(target=work, args=(name, ledger, turn, failures))
                for name, ledger in (("one", one), ("two", two))
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(PATIENCE_S)
                assert not worker.is_alive()
            if failures:
                raise failures[0]
            for name, ledger, moved in (("one", one, 2 * turn * batches * calls), ("two", two, 0)):
                last = ledger.pipeline_index().committed
                assert ledger.get_balance(2, min_tx_id=last).balance == moved
                before[name] = versions(ledger)
    assert before["one"] != before["two"]
    assert threading.active_count() == threads


def slow_to_compile() -> bytes:
    step = b"\x20\x00\x42\x83\xda\xc4\x09\x7e\x20\x01\x85\x21\x00"
    bodies = [making.body(step * 2_000 + b"\x20\x00\xa7") for _ in range(40)]
    return making.module([making.body(making.RETURN_0), *bodies])


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.6])
def test_a_ledger_closed_while_a_module_compiles_has_it_wholly_or_not_at_all(
    seconds: float, tmp_path: Path
) -> None:
    ledger = Ledger.open(tmp_path, **SETTINGS)
    told: list[object] = []

    def register() -> None:
        try:
            told.append(ledger.register_function("slow", slow_to_compile()))
        except TallybusError as error:
            told.append(error)

    thread = threading.Thread(target=register)
    thread.start()
    thread.join(seconds)
    ledger.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    with Ledger.open(tmp_path, **SETTINGS) as ledger:
        live = [row.version for row in ledger.list_functions()]
        assert live in ([], [1])
        assert isinstance(told[0], TallybusError) or live == [1]
        status = ledger.submit_and_wait(Function("slow")).status
        assert status == (Status.NONE if live else Status.INVALID_OPERATION)
        made = ledger.register_function("slow", binary_of(1), override=True)
        assert made.version == len(live) + 1
