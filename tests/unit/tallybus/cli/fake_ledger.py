"""A ledger in memory with the methods of `Client` that the command line uses.

Rules as in the specification of the built-in operations, in plain Python; the duplicate window is
endless.
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike

from tallybus.common.record import Kind, Level, Stage, Status
from tallybus.errors import TallybusError
from tallybus.operations import (
    Balances,
    BatchResult,
    Operation,
    Operations,
    Result,
    TransactionStatuses,
    encode_operations,
    status_of,
)
from tallybus.pipeline import GatewayInfo, LedgerTime, PipelineIndex


class FakePending:
    def __init__(self, outcome: BatchResult) -> None:
        self._outcome = outcome

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> BatchResult:
        return self._outcome


class FakeLedger:
    """`opened` has the endpoints and timeouts it was opened with, `keys` the key files, `sizes` the
    size of every batch.

    `failures[n]` is raised instead of taking the n-th submit (from 0).
    """

    def __init__(self, max_accounts: int = 10_000_000, max_batch: int = 65_536) -> None:
        self.max_accounts = max_accounts
        self.max_batch = max_batch
        self.balances: Counter[int] = Counter()
        self.statuses: list[int] = []
        self.links: list[int] = []
        self.refs: dict[int, int] = {}
        self.opened: list[tuple[str, float]] = []
        self.keys: list[str | None] = []
        self.sizes: list[int] = []
        self.levels: list[Level] = []
        self.failures: dict[int, BaseException] = {}
        self.unreachable: TallybusError | None = None
        self.min_tx_ids: list[int | None] = []
        self.time = LedgerTime(1_700_000_000 * 10**9, 1_700_000_000 * 10**9, held=False)

    def __enter__(self) -> FakeLedger:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def open(self, endpoint: str, timeout_s: float, key: str | None = None) -> FakeLedger:
        """Takes the place of `tallybus.cli.connect.open_client`."""
        self.opened.append((endpoint, timeout_s))
        self.keys.append(key)
        return self

    def gateway_info(self, *, timeout: float | None = None) -> GatewayInfo:
        self._reach()
        return GatewayInfo(1, 1, self.max_batch, self.max_accounts)

    def submit_and_wait(self, operation: Operation, level: Level = Level.COMMITTED) -> Result:
        return self.submit_batch([operation], level)[0]

    def begin_batch(self, operations: Operations, wait: Level = Level.COMMITTED) -> FakePending:
        return FakePending(self.submit_batch(operations, wait))

    def submit_batch(self, operations: Operations, wait: Level = Level.COMMITTED) -> BatchResult:
        self._reach()
        error = self.failures.pop(len(self.sizes), None)
        if error is not None:
            raise error
        records = encode_operations(operations).records
        assert len(records) <= self.max_batch
        first = len(self.statuses) + 1
        for kind, ref, account, counterparty, amount in zip(
            *(
                records[name].tolist()
                for name in ("kind", "user_ref", "account", "counterparty", "amount")
            ),
            strict=True,
        ):
            self._execute(kind, ref, account, counterparty, amount)
        self.sizes.append(len(records))
        self.levels.append(wait)
        statuses = np.array(self.statuses[first - 1 :], np.uint8)
        links = np.array(self.links[first - 1 :], np.uint64)
        ids = np.arange(first, first + len(records), dtype=np.uint64)
        if wait < Level.COMPUTED:
            statuses, links = np.zeros_like(statuses), np.zeros_like(links)
        return BatchResult(first, np.where(links, links, ids), statuses, wait, links)

    def get_balances(self, accounts: ArrayLike, min_tx_id: int | None = None) -> Balances:
        self._reach()
        self.min_tx_ids.append(min_tx_id)
        wanted = np.asarray(accounts, np.uint64)
        held = np.array([self.balances[account] for account in wanted.tolist()], np.int64)
        return Balances(wanted, held, len(self.statuses))

    def get_statuses(self, tx_ids: ArrayLike, min_tx_id: int | None = None) -> TransactionStatuses:
        self._reach()
        self.min_tx_ids.append(min_tx_id)
        wanted = np.asarray(tx_ids, np.uint64)
        known = wanted <= len(self.statuses)
        at = np.where(known, wanted - np.uint64(1), 0).astype(np.int64)
        statuses = np.where(known, np.array([*self.statuses, 0], np.uint8)[at], 0)
        links = np.where(known, np.array([*self.links, 0], np.uint64)[at], 0)
        stages = np.where(known, int(Stage.ON_SNAPSHOT), int(Stage.UNKNOWN))
        stages[known & (statuses != 0)] = Stage.ERROR
        return TransactionStatuses(
            wanted,
            stages.astype(np.uint8),
            statuses.astype(np.uint8),
            links.astype(np.uint64),
            np.zeros(len(wanted), np.uint8),
        )

    def clock(self) -> LedgerTime:
        self._reach()
        return self.time

    def accept_clock(self) -> LedgerTime:
        assert self.time.held, "it was not asked before"
        self.time = LedgerTime(self.time.wall_ns, self.time.wall_ns, held=False)
        return self.time

    def pipeline_index(self) -> PipelineIndex:
        self._reach()
        last = len(self.statuses)
        return PipelineIndex(last, last, last, last, 3)

    def wait_for(self, tx_id: int, level: Level = Level.COMMITTED) -> Level:
        assert tx_id <= len(self.statuses)
        return level

    def status_names(self) -> list[str]:
        """Names of the statuses of all transactions, in order."""
        return [
            status.name for status in map(status_of, self.statuses) if isinstance(status, Status)
        ]

    def _reach(self) -> None:
        if self.unreachable is not None:
            raise self.unreachable

    def _execute(self, kind: int, ref: int, account: int, counterparty: int, amount: int) -> None:
        link = self.refs.get(ref, 0) if ref else 0
        if link:
            status = Status.DUPLICATE
        else:
            if ref:
                self.refs[ref] = len(self.statuses) + 1
            status = self._apply(kind, account, counterparty, amount)
        self.statuses.append(int(status))
        self.links.append(link)

    def _apply(self, kind: int, account: int, counterparty: int, amount: int) -> Status:
        if kind not in (Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER):
            return Status.INVALID_OPERATION
        if not 1 <= amount < 2**63:
            return Status.INVALID_OPERATION
        source, target = {
            Kind.DEPOSIT: (0, account),
            Kind.WITHDRAWAL: (account, 0),
            Kind.TRANSFER: (account, counterparty),
        }[Kind(kind)]
        if max(source, target) >= self.max_accounts:
            return Status.ACCOUNT_LIMIT_EXCEEDED
        if source == target:
            return Status.NONE
        if source and self.balances[source] < amount:
            return Status.INSUFFICIENT_FUNDS
        if self.balances[source] - amount < -(2**63) or self.balances[target] + amount >= 2**63:
            return Status.BALANCE_OVERFLOW
        self.balances[source] -= amount
        self.balances[target] += amount
        return Status.NONE
