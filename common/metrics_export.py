"""A service's counters as Prometheus text, read when somebody asks: /metrics, /healthz, /readyz.

Imported only by services whose metrics are on: the Prometheus client library takes 9 MB. Runs in
the thread of the HTTP server, reads the service's numbers while its own thread goes on changing
them, and changes none.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tallybus.common import health
from tallybus.common.metrics import METRICS, Histogram, Sample, metrics_of
from tallybus.common.metrics_server import MetricsServer, Response

if TYPE_CHECKING:
    from tallybus.common.frames import StageStatus
    from tallybus.common.health import Verdict
    from tallybus.common.link import LinkReceiver, LinkSender
    from tallybus.common.service import Shell
    from tallybus.common.stage import StageCore

_JSON: Final = "application/json"


def serve(shell: Shell, address: tuple[str, int]) -> MetricsServer:
    """Start to serve what `shell` counts. Close the server before the shell is gone."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(shell))
    ProcessCollector(registry=registry)

    def respond(path: str, accept: str) -> Response | None:
        now_ns = time.monotonic_ns()
        if path == "/metrics":
            encode, content_type = choose_encoder(accept)
            return Response(200, encode(registry), content_type)
        if path == "/healthz":
            return _told(health.health(shell, now_ns))
        if path == "/readyz":
            return _told(health.readiness(shell, now_ns))
        return None

    server = MetricsServer(address, respond, shell.log)
    server.start()
    return server


def _told(verdict: Verdict) -> Response:
    body = json.dumps(verdict.facts).encode() + b"\n"
    return Response(200 if verdict.good else 503, body, _JSON)


class ServiceCollector(Collector):
    """Reads one service's counters at the moment of a scrape."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._started = time.time()

    def describe(self) -> list[Metric]:
        """Nothing: there are no other collectors whose names could be the same."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families of this service's metrics, also those that have no value yet."""
        found: dict[str, list[Sample]] = {}
        for sample in self._samples():
            found.setdefault(METRICS[sample.name].name, []).append(sample)
        stage = self._shell.stage
        for metric in metrics_of(stage):
            labels = ("stage", *metric.labels)
            values = [((stage, *each.labels), each.value) for each in found.get(metric.name, ())]
            yield _family(metric.name, metric.type, metric.help, labels, values)
            # Lets go of the interpreter: the service's own thread goes first.
            time.sleep(0)

    def _samples(self) -> Iterator[Sample]:
        shell = self._shell
        now_ns = time.monotonic_ns()
        vitals = shell.vitals
        version = getattr(sys.modules["tallybus"], "__version__", "")
        yield Sample("tallybus_build_info", 1, (version, platform.python_version()))
        yield Sample("tallybus_start_time_seconds", self._started)
        yield Sample("tallybus_restarts_total", shell.restarts)
        yield Sample("tallybus_ready", int(health.readiness(shell, now_ns).good))
        yield Sample("tallybus_loop_idle_seconds", max(0, now_ns - vitals.turned_ns) / 1e9)
        for peer in health.DEPENDS_ON[shell.stage]:
            heard_ns = vitals.heard.get(peer)
            if heard_ns is not None:
                yield Sample("tallybus_heard_seconds", max(0, now_ns - heard_ns) / 1e9, (peer,))
        yield Sample("tallybus_malformed_messages_total", shell.malformed)
        meter = shell.meter
        if meter is not None:
            yield Sample("tallybus_batch_transactions", meter.batch_transactions)
            yield Sample("tallybus_batch_seconds", meter.batch_seconds)
        if health.state(shell) == "recovering" or not vitals.prepared:
            return  # its numbers mean nothing yet
        yield from _of_core(shell)
        if meter is not None:
            yield from meter.samples()


def _of_core(shell: Shell) -> Iterator[Sample]:
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


def _status(core: StageCore) -> StageStatus:
    try:
        return core.status()
    except RuntimeError:
        return core.status()  # a new gateway was taken into its table while that was read


def _cursor(link: LinkSender[Any]) -> int:
    try:
        return link.cursor
    except IndexError:
        return link.end  # what it pointed to was let go of at this moment


def _bound(value: float) -> str:
    return "+Inf" if math.isinf(value) else repr(value)


def _family(
    name: str,
    kind: str,
    text: str,
    labels: tuple[str, ...],
    values: list[tuple[tuple[str, ...], float | Histogram]],
) -> Metric:
    if kind == "histogram":
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for given, value in values:
            assert isinstance(value, Histogram)
            rows = [(_bound(bound), count) for bound, count in value.buckets()]
            histogram.add_metric(given, rows, value.sum)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily = (
        CounterMetricFamily(name, text, labels=labels)
        if kind == "counter"
        else GaugeMetricFamily(name, text, labels=labels)
    )
    for given, value in values:
        assert not isinstance(value, Histogram)
        family.add_metric(given, value)
    return family
