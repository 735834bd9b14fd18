"""The gateway's decisions, without I/O.

Clients' submissions become numbered requests to the sequencer, kept until they are computed.
Broadcasts
tell which ids they got, how they ended and how far each index has come; a gap in the outcomes is
asked for
again, never taken for success. Reads wait for their `min_tx_id` and go to the snapshotter,
gathered.
Nothing that a client sends raises out of this module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tallybus.common.frames import (
    EMPTY,
    MAX_U64,
    PROTOCOL_VERSION,
    Answer,
    Assigned,
    Buffer,
    FrameError,
    FunctionsAnswer,
    Message,
    Prepared,
    Presence,
    Request,
    Results,
    ResultsGone,
    ResultsQuery,
    StageStatus,
    as_buffer,
    size,
)
from tallybus.common.link import LinkSender, weigh
from tallybus.common.record import FAILURE_DTYPE, STATUS_DTYPE, Level, Stage
from tallybus.common.stage import StageCore
from tallybus.common.transaction import reply_fields, reply_payloads, transaction_in
from tallybus.services.gateway import protocol
from tallybus.services.gateway.desk import Desk
from tallybus.services.gateway.functions import Registrations
from tallybus.services.gateway.outcomes import RecentOutcomes
from tallybus.services.gateway.protocol import (
    BadRequest,
    ClientRequest,
    FunctionsRead,
    IndexRead,
    Limits,
    Ping,
    Read,
    Register,
    ServicesRead,
    Submit,
    Wait,
)
from tallybus.services.gateway.reads import Reads
from tallybus.services.gateway.requests import Batch, Gatherer
from tallybus.services.gateway.services import Services
from tallybus.services.gateway.waits import Marks

ASK_AGAIN_NS: Final = 100_000_000
UNREADY_KEPT: Final = 1024
"""Reads waiting for a stage from which on those that timed out are looked for and dropped."""
TERMS_KEPT: Final = 1024
NO_FAILURES: Final = np.empty(0, FAILURE_DTYPE)


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
    ) -> None:
        super().__init__(incarnation, heartbeat_ns)
        self.limits = limits
        self.desk = Desk(max_wait_ms * 1_000_000)
        self.reads = Reads()
        self.registrations = Registrations()
        self.link: LinkSender[Request] = LinkSender(1, max_in_flight, "the sequencer")
        self.sequenced = 0
        self.computed = 0
        self.committed = 0
        self.snapshot = 0
        self._heard: set[str] = set()
        self._services = Services()
        self._gatherer = Gatherer(incarnation, limits.max_batch)
        self._gathered = 0
        self.gathered: Callable[[int], None] | None = None
        """Called with the size of each batch that was gathered, where somebody counts them."""
        self._batches: dict[int, Batch] = {}
        self._settled: deque[Batch] = deque()
        """Computed batches of which some members wait for more, in order."""
        self._waits = {level: Marks[ClientRequest]() for level in Level if level}
        self._unready: list[ClientRequest] = []
        self._unready_most = UNREADY_KEPT
        self._term_start = 0
        self._voids: deque[tuple[int, int]] = deque(maxlen=TERMS_KEPT)
        """Terms heard of, and from which id on each voids what was told before it."""
        self._accepted = (0, 0)
        self._results_next = 0
        self._recent = RecentOutcomes()
        self._asked_ns = -ASK_AGAIN_NS
        self._transactor = 0
        self._snapshotter = 0

    # -- clients ---------------------------------------------------------------------------------

    def on_client(self, client: bytes, frames: Sequence[Buffer], now_ns: int) -> None:
        """One message of a client, whatever it holds."""
        try:
            request = protocol.decode_request(client, frames, self.limits)
            if self.desk.holds(client, request.id) and not isinstance(request, Ping):
                raise BadRequest(
                    f"request id {request.id} is still in use on this connection", request.id
                )
        except BadRequest as error:
            self.desk.refuse(client, error)
            return
        if isinstance(request, Ping):
            self._on_ping(request)
            return
        if isinstance(request, ServicesRead):
            rows = self._services.rows(self.status(), self.presence, now_ns)
            self.desk.reply(request, {"services": rows})
            return
        if self.desk.full:
            self.desk.overloaded(request, f"{len(self.desk)} requests are waiting")
            return
        if isinstance(request, Register) and request.binary:
            if not self.registrations.takes(request):
                self.desk.overloaded(
                    request, f"{self.registrations.held_bytes} bytes of modules are waiting"
                )
                return
            self.registrations.prepare(request)
        elif isinstance(request, Submit):
            if not self._room_for(request):
                self.desk.overloaded(request, f"{self.link.weight} operations are on their way")
                return
            self._gather(request)
        elif isinstance(request, Read):
            if not self.reads.takes(request):
                self.desk.overloaded(request, f"{self.reads.held_bytes} bytes of reads are waiting")
                return
        elif isinstance(request, Wait) and request.level is Level.NONE:
            # Whatever has an id was sequenced; the first level that can be waited for is the next.
            request.level = Level.COMPUTED
        self.desk.hold(request, now_ns)
        if isinstance(request, Submit):
            return
        if self.ready:
            self._start(request)
        else:
            self._unready.append(request)
            if len(self._unready) >= self._unready_most:
                self._unready = [each for each in self._unready if not each.done]
                self._unready_most = max(UNREADY_KEPT, 2 * len(self._unready))

    def _room_for(self, submit: Submit) -> bool:
        return self._gathered + submit.count <= self.link.room or not (
            self._gathered or len(self.link)
        )

    def _gather(self, submit: Submit) -> None:
        self._gathered += submit.count
        self._gatherer.add(submit)

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
        return bool(self._gathered) or bool(self._batches) or self.desk.submits

    def _finish(self, request: ClientRequest, fields: dict[str, Any], *payloads: Buffer) -> None:
        if isinstance(request, Read):
            self.reads.let_go(request)
        self.desk.finish(request, fields, *payloads)

    def _fail(self, request: ClientRequest, code: str, message: str, **details: Any) -> None:
        if isinstance(request, Read):
            self.reads.let_go(request)
        self.desk.fail(request, code, message, **details)

    def _on_ping(self, ping: Ping) -> None:
        unknown = [item for item in ping.pending if not self.desk.holds(ping.client, item)]
        fields = {
            "unknown": unknown,
            "incarnation": self.incarnation,
            "protocol": PROTOCOL_VERSION,
            "max_batch": self.limits.max_batch,
            "max_accounts": self.limits.max_accounts,
        }
        self.desk.reply(ping, fields)

    def _start(self, request: ClientRequest) -> None:
        if isinstance(request, IndexRead):
            self._finish(
                request,
                {
                    "sequenced": self.sequenced,
                    "computed": self.computed,
                    "committed": self.committed,
                    "snapshot": self.snapshot,
                    "term": self.term,
                },
            )
        elif isinstance(request, Wait):
            if self._index(request.level) >= request.tx_id:
                self._finish(request, {"level": int(request.level)})
            else:
                self._waits[request.level].add(request.tx_id, request)
        elif isinstance(request, FunctionsRead):
            self.registrations.read(request)
        elif isinstance(request, Read):
            if request.min_tx_id > self.snapshot:
                self._waits[Level.SNAPSHOT].add(request.min_tx_id, request)
            else:
                self._read(request)

    def _read(self, read: Read) -> None:
        if read.what == "balances":
            self.reads.add_balances(read)
        elif read.what == "transaction":
            self.reads.ask_transaction(read, self.snapshot)
        else:
            self._read_statuses(read)

    # -- the way through the pipeline ------------------------------------------------------------

    def next_data(self) -> Message | None:
        if self._results_next == 0 or self.term == 0:
            # Nothing of ours may be computed before this gateway knows from where on to listen.
            return None
        message = self.link.peek()
        if message is not None:
            message.oldest = self.link.base
            message.term = self.term
            batch = self._batches.get(message.request)
            # What was given up must never be executed: it asks for an id that nothing gets.
            message.told = MAX_U64 if batch is None else batch.told
        return message

    def data_sent(self, now_ns: int) -> None:
        message = self.link.peek()
        batch = None if message is None else self._batches.get(message.request)
        if batch is not None:
            batch.sent = True
        self.link.sent(now_ns)

    def on_assigned(self, message: Assigned) -> None:
        """The sequencer gave ids to requests."""
        if message.term < self.term and self._void(message.term, message.batches):
            return
        for gateway, request, first, count in message.batches:
            if gateway != self.incarnation:
                continue
            batch = self._batches.get(request)
            if batch is None or batch.count != count:
                continue
            if first:
                self._place(batch, first, message.term)
            else:
                self._drop(batch, protocol.LOST, "its ids went to others after a restart")

    def _void(self, term: int, rows: Sequence[Sequence[int]]) -> bool:
        """Whether an older term speaks of ids that a later one gave again (rows have id, count)."""
        valid = min((void for later, void in self._voids if later > term), default=0)
        return any(row[2] + row[3] > valid for row in rows)

    def _drop(self, batch: Batch, code: str, why: str) -> None:
        """Give a batch up: its outcome will not be told."""
        self._batches.pop(batch.request, None)
        self._release()
        for _, submit in batch.members:
            if not submit.done:
                self._fail(submit, code, why, first=submit.first or None)

    def _place(self, batch: Batch, first: int, term: int) -> None:
        if batch.first == first and batch.term == term:
            return
        batch.first, batch.term = first, term
        self.sequenced = max(self.sequenced, first + batch.count - 1)
        for offset, submit in batch.members:
            submit.first, submit.term = first + offset, term
            if submit.level is Level.NONE and not submit.done:
                batch.told = first
                fields = {
                    "first": submit.first,
                    "count": submit.count,
                    "level": int(Level.NONE),
                    "failures": 0,
                }
                self._finish(submit, fields, EMPTY)

    def on_results(self, message: Results) -> None:
        """Outcomes from the transactor, by broadcast or asked for."""
        if self._results_next == 0 or message.first > self._results_next:
            # Before the first heartbeat there is nothing of ours; later a gap is asked for in
            # `tick`.
            return
        if message.term > self.term:
            # Asked for again when the sequencer's status has told where its term begins.
            return
        if message.term < self.term and self._void(message.term, message.batches):
            return
        if message.first + message.count <= self._results_next:
            return
        self._recent.add(message)
        failures = np.frombuffer(message.failures, FAILURE_DTYPE)
        position = 0
        for gateway, request, first, count, failed in message.batches:
            rows = failures[position : position + failed]
            position += failed
            if gateway != self.incarnation or first + count <= self._results_next:
                continue
            while self._batches and (oldest := next(iter(self._batches))) < request:
                # Requests are executed in their order, so this one was passed over.
                self._drop(
                    self._batches[oldest],
                    protocol.OUTCOME_UNKNOWN,
                    "the sequencer and the transactor were lost while it was under way",
                )
            batch = self._batches.get(request)
            if batch is not None:
                self._computed(batch, first, count, rows, message.term)
        self._results_next = message.first + message.count
        self._drop_passed_over()
        self._advance(Level.COMPUTED, self._results_next - 1)

    def _computed(self, batch: Batch, first: int, count: int, rows: Any, term: int) -> None:
        if batch.first == 0:
            self._place(batch, first - batch.computed, term)
        known = batch.first + batch.computed - first
        if known < 0 or known >= count:
            return
        if known:
            rows = rows[rows["offset"] >= known]
        if len(rows) and first != batch.first:
            rows = rows.copy()
            rows["offset"] += first - batch.first
        if len(rows):
            batch.failures.append(rows)
        batch.computed += count - known
        if batch.computed < batch.count:
            return
        # Nearly always a batch is computed at once, and its failures are passed on as they came.
        failures = NO_FAILURES
        if batch.failures:
            failures = (
                batch.failures[0] if len(batch.failures) == 1 else np.concatenate(batch.failures)
            )
        del self._batches[batch.request]
        self._release()
        for offset, submit in batch.members:
            if submit.done:
                continue
            if len(failures) and len(batch.members) == 1:
                submit.failures = failures
            elif len(failures):
                low, high = np.searchsorted(failures["offset"], (offset, offset + submit.count))
                own = failures[low:high]
                if offset and len(own):
                    own = own.copy()
                    own["offset"] -= offset
                submit.failures = own
            submit.computed = True
            if self._index(submit.level) >= submit.last:
                self._answer_submit(submit)
            else:
                self._waits[submit.level].add(submit.last, submit)
        self._settled.append(batch)
        while self._settled and self._settled[0].answered:
            self._settled.popleft()

    def _release(self) -> None:
        # Batches are computed in their order, so what is left starts at the oldest one.
        oldest = next(iter(self._batches), self.link.end)
        self.link.release(oldest - 1)

    def _answer_submit(self, submit: Submit) -> None:
        failures = submit.failures
        fields = {
            "first": submit.first,
            "count": submit.count,
            "level": int(submit.level),
            "failures": len(failures),
        }
        payload = as_buffer(failures) if len(failures) else EMPTY
        self._finish(submit, fields, payload)

    def on_results_gone(self, message: ResultsGone) -> None:
        """The transactor no longer holds outcomes that this gateway missed."""
        if message.oldest <= self._results_next:
            return
        self._results_next = message.oldest
        self._recent.clear()
        for batch in list(self._batches.values()):
            if not batch.sent or batch.first >= message.oldest:
                continue
            self._drop(
                batch,
                protocol.OUTCOME_UNKNOWN,
                "the outcome was missed while this gateway was away; "
                "ask for the status of the transactions",
            )

    # -- functions -------------------------------------------------------------------------------

    def on_prepared(self, message: Prepared) -> None:
        """The transactor has looked at a module."""
        register = self.registrations.prepared(message)
        if register is None:
            return
        if message.refused:
            self._fail(
                register,
                protocol.INVALID_FUNCTION,
                f"{register.names[0]} cannot be registered: {message.reason}",
                name=register.names[0],
                reason=message.reason,
            )
        elif self._room_for(register):
            self._gather(register)
        else:
            why = f"{self.link.weight} operations are on their way; try again later"
            self._fail(register, protocol.OVERLOADED, why)

    def on_functions(self, message: FunctionsAnswer) -> None:
        """The transactor's live functions."""
        for read in self.registrations.answered(message.query):
            self._finish(read, {"functions": message.functions})

    # -- broadcasts ------------------------------------------------------------------------------

    def on_status(self, message: StageStatus, now_ns: int) -> None:
        """A stage's broadcast."""
        self._services.on_status(message, now_ns)
        if message.stage != "sequencer" and message.term > self.term:
            # Its ids may be others than this gateway knows; a heartbeat repeats it after the
            # sequencer's.
            return
        self._heard.add(message.stage)
        if message.stage == "sequencer":
            self._on_sequencer(message, now_ns)
        elif message.stage == "transactor":
            if message.incarnation != self._transactor:
                self._transactor = message.incarnation
                self.registrations.ask_again()
                self._asked_ns = now_ns - ASK_AGAIN_NS
            index = message.index
            if message.term < self.term:
                index = min(index, self._term_start - 1)
            if self._results_next == 0:
                self._results_next = index + 1
                self._advance(Level.COMPUTED, index)
            elif index >= self._results_next and now_ns - self._asked_ns >= ASK_AGAIN_NS:
                self._asked_ns = now_ns
                self.requests.append(ResultsQuery(self._results_next, index))
        elif message.stage == "wal":
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

    def _on_sequencer(self, message: StageStatus, now_ns: int) -> None:
        if message.term < self.term or not message.term:
            return
        if message.term > self.term:
            known, self.term = self.term, message.term
            self._term_start = message.start
            # Between the term known here and this one others may have given the ids up to its
            # start again; then only what was durable in the known term is sure.
            skipped = message.term > known + 1
            void = min(message.start, self.committed + 1) if skipped else message.start
            self._voids.append((message.term, void if known else 0))
            if known:
                self._on_new_term(void)
        self.sequenced = max(self.sequenced, message.index)
        expected = message.gateways.get(self.incarnation, self.link.base)
        self._accepted = (message.index, expected)
        self._drop_passed_over()
        # The sequencer may ask for requests that were computed since it last heard of them.
        expected = max(expected, self.link.base)
        self.link.acknowledge(message.incarnation, expected, now_ns, full=message.full)

    def _on_new_term(self, void: int) -> None:
        """A new sequencer has begun: ids from `void` on that older terms gave say nothing."""
        self.sequenced = self._term_start - 1
        self.computed = min(self.computed, void - 1)
        self._results_next = min(self._results_next, void)
        dropped = self._recent.cut(void)
        if dropped is not None:
            self._results_next = min(self._results_next, dropped)
        for batch in list(self._batches.values()):
            if not batch.first or batch.term == self.term or batch.first + batch.count <= void:
                continue
            if batch.first >= void:
                # It goes to the new sequencer again, unless the log has it.
                batch.forget()
                continue
            self._drop(
                batch,
                protocol.OUTCOME_UNKNOWN,
                f"its batch was cut at id {void} when the sequencer and the transactor were lost",
            )
        unsettled: list[Batch] = []
        while self._settled and self._settled[-1].first + self._settled[-1].count > void:
            unsettled.append(self._settled.pop())
        if void == self._term_start:
            for batch in reversed(unsettled):
                self._give_up(batch, void)
            return
        # They may be in the log or not: the outcomes that are asked for again name those that are.
        for batch in unsettled:
            batch.forget()
        waiting = {batch.request: batch for batch in reversed(unsettled) if not batch.answered}
        self._batches = waiting | self._batches

    def _give_up(self, batch: Batch, void: int) -> None:
        """It was computed in the term before, and some of its ids are gone."""
        for _, submit in batch.members:
            if submit.done or submit.last < void:
                continue
            if submit.first < void:
                code, why = protocol.OUTCOME_UNKNOWN, "only a part of it is in the log"
            else:
                code, why = protocol.LOST, "it had no effect"
            self._fail(
                submit,
                code,
                "computed but not yet durable when the sequencer and the transactor were lost; "
                + why,
                first=submit.first,
            )

    def _drop_passed_over(self) -> None:
        """Give up what the sequencer took and gave no ids: all that have ids are computed by
        now."""
        index, expected = self._accepted
        if self._results_next <= index:
            return
        # Nor does what the link has let go of come again.
        expected = max(expected, self.link.base)
        while self._batches and (oldest := next(iter(self._batches))) < expected:
            batch = self._batches[oldest]
            code = protocol.OUTCOME_UNKNOWN if batch.computed else protocol.LOST
            why = "only a part was executed" if batch.computed else "its ids went to others"
            self._drop(batch, code, why)

    def _advance(self, level: Level, index: int) -> None:
        if index <= self._index(level):
            return
        if level is Level.COMPUTED:
            self.computed = index
            self.sequenced = max(self.sequenced, index)
        elif level is Level.COMMITTED:
            self.committed = index
        else:
            self.snapshot = index
            self._recent.forget(index)
        for request in self._waits[level].reached(index):
            if not isinstance(request, Submit):
                self._start(request)
            elif request.computed and request.last <= index:
                # Otherwise a new term has voided the ids for which it waited here.
                self._answer_submit(request)

    def _index(self, level: Level) -> int:
        if level is Level.COMMITTED:
            return self.committed
        return self.snapshot if level is Level.SNAPSHOT else self.computed

    def on_presence(self, message: Presence) -> None:
        """A stage's broadcast about its process."""
        self._services.on_presence(message)

    # -- reads -----------------------------------------------------------------------------------

    def _read_statuses(self, read: Read) -> None:
        keys = read.keys
        readable = (keys > 0) & (keys <= self.snapshot)
        waiting = keys[(keys > self.snapshot) & (keys <= self.computed)]
        if len(waiting) and not self._recent.covers(int(waiting.min())):
            # Computed before this gateway listened, not readable yet: readable is what comes next.
            self._waits[Level.SNAPSHOT].add(int(waiting.max()), read)
            return
        # What is not readable yet is answered as of now: its outcome is forgotten when it is.
        read.rows = self._own_statuses(keys)
        read.asked = readable
        if readable.any():
            self.reads.ask_statuses(read, self.snapshot)
        else:
            self._finish(read, {"count": len(keys)}, as_buffer(read.rows))

    def _own_statuses(self, keys: Any) -> Any:
        rows = np.zeros(len(keys), STATUS_DTYPE)
        rows["stage"][(keys > 0) & (keys <= self.sequenced)] = Stage.PENDING
        rows["stage"][(keys > 0) & (keys <= self.computed)] = Stage.COMPUTED
        # Committed with an outcome that is still to be heard of would look like a success.
        committed = min(self.committed, self.computed)
        rows["stage"][(keys > 0) & (keys <= committed)] = Stage.COMMITTED
        self._recent.fill(rows, keys)
        return rows

    def on_answer(self, message: Answer) -> None:
        """The snapshotter's answer to a query."""
        for offset, read in self.reads.answered(message):
            if message.error:
                # Of a log that cannot be read, the answer tells where; no client can help that.
                damaged = "path" in message.details
                code = protocol.INTERNAL if damaged else protocol.INVALID_REQUEST
                self._fail(read, code, message.error, **message.details)
            elif read.what == "balances":
                values = message.values[offset * 8 : (offset + len(read.keys)) * 8]
                self._finish(read, {"count": len(read.keys), "snapshot": message.index}, values)
            elif read.what == "transaction":
                tx_id = int(read.keys[0])
                try:
                    found = transaction_in(message, tx_id)
                except FrameError as error:
                    self._fail(read, protocol.INTERNAL, str(error))
                    continue
                fields = reply_fields(tx_id, message.index, found)
                self._finish(read, fields, *reply_payloads(found))
            else:
                read.rows[read.asked] = np.frombuffer(message.values, STATUS_DTYPE)
                self._finish(read, {"count": len(read.keys)}, as_buffer(read.rows))

    # -- turns -----------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """Once a turn: send what was gathered, time out what is late."""
        if self._gathered:
            for batch, message in self._gatherer.cut(self.link.end):
                self._batches[batch.request] = batch
                if self.gathered is not None:
                    self.gathered(batch.count)
                weight = weigh(batch.count, size(message.binary))
                self.link.offer(batch.request, 1, message, weight=weight)
            self._gathered = 0
        self.reads.flush(self.snapshot)
        self.registrations.tick(now_ns)
        for request in self.desk.late(now_ns):
            self._time_out(request)
        self.link.check_stall(now_ns)

    def _time_out(self, request: ClientRequest) -> None:
        if isinstance(request, Submit):
            self._fail(
                request,
                protocol.TIMEOUT,
                f"level {request.level.name} was not reached in time; it may still be",
                first=request.first if 0 < request.last <= self.computed else None,
                level=int(request.level),
            )
        else:
            silent = [
                stage
                for stage in ("sequencer", "transactor", "wal", "snapshotter")
                if stage not in self._heard
            ]
            why = (
                f"the {', '.join(silent)} was not heard of yet" if silent else "it was not reached"
            )
            self._fail(request, protocol.TIMEOUT, f"not answered in time: {why}")

    def status(self) -> StageStatus:
        return StageStatus(
            stage=self.stage,
            term=self.term,
            incarnation=self.incarnation,
            index=self.sequenced,
            next=self.link.end,
            durable=self.committed,
            retained=self.link.weight,
        )
