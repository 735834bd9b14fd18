"""The gateway's decisions, without I/O.

Messages come in from clients and from the stages, and are handed to what they concern: submissions
to `Submissions`, which follows them through the pipeline, reads to `Reads`, registrations and
questions about functions to `Registrations`. Reads wait for their `min_tx_id` and for every stage
to be heard of. Every request is held at the `Desk`, where it gets its one answer in time. Nothing
that a client sends raises out of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tallybus.common.buffers import Buffer, as_buffer
from tallybus.common.bus.messages import (
    Answer,
    Assigned,
    ClockAnswer,
    FrameError,
    FunctionsAnswer,
    Message,
    Prepared,
    Presence,
    Results,
    ResultsGone,
    StageMetrics,
    StageStatus,
)
from tallybus.common.bus.transaction import reply_fields, reply_payloads, transaction_in
from tallybus.common.protocol import PROTOCOL_VERSION, REVISION, ErrorCode
from tallybus.common.record import STATUS_DTYPE, Level
from tallybus.common.security.keys import Role
from tallybus.common.service.core import Channel, Routes, StageCore, alone, timed
from tallybus.common.stages import STAGES
from tallybus.services.gateway.clients import protocol
from tallybus.services.gateway.clients.access import Access
from tallybus.services.gateway.clients.desk import Desk
from tallybus.services.gateway.clients.lateness import why_late
from tallybus.services.gateway.clients.protocol import (
    BadRequest,
    ClientRequest,
    ClockRead,
    FunctionsRead,
    IndexRead,
    Limits,
    Ping,
    Read,
    Refusal,
    Register,
    ServicesRead,
    Submit,
    Wait,
)
from tallybus.services.gateway.clients.quotas import Quotas
from tallybus.services.gateway.pipeline.clock import ClockQuestions
from tallybus.services.gateway.pipeline.heard import Services
from tallybus.services.gateway.pipeline.progress import Progress
from tallybus.services.gateway.pipeline.reads import Reads
from tallybus.services.gateway.pipeline.registrations import Registrations
from tallybus.services.gateway.pipeline.submissions import SUBMIT_NS, Submissions

UNREADY_KEPT: Final = 1024
"""Reads waiting for a stage from which on those that timed out are looked for and dropped."""


class GatewayCore(StageCore):
    """State machine of the gateway. Submissions are taken at once; reads wait until all stages
    were heard."""

    stage = "gateway"

    def __init__(
        self,
        incarnation: int,
        max_in_flight: int,
        heartbeat_ns: int,
        limits: Limits,
        max_wait_ms: int,
        quotas: Quotas | None = None,
        submit_ns: int = SUBMIT_NS,
    ) -> None:
        """`submit_ns`: what the calls of one submit may take of the transactor's time."""
        super().__init__(incarnation, heartbeat_ns)
        self.limits = limits
        self._max_wait_ms = max_wait_ms
        self.access = Access()
        self.quotas = Quotas() if quotas is None else quotas
        self.denied: Callable[[ClientRequest, str, Refusal], None] | None = None
        """Called with each request that its client may not make, or not now, and its key's name."""
        self.desk = Desk(max_wait_ms * 1_000_000)
        self.reads = Reads()
        self.registrations = Registrations()
        self.clock = ClockQuestions()
        self.progress = Progress()
        self.submissions = Submissions(
            incarnation, max_in_flight, limits.max_batch, self.desk, self.progress, submit_ns
        )
        self.link = self.submissions.link
        self.submissions.work.charged = self._on_work
        self.worked: Callable[[str, int], None] | None = None
        """Called with the name of a client's key ("" without one) and the nanoseconds of the
        transactor's time that its calls took, where somebody counts them."""
        self._heard: set[str] = set()
        self._services = Services()
        self.metrics: dict[str, tuple[StageMetrics, int]] = {}
        """The last numbers of each stage, and when they were heard."""
        self._unready: list[ClientRequest] = []
        self._unready_most = UNREADY_KEPT
        self._transactor = 0
        """The incarnation whose outcomes hold; 0: none was heard yet."""
        self._followed = 0
        """The one that the log follows: of all transactors it alone is believed (ADR 0016)."""
        self._unfollowed: StageStatus | None = None
        """The last status of another transactor than that."""
        self._snapshotter = 0
        self._now_ns = 0

    def routes(self) -> Routes:
        return {
            (Channel.ANSWER, Answer): alone(self.on_answer),
            (Channel.ANSWER, Results): alone(self.on_results),
            (Channel.ANSWER, ResultsGone): alone(self.on_results_gone),
            (Channel.ANSWER, Prepared): alone(self.on_prepared),
            (Channel.ANSWER, FunctionsAnswer): alone(self.on_functions),
            (Channel.ANSWER, ClockAnswer): alone(self.on_clock),
            (Channel.BROADCAST, StageStatus): timed(self.on_status),
            (Channel.BROADCAST, Results): alone(self.on_results),
            (Channel.BROADCAST, Assigned): alone(self.on_assigned),
            (Channel.BROADCAST, Presence): alone(self.on_presence),
            (Channel.BROADCAST, StageMetrics): timed(self.on_metrics),
        }

    # -- clients ---------------------------------------------------------------------------------

    def on_client(
        self, client: bytes, frames: Sequence[Buffer], now_ns: int, user: bytes = b""
    ) -> None:
        """One message of a client, whatever it holds. `user` is the public key that it has proved
        to hold; without one it may do everything, within the gateway's own limits. The gateway's
        page, whose id is empty as no other client's is, only reads and bounds itself."""
        try:
            request = protocol.decode_request(client, frames, self.limits)
            if self.desk.holds(client, request.id) and not isinstance(request, Ping):
                raise BadRequest(
                    f"request id {request.id} is still in use on this connection",
                    request.id,
                    field="id",
                )
        except BadRequest as error:
            self.desk.refuse(client, error)
            return
        request.owner = user or client
        if client and (self.quotas.limited or self.access.grants is not None):
            self._on_limited(request, frames, now_ns, user)
        else:
            self._on_request(request, now_ns)

    def _on_limited(
        self, request: ClientRequest, frames: Sequence[Buffer], now_ns: int, user: bytes
    ) -> None:
        """A request of somebody who may not do everything."""
        grant = self.access.grant(user)
        if isinstance(request, Ping):
            request.grant = grant
        refusal = self.access.refusal(request, user)
        if refusal is None and not isinstance(request, Ping):
            refusal = self.quotas.refusal(request, frames, grant, now_ns)
        if refusal is not None:
            self.desk.deny(request, refusal)
            if self.denied is not None:
                self.denied(request, "" if grant is None else grant.name, refusal)
        elif self._on_request(request, now_ns) and not isinstance(request, Ping):
            held = self.desk.holds(request.client, request.id)
            self.quotas.take(request, grant, now_ns, held)

    def _on_request(self, request: ClientRequest, now_ns: int) -> bool:
        """A request that its client may make. Whether there was room for it."""
        if isinstance(request, Ping):
            self._on_ping(request)
            return True
        if isinstance(request, ServicesRead):
            self.desk.reply(request, {"services": self.services(now_ns)})
            return True
        if not self.desk.takes(request):
            self.desk.overloaded(
                request, f"{len(self.desk)} requests are waiting, too many of them this client's"
            )
            return False
        if isinstance(request, Register) and request.binary:
            if not self.registrations.takes(request):
                self.desk.overloaded(
                    request,
                    f"{self.registrations.held_bytes} bytes of modules are waiting, too many of "
                    "them this client's",
                )
                return False
            self.registrations.prepare(request)
        elif isinstance(request, Submit):
            if not self.submissions.takes(request):
                self.desk.overloaded(request, f"{self.link.weight} operations are on their way")
                return False
            self.submissions.add(request, now_ns)
        elif isinstance(request, Read):
            if not self.reads.takes(request):
                self.desk.overloaded(request, f"{self.reads.held_bytes} bytes of reads are waiting")
                return False
        elif isinstance(request, Wait) and request.level is Level.NONE:
            # Whatever has an id was sequenced; the first level that can be waited for is the next.
            request.level = Level.COMPUTED
        self.desk.hold(request, now_ns)
        if isinstance(request, Submit):
            return True
        if self.ready:
            self._start(request)
        else:
            self._unready.append(request)
            if len(self._unready) >= self._unready_most:
                self._unready = [each for each in self._unready if not each.done]
                self._unready_most = max(UNREADY_KEPT, 2 * len(self._unready))
        return True

    def index_heard(self, stage: str) -> int | None:
        """How far this stage of the pipeline has come; None: not heard since this gateway began."""
        if stage not in self._heard:
            return None
        progress = self.progress
        known = {
            "sequencer": progress.sequenced,
            "transactor": progress.computed,
            "wal": progress.committed,
            "snapshotter": progress.snapshot,
        }
        return known[stage]

    def services(self, now_ns: int) -> list[dict[str, Any]]:
        """What was last heard of each service, as a client's `services` is answered."""
        return self._services.rows(self.status(), self.presence, now_ns)

    @property
    def ready(self) -> bool:
        """Whether every stage of the pipeline was heard since this gateway started."""
        return len(self._heard) == 4

    @property
    def awaits(self) -> str:
        return "" if self.ready and self.term else "it has not heard of every stage yet"

    @property
    def under_way(self) -> bool:
        """Whether any submission was taken and is not computed and answered."""
        return self.submissions.under_way or self.desk.submits

    def _finish(self, request: ClientRequest, fields: dict[str, Any], *payloads: Buffer) -> None:
        if isinstance(request, Read):
            self.reads.let_go(request)
        self.desk.finish(request, fields, *payloads)

    def _fail(self, request: ClientRequest, code: ErrorCode, message: str, **details: Any) -> None:
        if isinstance(request, Read):
            self.reads.let_go(request)
        self.desk.fail(request, code, message, **details)

    def _on_ping(self, ping: Ping) -> None:
        unknown = [item for item in ping.pending if not self.desk.holds(ping.client, item)]
        fields = {
            "unknown": unknown,
            "incarnation": self.incarnation,
            "protocol": PROTOCOL_VERSION,
            "revision": REVISION,
            "max_batch": self.limits.max_batch,
            "max_reads": self.limits.max_reads,
            "max_accounts": self.limits.max_accounts,
            "max_request_wait_ms": self._max_wait_ms,
            "role": (Role.ADMIN if ping.grant is None else ping.grant.role).name.lower(),
            "limits": self.quotas.told(ping.grant),
        }
        self.desk.reply(ping, fields)

    def _start(self, request: ClientRequest) -> None:
        progress = self.progress
        if isinstance(request, IndexRead):
            self._finish(
                request,
                {
                    "sequenced": progress.sequenced,
                    "computed": progress.computed,
                    "committed": progress.committed,
                    "snapshot": progress.snapshot,
                    "term": self.term,
                },
            )
        elif isinstance(request, Wait):
            if progress.index(request.level) >= request.tx_id:
                self._finish(request, {"level": int(request.level)})
            else:
                progress.wait(request.level, request.tx_id, request)
        elif isinstance(request, FunctionsRead):
            self.registrations.read(request)
        elif isinstance(request, ClockRead):
            self.clock.ask(request)
        elif isinstance(request, Read):
            if request.min_tx_id > progress.snapshot:
                progress.wait(Level.SNAPSHOT, request.min_tx_id, request)
            else:
                self._read(request)

    def _read(self, read: Read) -> None:
        if read.what == "balances":
            self.reads.add_balances(read)
        elif read.what == "transaction":
            self.reads.ask_transaction(read, self.progress.snapshot)
        else:
            self._read_statuses(read)

    # -- submissions -----------------------------------------------------------------------------

    def next_data(self) -> Message | None:
        return self.submissions.next_request()

    def data_sent(self, now_ns: int) -> None:
        self.submissions.request_sent(now_ns)

    def on_assigned(self, message: Assigned) -> None:
        """The sequencer gave ids to requests."""
        self.submissions.on_assigned(message)

    def on_results(self, message: Results) -> None:
        """Outcomes from the transactor, by broadcast or asked for."""
        if message.incarnation != self._transactor:
            return  # its status comes first; what is missed is asked for
        self._advance(Level.COMPUTED, self.submissions.on_results(message))

    def on_results_gone(self, message: ResultsGone) -> None:
        """The transactor no longer holds outcomes that this gateway missed."""
        self.submissions.on_results_gone(message)

    def _on_work(self, owner: bytes, took_ns: int) -> None:
        grant = self.access.grant(owner)
        self.quotas.worked(owner, grant, took_ns, self._now_ns)
        if self.worked is not None:
            self.worked("" if grant is None else grant.name, took_ns)

    # -- functions -------------------------------------------------------------------------------

    def on_prepared(self, message: Prepared) -> None:
        """The transactor has looked at a module."""
        register = self.registrations.prepared(message)
        if register is None:
            return
        if message.busy:
            self._fail(register, ErrorCode.OVERLOADED, message.reason)
        elif message.refused:
            self._fail(
                register,
                ErrorCode.INVALID_FUNCTION,
                f"{register.names[0]} cannot be registered: {message.reason}",
                name=register.names[0],
                reason=message.reason,
            )
        elif self.submissions.takes(register):
            self.submissions.add(register, self._now_ns)
        else:
            why = f"{self.link.weight} operations are on their way; try again later"
            self._fail(register, ErrorCode.OVERLOADED, why)

    def on_functions(self, message: FunctionsAnswer) -> None:
        """The transactor's live functions."""
        for read in self.registrations.answered(message.query):
            self._finish(read, {"functions": message.functions, "totals": message.totals})

    # -- the ledger's time -----------------------------------------------------------------------

    def on_clock(self, message: ClockAnswer) -> None:
        """The sequencer's answer."""
        read = self.clock.answered(message)
        if read is not None:
            self._finish(read, {"time": message.time, "wall": message.wall, "held": message.held})

    # -- broadcasts ------------------------------------------------------------------------------

    def on_status(self, message: StageStatus, now_ns: int) -> None:
        """A stage's broadcast."""
        self._services.on_status(message, now_ns)
        if message.stage != "sequencer" and message.term > self.term:
            # Its ids may be others than this gateway knows; a heartbeat repeats it after the
            # sequencer's.
            return
        if message.stage == "transactor" and message.incarnation != self._followed:
            # It was replaced, or the log is about to tell that it follows this one.
            self._unfollowed = message
            return
        if message.stage != "wal":
            self._heard.add(message.stage)
        if message.stage == "sequencer":
            self.submissions.on_sequencer(message, now_ns)
            self.term = self.submissions.terms.current
        elif message.stage == "transactor":
            self.submissions.work.sharers = message.sharers
            if message.incarnation != self._transactor:
                self._transactor = message.incarnation
                self.registrations.ask_again()
                self.submissions.ask_again()
                if self.submissions.listening:
                    self.submissions.on_transactor(message.start)
            index = self.submissions.computed_of(message)
            if not self.submissions.listening:
                self.submissions.listen_from(index + 1)
                self._advance(Level.COMPUTED, index)
            elif (question := self.submissions.missed(index, now_ns)) is not None:
                self.requests.append(question)
        elif message.stage == "wal":
            self._followed = message.peer
            passed_over, self._unfollowed = self._unfollowed, None
            if passed_over is not None and passed_over.incarnation == message.peer:
                self.on_status(passed_over, now_ns)
            if message.peer == self._transactor:
                # Otherwise outcomes that are known here may not be those in the log. Nor is it
                # known how far the log is, until it was heard so for the first time.
                self._heard.add("wal")
                self._advance(Level.COMMITTED, message.durable)
        elif message.stage == "snapshotter":
            if message.incarnation != self._snapshotter:
                self._snapshotter = message.incarnation
                self.reads.ask_again()
            self._advance(Level.SNAPSHOT, message.index)
        if self._unready and self.ready:
            waiting, self._unready = self._unready, []
            for request in waiting:
                if not request.done:
                    self._start(request)

    def _advance(self, level: Level, index: int) -> None:
        if level is Level.SNAPSHOT:
            self.submissions.readable(index)
        for request in self.progress.advance(level, index):
            if isinstance(request, Submit):
                self.submissions.reached(request, index)
            else:
                self._start(request)

    def on_presence(self, message: Presence) -> None:
        """A stage's broadcast about its process."""
        self._services.on_presence(message)

    def on_metrics(self, message: StageMetrics, now_ns: int) -> None:
        """A stage's numbers, for the page."""
        if message.stage in STAGES:
            self.metrics[message.stage] = message, now_ns

    # -- reads -----------------------------------------------------------------------------------

    def _read_statuses(self, read: Read) -> None:
        keys, progress = read.keys, self.progress
        readable = (keys > 0) & (keys <= progress.snapshot)
        waiting = keys[(keys > progress.snapshot) & (keys <= progress.computed)]
        if len(waiting) and not self.submissions.covers(int(waiting.min())):
            # Computed before this gateway listened, not readable yet: readable is what comes next.
            progress.wait(Level.SNAPSHOT, int(waiting.max()), read)
            return
        # What is not readable yet is answered as of now: its outcome is forgotten when it is.
        read.rows = self.submissions.statuses(keys)
        read.asked = readable
        if readable.any():
            self.reads.ask_statuses(read, progress.snapshot)
        else:
            self._finish(read, {"count": len(keys)}, as_buffer(read.rows))

    def on_answer(self, message: Answer) -> None:
        """The snapshotter's answer to a query."""
        for offset, read in self.reads.answered(message):
            if message.overloaded:
                why = f"the snapshotter is busy: {message.error}; try again later"
                self._fail(read, ErrorCode.OVERLOADED, why)
            elif message.error:
                # Of a log that cannot be read, the answer tells where; no client can help that.
                damaged = "path" in message.details
                code = ErrorCode.INTERNAL if damaged else ErrorCode.INVALID_REQUEST
                self._fail(read, code, message.error, **message.details)
            elif read.what == "balances":
                values = message.values[offset * 8 : (offset + len(read.keys)) * 8]
                self._finish(read, {"count": len(read.keys), "snapshot": message.index}, values)
            elif read.what == "transaction":
                tx_id = int(read.keys[0])
                try:
                    found = transaction_in(message, tx_id)
                except FrameError as error:
                    self._fail(read, ErrorCode.INTERNAL, str(error))
                    continue
                fields = reply_fields(tx_id, message.index, found)
                self._finish(read, fields, *reply_payloads(found))
            else:
                read.rows[read.asked] = np.frombuffer(message.values, STATUS_DTYPE)
                self._finish(read, {"count": len(read.keys)}, as_buffer(read.rows))

    # -- turns -----------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """Once a turn: send what was gathered, time out what is late."""
        self._now_ns = now_ns
        self.submissions.flush(now_ns)
        self.reads.flush(self.progress.snapshot)
        self.registrations.tick(now_ns)
        self.clock.tick(now_ns)
        for request in self.desk.late(now_ns):
            self._time_out(request)
        self.link.check_stall(now_ns)

    def _time_out(self, request: ClientRequest) -> None:
        silent = [
            stage
            for stage in ("sequencer", "transactor", "wal", "snapshotter")
            if stage not in self._heard
        ]
        why = why_late(request, self.progress, silent)
        if isinstance(request, Submit) and self.submissions.waits(request):
            self._fail(
                request,
                ErrorCode.OVERLOADED,
                "its calls of functions waited for their turn until the time was over; nothing was "
                "done, try again later",
            )
        elif isinstance(request, Submit):
            self._fail(
                request,
                ErrorCode.TIMEOUT,
                why,
                first=request.first if 0 < request.last <= self.progress.computed else None,
                level=int(request.level),
            )
        else:
            self._fail(request, ErrorCode.TIMEOUT, why)

    def status(self) -> StageStatus:
        return StageStatus(
            stage=self.stage,
            term=self.term,
            incarnation=self.incarnation,
            index=self.progress.sequenced,
            next=self.link.end,
            durable=self.progress.committed,
            retained=self.link.weight,
        )
