"""The gateway's shell: sockets around `GatewayCore`."""

from __future__ import annotations

from typing import Final

from tallybus.common import logs
from tallybus.common.bus import Port
from tallybus.common.frames import (
    TOPIC_EVENT,
    TOPIC_STATUS,
    Answer,
    Assigned,
    Buffer,
    FunctionsAnswer,
    Message,
    Prepared,
    Presence,
    Results,
    ResultsGone,
    StageStatus,
    encode,
)
from tallybus.common.function_names import MAX_BINARY_BYTES
from tallybus.common.service import Shell
from tallybus.common.settings import HEADER_BYTES, OPERATION_BYTES
from tallybus.services.gateway.answers import AnswerQueue
from tallybus.services.gateway.core import GatewayCore
from tallybus.services.gateway.metrics import GatewayMeter
from tallybus.services.gateway.protocol import Limits

CLIENT_MESSAGES_PER_TURN: Final = 512
RETRY_NS: Final = 1_000_000
"""How long answers wait that a client's connection did not take."""


class GatewayService(Shell):
    """One gateway. `endpoint` tells where clients reach it once `prepare` has returned."""

    stage = "gateway"
    core: GatewayCore

    def prepare(self) -> None:
        self.lock_run_folder()
        settings = self.settings
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
        )
        self.open_client_of("sequencer")
        self._clients: Port = self.bus.clients(
            settings.gateway.endpoint,
            max(
                settings.gateway.max_batch * OPERATION_BYTES,
                settings.gateway.max_reads * 8,
                MAX_BINARY_BYTES,
            )
            + HEADER_BYTES,
        )
        self._answers = AnswerQueue(self._clients.send_to)
        self.endpoint = self._clients.endpoint
        self._snapshotter = self.bus.dealer("snapshotter")
        self._transactor = self.bus.dealer("transactor")
        self.read(
            self.bus.subscriber(
                ["sequencer", "transactor", "wal", "snapshotter"], [TOPIC_STATUS, TOPIC_EVENT]
            ),
            self.receive_broadcast,
            most=1024,
        )
        self.read(self._snapshotter, self._on_answer, most=256)
        self.read(self._transactor, self._on_answer, most=256)
        self.read(
            self._clients,
            self._on_client,
            lambda: not self.stopping,
            most=CLIENT_MESSAGES_PER_TURN,
        )
        if isinstance(self.meter, GatewayMeter):
            self.core.desk.answered = self.meter.answered
            self.core.gathered = self.meter.batch_transactions.observe
        self.log.info("listening", extra=logs.fields(endpoint=self.endpoint))

    def new_meter(self) -> GatewayMeter:
        return GatewayMeter(self)

    @property
    def answers(self) -> AnswerQueue:
        """Answers on their way to clients."""
        return self._answers

    def timeout_ns(self, now_ns: int) -> int:
        deadline = self.core.desk.next_deadline_ns()
        wait = RETRY_NS if self._answers.waiting else super().timeout_ns(now_ns)
        return wait if deadline is None else max(0, min(wait, deadline - now_ns))

    def finished(self) -> bool:
        return not self.core.under_way

    def flush(self, now_ns: int) -> None:
        super().flush(now_ns)
        core = self.core
        for question in (*core.requests, *core.registrations.questions):
            self._transactor.send(encode(question))
        core.requests.clear()
        core.registrations.questions.clear()
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

    def on_broadcast(self, message: Message, now_ns: int) -> None:
        if isinstance(message, StageStatus):
            self.core.on_status(message, now_ns)
        elif isinstance(message, Results):
            self.core.on_results(message)
        elif isinstance(message, Presence):
            self.core.on_presence(message)
        elif isinstance(message, Assigned):
            self.core.on_assigned(message)

    def _on_answer(self, frames: list[Buffer], now_ns: int) -> None:
        message = self.decoded(frames)
        if isinstance(message, Answer):
            self.core.on_answer(message)
        elif isinstance(message, Results):
            self.core.on_results(message)
        elif isinstance(message, ResultsGone):
            self.core.on_results_gone(message)
        elif isinstance(message, Prepared):
            self.core.on_prepared(message)
        elif isinstance(message, FunctionsAnswer):
            self.core.on_functions(message)

    def _on_client(self, frames: list[Buffer], now_ns: int) -> None:
        self.core.on_client(bytes(frames[0]), frames[1:], now_ns)
