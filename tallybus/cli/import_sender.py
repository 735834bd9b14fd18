"""Sending the rows of a file that passed, in its order, until all of them are answered.

One batch is under way at a time: the next is sent when the one before is on disk. So the ledger
executes the rows in their order whatever happens in between. Batches are as large as the ledger
lets this client send. A batch that it refuses is cut, or waits as long as the ledger says. Calls
that the ledger did not run, because the time of their batch was over, are sent again before the
rows that follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.cli.output import note
from tallybus.cli.signals import SLICE_S, Endings
from tallybus.common.record import Kind, Status
from tallybus.csv.importing import ParsedCsv, RowBatch, Tally
from tallybus.errors import InvalidRequest, Overloaded, Timeout
from tallybus.functions import OperationBatch
from tallybus.operations import BatchResult, WaitLevel

if TYPE_CHECKING:
    from tallybus.batch_size import BatchSize
    from tallybus.client import Client

NOT_RUN_TRIES: Final = 3
"""How often a call is sent alone before it counts as one that the ledger does not run."""
TOLD_WAIT_S: Final = 1.0
"""A wait that is longer is told."""


class Sender:
    """`row` is the first one that is not known to be in the ledger, from 1."""

    def __init__(
        self,
        client: Client,
        parsed: ParsedCsv,
        tally: Tally,
        size: BatchSize,
        endings: Endings,
        *,
        from_row: int,
        runs_later: bool,
    ) -> None:
        """`runs_later`: the ledger tells by NOT_RUN which calls it has not run."""
        self.row = from_row
        self._client = client
        self._parsed = parsed
        self._tally = tally
        self._size = size
        self._endings = endings
        self._runs_later = runs_later
        self._told = False

    def send(self, advance: Callable[[int], None]) -> None:
        """Send all rows from `row` on; `advance` is told how many more are done."""
        while self.row <= self._parsed.rows:
            rows = self._size.rows
            for operations in self._parsed.batches(rows, self.row):
                self._endings.check()
                if not self._send(operations):
                    break  # the same rows again, in smaller batches
                self.row += len(operations)
                advance(len(operations))
                if self._size.rows != rows:
                    break

    def _send(self, operations: RowBatch) -> bool:
        """Send a batch until every row of it is answered; False: it has to be smaller."""
        outcome = self._submit(operations)
        if outcome is None:
            return False
        waiting = self._count(operations, outcome)
        tries = 0
        while waiting is not None:
            self._endings.check()
            part = _rows(waiting, slice(0, self._size.rows))
            outcome = self._submit(part)
            if outcome is None:
                continue
            left = self._count(part, outcome, last_try=tries == NOT_RUN_TRIES)
            tries = tries + 1 if left is not None and len(left) == len(part) == 1 else 0
            rest = _rows(waiting, slice(len(part), None))
            waiting = _joined(left, rest if len(rest) else None)
        return True

    def _count(
        self, operations: RowBatch, outcome: BatchResult, *, last_try: bool = False
    ) -> RowBatch | None:
        """Count what is answered; returns the calls that were not run, if any."""
        statuses = outcome.statuses
        late = statuses == np.uint8(Status.NOT_RUN)
        if last_try or not self._runs_later or not late.any():
            self._tally.add(outcome.first_tx_id, statuses)
            self._size.ran()
            return None
        answered = statuses[~late]
        if len(answered):
            self._tally.add(outcome.first_tx_id, answered)
        self._size.ran(len(answered) or len(statuses) // 2)
        return _rows(operations, late)

    def _submit(self, operations: RowBatch) -> BatchResult | None:
        """The outcome of a batch; None: it was refused, and smaller ones are to be tried."""
        while True:
            try:
                return self._outcome(operations)
            except (InvalidRequest, Overloaded) as error:
                again = self._size.refused(error, len(operations))
                if again is None:
                    raise
                self._tell(error, again.wait_s)
                self._endings.sleep(again.wait_s)
                if self._size.rows < len(operations):
                    return None

    def _outcome(self, operations: RowBatch) -> BatchResult:
        # The client sends again by itself what was lost: every row has a user_ref.
        pending = self._client.begin_batch(operations, WaitLevel.COMMITTED)
        while True:
            try:
                return pending.result(timeout=SLICE_S)
            except Timeout:
                if pending.done():
                    return pending.result()
            self._endings.check()

    def _tell(self, error: InvalidRequest | Overloaded, wait_s: float) -> None:
        if self._told and wait_s < TOLD_WAIT_S:
            return
        self._told = True
        limit = "" if error.limit is None else f" ({error.limit}: {error.allowed})"
        waits = f", after {wait_s:.1f} s" if wait_s else ""
        rows = "1 row" if self._size.rows == 1 else f"{self._size.rows} rows"
        note(
            f"row {self.row} is beyond what this client may send{limit}; "
            f"the import goes on in batches of {rows}{waits}"
        )


def _rows(operations: RowBatch, which: slice | NDArray[np.bool_]) -> RowBatch:
    """Some rows of a batch, with their parameters."""
    if not isinstance(operations, OperationBatch):
        return operations[which]
    is_call = operations.records["kind"] == np.uint8(Kind.FUNCTION)
    chosen = np.zeros(len(is_call), np.bool_)
    chosen[which] = True
    return OperationBatch(
        operations.records[chosen], operations.names, operations.params[chosen[is_call]]
    )


def _joined(first: RowBatch | None, second: RowBatch | None) -> RowBatch | None:
    """Both, in order. They are parts of the same batch."""
    if first is None or second is None:
        return first if second is None else second
    if isinstance(first, OperationBatch) and isinstance(second, OperationBatch):
        return OperationBatch(
            np.concatenate([first.records, second.records]),
            first.names,
            np.concatenate([first.params, second.params]),
        )
    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)
    return np.concatenate([first, second])
