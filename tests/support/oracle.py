"""The ledger in plain Python: what every engine, pipeline and client must agree with.

Integers of any size, dictionaries, one operation at a time, rules in the order in which they apply.
It is written from the product's rules and shares nothing with the code it checks but the codes and
layouts of `tallybus.common.record`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tallybus.common.record import RECORD_DTYPE, Kind, Status

SYSTEM = 0
LARGEST_AMOUNT = 2**63 - 1
MOST_ENTRIES = 255
MOST_PARAMS = 8
WORD = 2**64
LARGEST_BALANCE = 2**63 - 1
SMALLEST_BALANCE = -(2**63)


class Operation(NamedTuple):
    """What a client asks for. `kind` may be anything from 0 to 255, the others any u64; of a
    function call `name` and up to eight `params` (int64)."""

    kind: int
    account: int
    counterparty: int = 0
    amount: int = 0
    user_ref: int = 0
    name: str = ""
    params: tuple[int, ...] = ()


def deposit(account: int, amount: int, user_ref: int = 0) -> Operation:
    return Operation(Kind.DEPOSIT, account, 0, amount, user_ref)


def withdrawal(account: int, amount: int, user_ref: int = 0) -> Operation:
    return Operation(Kind.WITHDRAWAL, account, 0, amount, user_ref)


def transfer(source: int, target: int, amount: int, user_ref: int = 0) -> Operation:
    return Operation(Kind.TRANSFER, source, target, amount, user_ref)


def call(name: str, *params: int, user_ref: int = 0) -> Operation:
    """A call of a function."""
    return Operation(Kind.FUNCTION, 0, 0, 0, user_ref, name, params)


class Trap(Exception):
    """Raised by a function of the oracle where its module traps."""


class OutOfFuel(Exception):
    """Raised by a function of the oracle where its module runs out of fuel."""


class Outcome(NamedTuple):
    """What became of a transaction. Of a DUPLICATE: the id of the first and how that one ended."""

    tx_id: int
    status: int
    duplicate_of: int = 0
    original_status: int = 0


class First(NamedTuple):
    """The transaction that used a reference first."""

    tx_id: int
    status: int


def to_records(operations: Iterable[Operation | tuple[int, ...]]) -> NDArray[np.void]:
    """Operations as RECORD_DTYPE[n], as clients send them."""
    rows = [Operation(*operation) for operation in operations]
    records = np.zeros(len(rows), RECORD_DTYPE)
    for name in ("kind", "account", "counterparty", "amount", "user_ref"):
        field = records.dtype[name]
        records[name] = np.array([getattr(row, name) for row in rows], dtype=field)
    return records


class Batch(NamedTuple):
    """Operations as clients send them: records, names that calls count in, rows of parameters."""

    records: NDArray[np.void]
    names: list[str]
    params: NDArray[np.int64]


def to_batch(operations: Iterable[Operation]) -> Batch:
    """Operations with function calls as RECORD_DTYPE[n], k names and int64[calls, 8]."""
    rows = list(operations)
    records = to_records(rows)
    calls = [i for i, row in enumerate(rows) if row.kind == Kind.FUNCTION]
    names = sorted({rows[i].name for i in calls})
    params = np.zeros((len(calls), MOST_PARAMS), np.int64)
    for line, i in zip(params, calls, strict=True):
        records["function"][i] = names.index(rows[i].name)
        line[: len(rows[i].params)] = rows[i].params
    return Batch(records, names, params)


def to_operations(records: NDArray[np.void]) -> list[Operation]:
    """RECORD_DTYPE[n] as operations."""
    names = ("kind", "account", "counterparty", "amount", "user_ref")
    return [
        Operation(*row) for row in zip(*(records[name].tolist() for name in names), strict=True)
    ]


class Host:
    """What a function may ask of the ledger, during one call."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.entries: list[tuple[int, int]] = []
        self.failure = Status.NONE
        """The first one: it decides how the call ends, and nothing moves after it."""

    def credit(self, account: int, amount: int) -> None:
        """Subtract. Both numbers are taken as u64."""
        self._move(account % WORD, amount % WORD, -1)

    def debit(self, account: int, amount: int) -> None:
        """Add."""
        self._move(account % WORD, amount % WORD, 1)

    def get_balance(self, account: int) -> int:
        if self.failure:
            return 0
        if account % WORD >= self._oracle.max_accounts:
            self.failure = Status.ACCOUNT_LIMIT_EXCEEDED
            return 0
        return self._oracle.balance(account % WORD)

    def _move(self, account: int, amount: int, sign: int) -> None:
        if self.failure:
            return
        if account >= self._oracle.max_accounts:
            self.failure = Status.ACCOUNT_LIMIT_EXCEEDED
            return
        if amount > LARGEST_AMOUNT:
            self.failure = Status.BALANCE_OVERFLOW
            return
        if amount == 0:
            return
        if len(self.entries) == MOST_ENTRIES:
            self.failure = Status.ENTRY_LIMIT_EXCEEDED
            return
        after = self._oracle.balance(account) + sign * amount
        if not SMALLEST_BALANCE <= after <= LARGEST_BALANCE:
            self.failure = Status.BALANCE_OVERFLOW
            return
        self._oracle.balances[account] = after
        self.entries.append((account, sign * amount))

    def undo(self) -> None:
        for account, amount in reversed(self.entries):
            self._oracle.balances[account] -= amount


Function = Callable[[Host, tuple[int, ...]], int]
"""`execute`: takes the host and eight int64, returns an i32 as a signed integer; raises Trap or
OutOfFuel."""


class Registered(NamedTuple):
    """A live function."""

    function: Function
    crc32c: int
    version: int
    tx_id: int
    """The transaction that registered it."""


NOT_EXECUTED = (Status.NOT_RUN, Status.SUSPENDED)
"""With a reason: recorded, without any effect."""


@dataclass
class Kept:
    """What the log keeps of a batch beside outcomes, in order: of each record the entry count, the
    checksum of the function that ran and the transaction that registered it; parameters;
    entries."""

    entry_counts: list[int] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    registrations: list[int] = field(default_factory=list)
    params: list[int] = field(default_factory=list)
    entries: list[tuple[int, int]] = field(default_factory=list)


class Oracle:
    """Balances (`dict`, accounts never moved are absent), the duplicate window, the functions and
    the next id. `kept` is of the last batch."""

    def __init__(self, max_accounts: int, transactions_per_segment: int) -> None:
        self.max_accounts = max_accounts
        self.transactions_per_segment = transactions_per_segment
        self.balances: dict[int, int] = {}
        self.next_id = 1
        self.functions: dict[str, Registered] = {}
        self.kept = Kept()
        self._versions: dict[str, int] = {}
        self._firsts: dict[int, First] = {}

    def balance(self, account: int) -> int:
        return self.balances.get(account, 0)

    def sum_of_balances(self) -> int:
        """Zero, always."""
        return sum(self.balances.values())

    def execute(
        self, operations: NDArray[np.void] | Iterable[Operation | tuple[int, ...]]
    ) -> list[Outcome]:
        """Execute records or operations as the next transactions."""
        if isinstance(operations, np.ndarray):
            rows = to_operations(operations)
        else:
            rows = [Operation(*operation) for operation in operations]
        self.kept = Kept()
        return [self._execute_one(row) for row in rows]

    def register(
        self, name: str, function: Function | None, crc32c: int, override: bool, user_ref: int = 0
    ) -> Outcome:
        """Register, or unregister where there is no function, as the next transaction."""
        self.kept = Kept()
        tx_id = self._take_id()
        first = self._firsts.get(user_ref)
        if user_ref and first is not None:
            return Outcome(tx_id, Status.DUPLICATE, first.tx_id, first.status)
        status = Status.NONE
        if (name in self.functions and not override) if function else name not in self.functions:
            status = Status.INVALID_OPERATION
        if user_ref:
            self._firsts[user_ref] = First(tx_id, status)
        if status == Status.NONE:
            version = self._versions[name] = self._versions.get(name, 0) + 1
            if function is None:
                del self.functions[name]
            else:
                self.functions[name] = Registered(function, crc32c, version, tx_id)
        return Outcome(tx_id, status)

    def apply_log(
        self, records: NDArray[np.void], entries: Sequence[tuple[int, int]] | NDArray[np.void] = ()
    ) -> None:
        """Take over executed records as the log has them, believing their statuses.

        `entries`: (account, signed amount) of the successful functions among them, in order.
        """
        rest = [(int(account), int(amount)) for account, amount in entries]
        for record, operation in zip(records, to_operations(records), strict=True):
            status, entry_count = int(record["status"]), int(record["entry_count"])
            tx_id = self._take_id()
            free = status == Status.DUPLICATE or (status in NOT_EXECUTED and record["reason"])
            if operation.user_ref and not free:
                self._firsts[operation.user_ref] = First(tx_id, status)
            if status != Status.NONE:
                continue
            if operation.kind == Kind.FUNCTION:
                own, rest = rest[:entry_count], rest[entry_count:]
                assert len(own) == entry_count, f"entries of transaction {tx_id} are missing"
                assert sum(amount for _, amount in own) == 0
                for account, amount in own:
                    self._move(account, amount)
            elif entry_count:
                source, target = sides(operation)
                self._move(source, -operation.amount)
                self._move(target, operation.amount)
        assert not rest, "entries are left over"

    def skip(self, operation: Operation, status: int) -> Outcome:
        """A call that was not run, as the next transaction: it leaves its reference free."""
        self.kept = Kept()
        tx_id = self._take_id()
        assert operation.user_ref not in self._firsts or not operation.user_ref
        params = (*operation.params, *[0] * (MOST_PARAMS - len(operation.params)))
        used = max((i + 1 for i, param in enumerate(params) if param), default=0)
        self.kept.params += params[:used]
        self.kept.functions.append(0)
        self.kept.registrations.append(0)
        return Outcome(tx_id, status)

    def _execute_one(self, operation: Operation) -> Outcome:
        tx_id = self._take_id()
        first = self._firsts.get(operation.user_ref)
        self.kept.entry_counts.append(0)
        self.kept.functions.append(0)
        self.kept.registrations.append(0)
        if operation.user_ref and first is not None:
            return Outcome(tx_id, Status.DUPLICATE, first.tx_id, first.status)
        if operation.kind == Kind.FUNCTION:
            status = self._call(operation)
        else:
            status = self._judge(operation)
        if operation.user_ref:
            self._firsts[operation.user_ref] = First(tx_id, status)
        if status == Status.NONE and operation.kind != Kind.FUNCTION:
            source, target = sides(operation)
            if source != target:
                self._move(source, -operation.amount)
                self._move(target, operation.amount)
                self.kept.entry_counts[-1] = 2
        return Outcome(tx_id, status)

    def _call(self, operation: Operation) -> int:
        params = (*operation.params, *[0] * (MOST_PARAMS - len(operation.params)))
        used = max((i + 1 for i, param in enumerate(params) if param), default=0)
        self.kept.params += params[:used]
        live = self.functions.get(operation.name)
        if live is None:
            return Status.INVALID_OPERATION
        self.kept.functions[-1] = live.crc32c
        self.kept.registrations[-1] = live.tx_id
        host = Host(self)
        status: int
        try:
            status = live.function(host, params)
        except Trap:
            status = Status.INVALID_OPERATION
        except OutOfFuel:
            status = Status.QUOTA_EXCEEDED
        else:
            if not 0 <= status <= 255 or status == Status.DUPLICATE or 10 <= status <= 127:
                status = Status.INVALID_OPERATION
        if host.failure:
            status = host.failure
        if status == Status.NONE and sum(amount for _, amount in host.entries) != 0:
            status = Status.ZERO_SUM_VIOLATION
        if status == Status.NONE:
            self.kept.entry_counts[-1] = len(host.entries)
            self.kept.entries += host.entries
        else:
            host.undo()
        return status

    def _judge(self, operation: Operation) -> Status:
        if operation.kind not in (Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER):
            return Status.INVALID_OPERATION
        if not 1 <= operation.amount <= LARGEST_AMOUNT:
            return Status.INVALID_OPERATION
        source, target = sides(operation)
        if source >= self.max_accounts or target >= self.max_accounts:
            return Status.ACCOUNT_LIMIT_EXCEEDED
        if source == target:
            return Status.NONE
        if source != SYSTEM and self.balance(source) < operation.amount:
            return Status.INSUFFICIENT_FUNDS
        if self.balance(source) - operation.amount < SMALLEST_BALANCE:
            return Status.BALANCE_OVERFLOW
        if self.balance(target) + operation.amount > LARGEST_BALANCE:
            return Status.BALANCE_OVERFLOW
        return Status.NONE

    def _move(self, account: int, amount: int) -> None:
        after = self.balance(account) + amount
        assert SMALLEST_BALANCE <= after <= LARGEST_BALANCE
        self.balances[account] = after

    def _generation(self, tx_id: int) -> int:
        return (tx_id - 1) // self.transactions_per_segment

    def _take_id(self) -> int:
        tx_id = self.next_id
        self.next_id += 1
        oldest = self._generation(tx_id) - 1
        if self._generation(tx_id) != self._generation(tx_id - 1):
            self._firsts = {
                user_ref: first
                for user_ref, first in self._firsts.items()
                if self._generation(first.tx_id) >= oldest
            }
        return tx_id


def sides(operation: Operation) -> tuple[int, int]:
    """(source, target) of a built-in operation: the amount leaves the one and reaches the other."""
    if operation.kind == Kind.DEPOSIT:
        return SYSTEM, operation.account
    if operation.kind == Kind.WITHDRAWAL:
        return operation.account, SYSTEM
    return operation.account, operation.counterparty
