"""What the gateway counts: clients' requests, by type and outcome, and how long they waited."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

from tallybus.common.metrics.counters import Histogram, Meter, Sample, times
from tallybus.common.protocol import ErrorCode
from tallybus.common.record import Level
from tallybus.services.gateway.clients.protocol import (
    ClientRequest,
    Read,
    Submit,
    Wait,
)
from tallybus.services.gateway.connections.table import REASONS

if TYPE_CHECKING:
    from tallybus.services.gateway.clients.answers import AnswerQueue
    from tallybus.services.gateway.connections.guard import ConnectionGuard
    from tallybus.services.gateway.core import GatewayCore

CLIENTS_NS: Final = 60_000_000_000
"""How long a client counts after its last request, at least."""
MAX_CLIENTS: Final = 65_536
"""Clients that are told apart within that time."""
MALFORMED: Final = "malformed"
NO_KEY: Final = "(no key)"
"""All clients without a key, together. No key can have this name."""


class Measured(Protocol):
    """What is read of a gateway."""

    core: GatewayCore
    limited: dict[str, int]

    @property
    def guard(self) -> ConnectionGuard | None:
        """What watches over connections, where they come over the network."""

    @property
    def answers(self) -> AnswerQueue:
        """Answers on their way to clients."""


class GatewayMeter(Meter):
    """Counters of one gateway.

    `answered` is called for each request of a client, which may hold many operations.
    """

    def __init__(self, service: Measured) -> None:
        super().__init__()
        self.operations = 0
        self._service = service
        # Told from the start, as 0: rates of them are right from the first one on.
        self._outcomes: dict[tuple[type[ClientRequest], str, str], int] = {
            (Submit, "", outcome): 0 for outcome in ("ok", ErrorCode.OVERLOADED, ErrorCode.TIMEOUT)
        }
        self._malformed: dict[str, int] = {}
        self._work: dict[str, int] = {}
        self._waits: dict[Level | None, Histogram] = {level: times() for level in (*Level, None)}
        self._clients: set[bytes] = set()
        self._clients_before: set[bytes] = set()
        self._clients_ns = time.monotonic_ns()

    def answered(self, request: ClientRequest | None, outcome: str) -> None:
        """A request was answered; None: one that could not be read."""
        if request is None:
            self._malformed[outcome] = self._malformed.get(outcome, 0) + 1
            return
        kind = request.__class__
        what = request.what if kind is Read else ""  # type: ignore[attr-defined]
        key = (kind, what, outcome)
        self._outcomes[key] = self._outcomes.get(key, 0) + 1
        if request.held_ns:
            level = request.level if isinstance(request, Submit | Wait) else None
            self._waits[level].observe(time.monotonic_ns() - request.held_ns)
            if outcome == "ok" and isinstance(request, Submit):
                self.operations += request.count
        # An empty id is no client's on the network: the page's own.
        if request.client and len(self._clients) < MAX_CLIENTS:
            self._clients.add(request.client)

    def worked(self, key: str, took_ns: int) -> None:
        """The calls of a client have taken so much of the transactor's time; `key`: its name."""
        self._work[key] = self._work.get(key, 0) + took_ns

    def samples(self) -> Iterator[Sample]:
        service, core = self._service, self._service.core
        progress = core.progress
        # The later stages first, so that none is ahead of the one before it.
        snapshot, committed = progress.snapshot, progress.committed
        computed, sequenced = progress.computed, progress.sequenced
        yield Sample("tallybus_pipeline_index", sequenced, ("sequenced",))
        yield Sample("tallybus_pipeline_index", computed, ("computed",))
        yield Sample("tallybus_pipeline_index", committed, ("committed",))
        yield Sample("tallybus_pipeline_index", snapshot, ("snapshot",))
        for (kind, what, outcome), count in tuple(self._outcomes.items()):
            labels = (what or kind.__name__.lower().removesuffix("read"), outcome)
            yield Sample("tallybus_requests_total", count, labels)
        for outcome, count in tuple(self._malformed.items()):
            yield Sample("tallybus_requests_total", count, (MALFORMED, outcome))
        for level, waits in self._waits.items():
            label = "read" if level is None else level.name.lower()
            yield Sample("tallybus_request_seconds", waits, (label,))
        yield Sample("tallybus_submitted_operations_total", self.operations)
        yield Sample("tallybus_requests_held", len(core.desk))
        yield Sample("tallybus_clients", self._clients_heard())
        guard = service.guard
        yield Sample("tallybus_connections", 0 if guard is None else len(guard.connections))
        cuts = dict.fromkeys(REASONS, 0) if guard is None else guard.cuts
        for reason, count in tuple(cuts.items()):
            yield Sample("tallybus_cut_connections_total", count, (reason,))
        for limit, count in tuple(service.limited.items()):
            yield Sample("tallybus_limited_requests_total", count, (limit,))
        for key, took_ns in tuple(self._work.items()):
            yield Sample("tallybus_client_work_seconds_total", took_ns / 1e9, (key or NO_KEY,))
        work = core.submissions.work
        yield Sample("tallybus_operations_waiting", work.operations)
        yield Sample("tallybus_work_outstanding_seconds", work.outstanding_ns / 1e9)
        yield Sample("tallybus_answers_dropped_total", service.answers.dropped)

    def _clients_heard(self) -> int:
        now_ns = time.monotonic_ns()
        heard = len(self._clients.copy() | self._clients_before)
        if now_ns - self._clients_ns >= CLIENTS_NS:
            self._clients_ns = now_ns
            self._clients_before, self._clients = self._clients, set()
        return heard
