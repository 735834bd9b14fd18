"""What the snapshotter counts beside what every stage counts: snapshots, and waiting queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from tallybus.common.metrics.counters import Meter, Sample

if TYPE_CHECKING:
    from tallybus.common.settings.sections import Settings
    from tallybus.services.snapshotter.core import SnapshotterCore
    from tallybus.services.snapshotter.snapshot_writer import SnapshotWriter


class Measured(Protocol):
    """What is read of a snapshotter."""

    core: SnapshotterCore
    settings: Settings
    recovered_segment: int

    @property
    def writer(self) -> SnapshotWriter | None:
        """What writes snapshots, once there is a log."""


class SnapshotterMeter(Meter):
    """Counters of one snapshotter."""

    def __init__(self, service: Measured) -> None:
        super().__init__()
        self._service = service

    def samples(self) -> Iterator[Sample]:
        service, core = self._service, self._service.core
        yield Sample("tallybus_queries_waiting", core.parked)
        readable = core.receiver.next_id - 1
        yield Sample("tallybus_snapshot_lag_transactions", max(0, core.durable_index - readable))
        writer = service.writer
        if writer is None:
            return
        last = writer.last
        segment = service.recovered_segment if last is None else last.segment
        yield Sample("tallybus_snapshot_segment", segment)
        active = core.durable_index // service.settings.ledger.transactions_per_segment + 1
        yield Sample("tallybus_snapshot_behind_segments", active - segment)
        yield Sample("tallybus_snapshot_time_seconds", 0 if last is None else last.time)
        yield Sample("tallybus_snapshot_duration_seconds", 0 if last is None else last.seconds)
        yield Sample("tallybus_snapshot_bytes", 0 if last is None else last.size)
        yield Sample("tallybus_snapshots_total", writer.written, ("written",))
        yield Sample("tallybus_snapshots_total", writer.skipped, ("skipped",))
        yield Sample("tallybus_snapshot_writing", int(writer.busy))
