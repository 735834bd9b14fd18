"""The read side's state: balances, functions, and the outcome of every transaction of the active
window.

One thread owns a `ReadState`: it applies durable transactions in order of their ids and answers
reads in between, so a read always sees the state after some whole batch. No I/O: statuses that have
left the window come from a `ColdStatuses` that the shell passes in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.batch import Batch
from tallybus.common.errors import ServiceError
from tallybus.common.functions.registry import (
    FunctionRegistry,
    RegistrationError,
    registrations,
)
from tallybus.common.memory import account_array, lazy_zeros
from tallybus.common.record import STATUS_DTYPE, Stage, Status
from tallybus.common.snapshot.balances import FrozenBalances, Snapshot, chunk_count, freeze_balances
from tallybus.common.wal.replay import ReplayError, replay_balances
from tallybus.services.snapshotter.core import QueryRefused

_WINDOW_SETTING: Final = "ledger.transactions_per_segment"

ColdStatuses = Callable[[NDArray[np.uint64]], NDArray[Any]]
"""Looks up ids uint64[k] that left the window: gives STATUS_DTYPE[k] or raises QueryRefused."""


class AccountOutOfRange(QueryRefused):
    """A read names an account that cannot exist. Fields: `account`, `max_accounts`, `details`."""

    def __init__(self, account: int, max_accounts: int) -> None:
        super().__init__(
            f"account {account} is out of range: accounts go from 0 to {max_accounts - 1}",
            {"account": account, "max_accounts": max_accounts},
        )
        self.account = account
        self.max_accounts = max_accounts


class StatusOutOfWindow(QueryRefused):
    """A status is no longer in memory, and there is no log to ask. Fields: `tx_id`, `oldest`."""

    def __init__(self, tx_id: int, oldest: int) -> None:
        super().__init__(
            f"transaction {tx_id} is older than the active window, which begins at {oldest}",
            {"tx_id": tx_id, "oldest": oldest},
        )
        self.tx_id = tx_id
        self.oldest = oldest


class ReadState:
    """Balances and statuses after transaction `index`. Memory is taken only by what is used.

    Public: `index` (id of the last applied transaction), and to be read only: `balances`
    int64[max_accounts], `touched` uint8[chunks], `functions`: all of them up to `index`.
    """

    def __init__(
        self,
        max_accounts: int,
        transactions_per_segment: int,
        *,
        cold: ColdStatuses | None = None,
    ) -> None:
        self.max_accounts = max_accounts
        self.transactions_per_segment = transactions_per_segment
        self.index = 0
        self.balances = account_array(max_accounts)
        self.touched = np.zeros(chunk_count(max_accounts), np.uint8)
        self.functions = FunctionRegistry()
        self._cold = cold
        self._failed: ServiceError | None = None
        self._first_status = 1
        self._window = 2 * transactions_per_segment
        self._statuses = lazy_zeros(self._window, np.uint8, _WINDOW_SETTING)
        # How far back a duplicate's first transaction is, and why any other one failed. Only a slot
        # with a status is read, and whatever has one wrote it, so what an older id left does no
        # harm.
        self._details: NDArray[np.uint32] | NDArray[np.uint64]
        if self._window < 2**32:
            self._details = lazy_zeros(self._window, np.uint32, _WINDOW_SETTING)
        else:
            self._details = lazy_zeros(self._window, np.uint64, _WINDOW_SETTING)

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot, *, cold: ColdStatuses | None = None) -> ReadState:
        """The state that a snapshot holds; takes its arrays over. Their statuses are cold."""
        state = cls.__new__(cls)
        # The arrays of the snapshot stand in for fresh ones, which cost nothing until used.
        cls.__init__(
            state, len(snapshot.balances), snapshot.fields.transactions_per_segment, cold=cold
        )
        state.balances = snapshot.balances
        state.touched = snapshot.touched
        state.functions = snapshot.functions
        state.index = snapshot.fields.last_tx_id
        state._first_status = state.index + 1
        return state

    @property
    def oldest_status(self) -> int:
        """The oldest transaction id whose status is in memory (`index` + 1 when none is)."""
        return max(self._first_status, self.index - self._window + 1)

    def apply(self, batch: Batch) -> None:
        """Applies a batch, which must be the next one.

        Raises ReplayError and RegistrationError; the service must then end,
        because a part may have been applied.
        """
        if self._failed is not None:
            raise self._failed
        first_id, records, links = batch.first_id, batch.records, batch.links
        count = len(records)
        if first_id != self.index + 1:
            raise self._fail(first_id, f"the next transaction is {self.index + 1}")
        if count == 0:
            return
        failed = np.flatnonzero(records["status"])
        duplicates = failed[records["status"][failed] == Status.DUPLICATE]
        self._check_links(first_id, duplicates, links)
        try:
            for version in registrations(batch):
                self.functions.apply(version)
            replay_balances(batch, self.balances, self.touched)
        except (ReplayError, RegistrationError) as error:
            self._failed = error
            raise
        self._remember(first_id, records, failed, duplicates, links)
        self.index = first_id + count - 1

    def get_balances(self, accounts: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Balances int64[k] of `accounts` uint64[k], as of `index`. Raises AccountOutOfRange."""
        outside = accounts >= self.max_accounts
        if outside.any():
            raise AccountOutOfRange(int(accounts[int(outside.argmax())]), self.max_accounts)
        return self.balances[accounts.astype(np.intp)]

    def get_statuses(self, ids: NDArray[np.uint64]) -> NDArray[Any]:
        """STATUS_DTYPE[k] of the transactions `ids` uint64[k].

        The stage is ON_SNAPSHOT or, with a status, ERROR; of 0 and ids above `index`, UNKNOWN.
        Raises QueryRefused when ids older than the window cannot be looked up.
        """
        result = np.zeros(len(ids), STATUS_DTYPE)
        oldest = self.oldest_status
        applied = (ids > 0) & (ids <= self.index)
        hot = np.flatnonzero(applied & (ids >= oldest))
        hot_ids = ids[hot]
        slots = ((hot_ids - np.uint64(1)) % np.uint64(self._window)).astype(np.intp)
        statuses = self._statuses[slots]
        result["status"][hot] = statuses
        result["stage"][hot] = np.where(statuses == Status.NONE, Stage.ON_SNAPSHOT, Stage.ERROR)
        linked = np.flatnonzero(statuses == Status.DUPLICATE)
        result["duplicate_of"][hot[linked]] = hot_ids[linked] - self._details[slots[linked]]
        reasoned = np.flatnonzero((statuses != Status.NONE) & (statuses != Status.DUPLICATE))
        result["reason"][hot[reasoned]] = self._details[slots[reasoned]]
        cold = np.flatnonzero(applied & (ids < oldest))
        if len(cold):
            if self._cold is None:
                raise StatusOutOfWindow(int(ids[cold[0]]), oldest)
            result[cold] = self._cold(ids[cold])
        return result

    def freeze(self) -> FrozenBalances:
        """A copy of the used chunks and all functions, as of `index`."""
        if self._failed is not None:
            raise self._failed
        return freeze_balances(self.balances, self.touched, self.functions.versions())

    def _check_links(
        self, first_id: int, duplicates: NDArray[np.intp], links: NDArray[np.uint64]
    ) -> None:
        if len(links) != len(duplicates):
            raise self._fail(
                first_id, f"its batch has {len(duplicates)} duplicates and {len(links)} links"
            )
        if len(links) == 0:
            return
        ids = duplicates.astype(np.uint64) + np.uint64(first_id)
        n = np.uint64(self.transactions_per_segment)
        one = np.uint64(1)
        # Link 0 becomes the largest number and fails the first comparison.
        wrong = (links - one >= ids - one) | ((ids - one) // n - (links - one) // n > one)
        if wrong.any():
            at = int(wrong.argmax())
            raise self._fail(int(ids[at]), f"it is linked to {int(links[at])} as its first")

    def _remember(
        self,
        first_id: int,
        records: NDArray[Any],
        failed: NDArray[np.intp],
        duplicates: NDArray[np.intp],
        links: NDArray[np.uint64],
    ) -> None:
        skip = max(0, len(records) - self._window)
        statuses = records["status"][skip:]
        slot = (first_id - 1 + skip) % self._window
        head = min(len(statuses), self._window - slot)
        self._statuses[slot : slot + head] = statuses[:head]
        self._statuses[: len(statuses) - head] = statuses[head:]
        if len(failed):
            details = records["reason"][failed].astype(np.uint64)
            if len(duplicates):
                ids = duplicates.astype(np.uint64) + np.uint64(first_id)
                details[np.searchsorted(failed, duplicates)] = ids - links
            # Of two ids of this batch that share a slot, the later one is written last.
            slots = (failed + (first_id - 1)) % self._window
            self._details[slots] = details

    def _fail(self, tx_id: int, reason: str) -> ReplayError:
        error = self._failed = ReplayError(tx_id, reason)
        return error
