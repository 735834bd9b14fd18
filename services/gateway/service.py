"""The gateway's shell: sockets around `GatewayCore`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tallybus.common import logs
from tallybus.common.buffers import Buffer
from tallybus.common.bus.messages import (
    TOPIC_EVENT,
    TOPIC_METRICS,
    TOPIC_STATUS,
    StageMetrics,
    encode,
)
from tallybus.common.bus.sockets import ClientPort, Port
from tallybus.common.functions.names import MAX_BINARY_BYTES
from tallybus.common.protocol import LIMIT_NAMES, ErrorCode
from tallybus.common.service import open_files
from tallybus.common.service.shell import Shell
from tallybus.common.settings.sections import (
    HEADER_BYTES,
    OPERATION_BYTES,
    SETTINGS,
    SettingsError,
    page_address,
)
from tallybus.common.stages import STAGES
from tallybus.services.gateway.clients.answers import AnswerQueue
from tallybus.services.gateway.clients.protocol import ClientRequest, Limits, Refusal
from tallybus.services.gateway.clients.quotas import Quotas
from tallybus.services.gateway.connections.guard import RESERVED_FILES, ConnectionGuard, allow_files
from tallybus.services.gateway.connections.table import Connections
from tallybus.services.gateway.core import GatewayCore
from tallybus.services.gateway.metrics import GatewayMeter
from tallybus.services.gateway.page.feed import Heard, Index, as_services
from tallybus.services.gateway.page.lookup import PAGE_CLIENT

if TYPE_CHECKING:
    from tallybus.services.gateway.page.page import Page

CLIENT_MESSAGES_PER_TURN: Final = 512
MONITOR_EVENTS_PER_TURN: Final = 4_096
_CONNECTIONS: Final = "gateway.max_connections"
RETRY_NS: Final = 1_000_000
"""How long answers wait that a client's connection did not take."""


class GatewayService(Shell):
    """One gateway. `endpoint` tells where clients reach it once `prepare` has returned."""

    stage = "gateway"
    core: GatewayCore
    _page: Page | None = None
    _guard: ConnectionGuard | None = None

    def prepare(self) -> None:
        settings = self.settings
        watched = page_address(settings) is not None
        self.core = GatewayCore(
            self.new_incarnation(),
            settings.bus.max_in_flight,
            self.heartbeat_ns,
            Limits(
                max_batch=settings.gateway.max_batch,
                max_reads=settings.gateway.max_reads,
                max_accounts=settings.ledger.max_accounts,
            ),
            settings.gateway.max_request_wait_ms,
            Quotas(
                settings.gateway.client_in_flight,
                settings.gateway.client_rate,
                settings.gateway.client_message_bytes,
                settings.gateway.client_work_ms,
            ),
            settings.functions.submit_ms * 1_000_000,
        )
        self._take_grants()
        self.core.denied = self._on_denied
        self.limited = dict.fromkeys(LIMIT_NAMES, 0)
        self._denials = {code: logs.Throttle() for code in (ErrorCode.FORBIDDEN, "limit")}
        self.sockets.open_successor("sequencer")
        longest = HEADER_BYTES + max(
            settings.gateway.max_batch * OPERATION_BYTES,
            settings.gateway.max_reads * 8,
            MAX_BINARY_BYTES,
        )
        self._clients: ClientPort = self.sockets.bus.clients(settings.gateway.endpoint, longest)
        self._open_guard(longest)
        self._answers = AnswerQueue(self._send_to_client)
        self.endpoint = self._clients.endpoint
        bus = self.sockets.bus
        self._snapshotter = bus.dealer("snapshotter")
        self._transactor = bus.dealer("transactor")
        self._sequencer = bus.dealer("sequencer")
        self.sockets.subscribe(
            ["sequencer", "transactor", "wal", "snapshotter"],
            [TOPIC_STATUS, TOPIC_EVENT, *([TOPIC_METRICS] if watched else [])],
            most=1024,
        )
        for asked in (self._snapshotter, self._transactor, self._sequencer):
            self.loop.read(asked, self.inbox.reply, most=256)
        self.loop.read(
            self._clients,
            self._on_client,
            lambda: not self.stopping,
            most=CLIENT_MESSAGES_PER_TURN,
        )
        if isinstance(self.meter, GatewayMeter):
            self.core.desk.answered = self.meter.answered
            self.core.worked = self.meter.worked
            self.core.submissions.gathered = self.meter.batch_transactions.observe
        self.log.info("listening", extra=logs.fields(endpoint=self.endpoint))
        if watched:
            self._open_page()

    def _open_guard(self, longest: int) -> None:
        monitor = self._clients.monitor
        if monitor is None:
            return  # not over tcp: the file system says who can connect
        wanted = self.settings.gateway.max_connections
        most = allow_files(wanted, self.log)
        if most < wanted != SETTINGS[_CONNECTIONS].default:
            # Somebody counts on so many.
            raise SettingsError(
                _CONNECTIONS,
                self.settings.origins.get(_CONNECTIONS, "default"),
                f"{wanted} connections need {wanted + RESERVED_FILES} open files, and the limit is "
                f"{open_files.allowed()}: raise it (`ulimit -n`, LimitNOFILE= of a unit), or ask "
                f"for {most} connections at most",
            )
        encrypted = self.sockets.bus.security is not None
        self._guard = ConnectionGuard(
            self._clients,
            Connections(most, longest),
            self.vitals.refused,
            self.log,
            encrypted=encrypted,
        )
        self.loop.read(Port(monitor.socket), self._guard.on_monitor, most=MONITOR_EVENTS_PER_TURN)

    @property
    def guard(self) -> ConnectionGuard | None:
        """Of the connections of clients, where they come over tcp."""
        return self._guard

    def _open_page(self) -> None:
        # Not for those who do without.
        from tallybus.services.gateway.page.page import Page

        address = page_address(self.settings)
        assert address is not None
        facts = {
            "version": getattr(sys.modules["tallybus"], "__version__", ""),
            "endpoint": self.endpoint,
            "max_accounts": self.settings.ledger.max_accounts,
        }
        self._page = Page(address, facts, self.loop.wake, self.log)
        self._page.start()

    def new_meter(self) -> GatewayMeter:
        return GatewayMeter(self)

    @property
    def answers(self) -> AnswerQueue:
        """Answers on their way to clients."""
        return self._answers

    def timeout_ns(self, now_ns: int) -> int:
        deadline = self.core.desk.next_deadline_ns()
        wait = RETRY_NS if self._answers.waiting else super().timeout_ns(now_ns)
        if (due_ns := self.core.submissions.work.due_ns(now_ns)) is not None:
            # What waits for others to be executed is looked at when their outcomes come.
            wait = min(wait, max(RETRY_NS, due_ns - now_ns))
        if self._guard is not None and (look_ns := self._guard.next_ns()) is not None:
            wait = max(0, min(wait, look_ns - now_ns))
        return wait if deadline is None else max(0, min(wait, deadline - now_ns))

    def finished(self) -> bool:
        return not self.core.under_way

    def _take_grants(self) -> None:
        """What clients may do, as the files say now; nothing where clients have no keys."""
        doorkeeper = self.sockets.doorkeeper
        if doorkeeper is None:
            return
        grants = doorkeeper.trusted(time.monotonic())
        if not grants and self.core.access.grants:
            self.log.error("the grants could not be looked at for long, all clients are locked out")
        self.core.access.grants = grants

    def step(self, now_ns: int) -> None:
        self._take_grants()
        if self._guard is not None:
            self._guard.step(now_ns)
        if self._page is None:
            return
        for frames in self._page.lookups.take_questions():
            self.core.on_client(PAGE_CLIENT, frames, now_ns)
        if self._page.due(now_ns):
            self._page.take(self._heard(now_ns))

    def _heard(self, now_ns: int) -> Heard:
        core = self.core
        sequenced, computed, committed, snapshot = (core.index_heard(each) for each in STAGES)
        index = Index(sequenced, computed, committed, snapshot, core.term or None)
        services = as_services(core.services(now_ns))
        return Heard(now_ns, time.time_ns(), index, services, dict(core.metrics))

    def tell_metrics(self, message: StageMetrics) -> None:
        self.core.metrics[message.stage] = message, time.monotonic_ns()

    def _send_to_client(self, client: bytes, frames: Sequence[Buffer]) -> bool | None:
        if client == PAGE_CLIENT and self._page is not None:
            self._page.lookups.answered(frames)
            return True
        return self._clients.send_to(client, frames)

    def flush(self, now_ns: int) -> None:
        super().flush(now_ns)
        core = self.core
        for question in (*core.requests, *core.registrations.questions):
            self._transactor.send(encode(question))
        core.requests.clear()
        core.registrations.questions.clear()
        for asked in core.clock.questions:
            # Not queued for one that is away: it is repeated.
            self._sequencer.send(encode(asked))
        core.clock.questions.clear()
        queries = core.reads.queries
        sent = 0
        # What the socket does not take now goes out in a later turn, in order.
        while sent < len(queries) and self._snapshotter.send(encode(queries[sent])):
            sent += 1
        del queries[:sent]
        self._answers.retry()
        for client, frames in core.desk.answers:
            self._answers.put(client, frames)
        core.desk.answers.clear()

    def _on_client(self, frames: list[Buffer], now_ns: int) -> None:
        clients = self._clients
        client = bytes(frames[0])
        if self._guard is None or self._guard.heard(clients.source, client, clients.user, now_ns):
            self.core.on_client(client, frames[1:], now_ns, clients.user)

    def _on_denied(self, request: ClientRequest, key: str, refusal: Refusal) -> None:
        forbidden = refusal.code == ErrorCode.FORBIDDEN
        if refusal.details.get("revoked") and self._guard is not None:
            self._guard.connections.revoked(self._clients.source)
        if not forbidden:
            self.limited[str(refusal.details["limit"])] += 1
        throttle = self._denials[ErrorCode.FORBIDDEN if forbidden else "limit"]
        held_back = throttle.passes(time.monotonic())
        if held_back is not None:
            self.log.log(
                logging.WARNING if forbidden else logging.INFO,
                "refused a request" if forbidden else "a client is beyond its limits",
                extra=logs.fields(
                    key=key,
                    request=type(request).__name__.lower(),
                    why=refusal.message,
                    held_back=held_back,
                ),
            )

    def close(self) -> None:
        if self._guard is not None:
            self._guard.close()
        if self._page is not None:
            self._page.close()
        super().close()
