"""What the log stage counts beside what every stage does: bytes, syncs, and the active segment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from tallybus.common.metrics.counters import Meter, Sample, times

if TYPE_CHECKING:
    from tallybus.services.wal.core import WalCore
    from tallybus.services.wal.log import Log


class Measured(Protocol):
    """What is read of a log stage."""

    core: WalCore

    @property
    def opened(self) -> Log:
        """The log that it writes."""


class WalMeter(Meter):
    """Counters of one log stage. `sync_seconds` belongs to the committer's thread."""

    def __init__(self, service: Measured) -> None:
        super().__init__()
        self.sync_seconds = times()
        self._service = service

    def samples(self) -> Iterator[Sample]:
        log = self._service.opened
        capacity = log.transactions_per_segment
        durable_index = self._service.core.durable_index
        written = log.written  # after the durable index, so that it is not less
        # A full segment is closed at once: the active one has the rest.
        segment, transactions = divmod(written.last_id, capacity)
        yield Sample("tallybus_log_written_bytes_total", written.position)
        yield Sample("tallybus_log_sync_seconds", self.sync_seconds)
        yield Sample("tallybus_log_unsynced_transactions", written.last_id - durable_index)
        yield Sample("tallybus_log_segment", segment + 1)
        yield Sample("tallybus_log_segment_transactions", transactions)
        yield Sample("tallybus_log_segment_capacity_transactions", capacity)
