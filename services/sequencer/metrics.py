"""What the sequencer tells beside what every stage does: the ledger's time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from tallybus.common.metrics.counters import Meter, Sample

if TYPE_CHECKING:
    from tallybus.services.sequencer.core import SequencerCore


class Measured(Protocol):
    """What is read of a sequencer."""

    core: SequencerCore


class SequencerMeter(Meter):
    """Of one sequencer."""

    def __init__(self, service: Measured) -> None:
        super().__init__()
        self._service = service

    def samples(self) -> Iterator[Sample]:
        if not self._service.core.running:
            return  # it has no time yet
        clock = self._service.core.clock
        yield Sample("tallybus_ledger_time_seconds", clock.time_ns / 1e9)
        yield Sample("tallybus_clock_ahead_seconds", clock.ahead_ns / 1e9)
        yield Sample("tallybus_clock_held", int(clock.held))
