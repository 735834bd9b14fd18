"""What a service's counters say at this moment: samples of its metrics, in the table's terms.

Read by the HTTP server's thread for /metrics, and by the service's own for the gateway's page.
Reads the service's numbers, which its own thread may be changing meanwhile, and changes none.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tallybus.common.metrics import health
from tallybus.common.metrics.counters import Sample
from tallybus.common.stages import DEPENDS_ON

if TYPE_CHECKING:
    from tallybus.common.bus.link import LinkReceiver, LinkSender
    from tallybus.common.bus.messages import StageStatus
    from tallybus.common.metrics.health import Watched, WatchedCore


def samples_of(shell: Watched, started: float, now_ns: int) -> Iterator[Sample]:
    """Every value that the service has now; `started` is Unix time, `now_ns` monotonic."""
    vitals = shell.vitals
    version = getattr(sys.modules["tallybus"], "__version__", "")
    yield Sample("tallybus_build_info", 1, (version, platform.python_version()))
    yield Sample("tallybus_start_time_seconds", started)
    yield Sample("tallybus_restarts_total", vitals.restarts)
    yield Sample("tallybus_ready", int(health.readiness(shell, now_ns).good))
    yield Sample("tallybus_loop_idle_seconds", max(0, now_ns - vitals.turned_ns) / 1e9)
    for peer in DEPENDS_ON[shell.stage]:
        heard_ns = vitals.heard.get(peer)
        if heard_ns is not None:
            yield Sample("tallybus_heard_seconds", max(0, now_ns - heard_ns) / 1e9, (peer,))
    yield Sample("tallybus_malformed_messages_total", vitals.malformed)
    for reason, count in tuple(vitals.refused.items()):
        yield Sample("tallybus_refused_connections_total", count, (reason,))
    meter = shell.meter
    if meter is not None:
        yield Sample("tallybus_batch_transactions", meter.batch_transactions)
        yield Sample("tallybus_batch_seconds", meter.batch_seconds)
    if health.state(shell) == "recovering" or not vitals.prepared:
        return  # its numbers mean nothing yet
    yield from _of_core(shell)
    if meter is not None:
        yield from meter.samples()


def _of_core(shell: Watched) -> Iterator[Sample]:
    core = shell.core
    yield Sample("tallybus_term", core.term)
    status = _status(core)
    yield Sample("tallybus_index", status.index)
    yield Sample("tallybus_next_expected", status.next)
    yield Sample("tallybus_durable_index", status.durable)
    yield Sample("tallybus_retained_transactions", status.retained)
    yield Sample("tallybus_input_paused", int(status.full))
    link = core.outgoing
    if link is not None:
        # In this order: what is read later is never less than what was read before.
        expected, cursor, end = link.expected, _cursor(link), link.end
        if shell.stage in ("sequencer", "transactor", "wal"):
            yield Sample("tallybus_successor_lag_transactions", max(0, end - expected))
        yield Sample("tallybus_link_unsent", max(0, end - cursor))
        yield Sample("tallybus_link_in_flight", max(0, cursor - expected))
        yield Sample("tallybus_max_in_flight_transactions", link.capacity)
        yield Sample("tallybus_link_rewinds_total", link.rewinds)
        yield Sample("tallybus_link_resent_total", link.resent)
    receiver: LinkReceiver | None = getattr(core, "receiver", None)
    if receiver is not None:
        yield Sample("tallybus_link_gaps_total", receiver.gaps)
        yield Sample("tallybus_link_dropped_total", receiver.dropped)


def _status(core: WatchedCore) -> StageStatus:
    try:
        return core.status()
    except RuntimeError:
        return core.status()  # a new gateway was taken into its table while that was read


def _cursor(link: LinkSender[Any]) -> int:
    try:
        return link.cursor
    except IndexError:
        return link.end  # what it pointed to was let go of at this moment
