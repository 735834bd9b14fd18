"""The whole ledger, embedded, equals the oracle: any operations, reads, restarts and crashes.

Segments are a few transactions long, so that within a run many are closed, snapshots are written,
the duplicate window forgets, and every start recovers from another mixture of them.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tallybus import (
    BatchResult,
    Deposit,
    Ledger,
    Stage,
    Status,
    Transfer,
    WaitLevel,
    Withdrawal,
)
from tallybus.common.settings.sections import load
from tallybus.common.wal.reader import read_log
from tests.support.oracle import Operation, Oracle, Outcome, to_records
from tests.support.unchecked import amounts_unchecked

MAX_ACCOUNTS = 8
# In memory where there is such a folder: nothing here pulls a plug, and syncs would take the time.
FAST_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
# Starts wait for the stages' heartbeats, and there are many starts.
QUICK = load(environ={}, overrides={"bus.heartbeat_ms": 3})
accounts = st.one_of(
    st.integers(0, MAX_ACCOUNTS), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
)
amounts = st.one_of(
    st.integers(1, 100),
    st.sampled_from([0, 1, 2**62, 2**63 - 2, 2**63 - 1, 2**63, 2**64 - 1]),
)
refs = st.one_of(st.just(0), st.integers(1, 20), st.sampled_from([2**32, 2**63, 2**64 - 1]))
transfers = st.tuples(st.just(3), accounts, accounts, amounts, refs)
others = st.tuples(st.sampled_from([1, 2]), accounts, st.just(0), amounts, refs)
operations = st.one_of(transfers, others).map(lambda row: Operation(*row))
levels = st.sampled_from(WaitLevel)


@pytest.fixture(autouse=True, scope="module")
def _every_amount_is_sent() -> Iterator[None]:
    with amounts_unchecked():
        yield


class LedgerAndOracle(RuleBasedStateMachine):
    """Does the same to both and compares everything that the ledger tells."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tallybus-oracle-", dir=FAST_FOLDER))
        self.data = self.folder / "data-0"
        self.copies = 0
        self.restarts = 0
        self.outcomes: list[Outcome] = []
        self.ledger: Ledger | None = None

    @initialize(
        size=st.sampled_from([1, 2, 3, 7, 20]),
        frequency=st.sampled_from([1, 1, 2, 3]),
        kept=st.sampled_from([1, 2]),
    )
    def open(self, size: int, frequency: int, kept: int) -> None:
        self.settings = {
            "max_accounts": MAX_ACCOUNTS,
            "transactions_per_segment": size,
            "snapshot_frequency": frequency,
            "snapshots_kept": kept,
        }
        self.oracle = Oracle(MAX_ACCOUNTS, size)
        self._open()

    def _open(self) -> None:
        self.ledger = Ledger.open(self.data, timeout=60, settings=QUICK, **self.settings)

    def _close(self) -> None:
        ledger, self.ledger = self.running, None
        ledger.close()

    @property
    def last_id(self) -> int:
        return self.oracle.next_id - 1

    @property
    def running(self) -> Ledger:
        assert self.ledger is not None
        return self.ledger

    # -- writing -------------------------------------------------------------------------------

    @rule(
        batches=st.lists(
            st.tuples(st.lists(operations, min_size=1, max_size=12), levels),
            min_size=1,
            max_size=4,
        )
    )
    def submit_batches(self, batches: list[tuple[list[Operation], WaitLevel]]) -> None:
        """All are on their way before the first is answered."""
        pending = [self.running.begin_batch(to_records(batch), level) for batch, level in batches]
        for each, (batch, level) in zip(pending, batches, strict=True):
            self._compare(each.result(), batch, level)

    def _compare(self, result: BatchResult, batch: list[Operation], level: WaitLevel) -> None:
        expected = self.oracle.execute(batch)
        self.outcomes += expected
        assert result.first_tx_id == expected[0].tx_id
        assert result.level >= level
        if result.level == WaitLevel.NONE:
            assert not result.statuses.any()
            return
        assert result.statuses.tolist() == [outcome.status for outcome in expected]
        assert result.duplicate_of.tolist() == [outcome.duplicate_of for outcome in expected]
        assert result.tx_ids.tolist() == [
            outcome.duplicate_of or outcome.tx_id for outcome in expected
        ]

    @rule(
        kind=st.integers(1, 3),
        account=st.integers(0, MAX_ACCOUNTS),
        other=st.integers(0, MAX_ACCOUNTS),
        amount=amounts,
        ref=refs,
        level=levels,
    )
    def submit_one(
        self, kind: int, account: int, other: int, amount: int, ref: int, level: WaitLevel
    ) -> None:
        operation: Deposit | Withdrawal | Transfer
        if kind == 1:
            operation, other = Deposit(account, amount, ref), 0
        elif kind == 2:
            operation, other = Withdrawal(account, amount, ref), 0
        else:
            operation = Transfer(account, other, amount, ref)
        result = self.running.submit_and_wait(operation, level)
        (outcome,) = self.oracle.execute([Operation(kind, account, other, amount, ref)])
        self.outcomes.append(outcome)
        if level == WaitLevel.NONE:
            assert result.tx_id == outcome.tx_id
            return
        assert result.tx_id == (outcome.duplicate_of or outcome.tx_id)
        assert result.status == outcome.status
        assert result.duplicate_of == (outcome.duplicate_of or None)
        assert result.ok == (outcome.status == Status.NONE)

    # -- reading -------------------------------------------------------------------------------

    @rule()
    def read_all_balances(self) -> None:
        read = self.running.get_balances(np.arange(MAX_ACCOUNTS), min_tx_id=self.last_id)
        assert read.last_snapshot_tx_id == self.last_id
        assert read.balances.tolist() == [self.oracle.balance(n) for n in range(MAX_ACCOUNTS)]
        assert sum(read.balances.tolist()) == 0

    @rule(account=st.integers(0, MAX_ACCOUNTS - 1))
    def read_a_balance_at_once(self, account: int) -> None:
        read = self.running.get_balance(account)
        assert 0 <= read.last_snapshot_tx_id <= self.last_id
        if read.last_snapshot_tx_id == self.last_id:
            assert read.balance == self.oracle.balance(account)

    @rule()
    def read_all_statuses(self) -> None:
        ids = np.arange(self.last_id + 2)
        read = self.running.get_statuses(ids, min_tx_id=self.last_id)
        nothing = (Stage.UNKNOWN, None, None)
        expected: list[tuple[Any, ...]] = [nothing]
        for outcome in self.outcomes:
            stage = Stage.ON_SNAPSHOT if outcome.status == Status.NONE else Stage.ERROR
            expected.append((stage, outcome.status, outcome.duplicate_of or None))
        expected.append(nothing)
        assert [(row.stage, row.status, row.duplicate_of) for row in read] == expected

    @precondition(lambda self: self.outcomes)
    @rule(pick=st.integers(0, 2**32))
    def read_a_status_at_once(self, pick: int) -> None:
        outcome = self.outcomes[pick % len(self.outcomes)]
        row = self.running.get_status(outcome.tx_id)
        assert row.tx_id == outcome.tx_id
        if row.stage == Stage.ERROR:
            assert row.status == outcome.status != Status.NONE
            assert row.duplicate_of == (outcome.duplicate_of or None)
        elif row.stage >= Stage.COMPUTED:
            assert outcome.status == Status.NONE
            assert row.status == Status.NONE

    @rule(level=st.sampled_from([WaitLevel.COMPUTED, WaitLevel.COMMITTED, WaitLevel.SNAPSHOT]))
    def wait_for_the_last(self, level: WaitLevel) -> None:
        assert self.running.wait_for(self.last_id, level) >= level
        index = self.running.pipeline_index()
        assert index.sequenced == index.computed == self.last_id
        if level == WaitLevel.SNAPSHOT:
            assert index.committed == index.snapshot == self.last_id
        assert index.term == 1 + self.restarts

    # -- ends and beginnings -------------------------------------------------------------------

    @rule(
        how=st.sampled_from(["closed", "crashed", "lost snapshots"]),
        lost=st.sets(st.integers(0, 4)),
        rubbish=st.binary(max_size=200),
    )
    def end_and_begin_again(self, how: str, lost: set[int], rubbish: bytes) -> None:
        if how == "crashed":
            self._crash(rubbish)
        else:
            self._close()
        if how == "lost snapshots":
            # They only save time: without some of them the ledger is the same.
            for path in self.data.glob("snapshot_*"):
                if int(path.stem.removeprefix("snapshot_")) % 5 in lost:
                    path.unlink()
        self.restarts += 1
        self._open()

    def _crash(self, rubbish: bytes) -> None:
        """Go on with the files as they are while the ledger runs: what a crash leaves."""
        self.running.wait_for(self.last_id, WaitLevel.COMMITTED)
        self.copies += 1
        crashed = self.folder / f"data-{self.copies}"
        crashed.mkdir()
        for path in sorted(self.data.iterdir()):
            if not path.is_file() or path.suffix in (".lock", ".tmp"):
                continue
            try:
                shutil.copyfile(path, crashed / path.name)
            except FileNotFoundError:
                # An old snapshot was deleted meanwhile.
                assert path.name.startswith(("snapshot_", "function_snapshot_")), path
        with (crashed / "wal.bin").open("ab") as file:
            file.write(rubbish)
        self._close()
        shutil.rmtree(self.data)
        self.data = crashed

    @invariant()
    def the_sum_of_all_balances_is_zero(self) -> None:
        if self.ledger is not None:
            assert self.oracle.sum_of_balances() == 0
            read = self.running.get_balances(np.arange(MAX_ACCOUNTS))
            assert sum(read.balances.tolist()) == 0

    def teardown(self) -> None:
        try:
            if self.ledger is not None:
                self.read_all_balances()
                self.read_all_statuses()
                self._close()
                self._compare_log()
        finally:
            if self.ledger is not None:
                self._close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _compare_log(self) -> None:
        """The log alone tells the same story."""
        size = self.settings["transactions_per_segment"]
        replayed = Oracle(MAX_ACCOUNTS, size)
        statuses: list[int] = []
        for run in read_log(self.data, 1, self.last_id, size):
            replayed.apply_log(run.records, run.entries)
            statuses += run.records["status"].tolist()
        assert statuses == [outcome.status for outcome in self.outcomes]
        for account in range(MAX_ACCOUNTS):
            assert replayed.balance(account) == self.oracle.balance(account)


TestLedgerAndOracle = LedgerAndOracle.TestCase
TestLedgerAndOracle.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
