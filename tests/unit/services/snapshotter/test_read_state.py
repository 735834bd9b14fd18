"""The read side's state against plain Python: balances, statuses, copies, and what it refuses."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tallybus.common.batch import Batch
from tallybus.common.files import Storage
from tallybus.common.functions.registry import FunctionVersion, RegistrationError, name_words
from tallybus.common.record import (
    ENTRY_DTYPE,
    RECORD_DTYPE,
    Kind,
    Stage,
    Status,
)
from tallybus.common.snapshot.balances import SnapshotFields, load_latest_snapshot, write_frozen
from tallybus.common.wal.replay import ReplayError
from tallybus.services.snapshotter.cold_statuses import LogStatuses, TooManyColdStatuses
from tallybus.services.snapshotter.core import QueryRefused
from tallybus.services.snapshotter.read_state import (
    AccountOutOfRange,
    ReadState,
    StatusOutOfWindow,
)
from tallybus.services.wal.log import Log
from tests.support.folders import PROJECT

ACCOUNTS = 3 * 4096 + 7
N = 8
NO_LINKS = np.empty(0, np.uint64)
NO_PARAMS = np.empty(0, np.int64)
NO_ENTRIES = np.empty(0, ENTRY_DTYPE)


def u64(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


@dataclass
class Rows:
    """Records as the log holds them, and what stands behind them."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    links: list[int] = field(default_factory=list)
    params: list[int] = field(default_factory=list)
    entries: list[tuple[int, int]] = field(default_factory=list)

    def deposit(self, account: int, amount: int) -> "Rows":
        self.rows.append((Kind.DEPOSIT, Status.NONE, 2, 0, 0, 0, account, 0, amount))
        return self

    def transfer(self, source: int, target: int, amount: int) -> "Rows":
        moved = 0 if source == target else 2
        self.rows.append((Kind.TRANSFER, Status.NONE, moved, 0, 0, 0, source, target, amount))
        return self

    def failed(self, status: int) -> "Rows":
        self.rows.append((Kind.TRANSFER, status, 0, 0, 0, 0, 1, 2, 3))
        return self

    def duplicate(self, first: int) -> "Rows":
        self.rows.append((Kind.DEPOSIT, Status.DUPLICATE, 0, 0, 0, 77, 1, 0, 3))
        self.links.append(first)
        return self

    def function(self, *entries: tuple[int, int]) -> "Rows":
        self.rows.append((Kind.FUNCTION, Status.NONE, len(entries), 0, 9, 0, 0, 0, 0))
        self.entries += entries
        return self

    def registered(self, name: str, version: int, crc: int, status: int = 0) -> "Rows":
        words = name_words(name).tolist()
        self.rows.append((Kind.FUNCTION_REGISTERED, status, 0, 0, crc, 0, version, 0, len(words)))
        self.params += words
        return self

    def batch(self, first_id: int) -> Batch:
        return Batch(
            first_id,
            np.array(self.rows, RECORD_DTYPE),
            np.array(self.links, np.uint64),
            np.array(self.params, np.int64),
            np.array(self.entries, ENTRY_DTYPE),
            term=1,
            timestamp_ns=first_id,
        )


def apply(state: ReadState, rows: Rows) -> None:
    state.apply(rows.batch(state.index + 1))


def test_everything_that_moves_money_is_applied() -> None:
    state = ReadState(ACCOUNTS, N)
    batch = Rows().deposit(1, 100).transfer(1, 5000, 30).failed(Status.INSUFFICIENT_FUNDS)
    apply(state, batch.transfer(2, 2, 9).function((1, -20), (9000, 15), (3, 5)))
    assert state.index == 5
    assert state.get_balances(u64(0, 1, 2, 3, 5000, 9000, 1)).tolist() == [
        *(-100, 50, 0, 5, 30, 15, 50)
    ]
    assert state.touched.tolist() == [1, 1, 1, 0]


def test_functions_are_followed() -> None:
    state = ReadState(ACCOUNTS, N)
    apply(state, Rows().deposit(1, 1).registered("fee", 1, 5).registered("fee", 0, 9, status=5))
    apply(state, Rows().registered("fee", 2, 0).registered("x" * 32, 1, 7))
    assert state.functions.versions() == (
        FunctionVersion("fee", 1, 5, 2),
        FunctionVersion("fee", 2, 0, 4),
        FunctionVersion("x" * 32, 1, 7, 5),
    )
    assert state.freeze().functions == state.functions.versions()


def test_a_registration_that_cannot_be_is_final() -> None:
    state = ReadState(ACCOUNTS, N)
    apply(state, Rows().deposit(1, 1))
    with pytest.raises(RegistrationError):
        apply(state, Rows().deposit(1, 1).registered("fee", 2, 5))
    with pytest.raises(RegistrationError):
        apply(state, Rows().deposit(1, 1))
    assert state.index == 1


def test_reads_of_nothing_are_answered() -> None:
    state = ReadState(ACCOUNTS, N)
    assert len(state.get_balances(u64())) == 0
    assert len(state.get_statuses(u64())) == 0
    state.apply(Batch(1, np.empty(0, RECORD_DTYPE)))
    assert state.index == 0


def test_batches_may_lie_in_read_only_frames_at_any_address() -> None:
    batch = Rows().deposit(1, 7).duplicate(1).batch(1)
    frame = b"x" + batch.records.tobytes()
    state = ReadState(ACCOUNTS, N)
    links = np.frombuffer(b"y" + batch.links.tobytes(), np.uint64, 1, 1)
    state.apply(Batch(1, np.frombuffer(frame, RECORD_DTYPE, 2, 1), links))
    assert state.get_balances(u64(1)).tolist() == [7]


@pytest.mark.parametrize("account", [ACCOUNTS, 2**63, 2**64 - 1])
def test_an_account_out_of_range_is_named(account: int) -> None:
    state = ReadState(ACCOUNTS, N)
    with pytest.raises(AccountOutOfRange) as caught:
        state.get_balances(u64(0, ACCOUNTS - 1, account))
    assert (caught.value.account, caught.value.max_accounts) == (account, ACCOUNTS)
    assert isinstance(caught.value, QueryRefused)
    assert caught.value.details == {"account": account, "max_accounts": ACCOUNTS}


def test_statuses_tell_stage_outcome_and_link() -> None:
    state = ReadState(ACCOUNTS, N)
    apply(state, Rows().deposit(1, 5).failed(Status.ACCOUNT_LIMIT_EXCEEDED).failed(200))
    apply(state, Rows().duplicate(2).deposit(1, 1))
    rows = state.get_statuses(u64(5, 4, 3, 2, 1, 4, 0, 6, 2**64 - 1))
    assert [(row["stage"], row["status"], row["duplicate_of"]) for row in rows] == [
        (Stage.ON_SNAPSHOT, 0, 0),
        (Stage.ERROR, Status.DUPLICATE, 2),
        (Stage.ERROR, 200, 0),
        (Stage.ERROR, Status.ACCOUNT_LIMIT_EXCEEDED, 0),
        (Stage.ON_SNAPSHOT, 0, 0),
        (Stage.ERROR, Status.DUPLICATE, 2),
        (Stage.UNKNOWN, 0, 0),
        (Stage.UNKNOWN, 0, 0),
        (Stage.UNKNOWN, 0, 0),
    ]
    assert not rows["reserved"].any()


def test_without_a_log_older_statuses_are_refused() -> None:
    state = ReadState(ACCOUNTS, N)
    for _ in range(2 * N):
        apply(state, Rows().deposit(1, 1))
    assert state.oldest_status == 1
    assert state.get_statuses(u64(1))["stage"].tolist() == [Stage.ON_SNAPSHOT]
    apply(state, Rows().deposit(1, 1))
    assert state.oldest_status == 2
    with pytest.raises(StatusOutOfWindow) as caught:
        state.get_statuses(u64(2, 1))
    assert (caught.value.tx_id, caught.value.oldest) == (1, 2)


@given(st.lists(st.integers(1, 5 * N), min_size=1, max_size=12), st.randoms())
def test_statuses_of_any_batches_are_those_of_the_window(sizes: list[int], random: Any) -> None:
    state = ReadState(ACCOUNTS, N)
    expected: dict[int, tuple[int, int, int]] = {}
    for size in sizes:
        batch = Rows()
        for tx_id in range(state.index + 1, state.index + 1 + size):
            first = random.randint(max(1, (tx_id - 1) // N * N - N + 1), tx_id)
            status = random.choice([0, 0, 1, 128, 255, 7])
            if status == 7 and first < tx_id:
                batch.duplicate(first)
                expected[tx_id] = (Stage.ERROR, 7, first)
            elif status in (0, 7):
                batch.deposit(1, 1)
                expected[tx_id] = (Stage.ON_SNAPSHOT, 0, 0)
            else:
                batch.failed(status)
                expected[tx_id] = (Stage.ERROR, status, 0)
        apply(state, batch)
        ids = list(range(state.oldest_status, state.index + 1))
        assert len(ids) == min(state.index, 2 * N)
        random.shuffle(ids)
        rows = state.get_statuses(np.array(ids, np.uint64))
        found = [(int(row["stage"]), int(row["status"]), int(row["duplicate_of"])) for row in rows]
        assert found == [expected[tx_id] for tx_id in ids]


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, ACCOUNTS - 1), st.integers(0, ACCOUNTS - 1), st.integers(1, 2**62)
            ),
            max_size=20,
        ),
        max_size=6,
    )
)
def test_balances_are_those_of_a_plain_ledger(
    batches: list[list[tuple[int, int, int]]],
) -> None:
    state = ReadState(ACCOUNTS, N)
    ledger: dict[int, int] = {0: 0}
    for moves in batches:
        batch = Rows()
        for source, target, amount in moves:
            low, high = ledger.get(source, 0) - amount, ledger.get(target, 0) + amount
            possible = low >= -(2**63) and high < 2**63 and (source == 0 or low >= 0)
            if source == target or possible:
                batch.transfer(source, target, amount)
                if source != target:
                    ledger[source], ledger[target] = low, high
            else:
                batch.failed(Status.INSUFFICIENT_FUNDS)
        apply(state, batch)
    accounts = np.array(sorted(ledger), np.uint64)
    assert state.get_balances(accounts).tolist() == [ledger[int(a)] for a in accounts]
    assert int(np.count_nonzero(state.balances)) == sum(1 for value in ledger.values() if value)
    frozen = state.freeze()
    used = set(frozen.chunks.tolist())
    assert used == set(np.flatnonzero(state.touched).tolist())
    assert used >= {account // 4096 for account, value in ledger.items() if value}
    assert sum(frozen.balances.reshape(-1).tolist()) == 0


@pytest.mark.parametrize("first_id", [0, 2, 4, 2**64 - 1])
def test_only_the_next_transaction_is_applied(first_id: int) -> None:
    state = ReadState(ACCOUNTS, N)
    apply(state, Rows().deposit(1, 5).deposit(1, 5))
    with pytest.raises(ReplayError) as caught:
        state.apply(Rows().deposit(1, 5).batch(first_id))
    assert caught.value.transaction_id == first_id
    assert state.get_balances(u64(1)).tolist() == [10]


@pytest.mark.parametrize(
    ("tx_id", "first"),
    [(5, 0), (5, 5), (5, 6), (5, 2**64 - 1), (2 * N + 1, N), (3 * N, N)],
)
def test_a_duplicate_is_linked_within_the_window_only(tx_id: int, first: int) -> None:
    state = ReadState(ACCOUNTS, N)
    while state.index < tx_id - 1:
        apply(state, Rows().deposit(1, 1))
    with pytest.raises(ReplayError) as caught:
        apply(state, Rows().duplicate(first))
    assert caught.value.transaction_id == tx_id


@pytest.mark.parametrize(("tx_id", "first"), [(2, 1), (2 * N, 1), (2 * N + 1, N + 1)])
def test_a_duplicate_reaches_back_to_the_generation_before(tx_id: int, first: int) -> None:
    state = ReadState(ACCOUNTS, N)
    while state.index < tx_id - 1:
        apply(state, Rows().deposit(1, 1))
    apply(state, Rows().duplicate(first))
    assert state.get_statuses(u64(tx_id))["duplicate_of"].tolist() == [first]


@pytest.mark.parametrize("links", [[], [1, 1]])
def test_links_belong_to_the_duplicates(links: list[int]) -> None:
    state = ReadState(ACCOUNTS, N)
    batch = Rows().deposit(1, 1).duplicate(1)
    batch.links = links
    with pytest.raises(ReplayError, match="links"):
        apply(state, batch)


@pytest.mark.parametrize(
    "batch",
    [
        Rows().deposit(1, 1).deposit(ACCOUNTS, 1),
        Rows().deposit(1, 1).transfer(2, 1, 1),
        Rows().deposit(1, 2**63 - 1).deposit(1, 1),
        Rows().deposit(1, 1).function((1, 1)),
    ],
)
def test_what_cannot_have_been_executed_ends_the_state(batch: Rows) -> None:
    state = ReadState(ACCOUNTS, N)
    with pytest.raises(ReplayError) as caught:
        apply(state, batch)
    assert caught.value.transaction_id == 2
    assert state.index == 0
    # A part of the batch may have been applied: nothing may be built on it.
    with pytest.raises(ReplayError):
        apply(state, Rows().deposit(1, 1))
    with pytest.raises(ReplayError):
        state.freeze()


def test_a_copy_stays_as_it_was_when_the_state_goes_on() -> None:
    state = ReadState(ACCOUNTS, N)
    apply(state, Rows().deposit(1, 5).deposit(5000, 6).deposit(ACCOUNTS - 1, 7))
    frozen = state.freeze()
    apply(state, Rows().deposit(1, 1).deposit(9000, 2))
    assert state.get_balances(u64(1, 9000)).tolist() == [6, 2]
    assert frozen.chunks.tolist() == [0, 1, 3]
    assert frozen.balances[:, [0, 1, 6, 5000 - 4096]].tolist() == [
        [-18, 5, 0, 0],
        [0, 0, 0, 6],
        [0, 0, 7, 0],
    ]


def test_the_state_goes_on_from_its_snapshot(tmp_path: Path) -> None:
    state = ReadState(ACCOUNTS, N)
    for amount in range(1, N - 1):
        apply(state, Rows().deposit(amount * 1000, amount))
    apply(state, Rows().registered("fee", 1, 5).registered("split", 1, 6))
    fields = SnapshotFields(1, 1, N, 1, 1)
    write_frozen(Storage(), tmp_path, fields, state.freeze())
    snapshot, _ = load_latest_snapshot(
        tmp_path,
        cluster_id=1,
        transactions_per_segment=N,
        max_accounts=ACCOUNTS,
        durable_index=N,
    )
    assert snapshot is not None
    again = ReadState.from_snapshot(snapshot)
    assert (again.index, again.oldest_status) == (N, N + 1)
    assert again.functions == state.functions
    for each in (state, again):
        apply(each, Rows().transfer(6000, 12_000, 3).duplicate(1).registered("fee", 2, 0))
    assert again.functions == state.functions
    assert again.functions is not state.functions
    assert len(again.functions) == 3
    np.testing.assert_array_equal(again.balances, state.balances)
    np.testing.assert_array_equal(again.touched, state.touched)
    ids = u64(N + 1, N + 2)
    assert again.get_statuses(ids).tobytes() == state.get_statuses(ids).tobytes()
    with pytest.raises(StatusOutOfWindow):
        again.get_statuses(u64(N))


class Logged:
    """A log of 5 segments with every kind of outcome, and what each transaction became."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: dict[int, tuple[int, int, int]] = {}
        self.batches: list[tuple[int, Rows]] = []
        log = Log.open(folder, Storage(), N, 5)
        first = 1
        for size in (3, 1, 6, 7, 2, 9, 1, 4, 5):
            batch = Rows()
            for tx_id in range(first, first + size):
                if tx_id % 5 == 0:
                    batch.duplicate(tx_id - 3)
                    self.expected[tx_id] = (Stage.ERROR, Status.DUPLICATE, tx_id - 3)
                elif tx_id % 3 == 0:
                    batch.failed(Status.INSUFFICIENT_FUNDS)
                    self.expected[tx_id] = (Stage.ERROR, Status.INSUFFICIENT_FUNDS, 0)
                else:
                    batch.deposit(1, 1)
                    self.expected[tx_id] = (Stage.ON_SNAPSHOT, 0, 0)
            log.append(batch.batch(first), 0)
            self.batches.append((first, batch))
            first += size
        log.close()
        self.last = first - 1

    def state(
        self, max_ids: int = 100, max_transactions: int = 100, max_singly: int = 100
    ) -> ReadState:
        cold = LogStatuses(
            self.folder,
            N,
            cluster_id=5,
            max_ids=max_ids,
            max_transactions=max_transactions,
            max_singly=max_singly,
        )
        state = ReadState(ACCOUNTS, N, cold=cold)
        for _, batch in self.batches:
            apply(state, batch)
        return state


@pytest.fixture
def logged(tmp_path: Path) -> Logged:
    return Logged(tmp_path / "data")


@pytest.mark.parametrize("max_singly", [0, 3, 100])
def test_older_statuses_come_from_the_log(logged: Logged, max_singly: int) -> None:
    state = logged.state(max_singly=max_singly)
    assert state.oldest_status == logged.last - 2 * N + 1
    ids = [*range(logged.last, 0, -1), 3, 3, 0, logged.last + 1]
    rows = state.get_statuses(np.array(ids, np.uint64))
    found = [(int(row["stage"]), int(row["status"]), int(row["duplicate_of"])) for row in rows]
    assert found == [logged.expected.get(tx_id, (Stage.UNKNOWN, 0, 0)) for tx_id in ids]


@pytest.mark.parametrize("max_singly", [0, 1])
def test_each_old_status_is_found_alone(logged: Logged, max_singly: int) -> None:
    cold = LogStatuses(logged.folder, N, max_singly=max_singly)
    for tx_id, expected in logged.expected.items():
        row = cold(u64(tx_id))[0]
        assert (row["stage"], row["status"], row["duplicate_of"]) == expected


def test_a_query_for_too_many_old_statuses_is_refused(logged: Logged) -> None:
    state = logged.state(max_ids=3)
    assert len(state.get_statuses(u64(1, 2, 3, 3, 2, 38))) == 6
    with pytest.raises(TooManyColdStatuses) as caught:
        state.get_statuses(u64(1, 2, 3, 4))
    assert (caught.value.asked, caught.value.limit) == (4, 3)
    assert isinstance(caught.value, QueryRefused)


def test_a_query_across_too_much_of_the_log_is_refused(logged: Logged) -> None:
    state = logged.state(max_transactions=12)
    assert len(state.get_statuses(u64(8, N + 4))) == 2
    with pytest.raises(TooManyColdStatuses) as caught:
        state.get_statuses(u64(8, N + 5))
    assert (caught.value.asked, caught.value.limit) == (13, 12)
    # One segment is always within the limit, however small that is.
    assert len(logged.state(max_transactions=1).get_statuses(u64(1, 8))) == 2


def test_a_large_limit_takes_memory_only_for_what_is_used() -> None:
    program = """
from pathlib import Path
import numpy as np
from tallybus.common.batch import Batch
from tallybus.common.record import RECORD_DTYPE
from tallybus.services.snapshotter.read_state import ReadState

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def apply(state, accounts):
    records = np.zeros(len(accounts), RECORD_DTYPE)
    records["kind"], records["entry_count"], records["amount"] = 1, 2, 5
    records["account"] = accounts
    state.apply(Batch(state.index + 1, records))

apply(ReadState(1000, 1000), np.arange(1, 1000))
start = resident()
state = ReadState(2**32, 2**31)
made = resident()
apply(state, np.arange(1000, 2**32, 2**26))
state.get_statuses(np.arange(100, dtype=np.uint64))
used = resident()
del state
state = ReadState(100_000_000, 10_000_000)
state.get_balances(np.arange(0, 100_000_000, 1000, dtype=np.uint64))
read = resident()
print(made - start, used - made, read - used)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=PROJECT,
    )
    made, used, read = map(int, done.stdout.split())
    assert made < 4_000_000
    assert used < 4_000_000
    # Reading unused accounts costs page tables and the answer, not the accounts.
    assert read < 16_000_000
