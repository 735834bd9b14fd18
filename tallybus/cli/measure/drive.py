"""Drives a ledger with a workload from one thread, and keeps the time.

All connections together keep a fixed number of requests under way. Answers are taken in the order
of the requests: the ledger gives ids in that order and its indexes only rise, so the oldest request
is answered first, and a wait for it costs the others nothing.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tallybus.common.record import Level
from tallybus.csv.importing import status_name

if TYPE_CHECKING:
    from tallybus.client import Client, Pending
    from tallybus.functions import OperationBatch


class Source(Protocol):
    """Where operations come from: see `workload.Workload.take`."""

    def take(self, count: int) -> NDArray[np.void] | OperationBatch:
        """The next `count` operations."""
        ...


@dataclass(slots=True)
class Measured:
    """What was sent and answered.

    `request_ns` has the time of every request, from before it was handed to the client until its
    answer was there, in order; `cpu_seconds` is what this process used meanwhile, clients included.
    `rejected` counts operations by status name.
    """

    ops: int = 0
    failed: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    first_tx_id: int = 0
    last_tx_id: int = 0
    request_ns: array[int] = field(default_factory=lambda: array("q"))
    rejected: dict[str, int] = field(default_factory=dict)

    @property
    def ops_per_s(self) -> float:
        """Operations answered per second."""
        return self.ops / self.seconds if self.seconds > 0 else 0.0

    def count_failures(self, statuses: NDArray[np.uint8]) -> None:
        """Count the operations whose status is not NONE: uint8[n]."""
        counts = np.bincount(statuses, minlength=256)
        counts[0] = 0
        for code in np.flatnonzero(counts).tolist():
            name = status_name(code)
            self.rejected[name] = self.rejected.get(name, 0) + int(counts[code])
            self.failed += int(counts[code])


def drive(
    clients: Sequence[Client],
    source: Source,
    *,
    ops: int,
    batch: int,
    window: int,
    level: Level,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """Send `ops` operations in batches of `batch`, over the clients in turn.

    At any time `window` requests are under way, as evenly over the clients as goes. `progress` is
    told how many operations were answered since it was last told. Raises what the clients raise, as
    soon as one request fails.
    """
    measured = Measured()
    under_way: deque[tuple[Pending, int, int]] = deque()
    times = measured.request_ns.append
    clock = time.perf_counter_ns
    left = ops
    turn = 0
    reported = 0
    cpu = time.process_time()
    started = clock()
    while left or under_way:
        while left and len(under_way) < window:
            count = min(batch, left)
            records = source.take(count)
            begun = clock()
            under_way.append((clients[turn].begin_batch(records, wait=level), begun, count))
            left -= count
            turn = turn + 1 if turn + 1 < len(clients) else 0
        pending, begun, count = under_way.popleft()
        result = pending.result()
        times(clock() - begun)
        measured.ops += count
        if np.count_nonzero(result.statuses):
            measured.count_failures(result.statuses)
        measured.last_tx_id = result.first_tx_id + count - 1
        if not measured.first_tx_id:
            measured.first_tx_id = result.first_tx_id
        if progress is not None and measured.ops - reported >= 100 * batch:
            progress(measured.ops - reported)
            reported = measured.ops
    measured.seconds = (clock() - started) / 1e9
    measured.cpu_seconds = time.process_time() - cpu
    if progress is not None:
        progress(measured.ops - reported)
    return measured
