"""A service's counters as Prometheus text, read when somebody asks: /metrics, /healthz, /readyz.

Only this module loads the Prometheus client library, which takes 9 MB. So a service imports it when
its metrics are on, and not before. It runs in the thread of the HTTP server. It reads the service's
numbers while the service's own thread goes on changing them, and changes none.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tallybus.common.metrics import health
from tallybus.common.metrics.counters import Histogram, Sample
from tallybus.common.metrics.samples import samples_of
from tallybus.common.metrics.server import MetricsServer, Response
from tallybus.common.metrics.table import METRICS, metrics_of

if TYPE_CHECKING:
    from tallybus.common.metrics.health import ProbeAnswer, Watched

_JSON: Final = "application/json"


def serve(shell: Watched, address: tuple[str, int]) -> MetricsServer:
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


def _told(answer: ProbeAnswer) -> Response:
    body = json.dumps(answer.facts).encode() + b"\n"
    return Response(200 if answer.good else 503, body, _JSON)


class ServiceCollector(Collector):
    """Reads one service's counters at the moment of a scrape."""

    def __init__(self, shell: Watched) -> None:
        self._shell = shell
        self._started = time.time()

    def describe(self) -> list[Metric]:
        """Nothing: there are no other collectors whose names could be the same."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families of this service's metrics, also those that have no value yet."""
        found: dict[str, list[Sample]] = {}
        for sample in samples_of(self._shell, self._started, time.monotonic_ns()):
            found.setdefault(METRICS[sample.name].name, []).append(sample)
        stage = self._shell.stage
        for metric in metrics_of(stage):
            labels = ("stage", *metric.labels)
            values = [((stage, *each.labels), each.value) for each in found.get(metric.name, ())]
            yield _family(metric.name, metric.type, metric.help, labels, values)
            # Lets go of the interpreter: the service's own thread goes first.
            time.sleep(0)


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
