"""The ledger in plain Python: what every engine, pipeline and client must agree with.

Integers of any size, dictionaries, one operation at a time, rules in the order in which they apply.
It is written from the product's rules and shares nothing with the code it checks but the codes and
layouts of `tallybus.common.record`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tallybus.common.record import RECORD_DTYPE, Kind, Status

SYSTEM = 0
LARGEST_AMOUNT = 2**63 - 1
LARGEST_BALANCE = 2**63 - 1
SMALLEST_BALANCE = -(2**63)


class Operation(NamedTuple):
    """What a client asks for. `kind` may be anything from 0 to 255, the others any u64."""

    kind: int
    account: int
    counterparty: int = 0
    amount: int = 0
    user_ref: int = 0


def deposit(account: int, amount: int, user_ref: int = 0) -> Operation:
    return Operation(Kind.DEPOSIT, account, 0, amount, user_ref)


def withdrawal(account: int, amount: int, user_ref: int = 0) -> Operation:
    return Operation(Kind.WITHDRAWAL, account, 0, amount, user_ref)


def transfer(source: int, target: int, amount: int, user_ref: int = 0) -> Operation:
    return Operation(Kind.TRANSFER, source, target, amount, user_ref)


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


def to_operations(records: NDArray[np.void]) -> list[Operation]:
    """RECORD_DTYPE[n] as operations."""
    return [
        Operation(
            int(record["kind"]),
            int(record["account"]),
            int(record["counterparty"]),
            int(record["amount"]),
            int(record["user_ref"]),
        )
        for record in records
    ]


class Oracle:
    """Balances (`dict`, accounts never moved are absent), the duplicate window and the next id."""

    def __init__(self, max_accounts: int, transactions_per_segment: int) -> None:
        self.max_accounts = max_accounts
        self.transactions_per_segment = transactions_per_segment
        self.balances: dict[int, int] = {}
        self.next_id = 1
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
            operations = to_operations(operations)
        return [self._execute_one(Operation(*operation)) for operation in operations]

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
            if operation.user_ref and status != Status.DUPLICATE:
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

    def _execute_one(self, operation: Operation) -> Outcome:
        tx_id = self._take_id()
        first = self._firsts.get(operation.user_ref)
        if operation.user_ref and first is not None:
            return Outcome(tx_id, Status.DUPLICATE, first.tx_id, first.status)
        status = self._judge(operation)
        if operation.user_ref:
            self._firsts[operation.user_ref] = First(tx_id, status)
        if status == Status.NONE:
            source, target = sides(operation)
            if source != target:
                self._move(source, -operation.amount)
                self._move(target, operation.amount)
        return Outcome(tx_id, status)

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
