"""The example fee transfer in three languages, on a ledger that is killed again and again.

Three ranges of accounts get the same random operations, each with its own binary: from WAT, from
Rust and from AssemblyScript. In the end the log, replayed with plain Python, says the same statuses
and entries; balances are the oracle's, and the same in all three ranges.

`python -m tests.properties.test_function_ledger --calls 100000 --seed 1` is the long run: so many
calls of each binary, and half as many built-in operations beside them.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from crc32c import crc32c

from tallybus import BatchResult, Client, Status, WaitLevel
from tallybus.common.functions.registry import registration_of
from tallybus.common.record import Kind
from tallybus.common.stages import START_ORDER
from tallybus.common.wal.check import check_log
from tallybus.common.wal.reader import read_log
from tallybus.functions import OperationBatch
from tests.processes.pipeline import PATIENCE_S, make_settings
from tests.processes.services import Services
from tests.support.example_functions import LANGUAGES, binary_path, fee_transfer
from tests.support.oracle import (
    Host,
    Operation,
    Oracle,
    call,
    deposit,
    to_batch,
    transfer,
    withdrawal,
)
from tests.support.unchecked import amounts_unchecked

ACCOUNTS: Final = 40
"""Of each range; the first are 1, 101 and 201."""
RANGES: Final = (1, 101, 201)
MAX_ACCOUNTS: Final = 1_000
OUTSIDE: Final = (MAX_ACCOUNTS, 2**31, 2**63 - 1, -1, -(2**63))
EDGES: Final = (-(2**63), -1, 0, 1, 9_999, 10_000, 10_001, 2**62, 2**63 - 1)
NAMES: Final = tuple(f"fee_{language}" for language in LANGUAGES)
LARGEST_BATCH: Final = 4_000
BINARIES: Final = {
    name: binary_path("fee_transfer", language).read_bytes()
    for name, language in zip(NAMES, LANGUAGES, strict=True)
}


@pytest.fixture(autouse=True, scope="module")
def _every_amount_is_sent() -> Iterator[None]:
    with amounts_unchecked():
        yield


def fee(host: Host, params: tuple[int, ...]) -> int:
    """The example in plain Python."""
    return fee_transfer(host, *params)  # type: ignore[arg-type]


def drawn_account(rng: random.Random) -> int:
    """An offset into a range, or, now and then, an account that no ledger has."""
    return rng.choice(OUTSIDE) if rng.random() < 0.02 else rng.randrange(ACCOUNTS)


def drawn_operation(rng: random.Random) -> Operation:
    """With offsets for accounts, without a reference."""
    kind = rng.random()
    if kind < 2 / 3:
        amount = rng.randint(1, 3_000) if rng.random() < 0.9 else rng.choice(EDGES)
        rate = rng.randint(0, 300) if rng.random() < 0.9 else rng.choice((-1, 10_000, 10_001))
        spare = [rng.choice(EDGES) for _ in range(rng.choice((0, 0, 0, 1, 3)))]
        accounts = [drawn_account(rng) for _ in range(3)]
        return call("", *accounts, amount, rate, *spare)
    amount = rng.randint(1, 5_000) if rng.random() < 0.97 else rng.choice((0, 2**63))
    account, other = rng.randrange(ACCOUNTS), rng.randrange(ACCOUNTS)
    if kind < 0.8:
        return deposit(account, amount)
    if kind < 0.88:
        return withdrawal(account, amount)
    return transfer(account, other, amount)


def in_range(operation: Operation, number: int, user_ref: int) -> Operation:
    """The operation on a range's accounts, with its binary and a reference."""
    first = RANGES[number]
    if operation.kind != Kind.FUNCTION:
        other = first + operation.counterparty if operation.kind == Kind.TRANSFER else 0
        return operation._replace(
            account=first + operation.account, counterparty=other, user_ref=user_ref
        )
    accounts = [first + each if 0 <= each < ACCOUNTS else each for each in operation.params[:3]]
    params = (*accounts, *operation.params[3:])
    return operation._replace(name=NAMES[number], params=params, user_ref=user_ref)


@dataclass
class Submitted:
    """What a client sent and what it was told."""

    operations: list[Operation]
    result: BatchResult


@dataclass
class Run:
    """Random operations on a ledger of real processes in `folder`."""

    folder: Path
    seed: int
    calls: int
    segment: int
    restarts: int
    done: Counter[str] = field(default_factory=Counter)
    submitted: list[Submitted] = field(default_factory=list)
    live: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.settings = make_settings(
            self.folder / "data",
            ledger__transactions_per_segment=self.segment,
            ledger__snapshot_frequency=2,
            ledger__max_accounts=MAX_ACCOUNTS,
        )
        self.refs = iter(range(1, 2**62))
        self.used: list[int] = []
        self.versions: Counter[str] = Counter()

    def go(self) -> None:
        with Services(self.folder) as services:
            services.start_all(self.settings)
            with Client(self.settings.gateway.endpoint, timeout=2 * PATIENCE_S) as client:
                for name in NAMES:
                    self.register(client, name)
                # Restarts come where so many calls are done.
                due = sorted(self.rng.randrange(self.calls) for _ in range(self.restarts))
                while self.done["calls"] < self.calls:
                    if due and self.done["calls"] >= due[0]:
                        due.pop(0)
                        self.restart(services, client)
                    elif self.rng.random() < 0.02:
                        self.change(client)
                    else:
                        batches = [self.batch() for _ in range(self.rng.randint(1, 4))]
                        self.submit(client, batches)
                self.compare(client)
                for stage in reversed(START_ORDER):
                    assert services[stage].stop() == 0

    # --- doing ------------------------------------------------------------------------------

    def register(self, client: Client, name: str) -> None:
        made = client.register_function(name, BINARIES[name], override=name in self.live)
        self.versions[name] += 1
        assert made.version == self.versions[name]
        self.live[name] = made.version
        self.done["registrations"] += 1

    def change(self, client: Client) -> None:
        """The same for each range: replaced, unregistered, or registered again."""
        gone = not self.live or self.rng.random() < 0.5
        for name in NAMES:
            if gone and name in self.live:
                assert client.unregister_function(name).version == self.versions[name] + 1
                self.versions[name] += 1
                del self.live[name]
                self.done["registrations"] += 1
            else:
                self.register(client, name)
        if gone:
            self.submit(client, [self.batch(60)])
            for name in NAMES:
                if name not in self.live:
                    self.register(client, name)

    def batch(self, most: int = LARGEST_BATCH) -> list[Operation]:
        """The same for each range, in any order of the ranges, sometimes with a reference again."""
        size = int(math.exp(self.rng.uniform(0, math.log(most / 3))))
        drawn = [drawn_operation(self.rng) for _ in range(size)]
        self.done["calls"] += sum(each.kind == Kind.FUNCTION for each in drawn)
        self.done["built-ins"] += sum(each.kind != Kind.FUNCTION for each in drawn)
        again = self.rng.random() < 0.1 and self.used
        refs = []
        for at in range(size):
            if again and at % 7 == 0:
                refs.append(self.rng.choice(self.used[-200:]))
            else:
                refs.append(next(self.refs))
                self.used.append(refs[-1])
        queues = [
            [
                in_range(each, number, 4 * ref + number)
                for each, ref in zip(drawn, refs, strict=True)
            ]
            for number in range(3)
        ]
        if self.rng.random() < 0.5:
            return [each for queue in self.rng.sample(queues, 3) for each in queue]
        order = [number for number in range(3) for _ in range(size)]
        self.rng.shuffle(order)
        iterators = [iter(queue) for queue in queues]
        return [next(iterators[number]) for number in order]

    def submit(self, client: Client, batches: Sequence[list[Operation]]) -> None:
        begun = [
            (batch, client.begin_batch(encoded(batch), WaitLevel.COMMITTED)) for batch in batches
        ]
        for batch, pending in begun:
            self.submitted.append(Submitted(batch, pending.result()))

    def restart(self, services: Services, client: Client) -> None:
        """One batch is under way when services are killed; or all are stopped in order."""
        pending = None
        batch: list[Operation] = []
        if self.rng.random() < 0.25:
            for stage in reversed(START_ORDER):
                assert services[stage].stop() == 0, services[stage].text
            stages: Sequence[str] = START_ORDER
            self.done["clean restarts"] += 1
        else:
            batch = self.batch()
            pending = client.begin_batch(encoded(batch), WaitLevel.COMMITTED)
            time.sleep(self.rng.random() * 0.02)
            stages = self.rng.sample(START_ORDER, self.rng.choice((1, 1, 2, 3, 5)))
            for stage in stages:
                services[stage].process.kill()
            for stage in stages:
                services[stage].kill()
            self.done["kills"] += len(stages)
        for stage in stages:
            services.start(stage, self.settings)
        if pending is not None:
            self.submitted.append(Submitted(batch, pending.result()))
        listed = {row.name: row.version for row in client.list_functions()}
        assert listed == self.live, (listed, self.live)

    # --- comparing --------------------------------------------------------------------------

    def compare(self, client: Client) -> None:
        ledger = self.settings.ledger
        last = client.pipeline_index().committed
        client.wait_for(last, WaitLevel.SNAPSHOT)
        assert check_log(ledger.data, self.segment).chain.next_id == last + 1
        operations = {
            operation.user_ref: operation
            for each in reversed(self.submitted)
            for operation in reversed(each.operations)
        }
        log = Replay(self.segment, operations, self.submitted)
        log.read(self.settings.ledger.data, last)
        self.done["transactions"] = last
        self.done["duplicates"] = int((log.statuses == Status.DUPLICATE).sum())
        for each in self.submitted:
            assert_told(each.result, log.statuses)
        oracle = log.oracle
        read = client.get_balances(np.arange(MAX_ACCOUNTS), min_tx_id=last).balances.tolist()
        expected = [oracle.balance(account) for account in range(MAX_ACCOUNTS)]
        assert read == expected
        assert sum(read) == 0
        one, two, three = (expected[first : first + ACCOUNTS] for first in RANGES)
        assert one == two == three
        assert any(one)
        assert set(oracle.functions) == set(self.live)
        for tx_id in self.rng.sample(range(1, last + 1), min(last, 300)):
            log.assert_same(client.get_transaction(tx_id))
        for status, count in zip(*np.unique(log.statuses, return_counts=True), strict=True):
            self.done[f"status {status}"] = int(count)


def assert_told(result: BatchResult, statuses: np.ndarray[Any, Any]) -> None:
    """What a client was told is in the log: of a duplicate, under the id of the first."""
    logged = statuses[result.tx_ids.astype(np.int64) - 1]
    again = (result.duplicate_of != 0) & (result.statuses == Status.DUPLICATE)
    assert ((logged == result.statuses) | again).all()


class Replay:
    """The log of a run, executed once more by the oracle, which knows only what clients sent."""

    def __init__(
        self, segment: int, operations: dict[int, Operation], submitted: list[Submitted]
    ) -> None:
        self.oracle = Oracle(MAX_ACCOUNTS, segment)
        self.operations = operations
        # Under a reference that was used again, another operation may have been sent.
        self.sent: dict[int, set[tuple[Any, ...]]] = {}
        for each in submitted:
            for operation in each.operations:
                self.sent.setdefault(operation.user_ref, set()).add(as_logged(operation))
        self.statuses: np.ndarray[Any, Any] = np.zeros(0, np.uint8)
        self.told: dict[int, tuple[Any, ...]] = {}

    def read(self, folder: Path, last: int) -> None:
        statuses = []
        for run in read_log(folder, 1, last, self.oracle.transactions_per_segment):
            statuses.append(run.records["status"].copy())
            self._execute(run)
        self.statuses = np.concatenate(statuses)

    def _execute(self, run: Any) -> None:
        word = entry = 0
        for tx_id, record in enumerate(run.records, run.first_id):
            kind, status = int(record["kind"]), int(record["status"])
            is_call = kind in (Kind.FUNCTION, Kind.FUNCTION_REGISTERED)
            words = int(record["amount"]) if is_call else 0
            params = run.params[word : word + words]
            word += words
            if kind == Kind.FUNCTION_REGISTERED:
                self._register(record, params, tx_id)
                continue
            operation = self._sent(record, params.tolist(), kind)
            (outcome,) = self.oracle.execute([operation])
            assert outcome.tx_id == tx_id
            assert outcome.status == status, (tx_id, operation, outcome, record)
            entries: list[tuple[int, int]] = []
            if kind == Kind.FUNCTION and status == Status.NONE:
                count = int(record["entry_count"])
                found = run.entries[entry : entry + count]
                entry += count
                entries = list(
                    zip(found["account"].tolist(), found["amount"].tolist(), strict=True)
                )
                assert entries == self.oracle.kept.entries, (tx_id, operation)
            live = self.oracle.functions.get(operation.name) if kind == Kind.FUNCTION else None
            self.told[tx_id] = (operation, status, entries, live, outcome.duplicate_of)
        assert word == len(run.params)
        assert entry == len(run.entries)

    def _sent(self, record: Any, params: list[int], kind: int) -> Operation:
        """The operation that a record came from, which must have been sent just so."""
        operation = self.operations[int(record["user_ref"])]
        if int(record["status"]) == Status.DUPLICATE:
            return operation
        if kind == Kind.FUNCTION:
            logged: tuple[Any, ...] = (kind, *params)
        else:
            fields = ("account", "counterparty", "amount")
            logged = (kind, *(int(record[name]) for name in fields))
        assert logged == as_logged(operation), (logged, operation)
        assert logged in self.sent[operation.user_ref]
        return operation

    def _register(self, record: Any, words: Any, tx_id: int) -> None:
        made = registration_of(record, words, tx_id)
        if made is None:
            # What a client asked for again after a kill.
            assert record["status"] == Status.DUPLICATE
            outcome = self.oracle.register("", fee, 0, True, int(record["user_ref"]))
            assert outcome.status == Status.DUPLICATE
            return
        assert made.crc32c in (0, crc32c(BINARIES[made.name]))
        function = fee if made.crc32c else None
        override = made.name in self.oracle.functions
        outcome = self.oracle.register(
            made.name, function, made.crc32c, override, int(record["user_ref"])
        )
        assert (outcome.tx_id, outcome.status) == (tx_id, Status.NONE)
        live = self.oracle.functions.get(made.name)
        assert (0 if live is None else live.version) in (0, made.version)

    def assert_same(self, found: Any) -> None:
        """A transaction as a client reads it."""
        if found.tx_id not in self.told:
            assert found.kind == Kind.FUNCTION_REGISTERED
            return
        operation, status, entries, live, duplicate_of = self.told[found.tx_id]
        assert found.status == status
        assert found.user_ref == operation.user_ref
        assert (found.duplicate_of or 0) == duplicate_of
        if operation.kind != Kind.FUNCTION or status == Status.DUPLICATE:
            return
        used = max((at + 1 for at, each in enumerate(operation.params) if each), default=0)
        assert list(found.params)[:used] == list(operation.params)[:used]
        signed = [
            (each.account, -each.amount if each.direction.name == "CREDIT" else each.amount)
            for each in found.entries
        ]
        assert signed == entries
        if live is None:
            assert found.function_version is None
        else:
            assert (found.function_name, found.function_version) == (operation.name, live.version)
            assert found.function_crc32c == live.crc32c


def as_logged(operation: Operation) -> tuple[Any, ...]:
    """What of an operation stands in the log: parameters without the zeros at their end."""
    if operation.kind != Kind.FUNCTION:
        return operation[:4]
    used = max((at + 1 for at, each in enumerate(operation.params) if each), default=0)
    return (operation.kind, *operation.params[:used])


def encoded(operations: Sequence[Operation]) -> OperationBatch:
    batch = to_batch(operations)
    return OperationBatch(batch.records, tuple(batch.names), batch.params)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tallybus-fees-") as path:
        yield Path(path)


def test_a_fee_transfer_in_three_languages_is_the_oracles_over_kills_and_restarts(
    folder: Path,
) -> None:
    run = Run(folder, seed=5, calls=7_000, segment=5_000, restarts=8)
    run.go()
    assert run.done["calls"] >= 7_000
    assert run.done["kills"] > 3
    assert run.done["transactions"] > 6 * 5_000
    assert {"status 0", "status 1", "status 5", "status 6", "status 7", "status 128"} <= set(
        run.done
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=100_000, help="calls of each binary")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--segment", type=int, default=25_000, help="transactions of a segment")
    parser.add_argument("--restarts", type=int, default=40)
    chosen = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tallybus-fees-") as path:
        run = Run(Path(path), chosen.seed, chosen.calls, chosen.segment, chosen.restarts)
        run.go()
    for what, count in run.done.items():
        print(f"{count:9,} {what}")
    print(f"all the same after {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
