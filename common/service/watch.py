"""What others can see of a service: metrics, health, readiness, handshakes, long work.

The service notes what happens in its `vitals` and counts in its `meter`; `metrics.health` judges by
these notes. This module serves them over HTTP, tells them to gateways, and looks at what libzmq
says of connections. It changes nothing of the service but these notes, and never stops it. Whatever
goes wrong here, the ledger goes on without being watched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tallybus.common import logs
from tallybus.common.bus.handshakes import LOOK_NS, HandshakeReport, Handshakes
from tallybus.common.bus.messages import StageMetrics
from tallybus.common.metrics.health import Watched, readiness
from tallybus.common.metrics.packed import pack
from tallybus.common.metrics.samples import samples_of
from tallybus.common.settings import sections as configuration
from tallybus.common.settings.sections import Settings
from tallybus.common.times import NEVER_NS

if TYPE_CHECKING:
    from tallybus.common.metrics.server import MetricsServer

METRICS_NS: Final = 1_000_000_000
"""How often a service tells its metrics where the gateway has a page to show them on."""
PROGRESS_NS: Final = 1_000_000_000
"""How often the log says how far long work is, at most."""
READY_LOOK_NS: Final = 20_000_000
"""How often a service that is not ready yet looks whether it is."""


class Watch:
    """Of one service. The loop calls `tell_metrics` and `look_at_handshakes` once each is due."""

    def __init__(
        self,
        service: Watched,
        settings: Settings,
        handshakes: Handshakes,
        tell: Callable[[StageMetrics], None],
    ) -> None:
        tells = configuration.page_address(settings) is not None
        self.metrics_due_ns = 0 if tells else NEVER_NS
        self.handshakes_due_ns = 0
        self._ready_due_ns = 0
        self._service = service
        self._tell = tell
        self._handshakes = handshakes
        self._report = HandshakeReport(service.log, service.vitals.refused)
        self._address = configuration.metrics_address(settings, service.stage)
        self._server: MetricsServer | None = None
        self._started = time.time()

    @property
    def wanted(self) -> bool:
        """Whether anybody is shown what the service counts."""
        return self._address is not None or self.metrics_due_ns != NEVER_NS

    def serve(self) -> None:
        """Answer /metrics, /healthz and /readyz from now on, if that is asked for."""
        if self._address is None:
            return
        # Not for those who do without: the exposition alone takes 9 MB.
        from tallybus.common.metrics.exposition import serve

        self._server = serve(self._service, self._address)

    def tell_metrics(self, now_ns: int) -> None:
        """Hand the service's numbers to whoever shows them on a page."""
        service = self._service
        self.metrics_due_ns = now_ns + METRICS_NS
        try:
            self._tell(
                StageMetrics(
                    stage=service.stage,
                    incarnation=service.core.incarnation if service.vitals.prepared else 0,
                    time=time.time_ns(),
                    reasons=readiness(service, now_ns).facts["reasons"],
                    samples=pack(samples_of(service, self._started, now_ns)),
                )
            )
        except Exception:
            self.metrics_due_ns = NEVER_NS
            service.log.exception("metrics are not told to the gateway's page any more")

    def look_at_handshakes(self, now_ns: int) -> None:
        """Tell of connections between services that do not come about, and begin them anew."""
        self.handshakes_due_ns = now_ns + LOOK_NS
        if self._handshakes:
            self._report.take(self._handshakes.look(), now_ns / 1e9)

    def became_ready(self) -> bool:
        """Whether the service is ready for the first time. Then the log says so: as soon as
        /readyz does, and not before."""
        now_ns = time.monotonic_ns()
        if now_ns < self._ready_due_ns:
            return False
        if not readiness(self._service, now_ns).good:
            self._ready_due_ns = now_ns + READY_LOOK_NS
            return False
        self._service.vitals.ready_since = time.monotonic()
        self._service.log.info("ready")
        return True

    def report_progress(self, what: str) -> Callable[[int, int], None]:
        """A callback for long work in place of turns: it is told how many bytes are done, and how
        many there are in all. The log says so at most once a second."""
        told_ns = time.monotonic_ns()

        def report(done: int, total: int) -> None:
            nonlocal told_ns
            now = time.monotonic_ns()
            self._service.vitals.working(now, what, done, total)
            if now >= self.metrics_due_ns:
                self.tell_metrics(now)
            if now >= self.handshakes_due_ns:
                self.look_at_handshakes(now)
            if now - told_ns >= PROGRESS_NS:
                told_ns = now
                share = round(100 * done / total, 1) if total else 100.0
                self._service.log.info(what, extra=logs.fields(percent=share, bytes=done, of=total))

        return report

    def close(self) -> None:
        """Serve nothing any more. May be called again."""
        if self._server is not None:
            self._server.close()
            self._server = None
