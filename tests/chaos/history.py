"""What the clients of a chaos run sent, what they were told, and when.

Every operation has an amount of its own: its low bits are the operation's serial number, by which
it is found again in the log. Times are nanoseconds of the monotonic clock.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus import (
    BatchResult,
    Deposit,
    Result,
    TallybusError,
    Transfer,
    Withdrawal,
)
from tallybus.common.record import RECORD_DTYPE, Kind, Level, Status

SERIAL_BITS: Final = 28
SERIAL_MASK: Final = (1 << SERIAL_BITS) - 1
INVALID_AMOUNT: Final = 1 << 63
CONTENT: Final = ("kind", "account", "counterparty", "amount", "user_ref")


@dataclass(slots=True)
class Submission:
    """One submit, of one operation or of many, and its answer or error."""

    client: str
    records: NDArray[Any]
    level: Level
    shared: bool
    """Some of its references were used before, by this client or by another one, on purpose."""
    sent_ns: int
    done_ns: int = 0
    first: int = 0
    """Id of the first operation's own transaction; 0 where the answer does not tell it."""
    tx_ids: NDArray[np.uint64] | None = None
    statuses: NDArray[np.uint8] | None = None
    links: NDArray[np.uint64] | None = None
    reached: Level | None = None
    error: TallybusError | None = None

    @property
    def has_refs(self) -> bool:
        """Whether every operation has a reference, so that the client may send it again."""
        return bool(self.records["user_ref"].all())

    def answered(self, result: Result | BatchResult | int) -> None:
        """The answer came; of a submit without a wait it is only an id."""
        self.done_ns = time.monotonic_ns()
        if isinstance(result, int):
            result = Result(result, Status.NONE, Level.NONE)
        if isinstance(result, Result):
            self.first = result.tx_id if result.duplicate_of is None else 0
            self.tx_ids = np.array([result.tx_id], np.uint64)
            self.statuses = np.array([int(result.status)], np.uint8)
            self.links = np.array([result.duplicate_of or 0], np.uint64)
        else:
            self.first = result.first_tx_id
            self.tx_ids = result.tx_ids
            self.statuses = result.statuses
            self.links = result.duplicate_of
        self.reached = result.level

    def failed(self, error: TallybusError) -> None:
        self.done_ns = time.monotonic_ns()
        self.error = error


@dataclass(slots=True)
class BalanceRead:
    client: str
    sent_ns: int
    done_ns: int
    least: int
    index: int
    accounts: NDArray[np.uint64]
    values: NDArray[np.int64]


@dataclass(slots=True)
class StatusRead:
    client: str
    sent_ns: int
    done_ns: int
    ids: NDArray[np.uint64]
    stages: NDArray[np.uint8]
    statuses: NDArray[np.uint8]
    links: NDArray[np.uint64]


@dataclass(slots=True)
class IndexRead:
    client: str
    sent_ns: int
    done_ns: int
    committed: int = 0
    snapshot: int = 0
    exact: bool = True
    """Whether these are the indexes themselves, and not what they are at least."""


@dataclass(slots=True)
class History:
    """Everything that all clients of a run did. Appending is safe from any thread."""

    submissions: list[Submission] = field(default_factory=list)
    balances: list[BalanceRead] = field(default_factory=list)
    statuses: list[StatusRead] = field(default_factory=list)
    indexes: list[IndexRead] = field(default_factory=list)
    read_errors: list[tuple[str, int, int, str]] = field(default_factory=list)
    """Client, sent, failed, and what was raised."""
    meter: list[int] = field(default_factory=list)
    """When the client that commits one operation after the other was answered."""
    retries: dict[str, int] = field(default_factory=dict)

    @property
    def transactions(self) -> int:
        return sum(len(each.records) for each in self.submissions if each.tx_ids is not None)

    def save(self, folder: Path, operations: NDArray[Any], began_ns: int) -> None:
        """Write it down for whoever looks into a violation."""
        np.save(folder / "operations.npy", operations, allow_pickle=False)
        with (folder / "history.jsonl").open("w") as file:
            for each in sorted(self.submissions, key=lambda item: item.sent_ns):
                failed = [] if each.statuses is None else np.flatnonzero(each.statuses).tolist()
                line = {
                    "client": each.client,
                    "sent_s": (each.sent_ns - began_ns) / 1e9,
                    "done_s": (each.done_ns - began_ns) / 1e9,
                    "level": each.level.name,
                    "serials": [int(a) & SERIAL_MASK for a in each.records["amount"][[0, -1]]],
                    "count": len(each.records),
                    "shared": each.shared,
                    "first": each.first,
                    "failures": [
                        [place, int(each.statuses[place]), int(each.links[place])]
                        for place in failed
                        if each.statuses is not None and each.links is not None
                    ],
                    "error": repr(each.error) if each.error else None,
                }
                file.write(json.dumps(line) + "\n")
        with (folder / "reads.jsonl").open("w") as file:
            for read in self.balances:
                line = {
                    "client": read.client,
                    "sent_s": (read.sent_ns - began_ns) / 1e9,
                    "done_s": (read.done_ns - began_ns) / 1e9,
                    "least": read.least,
                    "index": read.index,
                }
                file.write(json.dumps(line) + "\n")


class Operations:
    """Makes operations, each with a serial number, and remembers what it made."""

    def __init__(self, max_accounts: int, accounts: int) -> None:
        self.max_accounts = max_accounts
        self.accounts = accounts
        self._lock = threading.Lock()
        self._made = np.zeros(1 << 16, RECORD_DTYPE)
        self._next = 1

    @property
    def made(self) -> NDArray[Any]:
        """Operations by serial number; 0 is none."""
        return self._made[: self._next]

    def make(self, rng: np.random.Generator, count: int, *, refs: bool) -> NDArray[Any]:
        """Operations of all kinds; some cannot succeed. With `refs` each has a new one."""
        records = np.zeros(count, RECORD_DTYPE)
        kinds = [Kind.DEPOSIT, Kind.TRANSFER, Kind.WITHDRAWAL]
        records["kind"] = rng.choice(kinds, count, p=[0.3, 0.5, 0.2])
        records["account"] = rng.integers(1, self.accounts, count)
        records["counterparty"] = rng.integers(1, self.accounts, count)
        records["amount"] = rng.integers(1, 500, count) << SERIAL_BITS
        odd = rng.random(count)
        records["amount"][odd < 0.02] = INVALID_AMOUNT
        records["account"][(odd >= 0.02) & (odd < 0.03)] = self.max_accounts + 7
        records["account"][(odd >= 0.03) & (odd < 0.04)] = 0
        records["counterparty"][records["kind"] != Kind.TRANSFER] = 0
        serials = self._take(count)
        records["amount"] |= serials
        if refs:
            records["user_ref"] = (
                rng.integers(1, 1 << 31, count).astype(np.uint64) << 32
            ) | serials
        return self.remember(records)

    def again(
        self, rng: np.random.Generator, records: NDArray[Any], used: NDArray[np.uint64]
    ) -> NDArray[Any]:
        """`records`, which were just made, with references that were used before."""
        records["user_ref"] = rng.choice(used, len(records))
        return self.remember(records)

    def remember(self, records: NDArray[Any]) -> NDArray[Any]:
        with self._lock:
            self._made[(records["amount"] & SERIAL_MASK).astype(np.intp)] = records
        return records

    def _take(self, count: int) -> NDArray[np.uint64]:
        with self._lock:
            first = self._next
            self._next += count
            if self._next > SERIAL_MASK:
                raise OverflowError("a run has too many operations for its serial numbers")
            while self._next > len(self._made):
                more = np.zeros(2 * len(self._made), RECORD_DTYPE)
                more[: len(self._made)] = self._made
                self._made = more
        return np.arange(first, first + count, dtype=np.uint64)


def to_operation(record: Any) -> Deposit | Withdrawal | Transfer:
    """One record as the object that a single submit takes."""
    account, amount, user_ref = (int(record[n]) for n in ("account", "amount", "user_ref"))
    if record["kind"] == Kind.TRANSFER:
        return Transfer(account, int(record["counterparty"]), amount, user_ref)
    if record["kind"] == Kind.WITHDRAWAL:
        return Withdrawal(account, amount, user_ref)
    return Deposit(account, amount, user_ref)


class Pace:
    """Keeps clients in step, so that what is sent again is still in the duplicate window.

    No request starts while an unanswered one began more than `limit` transactions ago.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._started = 0
        self._open: dict[int, int] = {}
        self._tickets = 0
        self._stopping = False

    def enter(self, count: int) -> int:
        """Wait until a request of `count` operations may start; returns its ticket."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._may_start(count))
            return self._start(count)

    def try_enter(self, count: int) -> int | None:
        """As `enter`, but None instead of waiting."""
        with self._changed:
            return self._start(count) if self._may_start(count) else None

    def barge(self, count: int) -> int:
        """Start at once; the others wait for this one all the same."""
        with self._changed:
            return self._start(count)

    def leave(self, ticket: int) -> None:
        with self._changed:
            del self._open[ticket]
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _may_start(self, count: int) -> bool:
        oldest = min(self._open.values(), default=self._started)
        return self._started + count - oldest <= self._limit

    def _start(self, count: int) -> int:
        self._started += count
        self._tickets += 1
        self._open[self._tickets] = self._started
        return self._tickets


class Recorder:
    """What clients use to submit: it keeps the pace and writes the history."""

    def __init__(self, operations: Operations, pace: Pace) -> None:
        self.history = History()
        self.operations = operations
        self.pace = pace
        self.stopping = threading.Event()
        self.crashes: list[str] = []

    def stop(self) -> None:
        self.stopping.set()
        self.pace.stop()

    def begin(
        self, client: str, records: NDArray[Any], level: Level, *, shared: bool = False
    ) -> Submission:
        submission = Submission(client, records, level, shared, time.monotonic_ns())
        self.history.submissions.append(submission)
        return submission

    def finish(
        self, submission: Submission, answer: Callable[[], Result | BatchResult | int]
    ) -> bool:
        """Wait for the answer and record it. False when there was an error instead."""
        try:
            submission.answered(answer())
        except TallybusError as error:
            submission.failed(error)
            return False
        return True
