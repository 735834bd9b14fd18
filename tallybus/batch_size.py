"""How many operations go into one batch: as many as the ledger lets this client send. Pure.

For programs that send many batches one after another. `submit_batch` itself never cuts a batch,
because the ids of a batch are contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tallybus.common.protocol import IN_FLIGHT, MESSAGE_BYTES, RATE
from tallybus.common.record import RECORD_SIZE
from tallybus.errors import InvalidRequest, Overloaded

HEADER_BYTES: Final = 512
"""What a request has beside its records, about; function calls have more."""


@dataclass(frozen=True, slots=True)
class TryAgain:
    """What to do about a refusal: send again, after `wait_s` seconds, in batches of the size that
    counts by then."""

    wait_s: float


class BatchSize:
    """`rows` is how many operations the next batch may have, at least 1."""

    def __init__(self, rows: int, limits: Mapping[str, int] | None = None) -> None:
        """At most `rows`, and no more than a ping allows this client (`limits` by name; 0: any)."""
        self.rows = self._most = rows
        for name, allowed in (limits or {}).items():
            self._take(name, allowed)

    def refused(self, error: InvalidRequest | Overloaded, count: int) -> TryAgain | None:
        """A batch of `count` operations was refused, and had no effect. None: nothing helps.

        A batch that is too large is cut. One that comes too early waits as long as the ledger says,
        and so does not give up: each wait brings it further.
        """
        before = self.rows = self._most = min(self._most, count)
        if error.limit is not None and error.allowed is not None:
            self._take(error.limit, error.allowed)
        if isinstance(error, Overloaded) and error.retry_ms is not None:
            return TryAgain(error.retry_ms / 1000)
        if error.limit is None or before == 1:
            return None
        if self.rows == before:
            # It should have fitted: something else of this client's is under way.
            self.rows = self._most = before // 2
        return TryAgain(0.0)

    def ran(self, some: int | None = None) -> None:
        """The ledger ran a batch. `some`: it ran so many of its calls, and then its time was over.
        The next batches are smaller then, until one runs whole."""
        if some is None:
            self.rows = min(self._most, 2 * self.rows)
        else:
            self.rows = max(1, min(self.rows, some))

    def _take(self, name: str, allowed: int) -> None:
        if allowed <= 0:
            return
        if name == MESSAGE_BYTES:
            allowed = (allowed - HEADER_BYTES) // RECORD_SIZE
        elif name not in (IN_FLIGHT, RATE, "max_batch"):
            return  # it does not count operations
        self._most = max(1, min(self._most, allowed))
        self.rows = min(self.rows, self._most)
